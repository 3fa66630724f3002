"""Primitive shapes that logos are made of: each fills most of a square with an anti-aliased mask."""

import itertools
import math
from collections.abc import Callable
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from datamodules.transforms.fonts import Split, draws, font_split, icon_fonts
from datamodules.transforms.mark_text import glyph_mask

Mask = NDArray[np.uint8]
Points = NDArray[np.floating[Any]]
Shape = Callable[[np.random.Generator, int, Split], Mask]

_SHIFT = 4  # bits below a pixel in OpenCV's drawing calls


def _pixels(points: Points, n: int) -> NDArray[np.int32]:
    """From [-1, 1] to OpenCV's fixed point, with a margin of a fiftieth."""
    return np.round((points * 0.48 + 0.5) * n * (1 << _SHIFT)).astype(np.int32)


def _fill(n: int, *outlines: Points, mask: Mask | None = None, value: int = 255) -> Mask:
    mask = np.zeros((n, n), np.uint8) if mask is None else mask
    for outline in outlines:
        cv2.fillPoly(mask, [_pixels(outline, n)], value, cv2.LINE_AA, _SHIFT)
    return mask


def _stroke(n: int, width: float, *lines: Points, closed: bool = False) -> Mask:
    mask = np.zeros((n, n), np.uint8)
    thickness = max(1, round(width * n * 0.48))
    margin = 1 - min(0.4, width / 2)
    cv2.polylines(mask, [_pixels(line * margin, n) for line in lines], closed, 255, thickness, cv2.LINE_AA, _SHIFT)
    return mask


def _polar(radius: Points | float, angle: Points) -> Points:
    return np.stack([np.cos(angle) * radius, np.sin(angle) * radius], axis=-1)


def _around(n: int) -> Points:
    return np.linspace(0, 2 * math.pi, n, endpoint=False)


def _turned(points: Points, angle: float) -> Points:
    c, s = math.cos(angle), math.sin(angle)
    result: Points = points @ np.array([[c, s], [-s, c]])
    return result


def _circle(radius: float = 1.0, at: tuple[float, float] = (0, 0)) -> Points:
    result: Points = _polar(radius, _around(72)) + np.array(at)
    return result


def _rounded(points: Points, amount: float, steps: int = 6) -> Points:
    """Cuts every corner with a quadratic curve that starts `amount` of the way along both edges."""
    before, after = np.roll(points, 1, 0), np.roll(points, -1, 0)
    start, end = points + (before - points) * amount, points + (after - points) * amount
    t = np.linspace(0, 1, steps)[None, :, None]
    curve = start[:, None] * (1 - t) ** 2 + points[:, None] * (2 * t * (1 - t)) + end[:, None] * t**2
    return curve.reshape(-1, 2)


def _disc(rng: np.random.Generator, n: int, split: Split) -> Mask:
    squeeze = 1.0 if rng.random() < 0.75 else rng.uniform(0.55, 0.9)
    return _fill(n, _circle() * np.array([1, squeeze]))


def _polygon(rng: np.random.Generator, n: int, split: Split) -> Mask:
    corners = _polar(1.0, _around(int(rng.integers(3, 9))) + rng.choice([0, math.pi / 2, -math.pi / 2]))
    return _fill(n, _rounded(corners, rng.uniform(0.02, 0.4)) if rng.random() < 0.5 else corners)


def _star(rng: np.random.Generator, n: int, split: Split) -> Mask:
    points = int(rng.choice([4, 5, 5, 6, 8, 12, 16, 24]))
    inner = rng.uniform(0.35, 0.6) if points < 8 else rng.uniform(0.6, 0.92)
    radius = np.where(np.arange(points * 2) % 2, inner, 1.0)
    corners = _polar(radius, _around(points * 2) - math.pi / 2)
    return _fill(n, _rounded(corners, rng.uniform(0.05, 0.45)) if rng.random() < 0.4 else corners)


