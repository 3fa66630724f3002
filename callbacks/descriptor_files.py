"""Descriptors on disk: raw float32 rows beside JSON lines, row i of a file belonging to line i of the other."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any, overload

import numpy as np
from numpy.typing import NDArray

from callbacks.prediction_files import complete_size, count_lines, explained, write_all
from lightning_modules.functional.plain_json import parse_json, quoted

Floats = NDArray[np.float32]
SIZE_KEY = "descriptor_size"
"""Entry of each line: how many numbers its row has, so that a file of rows can be read and repaired."""
_MOST_NUMBERS = 1 << 20  # a row


class RowFile:
    """Writes rows of float32 at their positions; writing a row again replaces it."""

    def __init__(self, path: Path, rows: int) -> None:
        """Open a file that holds `rows` rows already.

        Args:
            path: The file, made if needed.
            rows: Lines of the file beside it.
        """
        self.path = path
        self._rows = rows
        self._bytes = 0
        with explained(path):
            self._file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o644)

    def put(self, position: int, row: Floats) -> None:
        """Write one row (D,)."""
        data = np.ascontiguousarray(row, "<f4").tobytes()
        if not self._bytes:
            self._check(len(data))
        if len(data) != self._bytes:
            raise ValueError(f"{self.path} has rows of {self._bytes // 4} numbers, got one of {len(data) // 4}")
        with explained(self.path):
            os.lseek(self._file, position * self._bytes, os.SEEK_SET)
            write_all(self._file, data)

    def close(self) -> None:
        """Close the file; a second time does nothing."""
        if self._file >= 0:
            os.close(self._file)
            self._file = -1

    def _check(self, size: int) -> None:
        held = os.fstat(self._file).st_size
        if held != self._rows * size:
            raise ValueError(
                f"{self.path} does not hold a row of {size // 4} numbers for each of the {self._rows} predictions "
                "there: choose another --predictions.output_dir, or delete that folder to start afresh"
            )
        self._bytes = size


def repair_rows(lines: Path) -> None:
    """Cut rows and lines to what both have, after a kill; lines without rows stay as they are."""
    rows, size = _row_path(lines), _descriptor_size(lines)
    if not rows.exists():
        if size:
            os.truncate(lines, 0)
        return
    if not size:
        # Killed before the first line, or predictions of a method without descriptors.
        os.truncate(rows, 0)
        return
    both = min(count_lines(lines), rows.stat().st_size // (4 * size))
    os.truncate(lines, int(_line_starts(lines)[both]))
    os.truncate(rows, both * 4 * size)


class Records(Sequence[dict[str, Any]]):
    """The JSON lines of several files, read where asked for; 8 bytes of memory a line."""

    def __init__(self, paths: Sequence[Path], counts: Sequence[int]) -> None:
        self._starts = [_line_starts(path)[: count + 1] for path, count in zip(paths, counts, strict=True)]
        self._paths = paths
        self._ends = np.cumsum([0, *counts])

    def __len__(self) -> int:
        return int(self._ends[-1])

    @overload
    def __getitem__(self, index: int) -> dict[str, Any]: ...
    @overload
    def __getitem__(self, index: slice) -> list[dict[str, Any]]: ...
    def __getitem__(self, index: int | slice) -> dict[str, Any] | list[dict[str, Any]]:
        """Read a line, or the lines of a slice."""
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        if not -len(self) <= index < len(self):
            raise IndexError(index)
        index %= len(self)
        part = int(np.searchsorted(self._ends, index, side="right")) - 1
        at = index - self._ends[part]
        start, end = (int(offset) for offset in self._starts[part][at : at + 2])
        with self._paths[part].open("rb") as file:
            file.seek(start)
            return _parsed(file.read(end - start), self._paths[part], int(at) + 1)

    def __iter__(self) -> Iterator[dict[str, Any]]:
        for path, starts in zip(self._paths, self._starts, strict=True):
            with path.open("rb") as file:
                for number in range(1, len(starts)):
                    yield _parsed(file.readline(), path, number)


class Rows:
    """The rows (N, D) of several files, read where asked for: a slice, or positions, gives an array."""

    def __init__(self, paths: Sequence[Path], counts: Sequence[int], size: int) -> None:
        self.shape = (int(sum(counts)), size)
        self._paths = paths
        self._ends = np.cumsum([0, *counts])

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, index: slice | NDArray[np.int64]) -> Floats:
        """Read some rows (n, D); positions are read in the order of the file."""
        if isinstance(index, slice):
            start, stop, step = index.indices(len(self))
            if step == 1:
                return self._read(start, max(start, stop))
            index = np.arange(start, stop, step)
        order = np.argsort(index)
        rows: Floats = np.empty((len(index), self.shape[1]), np.float32)
        for i in order.tolist():
            rows[i] = self._read(int(index[i]), int(index[i]) + 1)[0]
        return rows

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> NDArray[Any]:
        return self[:].astype(dtype or np.float32, copy=False)

    def _read(self, start: int, stop: int) -> Floats:
        size, parts = self.shape[1], []
        for path, (first, last) in zip(self._paths, pairwise(self._ends.tolist()), strict=True):
            low, high = max(start, first), min(stop, last)
            if low < high:
                # Read, not mapped: pages of a map count as memory of the process.
                part = np.fromfile(path, "<f4", (high - low) * size, offset=(low - first) * size * 4)
                parts.append(part.reshape(-1, size))
        return np.concatenate(parts).astype(np.float32, copy=False) if parts else np.empty((0, size), np.float32)


def read_descriptors(folder: Path) -> tuple[Records, Rows]:
    """Return the records of a predict folder and their descriptors (N, D), of all ranks, without loading either."""
    lines = sorted(folder.glob("predictions.rank*.jsonl"), key=_rank)
    if not lines:
        raise FileNotFoundError(f"{folder} holds no predictions: name the output folder of `sealmark predict`")
    for path in (each for line in lines for each in (line, _row_path(line))):
        if path.exists() and not path.is_file():  # a pipe would be waited for
            raise ValueError(f"{path} is no file: predict again into an empty folder")
    sizes = {path: _descriptor_size(path) for path in lines}
    used = [path for path in lines if complete_size(path)]
    if not used or not all(sizes[path] and _row_path(path).exists() for path in used):
        raise ValueError(f"{folder} holds no descriptors: predict with a method that makes them, such as SSCD")
    if len({sizes[path] for path in used}) > 1:
        raise ValueError(f"{folder} holds descriptors of different sizes: predict again into an empty folder")
    size = sizes[used[0]]
    # The writer may be at work: what has both a row and a line is complete.
    counts = [min(count_lines(path), _row_path(path).stat().st_size // (4 * size)) for path in used]
    return Records(used, counts), Rows([_row_path(path) for path in used], counts, size)


def in_blocks(rows: Rows, block: int) -> Iterator[Floats]:
    """Yield all rows, a block at a time."""
    for start in range(0, len(rows), block):
        yield rows[start : start + block]


def row_file_beside(lines: Path) -> Callable[[], RowFile]:
    """Return what opens the file of rows of a file of lines, for the first row that comes."""
    return lambda: RowFile(_row_path(lines), count_lines(lines))


def _row_path(lines: Path) -> Path:
    return lines.with_name(lines.name.replace("predictions.", "descriptors.", 1)).with_suffix(".f32")


def _rank(path: Path) -> int:
    number = path.name.split(".rank")[1].split(".")[0]
    if not (number.isascii() and number.isdigit()):
        raise ValueError(f"{path} is not of this project: remove it, or name another folder")
    return int(number)


def _descriptor_size(lines: Path) -> int:
    """Return the numbers a row by the word of the first line; 0 where there is none."""
    with lines.open("rb") as file:
        line = file.readline()
    if not line.endswith(b"\n"):
        return 0
    size = _parsed(line, lines, 1).get(SIZE_KEY, 0)
    if not isinstance(size, int) or not 0 <= size <= _MOST_NUMBERS:
        raise ValueError(
            f"{lines}, line 1, tells of a row of {quoted(size)} numbers: predict again into an empty folder"
        )
    return size


def _line_starts(path: Path) -> NDArray[np.int64]:
    """Return where each line starts, and where the last one ends."""
    starts, before = [np.zeros(1, np.int64)], 0
    with path.open("rb") as file:
        for block in iter(lambda: file.read(1 << 20), b""):
            starts.append(np.flatnonzero(np.frombuffer(block, np.uint8) == ord("\n")) + before + 1)
            before += len(block)
    return np.concatenate(starts)


def _parsed(line: bytes, path: Path, number: int) -> dict[str, Any]:
    record = parse_json(line, f"{path}, line {number},")
    if not isinstance(record, dict):
        raise ValueError(f"{path}, line {number}, is no prediction: predict again into an empty folder")
    return record
