"""Which printed words are in the picture, where, and which of them lie under a seal."""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import groupby

import numpy as np
from numpy.typing import NDArray

from datamodules.transforms.documents.films import Mask, filled
from datamodules.transforms.documents.placing import Matrix, mapped
from datamodules.transforms.documents.typesetting import PrintedLine, Word

UNDER_SHARE = 0.1  # of a printed line that lies in a seal's silhouette


@dataclass(frozen=True, eq=False)
class PageLine:
    """Printed words in a row, all of them whole in the picture.

    Attributes:
        text: What they say.
        polygon: (4, 2) x and y, clockwise from the upper left corner.
        under_seal: Whether at least a tenth of them lies in a seal's silhouette.
    """

    text: str
    polygon: NDArray[np.float32]
    under_seal: bool


def page_lines(lines: tuple[PrintedLine, ...], matrix: Matrix, area: Mask) -> Iterator[PageLine]:
    """Yield what can be read of a sheet's lines in a picture.

    Args:
        lines: Of the sheet.
        matrix: From the sheet to the picture.
        area: (H, W) silhouettes of the picture's seals.
    """
    placed = [(number, line, word) for number, line in enumerate(lines) for word in line.words]
    if not placed:
        return
    corners = np.array([_corners(word.left, line.top, word.right, line.bottom) for _, line, word in placed])
    points = mapped(matrix, corners.reshape(-1, 2)).reshape(-1, 8)
    limit = np.tile([area.shape[1], area.shape[0]], 4)
    inside: list[bool] = np.all((points >= 0) & (points <= limit), axis=1).tolist()
    # Words of a line that follow each other in the picture: a run ends where a word is cut.
    runs = groupby(zip(placed, inside, strict=True), key=lambda entry: (entry[0][0], entry[1]))
    for (number, whole), run in runs:
        if whole:
            yield _page_line(lines[number], [word for (_, _, word), _ in run], matrix, area)


def _page_line(line: PrintedLine, words: list[Word], matrix: Matrix, area: Mask) -> PageLine:
    corners = np.array(_corners(words[0].left, line.top, words[-1].right, line.bottom))
    polygon = mapped(matrix, corners).astype(np.float32)
    return PageLine(line.joiner.join(word.text for word in words), polygon, _under(polygon, area))


def _corners(left: float, top: float, right: float, bottom: float) -> list[tuple[float, float]]:
    return [(left, top), (right, top), (right, bottom), (left, bottom)]


def _under(polygon: NDArray[np.float32], area: Mask) -> bool:
    left, top = np.maximum(np.floor(polygon.min(axis=0)).astype(int), 0).tolist()
    right, bottom = np.ceil(polygon.max(axis=0)).astype(int).tolist()
    part = area[top:bottom, left:right]
    if not part.any():
        return False
    mask = filled(polygon - np.array([left, top], np.float32), part.shape)
    return bool((mask & part).sum() >= UNDER_SHARE * max(1, mask.sum()))
