"""Splits of files that stay put: a file's share depends on its name alone."""

import hashlib
from collections.abc import Iterable
from pathlib import PurePath
from typing import Literal


def split_of(path: str, holdout: float) -> Literal["train", "val", "test"]:
    """Say which split a file belongs to, whatever else lies beside it.

    Args:
        path: Only its last part counts, so that a moved folder keeps its splits.
        holdout: Share of all files that is not trained on: half of it validation, half test.
    """
    digest = hashlib.sha256(PurePath(path).name.encode("utf-8", "surrogateescape")).digest()
    place = int.from_bytes(digest[:8]) / 2**64
    if place >= holdout:
        return "train"
    return "val" if place < holdout / 2 else "test"


def positions_of(paths: Iterable[str], split: Literal["train", "val", "test"], holdout: float) -> list[int]:
    """Positions of the files that belong to a split."""
    return [position for position, path in enumerate(paths) if split_of(path, holdout) == split]
