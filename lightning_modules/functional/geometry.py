"""Homographies of four points, and pictures warped by them.

Names carry frame and unit. `_px` are pixels of a picture: (x, y), y down, integers at pixel centres, so a picture's
corners are the centres of its corner pixels: (0, 0), (W-1, 0), (W-1, H-1), (0, H-1). A `quad` holds, for the corners
TL, TR, BR, BL of the picture that is looked at (the attacked one), where they were in the original picture.
`normalised` are SyncSeal's eight numbers, n = (p - S/2) / (S/2), p in pixels of the S x S frame that a detector sees.

`compat` means the published arithmetic, which is half a pixel off where the scale changes: its integer corner labels
are edges of pixels in the sampling, its decoding rounds to the detector's grid, its unwarping cuts off fractions.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import cv2
import torch
from torch import Tensor
from torch.nn import functional as F

# A quad whose corner spans less than this (twice the triangle's area, px²) is taken for degenerate.
MIN_CORNER_AREA_PX2 = 1.0
# The published unwarping leaves pictures alone whose corners are said to be farther away.
MAX_CORNER_PX = 1e6
_FAR = 1e6


class Rectified(NamedTuple):
    """Unwarped pictures (B, C, H, W), and which of them were: the others had an unusable quad, and are as they came."""

    images: Tensor
    ok: Tensor


def frame_corners_px(height: int, width: int, device: torch.device | str | None = None) -> Tensor:
    """Return the corners of a picture, TL, TR, BR, BL, float64 (4, 2)."""
    right, bottom = width - 1.0, height - 1.0
    corners = [[0.0, 0.0], [right, 0.0], [right, bottom], [0.0, bottom]]
    return torch.tensor(corners, dtype=torch.float64, device=device)


def normalise_corners(corners_px: Tensor, size: int = 256) -> Tensor:
    """Return corners (…, 4, 2), in pixels of the size x size frame, as the detector's eight numbers (…, 8)."""
    return ((corners_px - size / 2) / (size / 2)).flatten(-2)


def decode_corners(normalised: Tensor, height: int, width: int, size: int = 256, compat: bool = False) -> Tensor:
    """Return the detector's numbers (…, 8) or (…, 4, 2) as corners (…, 4, 2) in pixels of a height x width picture.

    Args:
        normalised: Numbers of the size x size frame.
        height: Of the picture whose corners are wanted.
        width: Of that picture.
        size: Side of the frame that the detector sees.
        compat: Round to whole pixels of that frame first, halves to even.
    """
    corners_px = normalised.reshape(*normalised.shape[:-1], 4, 2) if normalised.shape[-1] == 8 else normalised
    corners_px = corners_px * (size / 2) + size / 2
    corners_px = corners_px.round() if compat else corners_px
    return corners_px * corners_px.new_tensor([(width - 1) / (size - 1), (height - 1) / (size - 1)])


def corner_error_px(quads_px: Tensor, true_quads_px: Tensor) -> Tensor:
    """Return the mean distance of four corners (…, 4, 2) to the true ones (…)."""
    distances: Tensor = torch.linalg.vector_norm(quads_px - true_quads_px, dim=-1)
    return distances.mean(-1)


def homography_from_quads(source: Tensor, target: Tensor) -> Tensor:
    """Return the homographies (…, 3, 3), float64, that take four points (…, 4, 2) to four others.

    Each is the map from the projective basis to the target, after the inverse of that to the source; no system is
    solved, so nothing raises. Three points on a line give numbers without meaning, maybe not finite ones.
    The third coordinate comes out positive at the source's first point, and entry [2, 2] is 1 in size.
    """
    homography = _from_basis(target.double()) @ _adjugate(_from_basis(source.double()))
    return _scaled(homography, at=source.double()[..., 0, :])


def invert_homography(homography: Tensor) -> Tensor:
    """Return the inverse homographies (…, 3, 3), entry [2, 2] being 1 in size."""
    inverse = _adjugate(homography)
    orientation: Tensor = torch.linalg.det(homography).sign()
    return inverse / _corner_entry(inverse).abs() * orientation[..., None, None]


def apply_homography(homography: Tensor, points: Tensor) -> Tensor:
    """Return where homographies (…, 3, 3) take points (…, N, 2)."""
    moved = F.pad(points.to(homography.dtype), (0, 1), value=1.0) @ homography.mT
    return moved[..., :2] / moved[..., 2:]


def compose_quads(first_px: Tensor, second_px: Tensor, height: int, width: int) -> Tensor:
    """Return the quads (…, 4, 2) of a picture cut at `first` out of a picture that was itself cut at `second`.

    With a detector's answer for the attacked picture as `first` and its answer for the straightened one as `second`,
    this is the refined answer for the attacked picture.
    """
    frame = frame_corners_px(height, width, second_px.device)
    return apply_homography(homography_from_quads(frame.expand(second_px.shape), second_px), first_px)


