"""Descriptors of an evaluation on disk: each process appends its own, one process reads them all."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]
Indices = NDArray[np.int64]
_ROWS_AT_A_TIME = 16384


class DescriptorWriter:
    """Appends rows of float32 and their indices to two files of a process; memory does not grow."""

    def __init__(self, folder: Path, rank: int) -> None:
        self._rows = (folder / f"rank{rank}.f32").open("wb")
        self._index = (folder / f"rank{rank}.i64").open("wb")
        self._size: int | None = None

    def append(self, index: Indices, rows: Floats) -> None:
        """Add rows (B, D) of samples at positions (B,) of the data set."""
        if rows.ndim != 2 or len(rows) != len(index) or rows.shape[1] != (self._size or rows.shape[1]):
            raise ValueError(
                f"descriptors of a batch are {rows.shape} for {len(index)} samples; they must be (samples, "
                f"{self._size or 'numbers'})"
            )
        self._size = rows.shape[1]
        self._rows.write(np.ascontiguousarray(rows, "<f4").tobytes())
        self._index.write(np.ascontiguousarray(index, "<i8").tobytes())

    def flush(self) -> None:
        """Let other readers see what was appended."""
        self._rows.flush()
        self._index.flush()

    def close(self) -> None:
        """Bring everything to disk; a second time does nothing."""
        self._rows.close()
        self._index.close()


class StoredDescriptors:
    """What all processes wrote into a folder; of repeated samples the first counts."""

    def __init__(self, folder: Path) -> None:
        paths = sorted(folder.glob("rank*.i64"), key=lambda path: int(path.stem.removeprefix("rank")))
        indices = [np.fromfile(path, "<i8") for path in paths]
        sizes = [path.with_suffix(".f32").stat().st_size // 4 for path in paths]
        widths = {size // len(index) for size, index in zip(sizes, indices, strict=True) if len(index)}
        if len(widths) > 1:
            raise ValueError(f"processes made descriptors of different sizes: {sorted(widths)}")
        self.size = widths.pop() if widths else 0
        """Numbers a descriptor."""
        everything = np.concatenate([np.empty(0, np.int64), *indices])
        self.index, self._first = np.unique(everything, return_index=True)
        self._ends = np.cumsum([len(index) for index in indices])
        # A file of nothing cannot be mapped.
        self._maps = [
            np.memmap(path.with_suffix(".f32"), "<f4", "r", shape=(len(index), self.size)) if len(index) else None
            for path, index in zip(paths, indices, strict=True)
        ]

    def select(self, wanted: Indices, path: Path) -> tuple[Indices, Floats]:
        """Return which of the wanted samples there are, ascending, and their rows (n, D), mapped from a new file."""
        there = np.intersect1d(wanted, self.index)
        found: Floats = np.empty((0, self.size), np.float32)
        if len(there) and self.size:
            found = np.memmap(path, np.float32, "w+", shape=(len(there), self.size))
        places = self._first[np.searchsorted(self.index, there)]
        for start in range(0, len(there), _ROWS_AT_A_TIME):
            self._copy(places[start : start + _ROWS_AT_A_TIME], found[start : start + _ROWS_AT_A_TIME])
        return there, found

    def _copy(self, places: Indices, into: Floats) -> None:
        part = np.searchsorted(self._ends, places, side="right")
        for number, mapped in enumerate(self._maps):
            if mapped is not None:
                own = np.flatnonzero(part == number)
                into[own] = mapped[places[own] - self._ends[number] + len(mapped)]
