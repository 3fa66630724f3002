"""Searching an index: all of its segments, read-only."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from experiments.copy_index.manifest import Manifest, check_file, read_manifest
from experiments.copy_index.segments import Segment, open_segment, read_paths
from lightning_modules.functional.retrieval import Floats, Integers


@dataclass(frozen=True)
class CopyIndex:
    """An index as it was when it was opened; what is added later is not seen."""

    folder: Path
    manifest: Manifest
    segments: list[Segment]

    @classmethod
    def open(cls, folder: Path) -> CopyIndex:
        """Check an index and open it."""
        return cls.of(folder, read_manifest(folder))

    @classmethod
    def of(cls, folder: Path, manifest: Manifest) -> CopyIndex:
        """Open a state of an index, visible or not."""
        removed = read_removed(folder, manifest)
        starts = segment_starts(manifest)
        segments = []
        for facts, start in zip(manifest.segments, starts, strict=False):
            own = removed[(removed >= start) & (removed < start + facts.rows)] - start
            segments.append(open_segment(folder, manifest, facts, own))
        return cls(folder, manifest, segments)

    def search(self, queries: Floats, k: int) -> tuple[Floats, Integers]:
        """Return the k best scores (Q, k) of each query and their ids; -inf and -1 where there are fewer."""
        if queries.shape[1] != self.manifest.dims:
            raise ValueError(
                f"the descriptors have {queries.shape[1]} numbers, those of {self.folder} {self.manifest.dims}: they "
                "were made by another model"
            )
        best: Floats = np.full((len(queries), k), -np.inf, np.float32)
        found: Integers = np.full((len(queries), k), -1, np.int64)
        for segment, start in zip(self.segments, segment_starts(self.manifest), strict=False):
            scores, rows = segment.search(queries, k)
            best = np.concatenate([best, scores], axis=1)
            found = np.concatenate([found, np.where(rows < 0, -1, rows + start)], axis=1)
            # Stable: of equal scores the earlier id comes first.
            order = np.argsort(-best, axis=1, kind="stable")[:, :k]
            best, found = np.take_along_axis(best, order, axis=1), np.take_along_axis(found, order, axis=1)
        return best, found

    def paths(self, ids: Integers) -> list[str]:
        """Return the paths of some ids."""
        starts = segment_starts(self.manifest)
        parts = np.searchsorted(starts, ids, side="right") - 1
        paths = [""] * len(ids)
        for part in np.unique(parts).tolist():
            places = np.flatnonzero(parts == part)
            rows = (ids[places] - starts[part]).tolist()
            for place, path in zip(
                places.tolist(), read_paths(self.folder, self.manifest.segments[part].number, rows), strict=True
            ):
                paths[place] = path
        return paths


def segment_starts(manifest: Manifest) -> Integers:
    """Return the id of each segment's first row, and one past the last id."""
    return np.cumsum([0, *(segment.rows for segment in manifest.segments)], dtype=np.int64)


def read_removed(folder: Path, manifest: Manifest) -> Integers:
    """Return the ids that were replaced, ascending."""
    if manifest.removed is None:
        return np.empty(0, np.int64)
    path = folder / manifest.removed
    check_file(path, manifest.files[manifest.removed], content=True)
    removed = np.fromfile(path, "<i8").astype(np.int64)
    rows = int(segment_starts(manifest)[-1])
    rising = bool((np.diff(removed) > 0).all()) and len(removed) == manifest.removed_rows
    if not rising or (len(removed) and not 0 <= removed[0] <= removed[-1] < rows):
        raise ValueError(f"{path} does not hold the ids that its manifest tells of: build the index again")
    return removed
