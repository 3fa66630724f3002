"""Fits images of any size into a square without changing their proportions."""

from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray


def fitted_size(height: int, width: int, size: int) -> tuple[int, int]:
    """Height and width after scaling the longer side to `size`, each rounded and at least 1.

    Args:
        height: Of the image.
        width: Of the image.
        size: Wanted length of the longer side.
    """
    factor = size / max(height, width)
    return max(1, round(height * factor)), max(1, round(width * factor))


def letterbox(image: NDArray[np.float32], mask: NDArray[Any], size: int) -> tuple[NDArray[np.float32], NDArray[Any]]:
    """Scales the longer side to `size` and centres the result on zeros; the mask keeps its values.

    Smaller images are enlarged. An odd rest of padding goes to the right and the bottom.

    Args:
        image: (H, W, C), resampled bilinearly.
        mask: (H, W), resampled by nearest neighbour.
        size: Side of the square.
    """
    if size < 1:
        raise ValueError(f"size must be at least 1, got {size}")
    height, width = fitted_size(mask.shape[0], mask.shape[1], size)
    top, left = (size - height) // 2, (size - width) // 2
    if mask.shape != (height, width):
        image = cv2.resize(image, (width, height), interpolation=cv2.INTER_LINEAR)
        mask = cv2.resize(mask, (width, height), interpolation=cv2.INTER_NEAREST)
    square = np.zeros((size, size, image.shape[2]), image.dtype)
    square_mask = np.zeros((size, size), mask.dtype)
    square[top : top + height, left : left + width] = image
    square_mask[top : top + height, left : left + width] = mask
    return square, square_mask
