"""Ink on a page, in optical density: what lies under it stays visible, dark toner a little less so."""

from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from datamodules.transforms.seals import inks
from datamodules.transforms.seals.layouts import Color

Pixels = NDArray[np.uint8]
Plane = NDArray[np.float32]

TOP_DENSITY = 1.6  # densities are kept as bytes up to this one

# How absorption grows with the film: a thin film of red is more orange, a thick one more crimson.
_GROWTH: dict[Color, tuple[float, float, float]] = {
    "red": (1.25, 1.05, 0.96),
    "blue": (0.97, 1.02, 1.20),
    "violet": (1.04, 0.97, 1.12),
    "black": (1.0, 1.0, 1.0),
}


@dataclass(frozen=True)
class Ink:
    """An ink and how thickly it lies.

    Attributes:
        rgb: Colour on white paper at density 1, each in (0, 1].
        growth: Power of the density, by channel, that absorption follows.
        strength: Factor of all densities: a stamp pad that is full or nearly dry.
        veil: Share of the ink's own colour that lies over dark toner.
    """

    rgb: tuple[float, float, float]
    growth: tuple[float, float, float] = (1.0, 1.0, 1.0)
    strength: float = 1.0
    veil: float = 0.0

    def plain(self) -> "Ink":
        """Return the ink without growth and veil: what a program multiplies onto a page."""
        return Ink(self.rgb, strength=self.strength)


def draw_ink(rng: np.random.Generator, color: Color) -> Ink:
    """Draw an ink of a colour class."""
    rgb = inks.draw_ink(rng, color)
    return Ink(rgb, _GROWTH[color], float(rng.uniform(0.75, 1.15)), float(rng.uniform(0.05, 0.22)))


def transmittance(ink: Ink) -> NDArray[np.uint8]:
    """Return what each density, as a byte, lets through of each channel: (256, 1, 3), 255 for all of it."""
    density = np.linspace(0, TOP_DENSITY, 256)[:, None] * ink.strength
    absorbed = inks.absorbance(ink.rgb) * density ** np.array(ink.growth)
    return np.asarray(np.round(255 * np.exp(-absorbed))[:, None], np.uint8)


def as_bytes(density: Plane) -> NDArray[np.uint8]:
    """Return densities as bytes, 255 for `TOP_DENSITY`."""
    return np.asarray(cv2.convertScaleAbs(np.maximum(density, 0), alpha=255 / TOP_DENSITY), np.uint8)


def inked(page: Pixels, density: Plane, ink: Ink, light: tuple[float, float, float]) -> Pixels:
    """Return a page (H, W, 3) under a film of ink.

    page * exp(-absorption(colour) * density), and a veil of pigment over dark toner, which multiplication alone would
    leave perfectly black and pasting would turn pink.

    Args:
        page: What lies under it.
        density: Of the film, (H, W); 1 is a full one.
        ink: Colour and strength.
        light: Brightest value of each channel on this page, 0 to 1: the paper as it is lit.
    """
    film = as_bytes(density)
    through = cv2.LUT(cv2.merge([film, film, film]), transmittance(ink))
    result = cv2.multiply(page, through, scale=1 / 255)
    if ink.veil:
        dark = cv2.subtract(255, cv2.cvtColor(page, cv2.COLOR_RGB2GRAY))
        over = cv2.multiply(dark, film, scale=min(1.0, ink.strength) * ink.veil * TOP_DENSITY / 255)
        shares = [value * lit for value, lit in zip(ink.rgb, light, strict=True)]
        veil = cv2.merge([cv2.convertScaleAbs(over, alpha=share) for share in shares])
        result = cv2.add(result, veil)
    return np.asarray(result, np.uint8)


def printed_alpha(density: Plane, ink: Ink) -> Plane:
    """Return how much ink there is, 0 to 1: the density as it was printed, no more than a full film."""
    return np.asarray(np.clip(density * ink.strength, 0, 1), np.float32)
