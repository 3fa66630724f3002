"""Marks to lay over photos: logo files, decoded once, and endless drawn logos and text."""

from collections.abc import Iterable, Sequence
from typing import Literal

import cv2
import numpy as np
from numpy.typing import NDArray

from datamodules.images.decoding import read_image
from datamodules.images.errors import UnreadableImageError
from datamodules.transforms.marks import draw_mark

Pixels = NDArray[np.uint8]
LONGEST_SIDE = 1024  # logos are kept no larger; with the smaller levels 5.6 MB at most each, shared by forked workers
SHORTEST_LEVEL = 16


def premultiply(mark: Pixels) -> Pixels:
    """Scale the colours of straight RGBA by its alpha, so that resampling mixes ink and not what lies under it."""
    alpha = mark[..., 3:].astype(np.uint16)
    return np.concatenate([(mark[..., :3] * alpha + 127) // 255, alpha], axis=-1).astype(np.uint8)


def load_logos(
    paths: Iterable[str], on_unreadable: Literal["stop", "skip"] = "stop"
) -> tuple[list[list[Pixels]], list[UnreadableImageError]]:
    """Decode logo files, one at a time, into pyramids of what their ink covers.

    Args:
        paths: Files with alpha.
        on_unreadable: What happens to a file that cannot be read or has no ink: its error ends the call, or the file
            is left out and its error returned.
    """
    pyramids, errors = [], []
    for path in paths:
        try:
            pyramids.append(pyramid(_cropped(read_image(path, mode="RGBA"), path)))
        except UnreadableImageError as error:
            if on_unreadable == "stop":
                raise
            errors.append(error)
    return pyramids, errors


def _cropped(logo: Pixels, path: str) -> Pixels:
    rows, columns = (np.flatnonzero((logo[..., 3] > 0).any(axis=axis)) for axis in (1, 0))
    if not len(rows):
        raise UnreadableImageError(path, "as a logo it is fully transparent")
    return np.ascontiguousarray(logo[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1])


def pyramid(logo: Pixels) -> list[Pixels]:
    """Premultiply a logo and halve it again and again; the largest comes first."""
    level = premultiply(logo)
    factor = LONGEST_SIDE / max(level.shape[:2])
    if factor < 1:
        level = cv2.resize(level, None, fx=factor, fy=factor, interpolation=cv2.INTER_AREA)
    levels = [level]
    while min(level.shape[:2]) >= 2 * SHORTEST_LEVEL:
        level = cv2.resize(level, (level.shape[1] // 2, level.shape[0] // 2), interpolation=cv2.INTER_AREA)
        levels.append(level)
    return levels


class MarkBank:
    """Draws marks from logo files and from the procedural grammar.

    Args:
        logos: Pyramids of logos, as `load_logos` returns; may be empty.
        drawn_fraction: Share of "logo" marks that are drawn instead of taken from `logos`.
        split: Which fonts and primitives may be drawn; "held_out" ones are never seen in training.
    """

    def __init__(
        self,
        logos: Sequence[list[Pixels]] = (),
        drawn_fraction: float = 0.5,
        split: Literal["train", "held_out"] = "train",
    ) -> None:
        self.logos = list(logos)
        self.drawn_fraction = drawn_fraction if logos else 1.0
        self.split: Literal["train", "held_out"] = split

    def draw(self, rng: np.random.Generator, extent: float, kind: str) -> Pixels:
        """Return a mark as premultiplied RGBA whose diagonal is near `extent`, or at most twice it for files."""
        if kind == "logo" and rng.random() >= self.drawn_fraction:
            levels = self.logos[int(rng.integers(len(self.logos)))]
            fitting = [level for level in levels if np.hypot(*level.shape[:2]) >= extent]
            return fitting[-1] if fitting else levels[0]
        return premultiply(draw_mark(rng, max(8, round(extent)), "text" if kind == "text" else "logo", self.split))