def is_usable_quad(quads: Tensor) -> Tensor:
    """Return which quads (…, 4, 2) are finite, strictly convex (mirrored ones too) and no mere line or point (…)."""
    turns = _turns(quads.double().nan_to_num(nan=MAX_CORNER_PX * 10))
    convex = (turns >= MIN_CORNER_AREA_PX2).all(-1) | (turns <= -MIN_CORNER_AREA_PX2).all(-1)
    near: Tensor = (quads.abs() < MAX_CORNER_PX).flatten(-2).all(-1)
    return near & convex


def warp(
    images: Tensor,
    quads_px: Tensor,
    fill: Tensor | float = 0.0,
    reflect: Tensor | None = None,
    nearest: bool = False,
    compat: bool = False,
) -> Tensor:
    """Return the attacked pictures: corner k of each shows what was at quad corner k of the original.

    Args:
        images: (B, C, H, W).
        quads_px: (B, 4, 2) in pixels of the originals.
        fill: What lies outside the originals: a number, or anything that broadcasts to (B, C, H, W).
        reflect: Which pictures (B,) go on mirrored instead, so that nothing lies outside.
        nearest: Take the nearest pixel, as masks need it.
        compat: The published half-pixel convention.
    """
    return sampled_by(images, homography_of_frame(quads_px, *images.shape[-2:]), fill, reflect, nearest, compat)


def unwarp(images: Tensor, quads_px: Tensor, size_hw: tuple[int, int] | None = None, compat: bool = False) -> Rectified:
    """Return attacked pictures straightened by where their corners were.

    Args:
        images: (B, C, H, W), attacked.
        quads_px: (B, 4, 2) in pixels of the original frame.
        size_hw: Height and width of that frame; the pictures' own if not given. Others are resized to it first.
        compat: Cut the fractions of the quads off, and sample in the published half-pixel convention.
    """
    ok = is_usable_quad(quads_px.trunc() if compat else quads_px).to(images.device)
    height, width = size_hw or (images.shape[-2], images.shape[-1])
    if (height, width) != tuple(images.shape[-2:]):
        images = F.interpolate(images, (height, width), mode="bilinear", antialias=True)
    frame = frame_corners_px(height, width, images.device).expand(len(images), 4, 2)
    quads = quads_px.to(images.device).double()
    quads = torch.where(ok[:, None, None], quads.trunc() if compat else quads, frame)
    straight = sampled_by(images, homography_from_quads(quads, frame), compat=compat)
    return Rectified(torch.where(ok[:, None, None, None], straight, images), ok)


def homography_of_frame(quads_px: Tensor, height: int, width: int) -> Tensor:
    """Return the homographies (…, 3, 3) from pixels of attacked pictures to the originals', by quads (…, 4, 2)."""
    frame = frame_corners_px(height, width, quads_px.device).expand(quads_px.shape)
    return homography_from_quads(frame, quads_px)


def sampled_by(
    images: Tensor,
    homography: Tensor,
    fill: Tensor | float = 0.0,
    reflect: Tensor | None = None,
    nearest: bool = False,
    compat: bool = False,
) -> Tensor:
    """Return pictures whose pixel p shows `images` at H p, all by one call; the rest is as in `warp`."""
    height, width = images.shape[-2:]
    if _fits_opencv(images) and reflect is None and not nearest and not compat:
        sampled: Tensor = _WarpOnCpu.apply(images, homography)
        if isinstance(fill, float | int) and fill == 0:
            return sampled
        covered: Tensor = _WarpOnCpu.apply(torch.ones_like(images[:, :1]), homography)
        return sampled + (1 - covered) * fill
    grid = _sampling_grid(homography.to(images.device), height, width, images.dtype, compat)
    if reflect is not None:
        grid = torch.where(reflect.to(grid.device)[:, None, None, None], _mirrored(grid, height, width), grid)
    mode = "nearest" if nearest else "bilinear"
    sampled = F.grid_sample(images, grid, mode=mode, padding_mode="zeros", align_corners=False)
    if isinstance(fill, float | int) and fill == 0:
        return sampled
    return sampled + (1 - _coverage(grid, height, width)) * fill


def _fits_opencv(images: Tensor) -> bool:
    # Its own limit on sides, which are 16-bit numbers inside.
    return images.device.type == "cpu" and images.dtype == torch.float32 and max(images.shape[-2:]) < 2**15


