"""What a press leaves of a stamp on paper: a model on the signed distance to the edge of the ink."""

import math
from dataclasses import dataclass, fields

import cv2
import numpy as np
from numpy.typing import NDArray

from datamodules.transforms.seals.layouts import Color, Kind
from datamodules.transforms.seals.noise import fibre_noise, smooth_noise
from datamodules.transforms.seals.stamps import Stamp, TextLine

Field = NDArray[np.float32]
Range = tuple[float, float]

_SIDE = 260.0  # lengths in the settings are pixels at this longest side


@dataclass(frozen=True)
class InkSettings:
    """Ranges that each press draws its own values from, evenly; lengths are in pixels of a seal 260 px wide.

    Args:
        spread: how far ink runs over the edge under full pressure.
        roughness: deviation of the edge.
        bleed: how far ink creeps along the paper's fibres.
        softness: width of the edge's fall.
        load: density of the whole film: how much ink was on the pad.
        pressure: mean pressure; 1 prints full ink.
        tilt: fall of the pressure from one side to the other.
        mottle: deviation of the pressure by large spots.
        starve: how much pressure is needed before ink is given off.
        tooth: deviation of the paper's tooth, which takes ink away where the pressure is low.
        rim: how much more ink lies along the edges.
        solids: how much less ink lies inside wide parts.
        dropout_chance: share of presses with a sector of low pressure.
        dropout_deg: width of that sector.
        dropout_depth: how much pressure it loses.
        double_chance: share of presses that touched twice.
        double_px: distance of the second print.
        double_strength: density of the second print.
        smear_chance: share of presses that were dragged.
        smear_px: length of the drag.
        splatter_chance: share of presses with drops around them.
    """

    spread: Range = (-0.35, 0.5)
    roughness: Range = (0.1, 0.32)
    bleed: Range = (0.0, 0.35)
    softness: Range = (0.28, 0.5)
    load: Range = (0.45, 1.05)
    pressure: Range = (0.75, 1.25)
    tilt: Range = (0.0, 0.5)
    mottle: Range = (0.05, 0.2)
    starve: Range = (0.6, 2.6)
    tooth: Range = (0.6, 1.8)
    rim: Range = (0.05, 0.3)
    solids: Range = (0.0, 0.2)
    dropout_chance: float = 0.18
    dropout_deg: Range = (40.0, 120.0)
    dropout_depth: Range = (0.5, 1.0)
    double_chance: float = 0.06
    double_px: Range = (1.5, 5.0)
    double_strength: Range = (0.12, 0.35)
    smear_chance: float = 0.06
    smear_px: Range = (3.0, 10.0)
    splatter_chance: float = 0.08

    def __post_init__(self) -> None:
        for part in fields(self):
            value = getattr(self, part.name)
            if isinstance(value, tuple) and not value[0] <= value[1]:
                raise ValueError(f"{part.name} must run from low to high, got {value}")
            if part.name.endswith("_chance") and not 0 <= value <= 1:
                raise ValueError(f"{part.name} must be a share from 0 to 1, got {value}")


@dataclass(frozen=True, eq=False)
class Impression:
    """Ink on paper.

    Args:
        density: float32 (h, w), 0 where there is no ink, about 1 where it is full, up to 1.3 along edges.
        coverage: float32 (h, w) in [0, 1], the stamp's own: where there would be ink if all had been printed.
        area: bool (h, w), the filled silhouette.
        lines: words with their polygons.
        kind: shape of the outline.
        color: class of the ink.
    """

    density: Field
    coverage: Field
    area: NDArray[np.bool_]
    lines: tuple[TextLine, ...]
    kind: Kind
    color: Color


def flat(stamp: Stamp) -> Impression:
    """The stamp without any ink model: density is coverage."""
    return Impression(stamp.coverage, stamp.coverage, stamp.area, stamp.lines, stamp.kind, stamp.color)


def _logistic(x: Field) -> Field:
    """1 / (1 + exp(-x)), in place."""
    np.negative(x, out=x)
    cv2.exp(np.minimum(x, 60, out=x), x)
    x += 1
    return np.divide(np.float32(1), x, out=x)


def _plane(stamp: Stamp, angle: float) -> Field:
    """From about -1 to 1 across the seal in a direction."""
    h, w = stamp.coverage.shape
    half = stamp.side_px / 2
    x = (np.arange(w, dtype=np.float32) + np.float32(0.5 - stamp.centre[0])) * np.float32(math.cos(angle) / half)
    y = (np.arange(h, dtype=np.float32) + np.float32(0.5 - stamp.centre[1])) * np.float32(math.sin(angle) / half)
    return x[None] + y[:, None]


def dropout_sector(stamp: Stamp, middle: float, width_deg: float) -> Field:
    """1 within an angle around the seal and outside its middle, falling softly to 0 at the angle's sides."""
    across, along = _plane(stamp, middle + math.pi / 2), _plane(stamp, middle)
    radius, angle = cv2.cartToPolar(along, across)
    away = np.minimum(angle, np.float32(2 * math.pi) - angle)
    half = math.radians(width_deg) / 2
    sides = np.clip((half - away) / (0.4 * half), 0, 1)
    return np.asarray(sides * np.clip((radius - 0.15) / 0.45, 0, 1), np.float32)