def _ring(rng: np.random.Generator, n: int, split: Split) -> Mask:
    mask = _fill(n, _circle())
    offset = rng.uniform(-0.1, 0.1, 2) if rng.random() < 0.3 else np.zeros(2)
    _fill(n, _circle(rng.uniform(0.4, 0.85)) + offset, mask=mask, value=0)
    if rng.random() < 0.35:
        start, gap = rng.uniform(0, 6.3), rng.uniform(0.3, 1.6)
        _fill(n, np.vstack([[0, 0], _polar(1.5, np.array([start, start + gap / 2, start + gap]))]), mask=mask, value=0)
    return mask


def _blob(rng: np.random.Generator, n: int, split: Split) -> Mask:
    angle = _around(120)
    waves = np.arange(2, int(rng.integers(4, 8)))
    size = rng.normal(0, 1, waves.size) * 0.5 / waves
    radius = 1 + (size[:, None] * np.cos(waves[:, None] * angle + rng.uniform(0, 6.3, (waves.size, 1)))).sum(0)
    radius = np.maximum(radius, 0.15)
    return _fill(n, _polar(radius / radius.max(), angle))


def _bars(rng: np.random.Generator, n: int, split: Split) -> Mask:
    count = int(rng.integers(3, 8))
    edges = np.linspace(-1, 1, count + 1)
    fill = rng.uniform(0.35, 0.8)
    mask = np.zeros((n, n), np.uint8)
    for left, right in itertools.pairwise(edges):
        top, bottom = (-1.0, 1.0) if rng.random() < 0.4 else np.sort(rng.uniform(-1, 1, 2)) + np.array([-0.1, 0.1])
        x = left + (right - left) * fill
        box = np.array([[left, top], [x, top], [x, bottom], [left, bottom]])
        _fill(n, _rounded(box, rng.choice([0.02, 0.3])).clip(-1, 1), mask=mask)
    return np.ascontiguousarray(mask.T) if rng.random() < 0.4 else mask


def _hatched(rng: np.random.Generator, n: int, split: Split) -> Mask:
    angle, count, share = rng.uniform(0, 3.15), rng.integers(3, 10), rng.uniform(0.35, 0.75)
    axis = np.linspace(-1, 1, n, dtype=np.float32)
    phase = (axis[None] * math.cos(angle) + axis[:, None] * math.sin(angle)) * count / 2 + rng.uniform()
    distance = np.abs(phase - np.floor(phase) - 0.5) * 2
    soft = np.clip((share - distance) * n / count / 2 + 0.5, 0, 1) * 255
    result: Mask = cv2.min(_container(rng, n, split), soft.astype(np.uint8))
    return result


def _cross(rng: np.random.Generator, n: int, split: Split) -> Mask:
    arm = rng.uniform(0.12, 0.45)
    flare = arm * rng.uniform(0.6, 1.8)
    quarter = np.array([[-flare, -1], [flare, -1], [arm, -arm]])
    corners = np.vstack([_turned(quarter, k * math.pi / 2) for k in range(4)]).clip(-1, 1)
    return _fill(n, _turned(corners, math.pi / 4) if rng.random() < 0.35 else corners)


def _shield(rng: np.random.Generator, n: int, split: Split) -> Mask:
    t = np.linspace(0, 1, 24)
    power, shoulder = rng.uniform(1.5, 4), rng.uniform(-0.4, 0.2)
    right = np.stack([(1 - t**power) * 0.85, shoulder + t * (1 - shoulder)], -1)
    top = [[-0.85, -0.9], [0, -0.9 - rng.uniform(-0.15, 0.1)], [0.85, -0.9]]
    return _fill(n, np.vstack([top, right, right[::-1] * [-1, 1]]))


