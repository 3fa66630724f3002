"""Letters as cached tiles, and their places along arcs, rows and columns."""

import math
from dataclasses import dataclass
from functools import lru_cache

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from datamodules.transforms.seals.layouts import SealText
from datamodules.transforms.seals.seal_fonts import Face, open_face
from datamodules.transforms.seals.wording import is_han

Mask = NDArray[np.uint8]
Points = NDArray[np.float64]

_PROBE_PX = 64
_STEPS = 720  # samples of an ellipse whose arc length is measured


@dataclass(frozen=True)
class Tile:
    """A letter's drawing.

    Args:
        mask: coverage, cut to the ink.
        middle: x and y in the mask, in pixels, of the middle of its advance and of a capital's height.
        unit: pixels of a capital's height, or of a Chinese character's.
        advance: width of the letter with its own space, by the unit.
        reach: how far ink goes left, right, up and down of the middle, by the unit.
        stroke: mean width of its strokes, by the unit.
    """

    mask: Mask
    middle: tuple[float, float]
    unit: float
    advance: float
    reach: tuple[float, float, float, float]
    stroke: float


@dataclass(frozen=True)
class Placed:
    """A letter in its place: its middle, the direction in which it is read, and its scales, all in the caller's units.

    Args:
        tile: the drawing.
        x: middle, to the right.
        y: middle, downwards.
        turn: angle from x to the reading direction, clockwise, in radians.
        height: what the tile's unit becomes.
        condense: how much narrower it becomes.
    """

    tile: Tile
    x: float
    y: float
    turn: float
    height: float
    condense: float


@lru_cache(maxsize=512)
def _unit_per_px(face: Face, han: bool) -> tuple[float, float]:
    """Height and middle over the baseline of a capital (or of a Chinese character), by the font's size."""
    box = open_face(face, _PROBE_PX).getbbox("国" if han else "H", anchor="ls")
    height, middle = (box[3] - box[1]) / _PROBE_PX, -(box[3] + box[1]) / 2 / _PROBE_PX
    return max(height, 0.1), middle


@lru_cache(maxsize=8192)
def advance(char: str, face: Face) -> float:
    """Width of a letter with its own space, by the height of a capital or of a Chinese character."""
    return float(open_face(face, _PROBE_PX).getlength(char)) / _PROBE_PX / _unit_per_px(face, is_han(char))[0]


def natural_length(text: str, face: Face, height: float) -> float:
    """Length of a text without extra spaces, for a height of its letters."""
    return height * sum(advance(char, face) for char in text)


def _stroke(mask: Mask) -> float:
    """Mean stroke width in pixels: a long stroke has twice its area by its outline, which is the sum of slopes."""
    ink = np.pad(mask, 1).astype(np.float32) / 255
    slope = np.hypot(*(np.diff(ink, axis=axis)[: ink.shape[0] - 1, : ink.shape[1] - 1] for axis in (0, 1)))
    return float(2 * ink.sum() / max(slope.sum(), 1e-6))


@lru_cache(maxsize=4096)
def _tile(char: str, face: Face, px: int) -> Tile:
    font = open_face(face, px)
    per_px, middle = _unit_per_px(face, is_han(char))
    width = float(font.getlength(char))
    pad = px
    image = Image.new("L", (math.ceil(width) + 2 * pad, 3 * pad))
    base = 2 * pad
    ImageDraw.Draw(image).text((pad, base), char, 255, font=font, anchor="ls")
    full, unit = np.asarray(image), per_px * px
    x, y, w, h = cv2.boundingRect((full > 8).astype(np.uint8))
    if not w:
        return Tile(np.zeros((1, 1), np.uint8), (0.5, 0.5), unit, width / unit, (0.0, 0.0, 0.0, 0.0), 0.0)
    at = (pad + width / 2 - x, base - middle * px - y)
    reach = (at[0] / unit, (w - at[0]) / unit, at[1] / unit, (h - at[1]) / unit)
    mask = np.ascontiguousarray(full[y : y + h, x : x + w])
    return Tile(mask, at, unit, width / unit, reach, _stroke(mask) / unit)


def tile_of(char: str, face: Face, unit_px: float) -> Tile:
    """The letter at a size at or a little above the wanted one; sizes are few, so that tiles are drawn once."""
    px = max(unit_px, 4.0) / _unit_per_px(face, is_han(char))[0]
    return _tile(char, face, math.ceil(2 ** (math.ceil(math.log2(px) * 4) / 4)))


def _offsets(widths: list[float], length: float) -> list[float]:
    """Middles of letters along a line of a length, with equal gaps between their widths; 0 is the line's middle."""
    gap = (length - sum(widths)) / max(1, len(widths) - 1)
    start = -length / 2 if len(widths) > 1 else -widths[0] / 2
    middles = []
    for width in widths:
        middles.append(start + width / 2)
        start += width + gap
    return middles


@lru_cache(maxsize=256)
def ellipse_lengths(a: float, b: float) -> tuple[Points, Points]:
    """Parameters of an ellipse, clockwise from its top (x = a sin, y = -b cos), and the arc length up to each."""
    t = np.linspace(-math.pi, math.pi, _STEPS + 1)
    middle = (t[1:] + t[:-1]) / 2
    speed = np.hypot(a * np.cos(middle), b * np.sin(middle))
    arc = np.concatenate([[0.0], np.cumsum(speed * np.diff(t))])
    return t, arc - arc[_STEPS // 2]


def on_ellipse(a: float, b: float, along: Points | list[float], under: bool) -> tuple[Points, Points, Points]:
    """Points at arc lengths from the top, clockwise (or from the bottom, counter-clockwise), and reading directions.

    Returns:
        x, y and the angle of the exact tangent, clockwise from x.
    """
    t, arc = ellipse_lengths(a, b)
    lengths = np.asarray(along, np.float64)
    at = np.interp(lengths, arc, t)
    x, y = a * np.sin(at), -b * np.cos(at)
    turn = np.arctan2(b * np.sin(at), a * np.cos(at))
    return (x, -y, -turn) if under else (x, y, turn)


def _placed(line: SealText, tiles: list[Tile], spots: list[tuple[float, float, float]]) -> list[Placed]:
    return [
        Placed(tile, x, y, turn, line.height, line.condense) for tile, (x, y, turn) in zip(tiles, spots, strict=True)
    ]


def place(line: SealText, axes: tuple[float, float], px: float) -> list[Placed]:
    """The letters of a line where the design wants them, in the design's units and before the seal is turned.

    Args:
        line: the words and their layout.
        axes: half width and half height of the ellipse that arcs follow, inset not taken off.
        px: pixels of one unit, by which the tiles' sizes are chosen.
    """
    chars = list(line.text)
    tiles = [tile_of(char, line.face, line.height * px) for char in chars]
    if line.layout == "column":
        steps = _offsets([line.height] * len(chars), line.length)
        return [
            Placed(t, line.x, line.y + y, 0.0, line.height, line.condense) for t, y in zip(tiles, steps, strict=True)
        ]
    widths = [advance(char, line.face) * line.height * line.condense for char in chars]
    steps = _offsets(widths, line.length)
    if line.layout == "row":
        return [
            Placed(t, line.x + x, line.y, 0.0, line.height, line.condense) for t, x in zip(tiles, steps, strict=True)
        ]
    a, b = axes[0] - line.inset, axes[1] - line.inset
    x, y, turn = (values.tolist() for values in on_ellipse(a, b, steps, line.layout == "under"))
    return _placed(line, tiles, list(zip(x, y, turn, strict=True)))
