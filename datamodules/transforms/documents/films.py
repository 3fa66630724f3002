"""Seals in the picture: arrays and labels through one and the same geometry."""

from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from datamodules.transforms.documents.composing import Ink, Plane, inked, printed_alpha
from datamodules.transforms.documents.placing import Matrix, Place, Points, clipped, mapped, on_pixels, scale_at
from datamodules.transforms.seals.ink import Impression
from datamodules.transforms.seals.layouts import Color, Kind, Role
from datamodules.transforms.seals.stamps import Stamp

Mask = NDArray[np.bool_]
Pixels = NDArray[np.uint8]
Box = tuple[int, int, int, int]  # left, top, right, bottom; right and bottom are outside

INK_FROM = 0.5  # coverage of a pixel that counts as ink
VISIBLE_FROM = 0.12  # printed alpha that can be seen
LEGIBLE_STROKE = 1.2  # pixels
LEGIBLE_SHARE = 0.5  # of a line's clean ink that is visible


@dataclass(frozen=True, eq=False)
class LineLabel:
    """A line of a seal's text.

    Attributes:
        text: What it says, in reading order.
        role: What it is for.
        polygon: (P, 2) x and y in the picture, whole numbers at corners of pixels: upper edge, lower edge backwards.
        legible: Whether its strokes are wide enough and at least half of its ink can be seen.
    """

    text: str
    role: Role
    polygon: NDArray[np.float32]
    legible: bool


@dataclass(frozen=True, eq=False)
class SealLabel:
    """A seal that can be seen.

    Attributes:
        kind: Outline.
        color: Class of the ink.
        box_xyxy: Around its silhouette in the picture.
        angle_deg: How far it is turned clockwise on the page.
        lines: Its text.
        outline: (P, 2) x and y around its silhouette in the picture, which is convex.
    """

    kind: Kind
    color: Color
    box_xyxy: tuple[float, float, float, float]
    angle_deg: float
    lines: tuple[LineLabel, ...]
    outline: NDArray[np.float32]


@dataclass(frozen=True, eq=False)
class Film:
    """A pressed seal in the picture's pixels; its window may reach beyond the picture.

    Attributes:
        left: Column of the picture that the arrays begin at.
        top: Row of the picture that the arrays begin at.
        clean: Coverage of the seal as it was cut, whether there is paper under it or not.
        coverage: The same where there is paper.
        density: Of the ink on the paper.
        area: Silhouette on the paper.
        ink: Its ink.
        lines: Text, role, polygon in the picture and stroke width in pixels.
        outline: (P, 2) of the whole silhouette in the picture.
        stamp: What was pressed.
    """

    left: int
    top: int
    clean: Plane
    coverage: Plane
    density: Plane
    area: Mask
    ink: Ink
    lines: tuple[tuple[str, Role, NDArray[np.float32], float], ...]
    outline: NDArray[np.float32]
    stamp: Stamp

    def window(self, size_wh: tuple[int, int]) -> tuple[tuple[slice, slice], tuple[slice, slice]]:
        """Return the part that lies in the picture: slices of the picture, slices of the film."""
        height, width = self.density.shape
        left, top = max(0, self.left), max(0, self.top)
        right, bottom = min(size_wh[0], self.left + width), min(size_wh[1], self.top + height)
        right, bottom = max(left, right), max(top, bottom)
        mine = slice(top - self.top, bottom - self.top), slice(left - self.left, right - self.left)
        return (slice(top, bottom), slice(left, right)), mine


def pressed_film(stamp: Stamp, impression: Impression, outline: Points, ink: Ink, place: Place, matrix: Matrix) -> Film:
    """Put a pressed seal through the document's geometry, its labels with it; its outline is in its own pixels."""
    height, width = stamp.coverage.shape
    shift = np.array([[1, 0, place.x - stamp.centre[0]], [0, 1, place.y - stamp.centre[1]], [0, 0, 1]])
    whole = matrix @ shift
    corners = mapped(whole, np.array([[0, 0], [width, 0], [width, height], [0, height]]))
    left, top = np.floor(corners.min(axis=0)).astype(int).tolist()
    right, bottom = np.ceil(corners.max(axis=0)).astype(int).tolist()
    planes = cv2.merge([stamp.coverage, impression.density, stamp.area.astype(np.float32)])
    to_window = on_pixels(np.array([[1, 0, -left], [0, 1, -top], [0, 0, 1]]) @ whole)
    moved = cv2.warpPerspective(planes, to_window, (right - left, bottom - top), flags=cv2.INTER_LINEAR)
    coverage, density, area = cv2.split(moved)
    scale = scale_at(matrix, place.x, place.y)
    lines = tuple(
        (line.text, line.role, mapped(whole, line.polygon).astype(np.float32), line.stroke_px * scale)
        for line in stamp.lines
    )
    silhouette = np.asarray(area > 0.5)
    edge = mapped(whole, outline).astype(np.float32)
    return Film(left, top, coverage, coverage, density, silhouette, ink, lines, edge, stamp)


