"""Colours of ink."""

import colorsys
from typing import Any

import numpy as np
from numpy.typing import NDArray

from datamodules.transforms.seals.layouts import Color

# Hue in degrees, saturation and value of a full film: low and high.
_RANGES: dict[Color, tuple[tuple[float, float], tuple[float, float], tuple[float, float]]] = {
    "red": ((-14, 12), (0.58, 0.95), (0.6, 0.92)),
    "blue": ((205, 238), (0.55, 0.88), (0.4, 0.72)),
    "violet": ((246, 282), (0.4, 0.7), (0.42, 0.68)),
    "black": ((200, 260), (0.0, 0.15), (0.08, 0.25)),
}


def draw_ink(rng: np.random.Generator, color: Color) -> tuple[float, float, float]:
    """Red, green and blue in [0, 1] of a full film of an ink of a class, on white."""
    hue, saturation, value = (float(rng.uniform(*span)) for span in _RANGES[color])
    return colorsys.hsv_to_rgb((hue % 360) / 360, saturation, value)


def absorbance(rgb: tuple[float, float, float]) -> NDArray[np.float32]:
    """Optical density of a full film for each channel: paper times exp(-absorbance * density) is the print."""
    return -np.log(np.clip(np.asarray(rgb, np.float32), 0.02, 1.0))


def film_absorbance(rgb: tuple[float, float, float], density: NDArray[Any], turn: float = 0.12) -> NDArray[np.float32]:
    """Absorbance times density of each pixel, (h, w, 3), with a hue that follows the film's thickness.

    A thin film lets the channel through that a full one already stops in part, and so it is more orange where it is
    red; a thick film is more crimson.

    Args:
        rgb: colour of a full film.
        density: the impression's density.
        turn: how much of the middle channel's absorbance moves between a thin film and a thick one; 0 for none.
    """
    full = absorbance(rgb)
    share = np.asarray(density, np.float32)[..., None]
    middle = int(np.argsort(full)[1])
    bend = np.zeros(3, np.float32)
    bend[middle] = np.float32(turn)
    result: NDArray[np.float32] = full * share * (1 + bend * (share - 0.7))
    return result
