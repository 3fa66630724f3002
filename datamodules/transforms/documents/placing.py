"""Where things lie: the frame on the sheet, the seals on both, and what lies beyond the sheet's edge."""

import math
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from datamodules.transforms.documents.capture import CaptureKind
from datamodules.transforms.documents.pages import Sheet
from datamodules.transforms.seals.layouts import Kind

Matrix = NDArray[np.float64]
Points = NDArray[np.floating[Any]]
Spot = Literal["anchor", "free", "cut", "seam"]

# Where the first seal sits, and how often: on a date or signature, anywhere, cut by the picture, on the sheet's edge.
SPOTS: dict[Spot, float] = {"anchor": 0.62, "free": 0.16, "cut": 0.1, "seam": 0.12}
# Sides of seals by kind: name seals are half as wide as a company's.
RELATIVE_SIDE: dict[Kind, float] = {"round": 1.0, "oval": 1.05, "square": 0.68, "triangular": 0.85}
EDGE = 0.06  # of the picture's side that a frame keeps from the sheet's edge, so that a turn does not reach it
TURNED_SHARE = 0.1  # of phone pictures, taken from another side of the table


@dataclass(frozen=True)
class Place:
    """Where a seal is pressed.

    Attributes:
        x: Of its middle, in pixels of the sheet.
        y: Of its middle, in pixels of the sheet.
        side: Longest side of its outline in pixels.
        angle_deg: How far it is turned clockwise on the sheet.
    """

    x: float
    y: float
    side: float
    angle_deg: float


@dataclass(frozen=True, eq=False)
class Layout:
    """The geometry of a document, the same in every domain.

    Attributes:
        matrix: (3, 3) from points of the sheet to points of the picture; whole numbers are corners of pixels.
        places: Of the seals.
        straddles: Whether the sheet's edge has another sheet behind it, on which the seal goes on.
    """

    matrix: Matrix
    places: tuple[Place, ...]
    straddles: bool


def draw_layout(
    rng: np.random.Generator,
    sheet: Sheet,
    kinds: tuple[Kind, ...],
    size: int,
    sides: tuple[float, float],
    kind: CaptureKind,
    geometry: bool = True,
) -> Layout:
    """Draw where the frame and the seals lie.

    Args:
        rng: The only source of chance.
        sheet: The page.
        kinds: Outlines of the seals, one each.
        size: Side of the picture.
        sides: Least and greatest side of a round seal, as a share of `size`.
        kind: The device, which says how crooked the picture may be.
        geometry: Whether the picture is crooked at all.
    """
    shapes = [max(16.0, size * rng.uniform(*sides) * RELATIVE_SIDE[outline]) for outline in kinds]
    spot: Spot = rng.choice(list(SPOTS), p=list(SPOTS.values()))
    extent_hw = sheet.toner.shape
    # What is looked at: the first seal's middle, or a place of the sheet where there is no seal.
    focus = _focus(rng, sheet, spot)
    side = shapes[0] if shapes else 0.0
    origin = _origin(rng, focus, side, size, (extent_hw[1], extent_hw[0]), spot)
    places = [Place(*focus, side, _angle(rng))] if kinds else []
    for other in shapes[1:]:
        places.append(Place(*_beside(rng, places[-1], other, origin, size), other, _angle(rng)))
    view = _view(rng, kind, size)
    matrix = (view if geometry else np.eye(3)) @ _shift(-origin[0], -origin[1])
    return Layout(matrix, tuple(places), bool(rng.random() < 0.5))


def _focus(rng: np.random.Generator, sheet: Sheet, spot: Spot) -> tuple[float, float]:
    height, width = sheet.toner.shape
    if spot in ("anchor", "cut") and sheet.anchors:
        x, y = sheet.anchors[int(rng.integers(len(sheet.anchors)))]
        return x + 1.5 * sheet.em * rng.standard_normal(), y + 1.2 * sheet.em * rng.standard_normal()
    if spot == "seam":
        return width - rng.uniform(-0.03, 0.03) * width, rng.uniform(0.15, 0.85) * height
    bottom = max(line.bottom for line in sheet.lines)
    return rng.uniform(0.15, 0.85) * width, rng.uniform(0.05, 1) * min(bottom, 0.95 * height)


