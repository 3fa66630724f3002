"""Opaque things that stand, lie and grow in drawn scenes."""

import math
from functools import lru_cache
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from datamodules.images.scene_layers import Rgb, draw_tint, draw_tints, lit, pasted

Points = NDArray[np.floating[Any]]
SQUARE = np.array([[-1.0, -1], [1, -1], [1, 1], [-1, 1]])


def _new_outline(rng: np.random.Generator) -> Points:
    """A closed outline about the origin: ellipse, smooth blob, polygon or box."""
    kind = rng.random()
    angle = np.linspace(0, 2 * math.pi, 36, endpoint=False)
    round_ = np.stack([np.cos(angle), np.sin(angle)], -1)
    if kind < 0.25:
        return round_ * [1, rng.uniform(0.3, 1)]
    if kind < 0.65:
        waves = np.arange(2, 8)[:, None]
        bump = (rng.normal(0, 0.35, (6, 1)) / waves * np.cos(waves * angle + rng.uniform(0, 6.3, (6, 1)))).sum(0)
        result: Points = round_ * np.maximum(1 + bump, 0.2)[:, None] * [1, rng.uniform(0.3, 1)]
        return result
    if kind < 0.82:
        corners = np.sort(rng.uniform(0, 2 * math.pi, int(rng.integers(3, 8))))
        return np.stack([np.cos(corners), np.sin(corners)], -1)
    return SQUARE * [rng.uniform(0.04, 1), 0.8]


@lru_cache(maxsize=1)
def _outlines() -> tuple[Points, ...]:
    rng = np.random.default_rng(7)
    return tuple(_new_outline(rng) for _ in range(400))


def _outline(u: float, turn: float) -> Points:
    table, turn = _outlines(), turn * 2 * math.pi
    c, s = math.cos(turn), math.sin(turn)
    result: Points = table[int(u * len(table))] @ np.array([[c, s], [-s, c]])
    return result


def add_thing(rng: np.random.Generator, image: Rgb, skins: list[Rgb], x: float, y: float, radius: float) -> None:
    """One opaque thing with a texture and a shading of its own, perhaps with a soft shadow on what lies behind."""
    u = rng.random(8).tolist()
    h, w = image.shape[:2]
    points = ((_outline(u[0], u[1]) * radius + (x, y)) * 16).astype(np.int32)
    if radius < 2.5:
        cv2.fillPoly(image, [points], draw_tint(rng), cv2.LINE_AA, 4)
        return
    left, top, across, down = cv2.boundingRect(points)
    left, top, right, bottom = left // 16 - 1, top // 16 - 1, (left + across) // 16 + 2, (top + down) // 16 + 2
    left, top, right, bottom = max(left, 0), max(top, 0), min(right, w), min(bottom, h)
    if right - left < 2 or bottom - top < 2:
        return
    rows, columns = bottom - top, right - left
    mask = np.zeros((rows, columns), np.uint8)
    cv2.fillPoly(mask, [points], 255, cv2.LINE_AA, 4, (-left * 16, -top * 16))
    at_y, at_x = int(u[3] * (h - rows + 1)), int(u[4] * (w - columns + 1))
    skin = skins[int(u[5] * len(skins))][at_y : at_y + rows, at_x : at_x + columns]
    if u[2] > 0.35:
        tint = (np.array(draw_tint(rng)) + 30) * np.float32(1.4 / 190)
        skin = cv2.transform(skin, np.diag(tint))
    if radius > 8 and u[6] < 0.6:
        skin = lit(rng, skin, 0.6 * u[7])
    if radius > 8 and u[6] > 0.7:
        _shadow(image, mask, top, left, max(1, round(radius * 0.25 * u[7])))
    pasted(image, skin, mask, top, left)


def _shadow(image: Rgb, mask: Rgb, top: int, left: int, reach: int) -> None:
    window = image[top : top + mask.shape[0], left + reach : left + reach + mask.shape[1]]
    soft = cv2.blur(mask, (reach * 2 + 1, reach * 2 + 1))[:, : window.shape[1]]
    if window.size:
        shade = cv2.addWeighted(soft, -0.6, soft, 0, 255)
        window[:] = cv2.multiply(window, cv2.merge([shade] * 3), scale=1 / 255)


