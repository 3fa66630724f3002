"""Splits of files that stay put: a file's share depends on its name, not on the order or place of the set."""

import hashlib
import os
from collections.abc import Iterable, Sequence
from pathlib import PurePath
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from datamodules.images.listing import ImageListing

Split = Literal["train", "val", "test"]
_SPLITS: tuple[Split, ...] = ("train", "val", "test")
_TRAIN, _VAL, _TEST = range(3)


def split_of(path: str, holdout: float) -> Split:
    """Say which split a file belongs to, whatever else lies beside it.

    Args:
        path: Only its last part counts, so that a moved folder keeps its splits.
        holdout: Share of all files that is not trained on: half of it validation, half test.
    """
    place = _hash(PurePath(path).name) / 2**64
    if place >= holdout:
        return "train"
    return "val" if place < holdout / 2 else "test"


def positions_of(paths: Iterable[str], split: Split, holdout: float) -> NDArray[np.int64]:
    """Positions of the files that belong to a split, ascending.

    A file's name decides, as in `split_of`. Files that share a name go by their paths below the deepest folder that
    all paths have in common. Of three files and more, every split gets at least one.

    Args:
        paths: The whole set; it is read twice, so an iterator is kept in a listing meanwhile.
        split: Which split.
        holdout: Share of all files that is not trained on: half of it validation, half test.
    """
    listed = paths if isinstance(paths, Sequence) else ImageListing.from_paths(paths)
    # Equal hashes are one file, so that a file named twice is not in two splits.
    hashes, file_of = np.unique(_hashes(listed), return_inverse=True)
    codes = _split_codes(hashes, holdout)
    return np.flatnonzero(codes[file_of] == _SPLITS.index(split)).astype(np.int64, copy=False)


def _hash(text: str) -> int:
    return int.from_bytes(hashlib.sha256(text.encode("utf-8", "surrogateescape")).digest()[:8])


def _hashes(paths: Sequence[str]) -> NDArray[np.uint64]:
    hashes = np.fromiter((_hash(os.path.basename(path)) for path in paths), np.uint64, len(paths))
    _, name_of, counts = np.unique(hashes, return_inverse=True, return_counts=True)
    repeated = np.flatnonzero(counts[name_of] > 1)
    if len(repeated):
        # What the first and the last path in order begin with, all others do; unlike `commonpath`, this takes a
        # relative path beside an absolute one.
        start = os.path.commonprefix([min(paths), max(paths)]).rfind("/") + 1  # noqa: RUF071
        for position in repeated.tolist():
            hashes[position] = _hash(paths[position][start:])
    return hashes


def _split_codes(hashes: NDArray[np.uint64], holdout: float) -> NDArray[np.int8]:
    """The split of each file, the files being in ascending order of their hashes."""
    places = hashes / 2.0**64
    codes = np.where(places >= holdout, _TRAIN, np.where(places < holdout / 2, _VAL, _TEST)).astype(np.int8)
    if len(codes) >= 3 and 0 < holdout < 1:
        for split in (_VAL, _TEST, _TRAIN):
            if not (codes == split).any():
                codes[_spare(codes, last=split == _TRAIN)] = split
    return codes


def _spare(codes: NDArray[np.int8], last: bool) -> int:
    """The file that an empty split takes: from training, or from the largest split if training has but one."""
    counts = np.bincount(codes, minlength=len(_SPLITS))
    giver = _TRAIN if counts[_TRAIN] > 1 else int(counts.argmax())
    return int(np.flatnonzero(codes == giver)[-1 if last else 0])