def _rounded_box(rng: np.random.Generator, n: int, split: Split) -> Mask:
    tall = 1.0 if rng.random() < 0.6 else rng.uniform(0.45, 0.95)
    box: Points = np.array([[-1, -1], [1, -1], [1, 1], [-1, 1]]) * [1, tall] * 0.95
    box = _turned(box * 0.75, math.pi / 4) if rng.random() < 0.15 else box
    return _fill(n, _rounded(box, rng.uniform(0.02, 0.5)))


def _petals(rng: np.random.Generator, n: int, split: Split) -> Mask:
    count, width = int(rng.integers(2, 13)), rng.uniform(0.5, 1.5)
    t = np.linspace(0, 1, 16)
    lobe = np.sin(t * math.pi) ** rng.uniform(0.5, 1.6) * width / count * 1.4
    start = rng.uniform(0.0, 0.3)
    along = start + t * (1 - start)
    leaf = np.vstack([np.stack([along, lobe], -1), np.stack([along, -lobe * rng.choice([1, 1, 0.2])], -1)[::-1]])
    leaf[:, 1] += np.sin(leaf[:, 0] * 2) * rng.choice([0, 0, 0.3])
    return _fill(n, *(_turned(leaf, a).clip(-1.02, 1.02) for a in _around(count) - math.pi / 2))


def _gear(rng: np.random.Generator, n: int, split: Split) -> Mask:
    teeth = int(rng.integers(6, 20))
    angle = _around(teeth * 4) + 0.1
    depth = rng.uniform(0.72, 0.9)
    mask = _fill(n, _polar(np.where(np.arange(teeth * 4) % 4 < 2, 1.0, depth), angle))
    return _fill(n, _circle(rng.uniform(0.2, 0.55)), mask=mask, value=0)


