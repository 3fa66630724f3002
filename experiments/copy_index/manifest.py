"""The folder of an index: which files count, what they must be, and how a change becomes visible at once."""

from __future__ import annotations

import hashlib
import json
import math
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal, get_args

from callbacks.prediction_files import TEMPORARY_SUFFIX, FolderLock, explained, refuse_links
from lightning_modules.functional.plain_json import parse_json, quoted

Kind = Literal["flat", "ivf", "ivf_pq"]
MANIFEST = "manifest.json"
FORMAT = "sealmark copy index 1"
MOST_DIMS = 1 << 20
_OURS = re.compile(r"\d{6}\.(faiss|paths|table|removed)")


@dataclass(frozen=True)
class FileFacts:
    """What a file must be to be read."""

    size: int
    sha256: str


@dataclass(frozen=True)
class SegmentFacts:
    """A part of the index; the names of its files begin with its number."""

    number: int
    rows: int


@dataclass(frozen=True)
class Manifest:
    """The truth about an index; files that it does not name do not count."""

    dims: int
    kind: Kind
    model: dict[str, Any]
    """What made the descriptors: `predictions.json` of the folder they came from."""
    files: dict[str, FileFacts]
    segments: list[SegmentFacts] = field(default_factory=list)
    next_number: int = 1
    nprobe: int = 1
    removed: str | None = None
    """File of the ids that were replaced since."""
    removed_rows: int = 0
    quality: dict[str, Any] | None = None
    """The recall that was measured when it was built, and on what."""
    calibration: dict[str, Any] | None = None

    @property
    def rows(self) -> int:
        """Descriptors that can be found."""
        return sum(segment.rows for segment in self.segments) - self.removed_rows


def read_manifest(folder: Path) -> Manifest:
    """Read and check the manifest of an index."""
    path = folder / MANIFEST
    if not path.is_file():
        raise FileNotFoundError(f"{folder} is no index: {MANIFEST} is not in it; make one with `sealmark index build`")
    try:
        content = parse_json(path.read_bytes(), "it")
        if content.pop("format") != FORMAT:
            raise ValueError("its format is another one")
        return _checked(content)
    except (ValueError, KeyError, TypeError, AttributeError, ArithmeticError) as error:
        told = quoted(str(error))
        raise ValueError(f"{path} is not the manifest of an index ({told}): build the index again") from None


def _checked(content: dict[str, Any]) -> Manifest:
    files = {name: FileFacts(_count(facts["size"]), str(facts["sha256"])) for name, facts in content["files"].items()}
    segments = [SegmentFacts(_count(each["number"]), _count(each["rows"])) for each in content["segments"]]
    manifest = Manifest(**content | {"files": files, "segments": segments})
    names = [name for segment in segments for name in names_of(segment.number)]
    names += [] if manifest.removed is None else [manifest.removed]
    names += [names_of(0)[0]] if manifest.kind != "flat" else []  # what was learnt, for those that are added
    odd = [name for name in files if not _OURS.fullmatch(name)] + [name for name in names if name not in files]
    if odd:
        raise ValueError(f"it names {odd[0]!r}")
    if manifest.kind not in get_args(Kind) or not 1 <= _count(manifest.dims) <= MOST_DIMS:
        raise ValueError(f"kind {quoted(manifest.kind)}, {quoted(manifest.dims)} numbers a descriptor")
    if (
        _count(manifest.nprobe) < 1
        or _count(manifest.next_number) < 1
        or _count(manifest.removed_rows) > _total(segments)
    ):
        raise ValueError("a count in it cannot be")
    if not isinstance(manifest.model, dict):
        raise ValueError("it does not say which model")
    _check_facts(manifest)
    return manifest


def _count(value: Any) -> int:
    """Return a whole number of things that there can be."""
    if not isinstance(value, int) or not 0 <= value < 1 << 48:
        raise ValueError(f"{quoted(value)} is no count")
    return int(value)


def _total(segments: list[SegmentFacts]) -> int:
    return sum(segment.rows for segment in segments)


def _check_facts(manifest: Manifest) -> None:
    """Refuse a recall or a calibration that is none."""
    quality, curve = manifest.quality, manifest.calibration
    if quality is not None:
        shares = [float(quality[name]) for name in ("recall_at_1", "recall_at_10", "cosine")]
        shares += [_count(quality[name]) for name in ("queries", "rows", "lists")]
        if not all(map(math.isfinite, shares)):
            raise ValueError("its recall is none")
    if curve is not None:
        scores, precisions = [float(each) for each in curve["score"]], [float(each) for each in curve["precision"]]
        rising = all(low <= high for low, high in pairwise(scores)) and all(map(math.isfinite, scores))
        if not rising or len(scores) != len(precisions) or not all(0 <= share <= 1 for share in precisions):
            raise ValueError("its calibration is none")


def write_manifest(folder: Path, manifest: Manifest) -> None:
    """Make a new state of the index visible: before the rename it is the old one, after it the new one."""
    path = folder / MANIFEST
    temporary = path.with_name(path.name + TEMPORARY_SUFFIX)
    with explained(path):
        temporary.write_text(json.dumps({"format": FORMAT} | asdict(manifest), indent=1) + "\n")
        _sync(temporary)
        # The files that it names must be there after a power cut, too.
        _sync(folder)
        os.replace(temporary, path)
        _sync(folder)


def names_of(number: int) -> tuple[str, str, str]:
    """Return the names of a segment's files: index, paths, table of paths."""
    return f"{number:06d}.faiss", f"{number:06d}.paths", f"{number:06d}.table"


def seal(path: Path) -> FileFacts:
    """Bring a finished file to the disk and return what it is."""
    with explained(path):
        _sync(path)
        return FileFacts(path.stat().st_size, _sha256(path))


def check_file(path: Path, facts: FileFacts, *, content: bool) -> None:
    """Refuse a file that is not the one that was written.

    Args:
        path: The file.
        facts: What the manifest says of it.
        content: Whether to read all of it; else its size must do.
    """
    if not path.is_file():
        raise FileNotFoundError(f"{path} is missing: copy the whole folder of the index, or build it again")
    if path.stat().st_size != facts.size or (content and _sha256(path) != facts.sha256):
        raise ValueError(f"{path} is damaged or not of this index: copy it again, or build the index again")


@contextmanager
def writing(folder: Path) -> Iterator[None]:
    """Keep other writers out of an index, and remove what killed ones left there."""
    lock = FolderLock()
    refuse_links(folder, (f"{MANIFEST}*", ".lock.rank*"))
    if not lock.take(folder, 0):
        raise ValueError(f"another build or add is writing to {folder}: wait for it")
    try:
        _remove_leftovers(folder)
        yield
    finally:
        lock.release()


def _remove_leftovers(folder: Path) -> None:
    counted = set(read_manifest(folder).files) if (folder / MANIFEST).exists() else set()
    for path in folder.iterdir():
        leftover = _OURS.fullmatch(path.name) and path.name not in counted
        if leftover or path.name == MANIFEST + TEMPORARY_SUFFIX:
            path.unlink()


def _sync(path: Path) -> None:
    file = os.open(path, os.O_RDONLY)
    try:
        os.fsync(file)
    finally:
        os.close(file)


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
