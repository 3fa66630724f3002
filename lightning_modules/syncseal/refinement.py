"""Detection in several looks: once more on the straightened picture, and under the eight flips and turns."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from lightning_modules.functional.geometry import compose_quads, corner_error_px, decode_corners, unwarp

Detect = Callable[[Tensor], Tensor]
"""From images (B, 3, H, W) to the presence logit, then eight normalised coordinates, then what else there is."""
ORIENTATIONS = tuple((turns, mirrored) for mirrored in (False, True) for turns in range(4))


@dataclass(frozen=True)
class Detection:
    """What was found in pictures.

    Args:
        quads_px: Where the corners of each picture were in the original, (B, 4, 2).
        presence: Logit of a mark being there, (B,).
        spread: How far the looks disagree: mean distance of corners as a share of the longer side, (B,); NaN where
            there was one look.
    """

    quads_px: Tensor
    presence: Tensor
    spread: Tensor


def detect_quads(
    detect: Detect,
    images: Tensor,
    size: int,
    refinements: int = 0,
    orientations: int = 1,
    by_presence: bool = True,
) -> Detection:
    """Return where the corners of pictures were, in one look or several.

    Args:
        detect: The network.
        images: RGB in [0, 1] (B, 3, H, W). Originals are taken to have their size.
        size: Side of the network's frame.
        refinements: How often the picture is straightened and looked at again.
        orientations: 1 for the picture as it is, 8 for all its flips and turns by 90 degrees.
        by_presence: Of eight, take the one with the largest presence logit, else the one nearest to all others.
    """
    height, width = images.shape[-2:]
    if orientations == 1:
        answer = detect(images).float()
        presence, quads = answer[:, 0], decode_corners(answer[:, 1:9], height, width, size)
        spread = torch.full_like(presence, torch.nan)
    elif orientations == 8:
        presence, quads, spread = _best_of_eight(detect, images, size, by_presence)
    else:
        raise ValueError(f"`orientations` must be 1 or 8, got {orientations}")
    for _ in range(refinements):
        refined = refine(detect, images, quads, size)
        spread = corner_error_px(refined, quads) / max(height, width)
        quads = refined
    return Detection(quads, presence, spread)


def refine(detect: Detect, images: Tensor, quads_px: Tensor, size: int) -> Tensor:
    """Return quads (B, 4, 2) corrected by what is found in the straightened pictures.

    A quad that cannot be undone stays as it is.
    """
    height, width = images.shape[-2:]
    straight = unwarp(images, quads_px)
    found = decode_corners(detect(straight.images).float()[:, 1:9], height, width, size)
    refined = compose_quads(quads_px, found, height, width).to(quads_px.dtype)
    usable = straight.ok & refined.isfinite().flatten(1).all(dim=1)
    return torch.where(usable[:, None, None], refined, quads_px)


def reorient(images: Tensor, turns: int, mirrored: bool) -> Tensor:
    """Return pictures turned counter-clockwise by quarters, then mirrored left to right where asked."""
    turned = torch.rot90(images, turns, (-2, -1))
    return turned.flip(-1) if mirrored else turned


def original_order(quads: Tensor, turns: int, mirrored: bool) -> Tensor:
    """Return quads (..., 4, 2) of reoriented pictures in the order of the corners of the pictures before."""
    mirror = (1, 0, 3, 2) if mirrored else (0, 1, 2, 3)
    shown = [(corner + turns) % 4 for corner in mirror]  # corner of the picture before, at each corner of the new one
    return quads[..., [shown.index(corner) for corner in range(4)], :]


def _best_of_eight(detect: Detect, images: Tensor, size: int, by_presence: bool) -> tuple[Tensor, Tensor, Tensor]:
    height, width = images.shape[-2:]
    if (height, width) != (size, size):  # turned pictures of one shape make one batch
        images = F.interpolate(images, (size, size), mode="bilinear", align_corners=False, antialias=True)
    views = torch.cat([reorient(images, *orientation) for orientation in ORIENTATIONS])
    answers = detect(views).float().reshape(8, len(images), -1)
    decoded = decode_corners(answers[..., 1:9], height, width, size)
    quads = torch.stack(
        [original_order(quad, *orientation) for quad, orientation in zip(decoded, ORIENTATIONS, strict=True)]
    )
    distance = corner_error_px(quads[:, None], quads[None])  # (8, 8, B)
    others = distance.sum(dim=0) / 7
    chosen = answers[..., 0].argmax(dim=0) if by_presence else others.argmin(dim=0)
    picture = torch.arange(chosen.shape[0], device=chosen.device)
    spread = others[chosen, picture] / max(height, width)
    return answers[chosen, picture, 0], quads[chosen, picture], spread
