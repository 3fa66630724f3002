"""Building an index and adding to it: new segments first, then a manifest that makes them count."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from itertools import compress
from pathlib import Path
from typing import Any, Literal, cast

import numpy as np
from numpy.typing import NDArray

from callbacks.descriptor_files import Rows
from callbacks.prediction_files import explained
from experiments.copy_index.inputs import DescriptorFolders
from experiments.copy_index.learning import COSINE, choose_kind, code_bytes, exact_answers, learn, make_queries, recall
from experiments.copy_index.manifest import (
    MANIFEST,
    FileFacts,
    Kind,
    Manifest,
    SegmentFacts,
    check_file,
    names_of,
    read_manifest,
    seal,
    write_manifest,
    writing,
)
from experiments.copy_index.searching import CopyIndex, read_removed, segment_starts
from experiments.copy_index.segments import (
    BLOCK,
    ListSegment,
    path_hash,
    read_faiss,
    read_hashes,
    read_paths,
    write_flat,
    write_lists,
    write_paths,
)
from lightning_modules.functional.retrieval import Integers

Duplicates = Literal["refuse", "replace", "skip"]
SEGMENT_BYTES = 512 << 20
"""Of descriptors in a segment, and so of memory while one is made."""
WANTED_RECALL = 0.95
"""A query looks at more lists until this is measured, or an eighth of the lists is reached."""
_TRAINED = names_of(0)[0]


def build(folder: Path, inputs: DescriptorFolders, kind: Kind | None = None) -> Manifest:
    """Make an index and measure how well it finds; None chooses the kind by the number of descriptors."""
    if folder.exists() and not folder.is_dir():
        raise FileExistsError(f"{folder} is a file: name a folder for the index")
    if (folder / MANIFEST).exists():
        raise FileExistsError(f"{folder} is an index already: add to it with `sealmark index add`, or name another")
    _check_unique(inputs)
    kind = kind or choose_kind(len(inputs))
    with writing(folder):
        manifest = Manifest(inputs.dims, kind, inputs.model, {})
        trained = None if kind == "flat" else learn(kind, cast("Rows", inputs))
        if trained is not None:
            import faiss

            faiss.write_index(trained, str(folder / _TRAINED))
            manifest = _with_file(manifest, folder, _TRAINED)
        manifest = _append(folder, manifest, inputs, np.arange(len(inputs)), trained)
        manifest = _tuned(folder, manifest, inputs, 1 if trained is None else trained.nlist)
        write_manifest(folder, manifest)
    return manifest


def add(folder: Path, inputs: DescriptorFolders, duplicates: Duplicates = "refuse") -> tuple[Manifest, int, int]:
    """Add descriptors; return the new state, how many were added and how many of the old were replaced."""
    read_manifest(folder)
    _check_unique(inputs)
    with writing(folder):
        # Only now: another add may have ended meanwhile.
        manifest = read_manifest(folder)
        check_model(folder, manifest, inputs)
        known = _known(folder, manifest, inputs)
        if known and duplicates == "refuse":
            path = next(compress(inputs.paths(), (position in known for position in range(len(inputs)))))
            raise ValueError(
                f"{len(known)} of the {len(inputs)} images are in {folder} already, first {path}: give --duplicates "
                "skip to leave them as they are, or --duplicates replace"
            )
        leave_out = list(known) if duplicates == "skip" else []
        positions = np.delete(np.arange(len(inputs)), leave_out)
        replaced = sorted(known.values()) if duplicates == "replace" else []
        trained = None
        if manifest.kind != "flat":
            check_file(folder / _TRAINED, manifest.files[_TRAINED], content=True)
            trained = read_faiss(folder / _TRAINED, manifest.dims, 0, mapped=False)
        if len(positions):
            grown = _append(folder, manifest, inputs, positions, trained)
            manifest = _without(folder, grown, replaced)
            write_manifest(folder, manifest)
    return manifest, len(positions), len(replaced)


def check_model(folder: Path, manifest: Manifest, inputs: DescriptorFolders) -> None:
    """Refuse descriptors of another model than the index's."""
    if inputs.dims != manifest.dims or inputs.model.get("fingerprint") != manifest.model.get("fingerprint"):
        raise ValueError(
            f"{inputs.folders[0]} and {folder} hold descriptors of different models: predict with the index's "
            f"model ({manifest.model.get('model')}, {manifest.model.get('ckpt_path') or manifest.model.get('weights')})"
        )


def set_calibration(folder: Path, calibration: dict[str, Any]) -> None:
    """Store a calibration in the index."""
    read_manifest(folder)
    with writing(folder):
        write_manifest(folder, dataclasses.replace(read_manifest(folder), calibration=calibration))


