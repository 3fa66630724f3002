"""The photos of a split, so that no photo is in two splits, whatever the source."""

import os
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from datamodules.images.sources import FileSource, ImageSource, ProceduralSource, open_images
from datamodules.images.splits import Split, positions_of

PROCEDURAL = "procedural://"


class Photos:
    """The photos of one split of a source, by position."""

    def __init__(self, source: ImageSource, positions: Sequence[int] | NDArray[np.int64]) -> None:
        self.source = source
        self.positions = positions

    def __len__(self) -> int:
        return len(self.positions)

    def read(self, turn: int, target_size: int | None = None) -> tuple[NDArray[np.uint8], str]:
        """Return the photo whose turn it is, and its path; after the last comes the first again."""
        position = int(self.positions[turn % len(self.positions)])
        return self.source.read(position, target_size), self.source.path(position)


def photos_of_split(spec: str | list[str], tested: str | list[str] | None, split: Split, holdout: float) -> Photos:
    """Return the photos of a split.

    Args:
        spec: `data.photos`: files, folders, manifests or `procedural://`.
        tested: `data.test_photos`: photos of the test split alone; None takes the hashed test part of `spec`.
        split: Which split.
        holdout: Share of files that is not trained on, half of it validation, half test.
    """
    if split == "test" and tested is not None:
        source = open_images(tested)
        _refuse_same_scenes(open_images(spec), source)
        return Photos(source, range(len(source)))
    source = open_images(spec)
    if isinstance(spec, str) and spec.startswith(PROCEDURAL):
        # Scenes are functions of their number: training counts from 0, the frozen sets lie at the far end.
        held = max(1, len(source) // 100)
        ranges: dict[Split, range] = {
            "train": range(len(source) - 2 * held),
            "val": range(len(source) - 2 * held, len(source) - held),
            "test": range(len(source) - held, len(source)),
        }
        return Photos(source, ranges[split])
    return Photos(source, positions_of_split(paths_in(source), split, "photos", spec, tested, holdout))


def positions_of_split(
    paths: Sequence[str],
    split: Split,
    what: str,
    given: str | list[str],
    tested: str | list[str] | None,
    holdout: float,
) -> NDArray[np.int64]:
    """Return which files are of a split; none that is tested on is trained on, whatever name it goes by."""
    positions = positions_of(paths, split, holdout)
    if tested is not None:
        elsewhere = {os.path.realpath(path) for path in paths_of(tested)}
        positions = positions[[os.path.realpath(paths[i]) not in elsewhere for i in positions]]
    if not len(positions):
        raise ValueError(
            f"no file of data.{what} {given} is left for the {split} split at data.holdout {holdout}: "
            f"add {what} or raise data.holdout"
        )
    return positions


def paths_of(spec: str | list[str]) -> Sequence[str]:
    """Return the paths that a source of this description has."""
    return paths_in(open_images(spec))


def paths_in(source: ImageSource) -> Sequence[str]:
    """Return the paths of a source: the listing itself where there is one, for a list of a million takes far more."""
    return source.listing if isinstance(source, FileSource) else [source.path(i) for i in range(len(source))]


def _refuse_same_scenes(trained: ImageSource, tested: ImageSource) -> None:
    seeds = [source.seed for source in (trained, tested) if isinstance(source, ProceduralSource)]
    if len(seeds) == 2 and seeds[0] == seeds[1]:
        raise ValueError(f"data.test_photos draws the scenes of data.photos: give it another seed than {seeds[0]}")
