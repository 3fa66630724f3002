"""Specimens of seals, and specimens of seals that a forger cut after them.

A re-cut seal has the words and the outline of the genuine one and is as regular, but its letters are spaced, sized and
weighted a little otherwise. It is made of the genuine seal's clean ink, so it needs no design and works on any data set
with masks.
"""

import math
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

Pixels = NDArray[np.uint8]
Mask = NDArray[np.bool_]
Floats = NDArray[np.float32]

MARGIN = 1.12  # side of a crop by the longer side of the seal's box
_FRAME = 0.08  # depth below a seal's outline, by its greatest depth, to which frames reach: they stay as they are
_RAMP = 0.1
_CENTRE = (0.4, 0.65)  # distance from the middle at which what is called centre ends


@dataclass(frozen=True)
class RecutSettings:
    """How far a re-cut seal is from the genuine one, and how badly a specimen is laid over an impression.

    Args:
        spacing: Least and greatest change of the spacing of letters: around the middle of round seals, in radians at
            a right angle, and along the lines of others, as a share.
        shrink: Of the distance of everything inside the frame from the middle, as a share.
        centre: Of the size of what is in the middle of round seals, and of the height of others, as a share.
        weight: Of the width of strokes, as a share of their mean width.
        changes: Least and most of the four that are made.
        turn_deg: Greatest error of registration: turn.
        shift: Of place, as a share of the crop.
        scale: Of size, as a share.
    """

    spacing: tuple[float, float] = (0.08, 0.16)
    shrink: tuple[float, float] = (0.04, 0.09)
    centre: tuple[float, float] = (0.06, 0.12)
    weight: tuple[float, float] = (0.15, 0.3)
    changes: tuple[int, int] = (2, 4)
    turn_deg: float = 2.0
    shift: float = 0.015
    scale: float = 0.02

    def __post_init__(self) -> None:
        if not 1 <= self.changes[0] <= self.changes[1] <= 4:
            raise ValueError(f"changes of RecutSettings must ascend within 1 to 4, got {self.changes}")


@dataclass(frozen=True)
class Change:
    """What was cut otherwise; all 0 is the genuine seal. Units as in `RecutSettings`."""

    spacing: float = 0.0
    shrink: float = 0.0
    centre: float = 0.0
    weight: float = 0.0


GENUINE = Change()


@dataclass(frozen=True)
class Axis:
    """How a seal lies: turned clockwise so far; round ones have letters around their middle."""

    angle_deg: float = 0.0
    is_round: bool = True


@dataclass(frozen=True)
class Registration:
    """How a specimen lies over an impression."""

    turn_deg: float = 0.0
    shift: tuple[float, float] = (0.0, 0.0)
    scale: float = 0.0


def draw_change(rng: np.random.Generator, settings: RecutSettings) -> Change:
    """Draw what a forger got wrong."""
    names = ("spacing", "shrink", "centre", "weight")
    made = rng.permutation(4)[: int(rng.integers(settings.changes[0], settings.changes[1] + 1))]
    values = {}
    for place in sorted(made.tolist()):
        low, high = getattr(settings, names[place])
        values[names[place]] = float(rng.uniform(low, high) * (1 if rng.random() < 0.5 else -1))
    return Change(**values)


def draw_registration(rng: np.random.Generator, settings: RecutSettings) -> Registration:
    """Draw how a specimen lies."""
    turn, across, down, scale = rng.uniform(-1, 1, 4)
    return Registration(
        float(turn * settings.turn_deg),
        (float(across * settings.shift), float(down * settings.shift)),
        float(scale * settings.scale),
    )


def square_around(box_xyxy: tuple[float, float, float, float]) -> tuple[int, int, int]:
    """Return left, top and side of the square window of whole pixels around a seal; it may reach beyond the picture."""
    left, top, right, bottom = box_xyxy
    side = max(4, math.ceil(max(right - left, bottom - top) * MARGIN))
    return round((left + right - side) / 2), round((top + bottom - side) / 2), side


def cut(plane: Pixels, window: tuple[int, int, int], edge: int = cv2.BORDER_REPLICATE) -> Pixels:
    """Return a square window of a picture (H, W) or (H, W, 3); beyond the picture its edge goes on.

    Args:
        plane: The picture.
        window: Left, top and side.
        edge: What is beyond the picture, as OpenCV has it.
    """
    left, top, side = window
    height, width = plane.shape[:2]
    inner = plane[max(0, top) : max(0, top + side), max(0, left) : max(0, left + side)]
    above, before = max(0, -top), max(0, -left)
    below, behind = max(0, top + side - height), max(0, left + side - width)
    if not inner.size or not (above or before or below or behind):
        return inner
    padded: Pixels = cv2.copyMakeBorder(inner, above, below, before, behind, edge)
    return padded


