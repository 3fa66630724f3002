"""Squares of a document: the whole page, a seal with room around it, or a patch over ink at its own scale."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import cv2
import numpy as np
from numpy.typing import NDArray

View = Literal["page", "seal", "patch"]
Pixels = NDArray[np.uint8]
Box = Sequence[float]

MARGIN = (0.05, 0.3)  # room around a seal on each side, as a share of its longer side


@dataclass(frozen=True)
class Square:
    """A square of a picture, which may reach beyond it."""

    left: int
    top: int
    side: int


def square_of(
    view: View, size: int, hw: tuple[int, int], boxes: Sequence[Box], ink: NDArray[np.bool_], rng: np.random.Generator
) -> Square:
    """Draw the square that a view shows.

    Args:
        view: "page" shows all, "seal" a seal, "patch" `size` pixels over ink.
        size: Side of what is asked for.
        hw: Height and width of the picture.
        boxes: Of the seals; without any, a seal is looked for anywhere.
        ink: Where ink may be, (H, W); a patch's middle is one of its pixels.
        rng: The only source of chance.
    """
    height, width = hw
    if view == "page":
        side = max(hw)
        return Square((width - side) // 2, (height - side) // 2, side)
    if view == "seal":
        return _within(around(_box(boxes, hw, rng), float(rng.uniform(*MARGIN))), hw)
    side = min(size, height, width)
    rows, columns = np.nonzero(ink)
    if len(rows):
        pick = int(rng.integers(len(rows)))
        x, y = int(columns[pick]), int(rows[pick])
    else:
        x, y = int(rng.integers(width)), int(rng.integers(height))
    off_x, off_y = rng.integers(-side // 4, side // 4 + 1, 2).tolist()
    left = int(np.clip(x + off_x - side // 2, 0, width - side))
    top = int(np.clip(y + off_y - side // 2, 0, height - side))
    return Square(left, top, side)


def around(box: Box, margin: float) -> Square:
    """Return the square around a box with room on each side, a share of its longer side."""
    x0, y0, x1, y1 = box
    side = max(1, int(np.ceil(max(x1 - x0, y1 - y0) * (1 + 2 * margin))))
    return Square(round((x0 + x1 - side) / 2), round((y0 + y1 - side) / 2), side)


def _within(square: Square, hw: tuple[int, int]) -> Square:
    """Move a square into the picture as far as it fits."""
    left, top = (
        int(np.clip(at, 0, most - square.side)) if most >= square.side else (most - square.side) // 2
        for at, most in ((square.left, hw[1]), (square.top, hw[0]))
    )
    return Square(left, top, square.side)


def _box(boxes: Sequence[Box], hw: tuple[int, int], rng: np.random.Generator) -> Box:
    if len(boxes):
        return boxes[int(rng.integers(len(boxes)))]
    side = 0.4 * min(hw)
    left, top = rng.uniform(0, (hw[1] - side, hw[0] - side)).tolist()
    return left, top, left + side, top + side


def seen(pixels: NDArray[Any], square: Square, size: int) -> NDArray[Any]:
    """Return a square of a picture (H, W) or (H, W, 3), resized; beyond its border the picture is mirrored.

    Masks come as bool and stay so: a pixel counts if at least half of it does. They are mirrored, too.
    """
    height, width = pixels.shape[:2]
    left, top = max(0, -square.left), max(0, -square.top)
    right = max(0, square.left + square.side - width)
    bottom = max(0, square.top + square.side - height)
    is_mask = pixels.dtype == np.bool_
    part = pixels[max(0, square.top) : square.top + square.side, max(0, square.left) : square.left + square.side]
    part = 255 * part.astype(np.uint8) if is_mask else np.ascontiguousarray(part)
    if left or top or right or bottom:
        part = cv2.copyMakeBorder(part, top, bottom, left, right, cv2.BORDER_REFLECT_101)
    if square.side != size:
        method = cv2.INTER_AREA if square.side > size else cv2.INTER_LINEAR
        part = cv2.resize(part, (size, size), interpolation=method)
    return part > 127 if is_mask else part


def ink_like(pixels: Pixels) -> NDArray[np.bool_]:
    """Return the most colourful pixels of a picture, where the ink of a seal is likely to be; there is no label."""
    chroma = cv2.blur(pixels.max(axis=2) - pixels.min(axis=2), (5, 5))
    return np.asarray(chroma >= max(1.0, float(np.quantile(chroma, 0.9))))
