"""Outlines, stars and cuts of seals as polygons, in halves of the seal's longest side."""

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from datamodules.transforms.seals.layouts import Hairline, SealDesign

Points = NDArray[np.floating[Any]]

_ROUND = 180  # corners of the polygon that stands for an ellipse: under 0.03 px off at 320 px
_STAR_WAIST = 0.382  # a pentagram's inner radius by its outer one
_TRIANGLE = np.array([[0.0, -2.0], [1.7320508, 1.0], [-1.7320508, 1.0]]) / math.sqrt(3)  # radius of its incircle: 0.577


def star_points(radius: float, y: float = 0.0) -> Points:
    """A five-pointed star with a tip upwards: ten corners, tips first and then every other one."""
    angles = np.arange(10) * math.pi / 5
    radii = np.where(np.arange(10) % 2 == 0, radius, radius * _STAR_WAIST)
    return np.stack([radii * np.sin(angles), y - radii * np.cos(angles)], axis=-1)


def _rounded(corners: Points, radius: float, steps: int = 8) -> Points:
    """Replaces corners of a convex polygon, given clockwise as seen with y down, by arcs of circles."""
    if radius <= 0:
        return corners
    before, after = np.roll(corners, 1, 0) - corners, np.roll(corners, -1, 0) - corners
    before, after = (way / np.linalg.norm(way, axis=1, keepdims=True) for way in (before, after))
    half = np.arccos(np.clip((before * after).sum(1), -1, 1)) / 2
    bisector = before + after
    bisector = bisector / np.linalg.norm(bisector, axis=1, keepdims=True)
    centres = corners + bisector * (radius / np.sin(half))[:, None]
    towards = np.arctan2(-bisector[:, 1], -bisector[:, 0])
    sweep = np.linspace(-1, 1, steps)[None] * (math.pi / 2 - half)[:, None] + towards[:, None]
    arcs = centres[:, None] + radius * np.stack([np.cos(sweep), np.sin(sweep)], axis=-1)
    result: Points = arcs.reshape(-1, 2)
    return result


def outline(design: SealDesign, inset: float = 0.0) -> Points:
    """The seal's outline, moved inwards; clockwise as seen."""
    if design.kind in ("round", "oval"):
        t = np.arange(_ROUND) * (2 * math.pi / _ROUND)
        return np.stack([(1 - inset) * np.sin(t), -(design.aspect - inset) * np.cos(t)], axis=-1)
    corner = max(0.0, design.corner - inset)
    if design.kind == "square":
        w, h = 1 - inset, design.aspect - inset
        return _rounded(np.array([[-w, -h], [w, -h], [w, h], [-w, h]]), corner)
    incircle = 1 / math.sqrt(3)
    return _rounded(_TRIANGLE * ((incircle - inset) / incircle), corner)


def cut_corners(cut: Hairline, less: float = 0.0) -> Points:
    """The strip that a hairline takes away, which ends far outside the seal; narrower by `less` on both sides."""
    angle = math.radians(cut.angle_deg)
    along, across = np.array([math.cos(angle), math.sin(angle)]), np.array([-math.sin(angle), math.cos(angle)])
    half = max(0.0, cut.width / 2 - less)
    near, far = across * (cut.offset - half), across * (cut.offset + half)
    return np.stack([near - 3 * along, near + 3 * along, far + 3 * along, far - 3 * along])


def turned(points: Points, angle_deg: float) -> Points:
    """Points turned clockwise around the middle, as seen with y down."""
    c, s = math.cos(math.radians(angle_deg)), math.sin(math.radians(angle_deg))
    result: Points = points @ np.array([[c, s], [-s, c]])
    return result
