"""Training augmentations of the reference, with its parameter distributions, in OpenCV and NumPy.

Each operation takes an image in [0, 1] of shape (H, W, 3) and float32, and a mask of 0 and 1 of shape (H, W), draws
from the generator it is given and returns both; the mask changes only where pixels move. `augment` chains them as
the reference meant to (its own training never ran them: both halves of its split got the validation transform).
"""

from collections.abc import Callable
from typing import Any

import cv2
import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray

Image = NDArray[np.float32]
Mask = NDArray[Any]  # its type is kept
Operation = Callable[[Image, Mask, Generator], tuple[Image, Mask]]


def _clip(image: NDArray[np.floating]) -> Image:
    clipped: NDArray[np.floating] = np.clip(image, 0, 1)
    return clipped.astype(np.float32, copy=False)


def flip(image: Image, mask: Mask, rng: Generator) -> tuple[Image, Mask]:
    """Mirrors left and right, always."""
    del rng
    return np.ascontiguousarray(image[:, ::-1]), np.ascontiguousarray(mask[:, ::-1])


def shift_scale(image: Image, mask: Mask, rng: Generator) -> tuple[Image, Mask]:
    """Scales by 0.5 to 1.5 about the centre and shifts by up to a tenth of each side; black comes in."""
    height, width = mask.shape
    scale = 1 + rng.uniform(-0.5, 0.5)
    shift = rng.uniform(-0.1, 0.1, 2) * (width, height)
    centre = np.array([width - 1, height - 1]) / 2
    matrix = np.column_stack([np.eye(2) * scale, centre * (1 - scale) + shift])
    size = (width, height)
    return (
        _clip(cv2.warpAffine(image, matrix, size, flags=cv2.INTER_LINEAR)),
        cv2.warpAffine(mask, matrix, size, flags=cv2.INTER_NEAREST),
    )


def gauss_noise(image: Image, mask: Mask, rng: Generator) -> tuple[Image, Mask]:
    """Adds noise of one standard deviation from 0.2 to 0.44, independent per channel."""
    sigma = np.float32(rng.uniform(0.2, 0.44))
    return _clip(image + sigma * rng.standard_normal(image.shape, np.float32)), mask


def perspective(image: Image, mask: Mask, rng: Generator) -> tuple[Image, Mask]:
    """Stretches a quadrilateral, whose corners lie inward by |N(0, 0.05 to 0.1)| of the sides, to the full size."""
    height, width = mask.shape
    inward = np.mod(np.abs(rng.normal(0, rng.uniform(0.05, 0.1), (4, 2))), 0.32)
    corners = np.array([[0, 0], [1, 0], [1, 1], [0, 1]])
    source = (corners + np.where(corners == 0, inward, -inward)) * (width, height)
    target = corners * (width, height)
    matrix = cv2.getPerspectiveTransform(source.astype(np.float32), target.astype(np.float32))
    return (
        _clip(cv2.warpPerspective(image, matrix, (width, height), flags=cv2.INTER_LINEAR)),
        cv2.warpPerspective(mask, matrix, (width, height), flags=cv2.INTER_NEAREST),
    )


def clahe(image: Image, mask: Mask, rng: Generator) -> tuple[Image, Mask]:
    """Equalises the lightness in 8x8 tiles with a clip limit of 1 to 4; works on 8 bits."""
    equaliser = cv2.createCLAHE(clipLimit=rng.uniform(1, 4), tileGridSize=(8, 8))
    lab = cv2.cvtColor((image * 255).round().astype(np.uint8), cv2.COLOR_RGB2LAB)
    lab[..., 0] = equaliser.apply(lab[..., 0])
    return _clip(cv2.cvtColor(lab, cv2.COLOR_LAB2RGB) / 255), mask


def brightness_contrast(image: Image, mask: Mask, rng: Generator) -> tuple[Image, Mask]:
    """Multiplies by 0.8 to 1.2 and adds -0.2 to 0.2."""
    contrast, brightness = rng.uniform(0.8, 1.2), rng.uniform(-0.2, 0.2)
    return _clip(image * np.float32(contrast) + np.float32(brightness)), mask


def gamma(image: Image, mask: Mask, rng: Generator) -> tuple[Image, Mask]:
    """Raises to a power of 0.8 to 1.2."""
    return _clip(image ** np.float32(rng.uniform(0.8, 1.2))), mask


def sharpen(image: Image, mask: Mask, rng: Generator) -> tuple[Image, Mask]:
    """Mixes in 0.2 to 0.5 of a Laplacian sharpening whose centre is 8.5 to 9."""
    amount, lightness = rng.uniform(0.2, 0.5), rng.uniform(0.5, 1)
    kernel = np.full((3, 3), -amount)
    kernel[1, 1] = (1 - amount) + amount * (8 + lightness)
    return _clip(cv2.filter2D(image, -1, kernel)), mask


def blur(image: Image, mask: Mask, rng: Generator) -> tuple[Image, Mask]:
    """Averages over 3x3 pixels."""
    del rng
    return _clip(cv2.blur(image, (3, 3))), mask


def motion_blur(image: Image, mask: Mask, rng: Generator) -> tuple[Image, Mask]:
    """Averages along a line of three pixels through the centre, in any direction."""
    angle = rng.uniform(0, np.pi)
    dx, dy = round(np.cos(angle)), round(np.sin(angle))
    kernel = np.zeros((3, 3))
    kernel[[1 - dy, 1, 1 + dy], [1 - dx, 1, 1 + dx]] = 1 / 3
    return _clip(cv2.filter2D(image, -1, kernel)), mask


def hue_saturation_value(image: Image, mask: Mask, rng: Generator) -> tuple[Image, Mask]:
    """Shifts hue by up to 40 degrees, saturation by up to 30/255 and value by up to 20/255."""
    # The reference's limit of 20 for hue is in OpenCV's 8-bit units of two degrees.
    hue, saturation, value = rng.uniform(-1, 1, 3) * (40, 30 / 255, 20 / 255)
    hsv = cv2.cvtColor(image, cv2.COLOR_RGB2HSV)
    hsv[..., 0] = np.mod(hsv[..., 0] + np.float32(hue), 360)
    hsv[..., 1:] = _clip(hsv[..., 1:] + np.array([saturation, value], np.float32))
    return _clip(cv2.cvtColor(hsv, cv2.COLOR_HSV2RGB)), mask


STEPS: tuple[tuple[float, tuple[Operation, ...]], ...] = (
    (0.5, (flip,)),
    (1.0, (shift_scale,)),
    (0.1, (gauss_noise,)),
    (0.5, (perspective,)),
    (0.9, (clahe, brightness_contrast, gamma)),
    (0.9, (sharpen, blur, motion_blur)),
    (0.9, (brightness_contrast, hue_saturation_value)),
)
"""Probability of each step, and the operations of which it then applies one."""


def augment(image: Image, mask: Mask, rng: Generator) -> tuple[Image, Mask]:
    """Applies `STEPS` in order; equal states of the generator give equal results.

    Args:
        image: (H, W, 3) in [0, 1], already letterboxed.
        mask: (H, W) of 0 and 1.
        rng: Source of every draw.
    """
    for probability, operations in STEPS:
        if rng.random() < probability:
            operation = operations[rng.integers(len(operations))]
            image, mask = operation(image, mask, rng)
    return image, mask