def specimen(ink: Mask, area: Mask, axis: Axis, change: Change, registration: Registration, size: int) -> Pixels:
    """Draw the specimen of a seal from its clean ink: uint8 (size, size), 255 where there is ink.

    Args:
        ink: Square crop of the clean ink, (S, S).
        area: Square crop of the filled silhouette, (S, S).
        axis: How it is turned, and whether it is round.
        change: What is cut otherwise.
        registration: How it lies over the crop.
        size: Side of the result.
    """
    side = ink.shape[0]
    smooth = cv2.GaussianBlur(ink.astype(np.float32), (0, 0), 0.5)
    moved = cv2.remap(smooth, *_sources(area, axis, change, registration), cv2.INTER_CUBIC)
    # Genuine strokes take the same way, so that their edges do not tell them apart.
    moved = _reweighted(moved, change.weight)
    shrunk = cv2.resize(moved, (size, size), interpolation=cv2.INTER_AREA if size < side else cv2.INTER_LINEAR)
    drawn: Pixels = np.clip(np.round(255 * shrunk), 0, 255).astype(np.uint8)
    return drawn


def _sources(area: Mask, axis: Axis, change: Change, registration: Registration) -> tuple[Floats, Floats]:
    """Where each pixel of the specimen comes from, x and y."""
    side = area.shape[0]
    middle = (side - 1) / 2
    rows, columns = np.mgrid[:side, :side].astype(np.float32) - middle
    # Registration first: it moves the finished seal.
    angle = math.radians(registration.turn_deg)
    shrink = 1 / (1 + registration.scale)
    x = columns - registration.shift[0] * side
    y = rows - registration.shift[1] * side
    x, y = shrink * (math.cos(angle) * x + math.sin(angle) * y), shrink * (math.cos(angle) * y - math.sin(angle) * x)
    inside = _inside(area, x + middle, y + middle)
    x, y = x / (1 + change.shrink * inside), y / (1 + change.shrink * inside)
    turn = math.radians(axis.angle_deg)
    if axis.is_round:
        distance = np.hypot(x, y) / (middle / MARGIN)
        central = 1 - np.clip((distance - _CENTRE[0]) / (_CENTRE[1] - _CENTRE[0]), 0, 1)
        x, y = x / (1 + change.centre * central), y / (1 + change.centre * central)
        # Angle from the seal's own top, so that letters are spread evenly to its left and right. Rings do not notice.
        around = -change.spacing * (1 - central) * np.sin(np.arctan2(x, -y) - turn)
        from_x, from_y = np.cos(around) * x - np.sin(around) * y, np.sin(around) * x + np.cos(around) * y
    else:
        along = (math.cos(turn) * x + math.sin(turn) * y) / (1 + change.spacing * inside)
        across = (math.cos(turn) * y - math.sin(turn) * x) / (1 + change.centre * inside)
        from_x, from_y = (
            math.cos(turn) * along - math.sin(turn) * across,
            math.sin(turn) * along + math.cos(turn) * across,
        )
    return (from_x + middle).astype(np.float32), (from_y + middle).astype(np.float32)


def _inside(area: Mask, x: Floats, y: Floats) -> Floats:
    """How freely each pixel can move: 0 on the frame, 1 well inside of it."""
    depth = cv2.distanceTransform(area.astype(np.uint8), cv2.DIST_L2, 5)
    share = np.clip((depth / max(1.0, float(depth.max())) - _FRAME) / _RAMP, 0, 1)
    free: Floats = cv2.remap(share.astype(np.float32), x.astype(np.float32), y.astype(np.float32), cv2.INTER_LINEAR)
    return free


def _reweighted(coverage: Floats, share: float) -> Floats:
    """Widen strokes by a share of their mean width, or narrow them."""
    scale = 4  # distances to pixels' middles are too coarse for a fraction of one
    side = coverage.shape[0] * scale
    fine = cv2.resize(coverage, (side, side), interpolation=cv2.INTER_CUBIC) > 0.5
    contours, _ = cv2.findContours(fine.astype(np.uint8), cv2.RETR_LIST, cv2.CHAIN_APPROX_NONE)
    around = sum(cv2.arcLength(contour, True) for contour in contours)
    grow = share * float(fine.sum()) / max(1.0, around)  # a stroke's area is half its outline by its width
    outside = cv2.distanceTransform((~fine).astype(np.uint8), cv2.DIST_L2, 5)
    within = cv2.distanceTransform(fine.astype(np.uint8), cv2.DIST_L2, 5)
    grown = (within - outside > -grow).astype(np.float32)
    widened: Floats = cv2.resize(grown, coverage.shape[::-1], interpolation=cv2.INTER_AREA)
    return widened
