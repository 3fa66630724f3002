"""Descriptors that are to go into an index or to be searched: predict folders, read as they are needed."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from callbacks.descriptor_files import Records, Rows, read_descriptors
from lightning_modules.functional.plain_json import parse_json
from lightning_modules.functional.retrieval import Floats, Integers

_TOLERANCE = 0.01


class DescriptorFolders:
    """The descriptors of one or several predict folders, all made by one model."""

    def __init__(self, folders: Sequence[Path]) -> None:
        if not folders:
            raise ValueError("--descriptors names no folder: name the output folder of `sealmark predict`")
        self.folders = folders
        self._parts: list[tuple[Records, Rows]] = [read_descriptors(folder) for folder in folders]
        self._ends = np.cumsum([0, *(len(rows) for _, rows in self._parts)])
        self.model = _about(folders[0])
        for folder, (_, rows) in zip(folders, self._parts, strict=True):
            if _about(folder).get("fingerprint") != self.model.get("fingerprint") or rows.shape[1] != self.dims:
                raise ValueError(f"{folder} and {folders[0]} hold descriptors of different models: give them apart")

    @property
    def dims(self) -> int:
        """Numbers a descriptor."""
        return self._parts[0][1].shape[1]

    @property
    def shape(self) -> tuple[int, int]:
        """Descriptors, numbers a descriptor."""
        return len(self), self.dims

    def __len__(self) -> int:
        return int(self._ends[-1])

    def paths(self) -> Iterator[str]:
        """Yield the path of each descriptor."""
        for records, _ in self._parts:
            for record in records:
                if not isinstance(record.get("path"), str):
                    raise ValueError(
                        f"a prediction in {', '.join(map(str, self.folders))} names no path: predict again"
                    )
                yield record["path"]

    def __getitem__(self, index: slice | Integers) -> Floats:
        """Read some descriptors (n, D), checked; positions are ascending."""
        if isinstance(index, slice):
            start, stop, _ = index.indices(len(self))
            parts = [
                rows[max(start, low) - low : min(stop, high) - low]
                for (_, rows), (low, high) in zip(self._parts, pairwise(self._ends.tolist()), strict=True)
                if max(start, low) < min(stop, high)
            ]
            return self._checked(np.concatenate(parts) if parts else np.empty((0, self.dims), np.float32), start)
        found = [
            rows[index[(index >= low) & (index < high)] - low]
            for (_, rows), (low, high) in zip(self._parts, pairwise(self._ends.tolist()), strict=True)
        ]
        return self._checked(np.concatenate(found), int(index[0]) if len(index) else 0)

    def blocks(self, positions: Integers, size: int) -> Iterator[Floats]:
        """Yield the descriptors at ascending positions, a block at a time."""
        for start in range(0, len(positions), size):
            part = positions[start : start + size]
            first, last = int(part[0]), int(part[-1]) + 1
            # One read of a stretch, unless most of it is left out.
            yield self[first:last][part - first] if last - first <= 2 * len(part) else self[part]

    def _checked(self, rows: Floats, start: int) -> Floats:
        lengths = np.sqrt(np.square(rows).sum(axis=1))
        # Not `>`: a length that is no number fails too.
        odd = np.flatnonzero(~(np.abs(lengths - 1) <= _TOLERANCE))
        if len(odd):
            raise ValueError(
                f"a descriptor in {', '.join(map(str, self.folders))} has length {lengths[odd[0]]:.3g} instead of 1 "
                f"(at or after row {start}): scores would be no cosines"
            )
        return rows


def _about(folder: Path) -> dict[str, Any]:
    path = folder / "predictions.json"
    if not path.is_file():
        raise FileNotFoundError(f"{path} is missing: nobody knows which model made these descriptors")
    about = parse_json(path.read_bytes(), str(path))
    if not isinstance(about, dict):
        raise ValueError(f"{path} is damaged: predict again into an empty folder")
    return {key: about.get(key) for key in ("fingerprint", "model", "ckpt_path", "weights")}
