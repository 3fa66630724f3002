"""Covers of an image by overlapping tiles whose blending weights add up to one."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Tile:
    """A window of an image and the share it has in each pixel that it covers."""

    top: int
    left: int
    rows: Tensor
    """Shares along the height, (h,)."""
    columns: Tensor
    """Shares along the width, (w,)."""

    @property
    def window(self) -> tuple[slice, slice]:
        """Select the tile's pixels in an (..., H, W) tensor."""
        return slice(self.top, self.top + len(self.rows)), slice(self.left, self.left + len(self.columns))

    @property
    def weight(self) -> Tensor:
        """Return the (h, w) shares, positive everywhere."""
        return self.rows[:, None] * self.columns[None, :]


def tile_starts(length: int, tile: int, overlap: float) -> list[int]:
    """Return evenly spread starts of windows that cover `length` exactly, neighbours sharing `overlap` or more."""
    if length < 1 or tile < 1:
        raise ValueError(f"`length` and `tile` must be at least 1, got {length} and {tile}")
    if not 0 <= overlap < 1:
        raise ValueError(f"`overlap` must be in [0, 1), got {overlap}")
    if length <= tile:
        return [0]
    stride = max(1, math.floor(tile * (1 - overlap)))
    gaps = math.ceil((length - tile) / stride)
    return [round(index * (length - tile) / gaps) for index in range(gaps + 1)]


def hann_window(length: int) -> Tensor:
    """Return sin² sampled at pixel centres: smooth, symmetric and never zero."""
    centres = (torch.arange(length, dtype=torch.float64) + 0.5) / length
    return torch.sin(math.pi * centres).square()


def tile_grid(height: int, width: int, tile: int, overlap: float) -> list[Tile]:
    """Return tiles of equal size, at most `tile` a side, whose weights sum to one in every pixel, row by row."""
    rows, columns = _shares(height, tile, overlap), _shares(width, tile, overlap)
    return [Tile(top, left, row, column) for top, row in rows for left, column in columns]


def _shares(length: int, tile: int, overlap: float) -> list[tuple[int, Tensor]]:
    starts = tile_starts(length, tile, overlap)
    window = hann_window(min(tile, length))
    total = torch.zeros(length, dtype=torch.float64)
    for start in starts:
        total[start : start + len(window)] += window
    return [(start, (window / total[start : start + len(window)]).float()) for start in starts]
