"""Clean-up and description of binary regions; numpy arrays in, numpy arrays out."""

from __future__ import annotations

from typing import Literal

import cv2
import numpy as np
from numpy.typing import NDArray

Mask = NDArray[np.bool_]
Labels = NDArray[np.int32]


def label_regions(mask: Mask, connectivity: Literal[4, 8] = 8) -> tuple[int, Labels, NDArray[np.int32]]:
    """Number connected regions from 1; return their count, the (H, W) labels and (n + 1, 5) x, y, w, h, area."""
    count, labels, stats, _ = cv2.connectedComponentsWithStats(
        mask.view(np.uint8), connectivity=connectivity, ltype=cv2.CV_32S
    )
    return count - 1, labels, stats


def hysteresis(values: NDArray[np.float32], low: float, high: float) -> Mask:
    """Keep the regions above `low` that hold at least one pixel above `high`."""
    if low > high:
        raise ValueError(f"`low` must not be above `high`, got {low} and {high}")
    count, labels, _ = label_regions(values > low)
    keep = np.zeros(count + 1, dtype=np.bool_)
    keep[labels[values > high]] = True
    keep[0] = False
    return np.asarray(keep[labels])


def drop_small_regions(mask: Mask, min_area: int) -> Mask:
    """Remove 8-connected regions of fewer than `min_area` pixels."""
    if min_area <= 1:
        return mask
    _, labels, stats = label_regions(mask)
    keep = stats[:, cv2.CC_STAT_AREA] >= min_area
    keep[0] = False
    return np.asarray(keep[labels])


def fill_small_holes(mask: Mask, max_area: int) -> Mask:
    """Fill background regions that the mask encloses, of at most `max_area` pixels; border regions are no holes."""
    if max_area < 1:
        return mask
    _, labels, stats = label_regions(~mask, connectivity=4)
    height, width = mask.shape
    x, y, w, h, area = stats.T
    enclosed = (x > 0) & (y > 0) & (x + w < width) & (y + h < height)
    fill = enclosed & (area <= max_area)
    fill[0] = False
    return np.asarray(mask | fill[labels])
