"""What a picture's packaging says: format, size, JPEG quality, traces of the 8-px grid. No content is looked at."""

import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np
from numpy.typing import NDArray

from datamodules.images.decoding import opened_header
from datamodules.images.errors import UnreadableImageError

GRID = 8
NOT_A_FILE = "drawn"
# Annex K of the JPEG standard, which libjpeg scales by quality; rows of 8 frequencies.
_LUMA = np.array(
    [
        [16, 11, 10, 16, 24, 40, 51, 61],
        [12, 12, 14, 19, 26, 58, 60, 55],
        [14, 13, 16, 24, 40, 57, 69, 56],
        [14, 17, 22, 29, 51, 87, 80, 62],
        [18, 22, 37, 56, 68, 109, 103, 77],
        [24, 35, 55, 64, 81, 104, 113, 92],
        [49, 64, 78, 87, 103, 121, 120, 101],
        [72, 92, 95, 98, 112, 100, 103, 99],
    ]
)


@dataclass(frozen=True)
class FileFacts:
    """The packaging of a picture; nan where a fact does not exist.

    Attributes:
        format: As Pillow names it, or "drawn" for a scene without a file.
        width: In pixels, as stored.
        height: In pixels, as stored.
        bytes_per_pixel: Size of the file over its pixels.
        jpeg_quality: Of libjpeg's scale; nan for other formats.
    """

    format: str
    width: float
    height: float
    bytes_per_pixel: float
    jpeg_quality: float


def read_facts(path: str | os.PathLike[str]) -> FileFacts:
    """Return the facts of a file from its header, without decoding it.

    Raises:
        UnreadableImageError: The header cannot be read.
    """
    try:
        size = os.stat(path).st_size
        with opened_header(path) as file:
            tables: Mapping[int, Sequence[int]] = getattr(file, "quantization", None) or {}
            quality = jpeg_quality(tables) if tables else math.nan
            width, height = file.size
            kind = "JPEG" if file.format == "MPO" else file.format or "?"  # a JPEG with previews behind it
    except UnreadableImageError:
        raise
    except Exception as error:  # a hostile header can raise anything inside Pillow
        raise UnreadableImageError(path, str(error) or type(error).__name__) from error
    return FileFacts(kind, float(width), float(height), size / (width * height), quality)


def drawn_facts(size_hw: tuple[int, int]) -> FileFacts:
    """Return the facts of a scene that has no file."""
    return FileFacts(NOT_A_FILE, float(size_hw[1]), float(size_hw[0]), math.nan, math.nan)


def jpeg_quality(tables: Mapping[int, Sequence[int]]) -> float:
    """Return the quality whose luma table is nearest to a file's: exact for what libjpeg wrote.

    Args:
        tables: Quantisation steps by table, 64 each, as `Image.quantization` has them; table 0 is luma's.
    """
    steps = np.sort(np.asarray(tables[min(tables)], np.float64))
    # Sorted, so that the order in which a library hands out its tables makes no difference; in proportion, so that
    # fine steps count as much as coarse ones.
    distances = np.abs(np.log(steps / _sorted_tables())).sum(axis=1)
    return float(1 + distances.argmin())


@cache
def _sorted_tables() -> NDArray[np.float64]:
    """Luma steps of qualities 1 to 100, ascending, by libjpeg's rule."""
    tables = []
    for quality in range(1, 101):
        scale = 5000 // quality if quality < 50 else 200 - 2 * quality
        tables.append(np.sort(np.clip((_LUMA.ravel() * scale + 50) // 100, 1, 255)))
    return np.stack(tables).astype(np.float64)


def blockiness(image: NDArray[np.uint8]) -> float:
    """Return how much steeper luma is across the lines of the 8-px grid than elsewhere, at the best of 8 x 8 shifts.

    The logarithm of a ratio, for rows and columns together: 0 where there is no grid, wherever it would lie.

    Args:
        image: RGB (H, W, 3), each side at least 17.
    """
    luma = image.astype(np.float32) @ np.array([0.299, 0.587, 0.114], np.float32)
    return float(sum(max(_excess(_jumps(luma, axis))) for axis in (0, 1)) / 2)


def grid_phase(image: NDArray[np.uint8]) -> tuple[int, int]:
    """Return the row and the column, 0 to 7, at which the blocks of the most visible 8-px grid begin."""
    luma = image.astype(np.float32) @ np.array([0.299, 0.587, 0.114], np.float32)
    row, column = (int(np.argmax(_excess(_jumps(luma, axis)))) for axis in (0, 1))
    return row, column


def _jumps(luma: NDArray[np.float32], axis: int) -> NDArray[np.float32]:
    """Return how large the step between neighbours is beyond those beside it, averaged along the other axis.

    Entry i tells of the edge between pixels i + 1 and i + 2.
    """
    steps = np.diff(luma, axis=axis)
    steps = steps if axis == 0 else steps.T
    jumps: NDArray[np.float32] = np.abs(steps[1:-1] - (steps[:-2] + steps[2:]) / 2).mean(axis=1)
    return jumps


def _excess(jumps: NDArray[np.float32]) -> list[float]:
    """For each phase of the grid, the log ratio of the mean jump on its lines to the mean elsewhere."""
    phase_of = (np.arange(len(jumps)) + 2) % GRID
    total, count = float(jumps.sum()), len(jumps)
    result = []
    for phase in range(GRID):
        on_grid = jumps[phase_of == phase]
        off_grid = (total - float(on_grid.sum())) / max(1, count - len(on_grid))
        result.append(math.log((float(on_grid.mean()) + 1e-3) / (off_grid + 1e-3)) if len(on_grid) else 0.0)
    return result