def _append(folder: Path, manifest: Manifest, inputs: DescriptorFolders, positions: Integers, trained: Any) -> Manifest:
    """Write segments that nobody sees yet; return the manifest that would show them."""
    size = 4 * inputs.dims if manifest.kind != "ivf_pq" else code_bytes(inputs.dims) + 8
    rows_of_segment = max(1, SEGMENT_BYTES // size)
    paths = _paths_at(inputs, positions)
    for start in range(0, len(positions), rows_of_segment):
        part = positions[start : start + rows_of_segment]
        number = manifest.next_number
        names = names_of(number)
        if trained is None:
            write_flat(folder / names[0], len(part), inputs.dims, inputs.blocks(part, BLOCK))
        else:
            write_lists(folder / names[0], trained, inputs.blocks(part, BLOCK))
        write_paths(folder, number, (next(paths) for _ in part))
        for name in names:
            manifest = _with_file(manifest, folder, name)
        segments = [*manifest.segments, SegmentFacts(number, len(part))]
        manifest = dataclasses.replace(manifest, segments=segments, next_number=number + 1)
    return manifest


def _without(folder: Path, manifest: Manifest, ids: list[int]) -> Manifest:
    """Return the manifest in which some ids are not found any more."""
    if not ids:
        return manifest
    removed = np.union1d(read_removed(folder, manifest), np.array(ids, np.int64))
    name = f"{manifest.next_number:06d}.removed"
    with explained(folder / name):
        removed.astype("<i8").tofile(folder / name)
    files = {each: facts for each, facts in manifest.files.items() if each != manifest.removed}
    manifest = dataclasses.replace(
        manifest, files=files, removed=name, removed_rows=len(removed), next_number=manifest.next_number + 1
    )
    return _with_file(manifest, folder, name)


def _with_file(manifest: Manifest, folder: Path, name: str) -> Manifest:
    files: dict[str, FileFacts] = manifest.files | {name: seal(folder / name)}
    return dataclasses.replace(manifest, files=files)


def _tuned(folder: Path, manifest: Manifest, inputs: DescriptorFolders, lists: int) -> Manifest:
    """Choose how many lists a query looks at by the recall measured, and note that recall."""
    rows = cast("Rows", inputs)
    queries, _ = make_queries(rows)
    exact = exact_answers(queries, rows)
    index = CopyIndex.of(folder, manifest)
    nprobe = min(lists, 4)
    while True:
        for segment in index.segments:
            if isinstance(segment, ListSegment):
                segment.look_at(nprobe)
        found = recall(index, queries, exact)
        if found[1] >= WANTED_RECALL or 2 * nprobe > max(1, lists // 8):
            break
        nprobe *= 2
    manifest = dataclasses.replace(manifest, nprobe=nprobe)
    quality = {"recall_at_1": found[1], "recall_at_10": found[10], "queries": len(queries), "cosine": COSINE}
    return dataclasses.replace(manifest, quality=quality | {"rows": len(inputs), "lists": lists})


def _paths_at(inputs: DescriptorFolders, positions: Integers) -> Iterator[str]:
    wanted = np.zeros(len(inputs), np.bool_)
    wanted[positions] = True
    return compress(inputs.paths(), wanted)


def _hashes(inputs: DescriptorFolders) -> NDArray[np.uint64]:
    return np.fromiter(map(path_hash, inputs.paths()), np.uint64, len(inputs))


def _check_unique(inputs: DescriptorFolders) -> None:
    hashes = _hashes(inputs)
    values, counts = np.unique(hashes, return_counts=True)
    again = np.isin(hashes, values[counts > 1])
    seen: set[str] = set()
    for path in compress(inputs.paths(), again):
        if path in seen:
            raise ValueError(f"{path} is among the descriptors twice: an index holds each image once")
        seen.add(path)


def _known(folder: Path, manifest: Manifest, inputs: DescriptorFolders) -> dict[int, int]:
    """Return the positions of inputs that the index holds, and their ids."""
    hashes = _hashes(inputs)
    order = np.argsort(hashes)
    hits: list[tuple[int, int, str]] = []
    for segment, start in zip(manifest.segments, segment_starts(manifest).tolist(), strict=False):
        held = read_hashes(folder, segment.number)
        rows = np.flatnonzero(np.isin(held, hashes))
        places = order[np.searchsorted(hashes, held[rows], sorter=order)]
        paths = read_paths(folder, segment.number, rows.tolist())
        hits += zip(places.tolist(), (rows + start).tolist(), paths, strict=True)
    wanted = {place for place, _, _ in hits}
    texts = {place: path for place, path in enumerate(inputs.paths()) if place in wanted}
    # Equal hashes of different paths are possible, if not likely. Of a path that was replaced the last id wins.
    return {place: found for place, found, path in hits if texts[place] == path}
