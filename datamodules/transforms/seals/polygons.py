"""Outlines of lines of text: the upper edge in reading order, then the lower edge backwards."""

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from datamodules.transforms.seals.layouts import SealText
from datamodules.transforms.seals.lettering import Placed, on_ellipse

Points = NDArray[np.floating[Any]]

_STEP_DEG = 15.0  # turn of the reading direction between two points of an edge


def _reach(letters: list[Placed]) -> tuple[float, float, float, float]:
    """How far ink goes left of the first letter's middle, right of the last's, and up and down of any."""
    first, last = letters[0], letters[-1]
    left = first.tile.reach[0] * first.height * first.condense
    right = last.tile.reach[1] * last.height * last.condense
    up = max(letter.tile.reach[2] * letter.height for letter in letters)
    down = max(letter.tile.reach[3] * letter.height for letter in letters)
    return left, right, up, down


def _box(line: SealText, letters: list[Placed], margin: float) -> Points:
    left, right, up, down = _reach(letters)
    if line.layout == "column":
        left = max(letter.tile.reach[0] * letter.height * letter.condense for letter in letters)
        right = max(letter.tile.reach[1] * letter.height * letter.condense for letter in letters)
    x0, x1 = letters[0].x - left - margin, letters[-1].x + right + margin
    y0, y1 = letters[0].y - up - margin, letters[-1].y + down + margin
    return np.array([[x0, y0], [x1, y0], [x1, y1], [x0, y1]])


def _ribbon(line: SealText, letters: list[Placed], axes: tuple[float, float], margin: float) -> Points:
    """A strip along the ellipse that holds the boxes of all letters, whose corners stick out of an exact offset."""
    a, b = axes[0] - line.inset, axes[1] - line.inset
    tightest = min(a * a / b, b * b / a)  # the smallest radius of curvature
    left, right, up, down = _reach(letters)
    outer, inner = (down, up) if line.layout == "under" else (up, down)
    widest = max(max(letter.tile.reach[:2]) * letter.height * letter.condense for letter in letters)
    free = max(tightest - inner, 0.2 * tightest)
    widths = [letter.tile.advance * letter.height * letter.condense for letter in (letters[0], letters[-1])]
    start = -line.length / 2 + widths[0] / 2 - tightest * math.atan((left + margin) / free)
    end = line.length / 2 - widths[1] / 2 + tightest * math.atan((right + margin) / free)
    count = max(2, math.ceil((end - start) / tightest / math.radians(_STEP_DEG)) + 1)
    half_step = (end - start) / (count - 1) / tightest / 2
    outer = math.hypot(tightest + outer, widest) / math.cos(half_step) - tightest + margin
    inner += margin
    x, y, turn = on_ellipse(a, b, np.linspace(start, end, count), line.layout == "under")
    path, upwards = np.stack([x, y], axis=-1), np.stack([np.sin(turn), -np.cos(turn)], axis=-1)
    up, down = (inner, outer) if line.layout == "under" else (outer, inner)
    return np.concatenate([path + upwards * up, (path - upwards * down)[::-1]])


def line_polygon(line: SealText, letters: list[Placed], axes: tuple[float, float], margin: float) -> Points:
    """A polygon that holds all ink of a line, in the design's units and before the seal is turned.

    Args:
        line: the words and their layout.
        letters: where `place` put them.
        axes: half width and half height of the ellipse that arcs follow.
        margin: added on all sides.

    Returns:
        (2K, 2) x and y: K points of the upper edge in reading order, then K of the lower edge backwards.
    """
    if line.layout in ("row", "column"):
        return _box(line, letters, margin)
    return _ribbon(line, letters, axes, margin)
