"""Files of the image similarity challenge (ISC 2021): true pairs, predictions and descriptors."""

from __future__ import annotations

import csv
import importlib
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from lightning_modules.functional.plain_json import quoted
from lightning_modules.functional.retrieval import Candidates, Floats

PAIR_HEADER = ("query_id", "reference_id")
SCORE_HEADER = (*PAIR_HEADER, "score")
_GROUPS = ("query", "reference")
_ROWS_AT_A_TIME = 16384


def read_ground_truth(path: str | os.PathLike[str]) -> list[tuple[str, str]]:
    """Return the pairs of query and reference ids; queries without a reference and a header are left out."""
    pairs = []
    for line, fields in _rows(Path(path)):
        if len(fields) not in (1, 2):
            raise ValueError(f"{path}, line {line}: {len(fields)} fields; write query_id,reference_id")
        if len(fields) == 2 and fields[1]:
            pairs.append((fields[0], fields[1]))
    return [pair for pair in pairs if pair != PAIR_HEADER]


def write_ground_truth(path: str | os.PathLike[str], pairs: Sequence[tuple[str, str]]) -> None:
    """Write pairs as `read_ground_truth` reads them."""
    _write(Path(path), PAIR_HEADER, iter(pairs))


def read_predictions(path: str | os.PathLike[str]) -> list[tuple[str, str, float]]:
    """Return triples of query id, reference id and score."""
    triples = []
    for line, fields in _rows(Path(path)):
        if tuple(fields) == SCORE_HEADER:
            continue
        if len(fields) != 3 or not _is_number(fields[2]):
            raise ValueError(f"{path}, line {line}: {quoted(','.join(fields))!r}; write query_id,reference_id,score")
        triples.append((fields[0], fields[1], float(fields[2])))
    return triples


def write_predictions(path: str | os.PathLike[str], candidates: Candidates, names: Sequence[str]) -> None:
    """Write candidates from the best to the worst.

    Args:
        path: The CSV file; whole or not there at all.
        candidates: Pairs whose query and reference are positions in `names`.
        names: Ids such as Q00001 and R000123.
    """
    order = np.lexsort((candidates.reference, candidates.query, -candidates.score)).tolist()
    query, reference, score = candidates.query, candidates.reference, candidates.score
    # repr of a float32 reads back as the same float32.
    rows = ((names[query[i]], names[reference[i]], np.format_float_positional(score[i], trim="0")) for i in order)
    _write(Path(path), SCORE_HEADER, rows)


@dataclass(frozen=True)
class ChallengeDescriptors:
    """What a submission to the descriptor track holds."""

    queries: Floats
    """(Q, D)."""
    references: Floats
    """(R, D)."""
    query_ids: Sequence[str]
    reference_ids: Sequence[str]


def read_descriptors(path: str | os.PathLike[str]) -> ChallengeDescriptors:
    """Read an HDF5 file with the data sets query, reference, query_ids and reference_ids."""
    h5py = require_h5py()
    if not Path(path).is_file():
        raise FileNotFoundError(f"no file of descriptors {str(path)!r}; correct the path")
    try:
        with h5py.File(path, "r") as file:
            missing = [name for name in (*_GROUPS, *(f"{n}_ids" for n in _GROUPS)) if name not in file]
            if missing:
                raise ValueError(f"{path} has no data set {missing[0]!r}: a submission has query, reference and ids")
            _check_sets(file, os.path.getsize(path))
            rows = [np.asarray(file[name], np.float32) for name in _GROUPS]
            ids = [_texts(file[f"{name}_ids"][...]) for name in _GROUPS]
    # What is damaged brings forth errors of many types in HDF5.
    except (OSError, RuntimeError, KeyError, TypeError, AttributeError, ValueError, MemoryError) as error:
        told = quoted(" ".join(str(error).split()))
        raise ValueError(f"{path} is no HDF5 file of descriptors ({told}); name those of a submission") from error
    for name, matrix, names in zip(_GROUPS, rows, ids, strict=True):
        if matrix.ndim != 2 or len(matrix) != len(names) or matrix.shape[1] != rows[0].shape[-1]:
            raise ValueError(f"{path}: {name} is {matrix.shape} beside {len(names)} ids; it must be (ids, numbers)")
    return ChallengeDescriptors(rows[0], rows[1], ids[0], ids[1])


def _check_sets(file: Any, size: int) -> None:
    """Refuse data sets that lie in other files, or claim more numbers than this one holds."""
    h5py = require_h5py()
    for name in (*_GROUPS, *(f"{n}_ids" for n in _GROUPS)):
        found = file[name] if isinstance(file.get(name, getlink=True), h5py.HardLink) else None
        if not isinstance(found, h5py.Dataset) or found.external or found.is_virtual:
            raise ValueError(f"{name} is no data set of this file")
        if found.nbytes > size:
            raise ValueError(f"{name} claims {found.nbytes} bytes in a file of {size}")


def write_descriptors(path: str | os.PathLike[str], descriptors: ChallengeDescriptors) -> None:
    """Write an HDF5 file as the challenge takes it; descriptors may be memory maps, copied a block at a time."""
    h5py = require_h5py()
    partial = Path(f"{path}.part")
    with h5py.File(partial, "w") as file:
        for name, rows, ids in (
            ("query", descriptors.queries, descriptors.query_ids),
            ("reference", descriptors.references, descriptors.reference_ids),
        ):
            stored = file.create_dataset(name, rows.shape, "float32")
            for start in range(0, len(rows), _ROWS_AT_A_TIME):
                stored[start : start + _ROWS_AT_A_TIME] = rows[start : start + _ROWS_AT_A_TIME]
            file.create_dataset(f"{name}_ids", data=list(ids), dtype=h5py.string_dtype())
    partial.replace(path)


def require_h5py() -> Any:
    """Return h5py, or say how to get it."""
    try:
        return importlib.import_module("h5py")
    except ImportError as error:
        raise ValueError("descriptor files of the challenge are HDF5: pip install 'sealmark[disc]'") from error


def _texts(ids: Any) -> list[str]:
    return [text.decode() if isinstance(text, bytes) else str(text) for text in ids.ravel().tolist()]


def _rows(path: Path) -> Iterator[tuple[int, list[str]]]:
    if not path.is_file():
        raise FileNotFoundError(f"no such file: {str(path)!r}; correct the path")
    with path.open(newline="", encoding="utf-8-sig") as file:
        reader = csv.reader(file)
        try:
            for fields in reader:
                if any(field.strip() for field in fields):
                    yield reader.line_num, [field.strip() for field in fields]
        except (csv.Error, UnicodeDecodeError) as error:
            raise ValueError(f"{path}, line {reader.line_num}: {error}; save it as CSV in UTF-8") from error


def _write(path: Path, header: Sequence[str], rows: Iterator[Sequence[str]]) -> None:
    partial = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        with partial.open("w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file, lineterminator="\n")
            writer.writerow(header)
            writer.writerows(rows)
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def _is_number(text: str) -> bool:
    try:
        return float(text) == float(text)
    except ValueError:
        return False