class _WarpOnCpu(torch.autograd.Function):
    """The same sampling by OpenCV, without a grid in memory: a third of the time of torch's here."""

    @staticmethod
    def forward(ctx: Any, images: Tensor, homography: Tensor) -> Tensor:
        """Return pictures whose pixel p shows what was at H p."""
        ctx.save_for_backward(images, homography)
        height, width = images.shape[-2:]
        matrices = homography.detach().double().expand(len(images), 3, 3).numpy()
        sampled = torch.empty_like(images, memory_format=torch.contiguous_format)
        flags = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
        for image, target, matrix in zip(images.detach().contiguous().numpy(), sampled.numpy(), matrices, strict=True):
            for plane, result in zip(image, target, strict=True):
                cv2.warpPerspective(plane, matrix, (width, height), dst=result, flags=flags)
        return sampled

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        """Return the gradient of the pictures."""
        images, homography = ctx.saved_tensors
        height, width = images.shape[-2:]
        grid = _sampling_grid(homography.expand(len(images), 3, 3), height, width, images.dtype, compat=False)
        bilinear_with_zeros = (0, 0, False, [True, False])
        of_images: Tensor = torch.ops.aten.grid_sampler_2d_backward(gradient, images, grid, *bilinear_with_zeros)[0]
        return of_images, None


def _sampling_grid(homography: Tensor, height: int, width: int, dtype: torch.dtype, compat: bool) -> Tensor:
    """Return where to sample (B, H, W, 2), -1 and 1 being the picture's outer edges."""
    # Pixel p has its centre at p + 1/2 from the edge. The published warp takes labels for such distances as they are.
    shift = 0.0 if compat else 0.5
    to_edges = homography.new_tensor(
        [[2 / width, 0, 2 * shift / width - 1], [0, 2 / height, 2 * shift / height - 1], [0, 0, 1]]
    )
    matrix = (to_edges @ homography).detach().to(dtype)[:, :, None, None, :]
    column = torch.arange(width, device=homography.device, dtype=dtype) + (0.5 - shift)
    row = (torch.arange(height, device=homography.device, dtype=dtype) + (0.5 - shift))[:, None]
    # In place, since memory is what this costs: numerators over depth, each the sum of a row's and a column's share.
    # Beyond the horizon, where depth is negative, a convex quad shows nothing anyway; on it, numbers stay finite.
    inverse = _plane(matrix[:, 2], column, row).reciprocal_().clamp_(-_FAR, _FAR)
    grid = torch.empty(*inverse.shape, 2, dtype=dtype, device=inverse.device)
    for axis in range(2):
        torch.mul(_plane(matrix[:, axis], column, row), inverse, out=grid[..., axis])
    return grid


def _plane(coefficients: Tensor, column: Tensor, row: Tensor) -> Tensor:
    """Return the values (B, H, W) of a linear function (B, 1, 1, 3) at all pixels."""
    of_column, of_row, constant = coefficients.unbind(-1)
    return of_column * column + (of_row * row + constant)


def _mirrored(grid: Tensor, height: int, width: int) -> Tensor:
    """Fold places outside [-1, 1] back in, as between mirrors at the edges, and keep off the outer halves of pixels."""
    last = grid.new_tensor([1 - 1 / width, 1 - 1 / height])
    return (((grid - 1).remainder(4) - 2).abs() - 1).clamp(-last, last)


def _coverage(grid: Tensor, height: int, width: int) -> Tensor:
    """Return how much of each sample (B, 1, H, W) comes from the picture and not from outside it."""
    half = grid.new_tensor([width / 2, height / 2])
    inside = ((1 - grid.abs()) * half + 0.5).clamp(0, 1)
    return (inside[..., 0] * inside[..., 1])[:, None]


def _turns(quads: Tensor) -> Tensor:
    """Return the cross product of the two sides at each corner (…, 4); all of one sign in a convex quad."""
    before, after = quads - quads.roll(1, -2), quads.roll(-1, -2) - quads
    return before[..., 0] * after[..., 1] - before[..., 1] * after[..., 0]


def _from_basis(points: Tensor) -> Tensor:
    """Return matrices (…, 3, 3) that take the unit vectors and (1, 1, 1) to four points (…, 4, 2)."""
    columns = F.pad(points, (0, 1), value=1.0).mT
    basis, last = columns[..., :3], columns[..., 3:]
    return basis * (_adjugate(basis) @ last).mT


def _adjugate(matrix: Tensor) -> Tensor:
    """Return the inverse times the determinant: rows are cross products of the columns."""
    first, second, third = matrix.unbind(-1)
    rows = (torch.linalg.cross(second, third), torch.linalg.cross(third, first), torch.linalg.cross(first, second))
    return torch.stack(rows, -2)


def _scaled(homography: Tensor, at: Tensor) -> Tensor:
    """Return the same maps with a positive third coordinate at a point (…, 2), and entry [2, 2] 1 in size."""
    depth = (homography[..., 2, :2] * at).sum(-1) + homography[..., 2, 2]
    sign = torch.where(depth < 0, -1.0, 1.0).to(homography)
    return homography * sign[..., None, None] / _corner_entry(homography).abs()


def _corner_entry(homography: Tensor) -> Tensor:
    """Return entry [2, 2], or the largest one where the origin lies on the horizon (…, 1, 1)."""
    corner, largest = homography[..., 2:, 2:], homography.abs().amax((-2, -1), keepdim=True)
    return torch.where(corner.abs() > 1e-12 * largest, corner, largest)
