"""A seal as it was cut: its coverage of the paper, distance to the edge of the ink, filled area, and labelled lines."""

import math
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from datamodules.transforms.seals.layouts import Color, Kind, Role, SealDesign, SealText
from datamodules.transforms.seals.lettering import Placed, place
from datamodules.transforms.seals.outlines import cut_corners, outline, star_points, turned
from datamodules.transforms.seals.polygons import line_polygon

Points = NDArray[np.floating[Any]]
Mask = NDArray[np.uint8]

_SHIFT = 4  # bits below a pixel in OpenCV's drawing calls
_GROWTH = 0.65  # pixels by which OpenCV's anti-aliased filling reaches over a polygon's sides; measured on discs
_WAIST = math.cos(math.radians(72))  # distance of a star's sides from its middle, by that of its tips
_MARGIN = 0.03  # around the outline, for ink that spreads, by the longest side


@dataclass(frozen=True, eq=False)
class TextLine:
    """A line of a stamp.

    Args:
        text: what it says, in reading order.
        role: what it is for.
        polygon: (P, 2) float32 x and y in the stamp's pixels: its upper edge, then its lower one backwards, clockwise.
        stroke_px: median width of its strokes.
    """

    text: str
    role: Role
    polygon: NDArray[np.float32]
    stroke_px: float


