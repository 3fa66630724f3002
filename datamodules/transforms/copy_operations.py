"""The operations that views of copy detection are made of: RGB uint8 arrays in and out, every parameter given.

Exact means equal to Pillow, which the reference uses, to the last bit. Those that are faster instead say how far off
they are; `tests/datamodules/transforms/test_copy_views.py` holds them to it.
"""

import math

import cv2
import numpy as np
import torch
from numpy.typing import NDArray

Pixels = NDArray[np.uint8]
Box = tuple[int, int, int, int]
"""Top, left, height and width."""

_CV_TURNS = {90: cv2.ROTATE_90_COUNTERCLOCKWISE, 180: cv2.ROTATE_180, 270: cv2.ROTATE_90_CLOCKWISE}
_LUMA = np.array([0.299, 0.587, 0.114])


def quarter_turn(image: Pixels, degrees: int) -> Pixels:
    """Turn counter-clockwise by 90, 180 or 270 on the same canvas: ends are lost, black bars come in.

    For 90 and 270 degrees, exact where width and height are both even or both odd; else see `rotate`.
    """
    height, width = image.shape[:2]
    if degrees != 180 and (width - height) % 2:  # the turned picture lies between the pixels of the canvas
        return rotate(image, degrees)
    turned = np.asarray(cv2.rotate(image, _CV_TURNS[degrees]), np.uint8)
    canvas = np.zeros_like(image)
    (to_y, from_y), (to_x, from_x) = _centred(height, len(turned)), _centred(width, turned.shape[1])
    canvas[to_y, to_x] = turned[from_y, from_x]
    return canvas


def _centred(canvas: int, picture: int) -> tuple[slice, slice]:
    """Where on a canvas, and from where of a picture, pixels go if both have the same centre."""
    size, shift = min(canvas, picture), (canvas - picture) // 2
    return slice(max(0, shift), max(0, shift) + size), slice(max(0, -shift), max(0, -shift) + size)


def rotate(image: Pixels, degrees: float, box: Box | None = None) -> Pixels:
    """Turn counter-clockwise about the centre on the same canvas, bilinear, with black corners.

    A quarter of Pillow's time and, as Pillow cuts fractions off, half a level brighter; the seam to black is smooth.

    Args:
        image: the picture.
        degrees: angle.
        box: part of the turned canvas to make; all of it if left out.
    """
    height, width = image.shape[:2]
    top, left, box_height, box_width = box or (0, 0, height, width)
    cos, sin = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    middle_x, middle_y = (width - 1) / 2, (height - 1) / 2
    x, y = left - middle_x, top - middle_y
    matrix = np.array([[cos, -sin, middle_x + cos * x - sin * y], [sin, cos, middle_y + sin * x + cos * y]])
    flags = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
    return np.asarray(cv2.warpAffine(image, matrix, (box_width, box_height), flags=flags), np.uint8)


def resize(image: Pixels, size_wh: tuple[int, int]) -> Pixels:
    """Bilinear with antialiasing, six times as fast as Pillow and at most one level off."""
    # The strides of a batch in channels-last order, which NumPy's [None] would not give: torch is fast on them alone.
    planes = torch.from_numpy(np.require(image, requirements=["C", "W"]))[None].permute(0, 3, 1, 2)
    small = torch.nn.functional.interpolate(planes, size=size_wh[::-1], mode="bilinear", antialias=True)
    return np.ascontiguousarray(small[0].permute(1, 2, 0).numpy())


def brighten(image: Pixels, factor: float) -> Pixels:
    """Multiply by a factor; exact."""
    return _blend_levels(image, 0, factor)


def change_contrast(image: Pixels, factor: float) -> Pixels:
    """Multiply the distances from the mean lightness; exact but for rare ties in the mean."""
    return _blend_levels(image, int(cv2.mean(_lightness(image))[0] + 0.5), factor)


def _blend_levels(image: Pixels, level: int, factor: float) -> Pixels:
    # Pillow blends in float32 and cuts the fraction off.
    table = level + np.float32(factor) * (np.arange(256, dtype=np.float32) - np.float32(level))
    return np.asarray(cv2.LUT(image, np.clip(table, 0, 255).astype(np.uint8)), np.uint8)


def saturate(image: Pixels, factor: float) -> Pixels:
    """Multiply the distances from grey; at most one level off."""
    matrix = factor * np.eye(3) + (1 - factor) * _LUMA
    cut = np.full((3, 1), -0.5)  # OpenCV rounds where Pillow cuts the fraction off
    return np.asarray(cv2.transform(image, np.hstack([matrix, cut])), np.uint8)


def shift_hue(image: Pixels, turn: float) -> Pixels:
    """Shift the hue by a share of the colour circle; a tenth of Pillow's time, on average within one level of it."""
    hsv = cv2.cvtColor(image, cv2.COLOR_RGB2HSV_FULL)
    hsv[..., 0] += np.uint8(int(turn * 255) % 256)
    return np.asarray(cv2.cvtColor(hsv, cv2.COLOR_HSV2RGB_FULL), np.uint8)


def greyscale(image: Pixels) -> Pixels:
    """Lightness in all three channels; at most one level off."""
    return np.asarray(cv2.cvtColor(_lightness(image), cv2.COLOR_GRAY2RGB), np.uint8)


def _lightness(image: Pixels) -> Pixels:
    return np.asarray(cv2.cvtColor(image, cv2.COLOR_RGB2GRAY), np.uint8)


def gaussian_blur(image: Pixels, sigma: float) -> Pixels:
    """Blur by a standard deviation in pixels; a tenth to a third of Pillow's time, on average within a level of it.

    Pillow blurs by three boxes, each rounded and continued beyond the border anew: so it is further off there.
    """
    side = 2 * math.ceil(3 * sigma) + 1
    blurred = cv2.GaussianBlur(image.astype(np.float32), (side, side), sigma, borderType=cv2.BORDER_REPLICATE)
    return np.asarray(cv2.convertScaleAbs(blurred), np.uint8)  # rounds
