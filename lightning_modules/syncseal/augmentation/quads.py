"""Changes of quads: where the corners of a picture come from after it was cropped, turned, tilted.

Every function takes and returns (B, 4, 2) pixels of the original picture, in the order TL, TR, BR, BL of what is seen.
"""

from __future__ import annotations

import torch
from torch import Tensor

from lightning_modules.functional.geometry import is_usable_quad

CROP_TRIES = 10


def flipped(quads: Tensor, axis: int) -> Tensor:
    """Mirror at the middle of the range of x (axis 0) or y (axis 1)."""
    low, high = quads[..., axis].aminmax(dim=1, keepdim=True)
    mirrored = quads.clone()
    mirrored[..., axis] = low + high - quads[..., axis]
    return mirrored


def rotated(quads: Tensor, quarter_turns: Tensor, angle_deg: Tensor) -> Tensor:
    """Turn by quarters (B,) of -1, 0, 1 or 2, which relabel the corners, and then by degrees (B,) about the middle.

    Quarters stretch what is shown where a picture is not square, since its frame stays.
    """
    order = (torch.arange(4) + quarter_turns[:, None]) % 4
    relabelled = quads.take_along_dim(order[..., None], 1)
    centre = relabelled.mean(1, keepdim=True)
    x, y = (relabelled - centre).unbind(-1)
    cosine, sine = _cos_sin(angle_deg)
    return centre + torch.stack((cosine * x - sine * y, sine * x + cosine * y), -1)


def rotated_inside(quads: Tensor, angle_deg: Tensor) -> Tensor:
    """Turn by degrees (B,) about the middle and keep only so much, at the same proportions, that all lies inside."""
    width, height = ((quads[:, corner] - quads[:, 0]).norm(dim=-1, keepdim=True) for corner in (1, 3))
    cosine, sine = (part.abs() for part in _cos_sin(angle_deg))
    across, down = width * cosine + height * sine, width * sine + height * cosine
    kept = torch.minimum(width / across, height / down)[..., None]
    centre = quads.mean(1, keepdim=True)
    return rotated(centre + (quads - centre) * kept, torch.zeros(len(quads), dtype=torch.int64), angle_deg)


def _cos_sin(angle_deg: Tensor) -> tuple[Tensor, Tensor]:
    radians = angle_deg.double().deg2rad()[:, None]
    return radians.cos(), radians.sin()


def distorted(quads: Tensor, shares: Tensor) -> Tensor:
    """Move corners by shares (B, 4, 2) of the way to the one before and the one after."""
    before, after = quads.roll(1, 1) - quads, quads.roll(-1, 1) - quads
    return quads + shares[..., :1] * before + shares[..., 1:] * after


def convex(quads: Tensor, original: Tensor, halvings: int = 4) -> Tensor:
    """Bring quads that are of no use half-way back to the original, again and again, and there at last."""
    for _ in range(halvings):
        quads = torch.where(is_usable_quad(quads)[:, None, None], quads, (quads + original) / 2)
    return torch.where(is_usable_quad(quads)[:, None, None], quads, original)


def reframed(quads: Tensor, left: Tensor, top: Tensor, right: Tensor, bottom: Tensor) -> Tensor:
    """Show from left to right and from top to bottom (B,), shares of the sides: 0, 0, 1, 1 changes nothing."""
    u = torch.stack((left, right, right, left), 1)[..., None]
    v = torch.stack((top, top, bottom, bottom), 1)[..., None]
    first, second, third, fourth = (corner[:, None] for corner in quads.unbind(1))
    return (1 - v) * ((1 - u) * first + u * second) + v * ((1 - u) * fourth + u * third)


def cropped(quads: Tensor, area: Tensor, aspects: Tensor, places: Tensor) -> Tensor:
    """Keep an upright rectangle inside the quad: the first of several tries that fits, else a square.

    Args:
        quads: (B, 4, 2).
        area: Share (B,) of the bounding box's area.
        aspects: Width over height of each try (B, T).
        places: Where each try lies and then the square (B, T + 1, 2), shares of the room there is in x and y.
    """
    low, high = quads.aminmax(dim=1)
    room = high - low
    kept_px2 = (area * room.prod(1))[:, None]
    sizes = torch.stack(((kept_px2 * aspects).sqrt(), (kept_px2 / aspects).sqrt()), -1)
    sizes = torch.cat((sizes, kept_px2.sqrt()[..., None].expand(-1, 1, 2)), 1)
    starts = low[:, None] + places * (room[:, None] - sizes)
    rectangles = _rectangles(starts, starts + sizes)
    fits = (sizes <= room[:, None]).all(-1) & contains(quads, rectangles)
    fits[:, -1] = True  # the square asks nobody
    first = (fits * torch.arange(fits.shape[1], 0, -1)).argmax(1)
    return rectangles[torch.arange(len(quads)), first]


def contains(quads: Tensor, points: Tensor) -> Tensor:
    """Return which groups of points (B, T, N, 2) lie in the convex quads (B, 4, 2), edges included (B, T)."""
    sides = (quads.roll(-1, 1) - quads)[:, None, None]
    to_points = points[..., None, :] - quads[:, None, None]
    turns = (sides[..., 0] * to_points[..., 1] - sides[..., 1] * to_points[..., 0]).flatten(2)
    return (turns >= -1e-9).all(-1) | (turns <= 1e-9).all(-1)


def _rectangles(start: Tensor, stop: Tensor) -> Tensor:
    (left, top), (right, bottom) = start.unbind(-1), stop.unbind(-1)
    return torch.stack((left, top, right, top, right, bottom, left, bottom), -1).view(*left.shape, 4, 2)
