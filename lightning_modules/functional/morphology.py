"""Dilations of masks that equal OpenCV's and SciPy's, on any device."""

import torch
import torch.nn.functional as F
from torch import Tensor


def _pool(mask: Tensor, height: int, width: int) -> Tensor:
    """Maximum over a window whose anchor is at (height // 2, width // 2); outside counts as 0."""
    top, left = height // 2, width // 2
    padded = F.pad(mask, (left, width - 1 - left, top, height - 1 - top))
    return F.max_pool2d(padded, (height, width), stride=1)


def dilate_square(mask: Tensor, size: int) -> Tensor:
    """Same as `cv2.dilate` with `ones((size, size))` and the default anchor.

    An even size reaches one pixel further to the right and bottom. A size of 1 or less changes nothing.

    Args:
        mask: (B, 1, H, W), values of at least 0.
        size: Side of the square.
    """
    if size <= 1:
        return mask
    values = mask if mask.is_floating_point() else mask.float()
    # A square is separable into a column and a row.
    return _pool(_pool(values, size, 1), 1, size).to(mask.dtype)


def dilate_cross(mask: Tensor, iterations: int) -> Tensor:
    """Same as `scipy.ndimage.binary_dilation` with its default 4-connected cross, repeated.

    Unlike SciPy, 0 iterations change nothing (there they mean "until nothing changes").

    Args:
        mask: (B, 1, H, W), values of at least 0.
        iterations: How often the mask grows by one pixel.
    """
    if iterations <= 0:
        return mask
    values = mask if mask.is_floating_point() else mask.float()
    for _ in range(iterations):
        values = torch.maximum(_pool(values, 3, 1), _pool(values, 1, 3))
    return values.to(mask.dtype)