@dataclass(frozen=True, eq=False)
class Stamp:
    """A seal in pixels, before any ink model; all arrays but the fine one are (h, w).

    Args:
        coverage: float32 in [0, 1], the share of a pixel that is cut to print.
        fine: uint8 coverage at whole multiples of the resolution, which distances are measured on.
        area: bool, the filled silhouette.
        lines: words with their polygons.
        kind: shape of the outline.
        color: class of the ink.
        centre: x and y of the design's middle.
        side_px: longest side of the outline.
        angle_deg: how far it is turned clockwise.
    """

    coverage: NDArray[np.float32]
    fine: Mask
    area: NDArray[np.bool_]
    lines: tuple[TextLine, ...]
    kind: Kind
    color: Color
    centre: tuple[float, float]
    side_px: float
    angle_deg: float

    @cached_property
    def distance(self) -> NDArray[np.float32]:
        """(h, w) float32 pixels to the edge of what prints, above 0 inside; measured when first asked for."""
        return _distance(self.fine, self.fine.shape[0] // self.coverage.shape[0])


@dataclass(frozen=True)
class _Sheet:
    """Where a design lies on its supersampled canvas: pixels of one unit, and where its middle is."""

    scale: float
    angle_deg: float
    centre: tuple[float, float]

    def at(self, x: float, y: float) -> tuple[float, float]:
        """A point of the design in pixels, whose whole numbers are their corners."""
        turn = math.radians(self.angle_deg)
        c, s = math.cos(turn) * self.scale, math.sin(turn) * self.scale
        return c * x - s * y + self.centre[0], s * x + c * y + self.centre[1]

    def pixels(self, points: Points) -> NDArray[np.int32]:
        """Points of the design in OpenCV's fixed point, whose whole numbers are the middles of pixels."""
        at = turned(points, self.angle_deg) * self.scale + np.array(self.centre) - 0.5
        result: NDArray[np.int32] = np.round(at * (1 << _SHIFT)).astype(np.int32)
        return result


def _fill_outline(canvas: Mask, sheet: _Sheet, design: SealDesign, inset: float, value: int) -> None:
    _fill(canvas, sheet, outline(design, inset + _GROWTH / sheet.scale), value)


def _fill(canvas: Mask, sheet: _Sheet, points: Points, value: int) -> None:
    cv2.fillPoly(canvas, [sheet.pixels(points)], value, cv2.LINE_AA, _SHIFT)


def _paste(canvas: Mask, sheet: _Sheet, letter: Placed) -> None:
    """Puts a letter's tile on the canvas where it is not yet darker, turned and scaled."""
    tile = letter.tile
    turn = letter.turn + math.radians(sheet.angle_deg)
    high = letter.height * sheet.scale / tile.unit
    wide = high * letter.condense
    c, s = math.cos(turn), math.sin(turn)
    x, y = sheet.at(letter.x, letter.y)
    m00, m01, m10, m11 = c * wide, -s * high, s * wide, c * high
    h, w = tile.mask.shape
    x0 = x - m00 * tile.middle[0] - m01 * tile.middle[1]
    y0 = y - m10 * tile.middle[0] - m11 * tile.middle[1]
    left = math.floor(x0 + min(0, m00 * w) + min(0, m01 * h)) - 1
    top = math.floor(y0 + min(0, m10 * w) + min(0, m11 * h)) - 1
    right = math.ceil(x0 + max(0, m00 * w) + max(0, m01 * h)) + 1
    bottom = math.ceil(y0 + max(0, m10 * w) + max(0, m11 * h)) + 1
    left, top = max(left, 0), max(top, 0)
    right, bottom = min(right, canvas.shape[1]), min(bottom, canvas.shape[0])
    # warpAffine's whole numbers are the middles of pixels; ours are their corners.
    dx, dy = x0 - left + (m00 + m01 - 1) / 2, y0 - top + (m10 + m11 - 1) / 2
    matrix = np.array([[m00, m01, dx], [m10, m11, dy]])
    drawn = cv2.warpAffine(tile.mask, matrix, (right - left, bottom - top), flags=cv2.INTER_LINEAR)
    spot = canvas[top:bottom, left:right]
    np.maximum(spot, drawn, out=spot)


def _bounds(design: SealDesign, angle_deg: float) -> tuple[Points, Points]:
    corners = turned(outline(design), angle_deg)
    return corners.min(axis=0), corners.max(axis=0)


def _supersampling(side_px: float) -> int:
    # OpenCV's own anti-aliasing is enough for large seals; small letters need more.
    return 3 if side_px < 140 else 2


def _draw(design: SealDesign, sheet: _Sheet, size_hw: tuple[int, int], letters: list[Placed]) -> Mask:
    canvas = np.zeros(size_hw, np.uint8)
    if design.yin:
        _fill_outline(canvas, sheet, design, 0.0, 255)
    for ring in () if design.yin else design.rings:
        _fill_outline(canvas, sheet, design, ring.inset, 255)
        _fill_outline(canvas, sheet, design, ring.inset + ring.width, 0)
    if design.star:
        tip = design.star - _GROWTH / sheet.scale / _WAIST
        _fill(canvas, sheet, star_points(max(tip, 0.0), design.star_y), 255)
    words = np.zeros(size_hw, np.uint8) if design.yin else canvas
    for letter in letters:
        _paste(words, sheet, letter)
    if design.yin:
        np.minimum(canvas, 255 - words, out=canvas)
    for cut in design.hairlines:
        _fill(canvas, sheet, cut_corners(cut, _GROWTH / sheet.scale), 0)
    return canvas


def _distance(canvas: Mask, factor: int) -> NDArray[np.float32]:
    """Signed distance to the canvas's half-tone contour in final pixels, at the final resolution."""
    inside, outside = ((cv2.threshold(canvas, 127, 1, way)[1]) for way in (cv2.THRESH_BINARY, cv2.THRESH_BINARY_INV))
    signed = cv2.subtract(*(cv2.distanceTransform(part, cv2.DIST_L2, 5) for part in (inside, outside)))
    # Distances are taken between middles of pixels; the contour is half a pixel nearer on both sides.
    nearer = np.float32(0.5) - _shrunk(inside.astype(np.float32), factor)
    return (_shrunk(signed, factor) + nearer) * np.float32(1 / factor)


def _shrunk(array: NDArray[Any], factor: int) -> NDArray[np.float32]:
    size = (array.shape[1] // factor, array.shape[0] // factor)
    small: NDArray[np.float32] = cv2.resize(array, size, interpolation=cv2.INTER_AREA).astype(np.float32, copy=False)
    return small


def _text_line(line: SealText, letters: list[Placed], design: SealDesign, sheet: _Sheet, factor: int) -> TextLine:
    corners = line_polygon(line, letters, (1.0, design.aspect), margin=1.5 * factor / sheet.scale)
    polygon = (turned(corners, sheet.angle_deg) * sheet.scale + np.array(sheet.centre)) / factor
    strokes = [letter.tile.stroke for letter, char in zip(letters, line.text, strict=True) if char != " "]
    stroke = float(np.median(strokes)) * line.height * math.sqrt(line.condense) * sheet.scale / factor
    return TextLine(line.text, line.role, polygon.astype(np.float32), stroke)


def draw_stamp(design: SealDesign, side_px: float, angle_deg: float = 0.0) -> Stamp:
    """Draws a design with a longest side in pixels, turned clockwise; every label goes through the same transform.

    Raises:
        ValueError: the side is under 16 px, where no word could be told.
    """
    if side_px < 16:
        raise ValueError(f"side_px must be 16 or more, got {side_px}; choose a larger page or seal")
    factor = _supersampling(side_px)
    low, high = _bounds(design, angle_deg)
    margin = math.ceil(_MARGIN * side_px) + 2
    half = side_px / 2
    width, height = (int(v) + 2 * margin for v in np.ceil((high - low) * half))
    middle = (np.array([width, height]) / 2 - (high + low) / 2 * half) * factor
    sheet = _Sheet(half * factor, angle_deg, (float(middle[0]), float(middle[1])))
    placed = [place(line, (1.0, design.aspect), sheet.scale) for line in design.lines]
    canvas = _draw(design, sheet, (height * factor, width * factor), [spot for line in placed for spot in line])
    silhouette = np.zeros((height, width), np.uint8)
    flat = _Sheet(half, angle_deg, (sheet.centre[0] / factor, sheet.centre[1] / factor))
    _fill_outline(silhouette, flat, design, 0.0, 255)
    lines = tuple(
        _text_line(line, letters, design, sheet, factor) for line, letters in zip(design.lines, placed, strict=True)
    )
    coverage = _shrunk(canvas, factor) * np.float32(1 / 255)
    return Stamp(
        coverage, canvas, silhouette > 127, lines,
        design.kind, design.color, flat.centre, side_px, angle_deg,
    )  # fmt: skip