def _sprite(rng: np.random.Generator, n: int, split: Split) -> Mask:
    cells = int(rng.integers(4, 10))
    half = rng.random((cells, (cells + 1) // 2)) < rng.uniform(0.4, 0.65)
    grid = np.hstack([half, half[:, : cells // 2][:, ::-1]]).astype(np.uint8) * 255
    grid[cells // 2, cells // 2] = 255
    if rng.random() < 0.5:
        blocky: Mask = cv2.resize(grid, (n, n), interpolation=cv2.INTER_NEAREST)
        return blocky
    smooth = cv2.resize(grid, (n, n), interpolation=cv2.INTER_CUBIC).astype(np.float32)
    result: Mask = np.clip((smooth - 128) * n / cells / 40 + 128, 0, 255).astype(np.uint8)
    return result


def _chevrons(rng: np.random.Generator, n: int, split: Split) -> Mask:
    count, thick = int(rng.integers(1, 4)), rng.uniform(0.15, 0.35)
    rise = rng.uniform(0.3, 0.9)
    lines = []
    for k in range(count):
        y = (k - (count - 1) / 2) * thick * 2.6
        lines.append(np.array([[-0.9, y + rise / 2], [0, y - rise / 2], [0.9, y + rise / 2]]))
    mask = _stroke(n, thick, *lines)
    return np.ascontiguousarray(np.rot90(mask, int(rng.integers(4))))


def _heart(rng: np.random.Generator, n: int, split: Split) -> Mask:
    t = _around(90)
    x, y = 16 * np.sin(t) ** 3, 13 * np.cos(t) - 5 * np.cos(2 * t) - 2 * np.cos(3 * t) - np.cos(4 * t)
    return _fill(n, np.stack([x / 17, -(y + 2.5) / 15.5 * rng.uniform(0.85, 1)], -1))


def _arcs(rng: np.random.Generator, n: int, split: Split) -> Mask:
    count, span, start = int(rng.integers(2, 6)), rng.uniform(0.8, 5.6), rng.uniform(0, 6.3)
    thick = rng.uniform(0.35, 0.7) / count
    turn = rng.choice([0, 0, 0.5])
    lines = [_polar((k + 1) / count, start + k * turn + np.linspace(0, span, 40)) for k in range(count)]
    mask = _stroke(n, thick, *lines)
    return _fill(n, _circle(thick), mask=mask) if rng.random() < 0.4 else mask


def _strokes(rng: np.random.Generator, n: int, split: Split) -> Mask:
    knots = rng.choice(np.linspace(-0.9, 0.9, 4), (int(rng.integers(3, 7)), 2))
    thick = rng.uniform(0.08, 0.28)
    if rng.random() < 0.5:
        knots = _rounded(knots, 0.5, 10)[:-8]
    lines = [knots, knots * [-1, 1]] if rng.random() < 0.4 else [knots]
    return _stroke(n, thick, *lines, closed=bool(rng.random() < 0.2))


def _letter(rng: np.random.Generator, n: int, split: Split) -> Mask:
    fonts = font_split(split)
    count = int(rng.choice([1, 1, 1, 2, 2, 3]))
    letters = "".join(rng.choice(list("ABCDEFGHIJKLMNOPQRSTUVWXYZ&abdeghkmnqrstw0123456789"), count))
    return glyph_mask(letters, fonts[rng.integers(len(fonts))], n)


def _pictogram(rng: np.random.Generator, n: int, split: Split) -> Mask:
    fonts = icon_fonts(split)
    for _ in range(4 if fonts else 0):
        path, first, last = fonts[rng.integers(len(fonts))]
        char = chr(int(rng.integers(first, last + 1)))
        if draws(path, char):
            return glyph_mask(char, path, n)
    return _letter(rng, n, split)


def _crescent(rng: np.random.Generator, n: int, split: Split) -> Mask:
    mask = _fill(n, _circle())
    at = _polar(rng.uniform(0.25, 0.7), np.array(rng.uniform(0, 6.3)))
    return _fill(n, _circle(rng.uniform(0.6, 0.9)) + at, mask=mask, value=0)


def _bolt(rng: np.random.Generator, n: int, split: Split) -> Mask:
    corners = np.array([[0.2, -1], [-0.6, 0.15], [-0.05, 0.15], [-0.25, 1], [0.6, -0.25], [0.05, -0.25], [0.45, -1]])
    return _fill(n, (corners + rng.uniform(-0.15, 0.15, corners.shape)).clip(-1, 1))


def _dots(rng: np.random.Generator, n: int, split: Split) -> Mask:
    count = int(rng.integers(3, 8))
    axis = (np.arange(count) + 0.5) / count * 2 - 1
    mask = np.zeros((n, n), np.uint8)
    fade, keep, tilt = rng.uniform(0, 0.8), rng.uniform(0.6, 1.01), rng.uniform(-1, 1, 2)
    for x in axis:
        for y in axis:
            if rng.random() < keep:
                radius = (1 - fade * abs(x * tilt[0] + y * tilt[1]) / 2) * 0.9 / count
                at = _pixels(np.array([x, y]), n)
                cv2.circle(mask, (int(at[0]), int(at[1])), round(radius * 0.48 * n * 16), 255, -1, cv2.LINE_AA, _SHIFT)
    return mask


def _peaks(rng: np.random.Generator, n: int, split: Split) -> Mask:
    count = int(rng.integers(2, 6))
    x = np.sort(rng.uniform(-0.9, 0.9, count * 2 - 1))
    y = np.where(np.arange(x.size) % 2, rng.uniform(0, 0.5, x.size), rng.uniform(-1, -0.2, x.size))
    ridge = np.stack([x, y], -1)
    return _fill(n, np.vstack([[-1, 0.8], ridge, [1, 0.8]]))


def _code_block(rng: np.random.Generator, n: int, split: Split) -> Mask:
    cells = int(rng.choice([9, 13, 17, 21, 25]))
    grid = (rng.random((cells, cells)) < 0.5).astype(np.uint8) * 255
    if rng.random() < 0.6:
        finder = np.zeros((8, 8), np.uint8)
        finder[:7, :7], finder[1:6, 1:6], finder[2:5, 2:5] = 255, 0, 255
        k = min(8, cells // 2)
        grid[:k, :k], grid[:k, -k:], grid[-k:, :k] = finder[:k, :k], finder[:k, :k][:, ::-1], finder[:k, :k][::-1]
    elif rng.random() < 0.4:
        grid[:] = grid[:1]
    result: Mask = cv2.resize(grid, (n, n), interpolation=cv2.INTER_NEAREST)
    return result


def _orbits(rng: np.random.Generator, n: int, split: Split) -> Mask:
    count, flat = int(rng.integers(1, 4)), rng.uniform(0.25, 0.6)
    tilt = rng.uniform(0, 3.15)
    lines = [_turned(_circle() * [1, flat], tilt + k * math.pi / count) for k in range(count)]
    mask = _stroke(n, rng.uniform(0.06, 0.2), *lines, closed=True)
    return _fill(n, _circle(rng.uniform(0.15, 0.5)), mask=mask) if rng.random() < 0.7 else mask


def _swoosh(rng: np.random.Generator, n: int, split: Split) -> Mask:
    t = np.linspace(0, 1, 40)
    bend, thick, wave = rng.uniform(-1.2, 1.2), rng.uniform(0.1, 0.4), rng.uniform(0, 0.5)
    middle = np.stack([t * 1.9 - 0.95, bend * (t - 0.5) ** 2 * 2 + wave * np.sin(t * 6)], -1)
    half = (thick * t ** rng.uniform(0.4, 1.5) * np.sqrt(1 - t**6))[:, None] * [0.2, 1]
    band = np.vstack([middle + half, (middle - half)[::-1]])
    return _fill(n, _turned(band * 0.75, rng.uniform(0, 6.3)))


def _spiral(rng: np.random.Generator, n: int, split: Split) -> Mask:
    turns, arms = rng.uniform(0.7, 3.2), int(rng.integers(1, 6))
    t = np.linspace(0.04, 1, 90)
    lines = [_polar(t, t * turns * 6.28 + a) for a in _around(arms)]
    return _stroke(n, min(0.3, rng.uniform(0.3, 0.55) / turns / arms), *lines)


def _knot(rng: np.random.Generator, n: int, split: Split) -> Mask:
    t = _around(200)
    a, b = rng.choice([(1, 2), (2, 3), (3, 2), (3, 4), (2, 5), (1, 3)])
    curve = np.stack([np.sin(a * t + rng.uniform(0.3, 1.5)), np.sin(b * t)], -1)
    return _stroke(n, rng.uniform(0.08, 0.24), curve, closed=True)


def _pie(rng: np.random.Generator, n: int, split: Split) -> Mask:
    mask = _fill(n, _circle())
    count, gap, start = int(rng.integers(2, 9)), rng.uniform(0.05, 0.3), rng.uniform(0, 6.3)
    for angle in _around(count) + start:
        _fill(n, np.vstack([[0, 0], _polar(1.5, np.array([angle, angle + gap]))]), mask=mask, value=0)
    if rng.random() < 0.5:
        _fill(n, _circle(rng.uniform(0.2, 0.7)), mask=mask, value=0)
    return mask


def _drop(rng: np.random.Generator, n: int, split: Split) -> Mask:
    t = _around(90)
    body = np.stack([np.sin(t) * np.sin(t / 2) ** rng.uniform(1, 3) * 0.8, -np.cos(t)], -1)
    mask = _fill(n, _turned(body, rng.choice([0, 0, math.pi, 0.6])))
    return _fill(n, _circle(rng.uniform(0.15, 0.3), (0, 0.35)), mask=mask, value=0) if rng.random() < 0.5 else mask


def _waves(rng: np.random.Generator, n: int, split: Split) -> Mask:
    count, crests, high = int(rng.integers(2, 6)), rng.uniform(1, 3.5), rng.uniform(0.08, 0.3)
    x = np.linspace(-0.95, 0.95, 80)
    lines = [
        np.stack([x, np.sin(x * crests * 3.1 + k * 0.4) * high + (k - (count - 1) / 2) * 1.5 / count], -1)
        for k in range(count)
    ]
    return _stroke(n, rng.uniform(0.4, 0.9) / count, *lines)


def _cube(rng: np.random.Generator, n: int, split: Split) -> Mask:
    ring = _polar(1.0, _around(6) + math.pi / 6)
    gap = rng.uniform(0.04, 0.14)
    faces = [np.array([[0, 0], ring[k], ring[k + 1], ring[(k + 2) % 6]]) for k in (0, 2, 4)]
    return _fill(n, *(face + (face.mean(0) - face) * gap * 2 for face in faces))


def _linked_rings(rng: np.random.Generator, n: int, split: Split) -> Mask:
    count = int(rng.integers(2, 6))
    centres = _polar(0.42, _around(count) + rng.uniform(0, 6.3))
    return _stroke(n, rng.uniform(0.07, 0.2), *(_circle(0.5) + c for c in centres), closed=True)


def _pinwheel(rng: np.random.Generator, n: int, split: Split) -> Mask:
    count, twist = int(rng.integers(3, 11)), rng.uniform(0.3, 1.4)
    t = np.linspace(0.08, 1, 20)
    width = 6.28 / count * rng.uniform(0.35, 0.8)
    blade = np.vstack([_polar(t, t * twist), _polar(t, t * twist + width * t ** rng.uniform(0, 1))[::-1]])
    return _fill(n, *(_turned(blade, a) for a in _around(count)))


def _container(rng: np.random.Generator, n: int, split: Split) -> Mask:
    return CONTAINERS[rng.integers(len(CONTAINERS))](rng, n, split)


CONTAINERS: tuple[Shape, ...] = (_disc, _disc, _rounded_box, _shield, _polygon, _blob)
TRAIN_SHAPES: dict[str, Shape] = {
    "disc": _disc, "polygon": _polygon, "star": _star, "ring": _ring, "blob": _blob, "bars": _bars,
    "hatched": _hatched, "cross": _cross, "shield": _shield, "rounded_box": _rounded_box, "petals": _petals,
    "gear": _gear, "sprite": _sprite, "chevrons": _chevrons, "heart": _heart, "arcs": _arcs,
    "strokes": _strokes, "letter": _letter, "pictogram": _pictogram, "crescent": _crescent, "bolt": _bolt,
    "dots": _dots, "peaks": _peaks, "code_block": _code_block, "orbits": _orbits, "swoosh": _swoosh,
}  # fmt: skip
HELD_OUT_SHAPES: dict[str, Shape] = {
    "spiral": _spiral, "knot": _knot, "pie": _pie, "drop": _drop, "waves": _waves, "cube": _cube,
    "linked_rings": _linked_rings, "pinwheel": _pinwheel,
}  # fmt: skip


def shape_names(split: Split) -> tuple[str, ...]:
    """The shapes that only this split leads with; no name is in both."""
    return tuple(HELD_OUT_SHAPES if split == "held_out" else TRAIN_SHAPES)


def draw_shape(rng: np.random.Generator, n: int, split: Split) -> Mask:
    """One of the split's shapes; letters and pictograms come from the split's fonts."""
    shapes = list((HELD_OUT_SHAPES if split == "held_out" else TRAIN_SHAPES).values())
    # Letters and pictograms stand for far more designs than one formula does.
    shapes += [_letter, _pictogram, _pictogram]
    return shapes[rng.integers(len(shapes))](rng, n, split)


def draw_container(rng: np.random.Generator, n: int, split: Split) -> Mask:
    """A closed shape with room for something inside."""
    return _container(rng, n, split)
