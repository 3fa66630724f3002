"""What a file of inverted lists must look like before faiss may read it.

faiss trusts its files: numbers in them become sizes of memory and places in it, and an id can be any number. A checksum
beside a file says that it was copied whole, not who wrote it. So its layout is walked here first: every size must be
what the others and the file's length make it, and every id a row of the segment. Only the two kinds that `sealmark
index` writes are known, as faiss has written them since 1.5.
"""

from __future__ import annotations

import os
import struct
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

_HEADER = struct.Struct("<4siqqqBi")  # kind, numbers a descriptor, rows, two fillers, trained, metric
_CODE_OF_KIND = {b"IwFl": "ivf", b"IwPQ": "ivf_pq"}
_CENTROIDS = 256  # of each part of a compressed descriptor: a byte's worth
_INNER_PRODUCT = 0


def check_lists(path: Path, dims: int, rows: int) -> None:
    """Refuse a file that is not, byte for byte, laid out as an index of this many descriptors in inverted lists.

    Args:
        path: The file.
        dims: Numbers a descriptor.
        rows: Descriptors in it.
    """
    with path.open("rb") as file:
        try:
            _walk(_Walker(file), dims, rows)
        except ValueError as error:
            raise ValueError(f"{path} is no index of {rows} descriptors ({error}): build the index again") from None


class _Walker:
    """Reads a file from its beginning to its end, and never more than there is."""

    def __init__(self, file: BinaryIO) -> None:
        self.file = file
        self.left = os.fstat(file.fileno()).st_size

    def take(self, layout: str) -> tuple[int, ...]:
        """Return numbers laid out as `struct` says."""
        data = self.file.read(self._less(struct.calcsize(f"<{layout}")))
        return struct.unpack(f"<{layout}", data)

    def array(self, dtype: str, count: int) -> NDArray[Any]:
        """Return so many numbers of one type."""
        data = self.file.read(self._less(count * np.dtype(dtype).itemsize))
        return np.frombuffer(data, dtype)

    def skip(self, size: int) -> None:
        """Pass over bytes."""
        self.file.seek(self._less(size), os.SEEK_CUR)

    def header(self) -> tuple[bytes, tuple[int, ...]]:
        """Return the kind of an index, and numbers a descriptor, rows, trained and metric."""
        kind, dims, rows, _, _, trained, metric = _HEADER.unpack(self.file.read(self._less(_HEADER.size)))
        return kind, (dims, rows, trained, metric)

    def _less(self, size: int) -> int:
        if not 0 <= size <= self.left:
            raise ValueError(f"{size} bytes are told of where {self.left} are left")
        self.left -= size
        return size


def _walk(file: _Walker, dims: int, rows: int) -> None:
    kind, facts = file.header()
    _agree("kind", kind in _CODE_OF_KIND and facts == (dims, rows, 1, _INNER_PRODUCT))
    lists, _ = file.take("QQ")
    quantizer, facts = file.header()
    _agree("quantiser", quantizer == b"IxFI" and facts == (dims, lists, 1, _INNER_PRODUCT))
    _check_floats(file, lists * dims)
    _agree("direct map", file.take("BQ") == (0, 0))
    code_size = 4 * dims
    if _CODE_OF_KIND[kind] == "ivf_pq":
        _, code_size, own_dims, parts, bits = file.take("BQQQQ")
        _agree("codes", own_dims == dims and 0 < parts == code_size and dims % parts == 0 and bits == 8)
        _check_floats(file, dims * _CENTROIDS)
    _agree("lists", file.array("S1", 4).tobytes() == b"ilar" and file.take("QQ") == (lists, code_size))
    for size in _list_sizes(file, lists, rows):
        file.skip(size * code_size)
        ids = file.array("<i8", size)
        _agree("ids", bool(((ids >= 0) & (ids < rows)).all()))
    _agree("end", not file.left)


def _list_sizes(file: _Walker, lists: int, rows: int) -> list[int]:
    """Return how many descriptors each list that has some holds, in the order of the file."""
    form, (count,) = file.array("S1", 4).tobytes(), file.take("Q")
    numbers = file.array("<u8", count)
    if form == b"sprs":
        places, sizes = numbers[::2], numbers[1::2]
        rising = len(places) < 2 or bool((places[1:] > places[:-1]).all())
        _agree("lists", len(places) == len(sizes) and rising and bool((places < lists).all()))
    else:
        sizes = numbers
        _agree("lists", form == b"full" and count == lists)
    _agree("sizes of lists", bool((sizes <= rows).all()) and sum(sizes.tolist()) == rows)
    return [size for size in sizes.tolist() if size]


def _check_floats(file: _Walker, count: int) -> None:
    _agree("count of numbers", file.take("Q") == (count,))
    _agree("numbers", bool(np.isfinite(file.array("<f4", count)).all()))


def _agree(what: str, fits: bool) -> None:
    if not fits:
        raise ValueError(f"its {what} cannot be")