def add_things(rng: np.random.Generator, image: Rgb, skins: list[Rgb], count: int, small: float, large: float) -> None:
    """Things with radii (shares of the shorter side) from a power law, which gives natural pictures their spectrum."""
    h, w = image.shape[:2]
    # Density r^-3 between both ends, by inversion of its cumulative function; the largest lie behind.
    radii = np.sort((small**-2 - rng.random(count) * (small**-2 - large**-2)) ** -0.5)[::-1] * min(h, w)
    order = radii if rng.random() < 0.5 else rng.permutation(radii)
    for radius, x, y in zip(order.tolist(), rng.uniform(0, w, count), rng.uniform(0, h, count), strict=True):
        add_thing(rng, image, skins, x, y, radius)


def add_litter(rng: np.random.Generator, image: Rgb, groups: int, horizon: float = 0.0) -> None:
    """Small things in groups that share a tint and a place: leaves, stones, grass, crumbs, far people."""
    h, w = image.shape[:2]
    side = min(h, w)
    # Most photographs have little of it, and crisp crumbs everywhere look like marks to a segmenter.
    for tint in draw_tints(rng, round(groups * rng.random() ** 4)):
        count, u = int(rng.integers(2, 12)), rng.random(6)
        middle = np.array([u[0] * w, (horizon + (1 - horizon) * u[1]) * h])
        places = middle + rng.normal(0, side * (0.03 + 0.2 * u[2]), (count, 2))
        sizes = side * 0.01 * (0.5 + rng.exponential(1.0, count)) + 0.4
        shape = _outline(u[3], u[4])
        things = (shape * sizes[:, None, None] + places[:, None]) * 16
        cv2.fillPoly(image, list(things.astype(np.int32)), tint.tolist(), cv2.LINE_AA, 4)


def add_figure(rng: np.random.Generator, image: Rgb, skins: list[Rgb], x: float, y: float, size: float) -> None:
    """A body with smaller parts of the same stuff around it: an animal, a plant, a machine."""
    own = [skins[rng.integers(len(skins))]]
    angle, spread = rng.uniform(0, 2 * math.pi), rng.uniform(0.3, 1.2)
    add_thing(rng, image, own, x, y, size)
    for _ in range(int(rng.integers(2, 7))):
        angle += spread * rng.uniform(0.5, 1.5)
        reach = size * rng.uniform(0.4, 1.1)
        add_thing(
            rng, image, own, x + math.cos(angle) * reach, y + math.sin(angle) * reach, size * rng.uniform(0.1, 0.5)
        )
    for tint in draw_tints(rng, 2).tolist():
        at = (int(x + rng.normal(0, size * 0.3)), int(y + rng.normal(0, size * 0.3)))
        cv2.circle(image, at, max(1, int(size * rng.uniform(0.03, 0.12))), tint, -1, cv2.LINE_AA)


def add_branches(rng: np.random.Generator, image: Rgb) -> None:
    """A tree, bare or in leaf, reaching into the picture from its border; or roots, cracks, rivers."""
    h, w = image.shape[:2]
    tint, side = draw_tint(rng), min(h, w)
    ends = [(rng.uniform(0, w), float(h), -math.pi / 2 + rng.normal(0, 0.3), side * rng.uniform(0.01, 0.05))]
    for _ in range(int(rng.integers(12, 45))):
        x, y, angle, thick = ends.pop(int(rng.integers(len(ends))))
        length = side * rng.uniform(0.05, 0.25)
        to_x, to_y = x + math.cos(angle) * length, y + math.sin(angle) * length
        cv2.line(
            image,
            (int(x * 16), int(y * 16)),
            (int(to_x * 16), int(to_y * 16)),
            tint,
            max(1, round(thick)),
            cv2.LINE_AA,
            4,
        )
        ends += [(to_x, to_y, angle + turn + rng.normal(0, 0.2), thick * 0.75) for turn in (-0.4, 0.4)]