class _Press:
    """One press: its values, and the steps that use them."""

    def __init__(self, stamp: Stamp, settings: InkSettings, rng: np.random.Generator) -> None:
        self.stamp, self.settings, self.rng = stamp, settings, rng
        self.scale = stamp.side_px / _SIDE
        self.size = (stamp.coverage.shape[0], stamp.coverage.shape[1])

    def draw(self, span: Range) -> float:
        return float(self.rng.uniform(*span))

    def happens(self, chance: float) -> bool:
        return bool(self.rng.random() < chance)

    def pressure(self) -> Field:
        settings = self.settings
        field = _plane(self.stamp, self.draw((0, 2 * math.pi)))
        field *= np.float32(-self.draw(settings.tilt) / 2)
        field += np.float32(self.draw(settings.pressure))
        field += smooth_noise(self.size, 22 * self.scale, self.rng) * np.float32(self.draw(settings.mottle))
        if self.happens(settings.dropout_chance):
            sector = dropout_sector(self.stamp, self.draw((0, 2 * math.pi)), self.draw(settings.dropout_deg))
            field -= sector * np.float32(self.draw(settings.dropout_depth))
        return field

    def edge(self, pressure: Field) -> Field:
        """Distance to the printed edge, in pixels, after ink has run."""
        settings, scale = self.settings, self.scale
        moved = pressure * np.float32(self.draw(settings.spread) * scale)
        moved += self.stamp.distance
        moved -= smooth_noise(self.size, 1.4 * scale, self.rng) * np.float32(self.draw(settings.roughness) * scale)
        bleed = np.float32(self.draw(settings.bleed) * scale)
        if bleed:
            moved += np.maximum(fibre_noise(self.size, self.rng), 0) * bleed
        return moved

    def film(self, edge: Field, pressure: Field) -> Field:
        """Thickness of the ink where the stamp touches: less over the paper's tooth, more along edges."""
        settings, scale = self.settings, np.float32(self.scale)
        grain = smooth_noise(self.size, 0.75 * self.scale, self.rng) * np.float32(0.8)
        grain += smooth_noise(self.size, 2.2 * self.scale, self.rng) * np.float32(0.55)
        film = pressure * np.float32(3.1) - np.float32(self.draw(settings.starve))
        film -= grain * np.float32(self.draw(settings.tooth))
        _logistic(film)
        rim = cv2.exp(-np.square((edge - np.float32(0.6) * scale) / (np.float32(1.1) * scale)))
        solid = np.clip(edge / (6 * scale), 0, 1)
        film *= np.float32(self.draw(settings.load))
        film *= 1 + np.float32(self.draw(settings.rim)) * rim - np.float32(self.draw(settings.solids)) * solid
        return film

    def twice(self, density: Field) -> Field:
        angle, far = self.draw((0, 2 * math.pi)), self.draw(self.settings.double_px) * self.scale
        shift = np.array([[1, 0, far * math.cos(angle)], [0, 1, far * math.sin(angle)]])
        second = cv2.warpAffine(density, shift, (self.size[1], self.size[0]), flags=cv2.INTER_LINEAR)
        result: Field = np.maximum(density, second * np.float32(self.draw(self.settings.double_strength)))
        return result

    def smeared(self, density: Field) -> Field:
        """A drag in one direction: each pixel keeps most of its ink and gets what came from before it."""
        length = max(2, round(self.draw(self.settings.smear_px) * self.scale))
        angle = self.draw((0, 2 * math.pi))
        kernel = np.zeros((2 * length + 1, 2 * length + 1), np.float32)
        for step in range(1, length + 1):
            weight = 1 - step / (length + 1)
            kernel[round(length - step * math.sin(angle)), round(length - step * math.cos(angle))] += weight
        trail = cv2.filter2D(density, -1, kernel / kernel.sum(), borderType=cv2.BORDER_CONSTANT)
        result: Field = np.maximum(density, trail * np.float32(self.draw((0.25, 0.6))))
        return result

    def splattered(self, density: Field) -> Field:
        """A few small drops on and beside the seal."""
        drops = np.zeros(self.size, np.uint8)
        for _ in range(int(self.rng.integers(3, 15))):
            x, y = self.rng.uniform((0, 0), (self.size[1], self.size[0])) * 16
            radius = max(6, round(float(self.rng.lognormal(-0.6, 0.45)) * self.scale * 16))
            cv2.circle(drops, (int(x), int(y)), radius, int(self.rng.integers(90, 230)), -1, cv2.LINE_AA, 4)
        result: Field = np.maximum(density, drops * np.float32(1 / 255))
        return result


def press(stamp: Stamp, settings: InkSettings, rng: np.random.Generator) -> Impression:
    """Ink after one press: it spreads, is rough at its edges, drops out over the paper's tooth, may be disturbed."""
    hand = _Press(stamp, settings, rng)
    pressure = hand.pressure()
    edge = hand.edge(pressure)
    density = hand.film(edge, pressure)
    density *= _logistic(edge * np.float32(1 / (hand.draw(settings.softness) * max(hand.scale, 0.6))))
    if hand.happens(settings.double_chance):
        density = hand.twice(density)
    if hand.happens(settings.smear_chance):
        density = hand.smeared(density)
    if hand.happens(settings.splatter_chance):
        density = hand.splattered(density)
    return Impression(density, stamp.coverage, stamp.area, stamp.lines, stamp.kind, stamp.color)
