"""Printed lines cut out of pages, made level and of one height."""

import math

import cv2
import numpy as np
from numpy.typing import NDArray

Pixels = NDArray[np.uint8]
Corners = NDArray[np.float32]

_ABOVE, _BESIDE = 0.08, 0.25  # what is cut beside a line's corners, by its height


def line_size(corners_xy: Corners) -> tuple[float, float]:
    """Return width and height of a line in pixels.

    Args:
        corners_xy: Clockwise from the upper left corner, (4, 2).
    """
    upper_left, upper_right, lower_right, lower_left = corners_xy.astype(np.float64)
    width = (math.dist(upper_left, upper_right) + math.dist(lower_left, lower_right)) / 2
    return width, (math.dist(upper_left, lower_left) + math.dist(upper_right, lower_right)) / 2


def line_width(corners_xy: Corners, height: int) -> int:
    """Return how wide the crop of a line is at a height in pixels."""
    width, tall = line_size(corners_xy)
    share = (width + 2 * _BESIDE * tall) / max(tall * (1 + 2 * _ABOVE), 1e-6)
    return max(1, round(height * share))


def line_crop(page: Pixels, corners_xy: Corners, height: int) -> Pixels:
    """Cut a line out, uint8 (height, `line_width`, 3), letters upright and from left to right.

    Args:
        page: (H, W, 3).
        corners_xy: Clockwise from the upper left corner, (4, 2).
        height: Of the result.
    """
    width = line_width(corners_xy, height)
    _, tall = line_size(corners_xy)
    unit = height / (1 + 2 * _ABOVE)  # height of the line itself in the crop
    above, beside = _ABOVE * unit, _BESIDE * unit
    inner = np.array(
        [[beside, above], [width - beside, above], [width - beside, above + unit], [beside, above + unit]], np.float32
    )
    if tall > 1.5 * unit:
        # Warping takes single pixels: what is made much smaller is blurred before.
        page = cv2.GaussianBlur(page, (0, 0), 0.4 * tall / unit)
    # Pixel (0, 0) is the square from 0 to 1, and its middle is at 0.5.
    matrix = cv2.getPerspectiveTransform(corners_xy.astype(np.float32) - np.float32(0.5), inner - np.float32(0.5))
    crop: Pixels = cv2.warpPerspective(
        page, matrix, (width, height), flags=cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE
    )
    return crop
