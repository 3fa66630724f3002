"""Segments of an index: descriptors as a file that faiss reads too, and the paths they belong to."""

from __future__ import annotations

import hashlib
import json
import struct
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol, cast

import numpy as np
from numpy.typing import NDArray

from callbacks.prediction_files import explained
from experiments.copy_index.faiss_files import check_lists
from experiments.copy_index.manifest import Manifest, SegmentFacts, check_file, names_of
from lightning_modules.functional.plain_json import parse_json, quoted
from lightning_modules.functional.retrieval import Floats, Integers, nearest_references

BLOCK = 32768
"""Descriptors in memory at a time."""
_MOST_CHARACTERS = 1 << 16  # of a path, escaped: sixteen times what a file system takes
TABLE = np.dtype([("end", "<i8"), ("hash", "<u8")])
# A flat index of inner products as faiss writes it: name, size, count, two fillers, trained, metric, length in floats.
_FLAT_HEADER = struct.Struct("<4siqqqBiQ")


class Segment(Protocol):
    """Descriptors that can be searched."""

    def search(self, queries: Floats, k: int) -> tuple[Floats, Integers]:
        """Return the best scores (Q, k) and their rows in the segment; -inf and -1 where there are fewer."""
        ...


class FlatSegment:
    """All descriptors as they are; searched exactly, a block at a time, and never read by faiss's own reader."""

    def __init__(self, path: Path, rows: int, dims: int, removed: Integers) -> None:
        """Check the header.

        Args:
            path: The file.
            rows: Descriptors in it.
            dims: Numbers a descriptor.
            removed: Rows that are not to be found.
        """
        self._path, self._dims = path, dims
        self._live = np.delete(np.arange(rows), removed) if len(removed) else None
        self._count = rows - len(removed)
        size = _FLAT_HEADER.size + 4 * rows * dims
        with path.open("rb") as file:
            if file.read(_FLAT_HEADER.size) != flat_header(rows, dims) or path.stat().st_size != size:
                raise ValueError(f"{path} is not the flat index that its manifest tells of: build the index again")

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, part: slice) -> Floats:
        """Read the descriptors of a slice of those that can be found."""
        start, stop, _ = part.indices(self._count)
        if self._live is None:
            return self._read(start, stop)
        live = self._live[start:stop]
        first = int(live[0])
        return self._read(first, int(live[-1]) + 1)[live - first]

    def search(self, queries: Floats, k: int) -> tuple[Floats, Integers]:
        """Return the best scores (Q, k) and their rows, exactly."""
        found = nearest_references(queries, cast("Floats", self), k, block=BLOCK)
        shape = len(queries), min(k, self._count)
        rows = found.reference if self._live is None else self._live[found.reference]
        return _widened(found.score.reshape(shape), rows.reshape(shape), k)

    def _read(self, start: int, stop: int) -> Floats:
        # Read, not mapped: the header leaves the numbers unaligned, and mapped pages count as memory of the process.
        offset = _FLAT_HEADER.size + 4 * start * self._dims
        data = np.fromfile(self._path, "<f4", (stop - start) * self._dims, offset=offset)
        return data.reshape(-1, self._dims).astype(np.float32, copy=False)


class ListSegment:
    """Descriptors in inverted lists, of which a query looks at some; lists stay on disk until they are looked at."""

    def __init__(self, path: Path, rows: int, dims: int, removed: Integers, nprobe: int) -> None:
        """Open a file whose content has been checked.

        Args:
            path: The file.
            rows: Descriptors in it.
            dims: Numbers a descriptor.
            removed: Rows that are not to be found.
            nprobe: Lists that a query looks at.
        """
        import faiss

        self._index = read_faiss(path, dims, rows)
        if (self._index.d, self._index.ntotal, self._index.metric_type) != (dims, rows, faiss.METRIC_INNER_PRODUCT):
            raise ValueError(f"{path} is not the index that its manifest tells of: build the index again")
        options: Any = faiss.SearchParametersIVF
        self._selector = faiss.IDSelectorNot(faiss.IDSelectorBatch(removed)) if len(removed) else None
        self._options = options(nprobe=nprobe, sel=self._selector) if self._selector else options(nprobe=nprobe)

    def look_at(self, nprobe: int) -> None:
        """Change how many lists a query looks at."""
        self._options.nprobe = nprobe

    def search(self, queries: Floats, k: int) -> tuple[Floats, Integers]:
        """Return the best scores (Q, k) among the lists nearest to each query, and their rows."""
        scores, rows = self._index.search(np.ascontiguousarray(queries, np.float32), k, params=self._options)
        scores[rows < 0] = -np.inf
        return scores, rows