def on_paper(film: Film, paper: Mask, corners: Points) -> Film:
    """Return a film without what would lie beyond the paper, a mask of the whole picture and its four corners."""
    picture, mine = film.window((paper.shape[1], paper.shape[0]))
    kept = np.zeros(film.density.shape, np.float32)
    kept[mine] = paper[picture]
    return Film(
        film.left,
        film.top,
        film.clean,
        film.coverage * kept,
        film.density * kept,
        film.area & (kept > 0),
        film.ink,
        film.lines,
        clipped(film.outline, corners).astype(np.float32),
        film.stamp,
    )


def stamped(page: Pixels, films: list[Film], light: tuple[float, float, float]) -> Pixels:
    """Return a page with all films on it."""
    image = page.copy()
    for film in films:
        picture, mine = film.window((page.shape[1], page.shape[0]))
        if film.density[mine].size:
            image[picture] = inked(image[picture], np.ascontiguousarray(film.density[mine]), film.ink, light)
    return image


@dataclass(frozen=True, eq=False)
class Planes:
    """Masks of all seals of a picture, (H, W)."""

    ink: Mask
    alpha: Plane
    area: Mask


def joined(films: list[Film], size_wh: tuple[int, int]) -> Planes:
    """Join the masks of all films: ink and silhouettes where any has them, alpha as layers add up."""
    hw = size_wh[::-1]
    planes = Planes(np.zeros(hw, np.bool_), np.zeros(hw, np.float32), np.zeros(hw, np.bool_))
    for film in films:
        picture, mine = film.window(size_wh)
        planes.ink[picture] |= film.coverage[mine] > INK_FROM
        planes.area[picture] |= film.area[mine]
        alpha = printed_alpha(film.density[mine], film.ink)
        planes.alpha[picture] += (1 - planes.alpha[picture]) * alpha
    return planes


def label_of(film: Film, size_wh: tuple[int, int]) -> SealLabel | None:
    """Return the label of a seal; None if none of it is in the picture."""
    picture, mine = film.window(size_wh)
    area = film.area[mine]
    if not area.any():
        return None
    left, top, wide, high = cv2.boundingRect(area.astype(np.uint8))
    left, top = left + picture[1].start, top + picture[0].start
    seen = np.zeros(film.density.shape, np.bool_)
    seen[mine] = printed_alpha(film.density[mine], film.ink) > VISIBLE_FROM
    lines = tuple(
        LineLabel(text, role, polygon, stroke >= LEGIBLE_STROKE and _seen_share(film, polygon, seen) >= LEGIBLE_SHARE)
        for text, role, polygon, stroke in film.lines
    )
    box = (float(left), float(top), float(left + wide), float(top + high))
    width, height = size_wh
    outline = clipped(film.outline, np.array([[0, 0], [width, 0], [width, height], [0, height]])).astype(np.float32)
    return SealLabel(film.stamp.kind, film.stamp.color, box, film.stamp.angle_deg, lines, outline)


def _seen_share(film: Film, polygon: NDArray[np.float32], seen: Mask) -> float:
    """Return how much of a line's clean ink can be seen, the part beyond the picture or the paper included."""
    mask = filled(polygon - np.array([film.left, film.top], np.float32), film.density.shape)
    clean = (film.clean > INK_FROM) & mask
    return float((clean & seen).sum() / max(1, clean.sum()))


def filled(polygon: NDArray[np.float32], size_hw: tuple[int, ...]) -> Mask:
    """Return a polygon's pixels, with those that its edge runs through."""
    mask = np.zeros(size_hw[:2], np.uint8)
    cv2.fillPoly(mask, [np.round((polygon - 0.5) * 16).astype(np.int32)], 1, cv2.LINE_8, 4)
    return mask > 0


def box_of(film: Film, size_wh: tuple[int, int]) -> Box | None:
    """Return the part of the picture that a film changes; None if there is none."""
    picture, mine = film.window(size_wh)
    left, top, wide, high = cv2.boundingRect((film.density[mine] > 0.002).astype(np.uint8))
    if not wide:
        return None
    left, top = left + picture[1].start, top + picture[0].start
    return left, top, left + wide, top + high