def _origin(
    rng: np.random.Generator,
    focus: tuple[float, float],
    side: float,
    size: int,
    extent: tuple[int, int],
    spot: Spot,
) -> tuple[float, float]:
    """Return the sheet's point in the upper left corner of the frame; but for a seam, the frame stays on the sheet."""
    origin = []
    cut = int(rng.integers(4)) if spot == "cut" else -1
    for axis in (0, 1):
        room = min(0.5, max(0.2, 0.54 * side / size))
        at = rng.uniform(room, 1 - room) if room < 0.5 else 0.5
        if cut // 2 == axis and cut >= 0:
            # A seal with two to seven tenths of it beyond one edge of the picture.
            at = (cut % 2) + (1 - 2 * (cut % 2)) * rng.uniform(-0.2, 0.3) * side / size
        start = focus[axis] - at * size
        if not (spot == "seam" and axis == 0):
            start = float(np.clip(start, EDGE * size, max(EDGE * size, extent[axis] - (1 + EDGE) * size)))
        origin.append(start)
    return origin[0], origin[1]


def _beside(
    rng: np.random.Generator, first: Place, side: float, origin: tuple[float, float], size: int
) -> tuple[float, float]:
    """A further seal: over the last one's edge, or elsewhere in the frame."""
    if rng.random() < 0.5:
        turn, far = rng.uniform(0, 2 * math.pi), (first.side + side) / 2 * rng.uniform(0.55, 1.05)
        return first.x + far * math.cos(turn), first.y + far * math.sin(turn)
    x, y = (start + size * rng.uniform(0.2, 0.8) for start in origin)
    return x, y


def _angle(rng: np.random.Generator) -> float:
    return float(14 * rng.standard_normal() if rng.random() < 0.7 else rng.uniform(-180, 180))


def _shift(x: float, y: float) -> Matrix:
    return np.array([[1, 0, x], [0, 1, y], [0, 0, 1]], np.float64)


def _view(rng: np.random.Generator, kind: CaptureKind, size: int) -> Matrix:
    """Return what a device does to the frame: a slight turn, and for phones perspective."""
    turn = math.radians(float(np.clip(0.7 * rng.standard_normal(), -2, 2)))
    bend = np.zeros((2,))
    if kind == "phone":
        turn = math.radians(rng.uniform(-7, 7))
        bend = rng.uniform(-0.16, 0.16, 2) / size
        if rng.random() < TURNED_SHARE:
            turn += math.pi / 2 * int(rng.integers(1, 4))
    c, s = math.cos(turn), math.sin(turn)
    centre = size / 2
    around = np.array([[c, -s, 0], [s, c, 0], [bend[0], bend[1], 1]], np.float64)
    return _shift(centre, centre) @ around @ _shift(-centre, -centre)


def mapped(matrix: Matrix, points: Points) -> NDArray[np.float64]:
    """Return points (N, 2) through a homography."""
    x, y, w = matrix @ np.vstack([points.T, np.ones(len(points))])
    return np.stack([x / w, y / w], axis=1)


def clipped(polygon: Points, corners: Points) -> Points:
    """Return the part of a convex polygon (P, 2) that lies in another, given by its corners in order; perhaps none."""
    result = polygon
    middle = corners.mean(axis=0)
    for start, end in zip(corners, np.roll(corners, -1, axis=0), strict=True):
        across = np.array([start[1] - end[1], end[0] - start[0]])
        inside = (result - start) @ across * np.sign((middle - start) @ across)
        following, next_inside = np.roll(result, -1, axis=0), np.roll(inside, -1)
        kept = []
        for point, other, here, there in zip(result, following, inside, next_inside, strict=True):
            if here >= 0:
                kept.append(point)
            if here * there < 0:
                kept.append(point + (other - point) * (here / (here - there)))
        result = np.array(kept).reshape(-1, 2)
    return result


def on_pixels(matrix: Matrix) -> Matrix:
    """Return a matrix for OpenCV's warps, whose whole numbers are middles of pixels where ours are corners."""
    return _shift(-0.5, -0.5) @ matrix @ _shift(0.5, 0.5)


def scale_at(matrix: Matrix, x: float, y: float) -> float:
    """Return by how much a homography enlarges lengths around a point."""
    ends = mapped(matrix, np.array([[x, y], [x + 1, y], [x, y + 1]]))
    (a, b), (c, d) = ends[1] - ends[0], ends[2] - ends[0]
    return float(math.sqrt(abs(a * d - b * c)))