def open_segment(folder: Path, manifest: Manifest, facts: SegmentFacts, removed: Integers) -> Segment:
    """Check the files of a segment and open it; only what faiss reads is read through first."""
    for name in names_of(facts.number):
        check_file(folder / name, manifest.files[name], content=manifest.kind != "flat" and name.endswith(".faiss"))
    path, _, table = (folder / name for name in names_of(facts.number))
    if table.stat().st_size != facts.rows * TABLE.itemsize:
        raise ValueError(f"{table} does not hold the {facts.rows} places that its manifest tells of: build again")
    if manifest.kind == "flat":
        return FlatSegment(path, facts.rows, manifest.dims, removed)
    return ListSegment(path, facts.rows, manifest.dims, removed, manifest.nprobe)


def read_faiss(path: Path, dims: int, rows: int, *, mapped: bool = True) -> Any:
    """Read an index of faiss; what is no such index is an error of one line.

    Args:
        path: The file.
        dims: Numbers a descriptor.
        rows: Descriptors in it.
        mapped: Whether its lists stay on disk until they are looked at; such an index cannot be added to.
    """
    import faiss

    check_lists(path, dims, rows)
    try:
        return faiss.read_index(str(path), faiss.IO_FLAG_MMAP | faiss.IO_FLAG_READ_ONLY if mapped else 0)
    except RuntimeError as error:
        raise ValueError(f"faiss cannot read {path} ({quoted(str(error)[-80:])}): build the index again") from None


def write_flat(path: Path, rows: int, dims: int, blocks: Iterable[Floats]) -> None:
    """Write descriptors as `faiss.read_index` reads a flat index, without holding them."""
    with explained(path), path.open("wb") as file:
        file.write(flat_header(rows, dims))
        for block in blocks:
            file.write(np.ascontiguousarray(block, "<f4").tobytes())


def write_lists(path: Path, trained: Any, blocks: Iterable[Floats]) -> None:
    """Write descriptors in the lists of a trained, empty index."""
    import faiss

    index = faiss.clone_index(trained)
    for block in blocks:
        index.add(np.ascontiguousarray(block, np.float32))
    with explained(path):
        try:
            faiss.write_index(index, str(path))
        except RuntimeError as error:
            # faiss tells of a full disk in its own words.
            raise OSError(str(error)[-80:]) from None


def flat_header(rows: int, dims: int) -> bytes:
    """Return the first bytes of a flat index."""
    return _FLAT_HEADER.pack(b"IxFI", dims, rows, 1 << 20, 1 << 20, 1, 0, rows * dims)


# --- paths -----------------------------------------------------------------------------------------------------------


def write_paths(folder: Path, number: int, paths: Iterable[str]) -> None:
    """Write the paths of a segment's rows, and the table that finds them."""
    _, text_name, table_name = names_of(number)
    end = 0
    with explained(folder / text_name), (folder / text_name).open("wb") as text, (folder / table_name).open("wb") as t:
        for path in paths:
            line = json.dumps(path).encode() + b"\n"
            end += len(line)
            text.write(line)
            t.write(np.array((end, path_hash(path)), TABLE).tobytes())


def read_paths(folder: Path, number: int, rows: Sequence[int]) -> Iterator[str]:
    """Yield the paths of some rows of a segment."""
    _, text_name, table_name = names_of(number)
    size = (folder / text_name).stat().st_size
    with (folder / text_name).open("rb") as text, (folder / table_name).open("rb") as table:
        for row in rows:
            start = 0
            if row:
                table.seek((row - 1) * TABLE.itemsize)
                start = int(np.frombuffer(table.read(TABLE.itemsize), TABLE)["end"][0])
            text.seek(min(max(start, 0), size))
            path = parse_json(text.readline(_MOST_CHARACTERS), f"{folder / text_name} at {start}")
            if not isinstance(path, str):
                raise ValueError(f"{folder / text_name} at {start} is no path: build the index again")
            yield path


def read_hashes(folder: Path, number: int) -> NDArray[np.uint64]:
    """Return the hash of each row's path."""
    hashes: NDArray[np.uint64] = np.fromfile(folder / names_of(number)[2], TABLE)["hash"].copy()
    return hashes


def path_hash(path: str) -> int:
    """Return 64 bits that tell paths apart, but for accidents."""
    digest = hashlib.blake2b(path.encode(errors="surrogatepass"), digest_size=8).digest()
    return int.from_bytes(digest, "little")


def _widened(scores: Floats, rows: Integers, k: int) -> tuple[Floats, Integers]:
    missing = ((0, 0), (0, k - scores.shape[1]))
    return (
        np.pad(scores, missing, constant_values=-np.inf).astype(np.float32, copy=False),
        np.pad(rows, missing, constant_values=-1),
    )
