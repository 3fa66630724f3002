"""positions_of: disjoint, complete, stable splits, also of few files and of files that share a name."""

import random
from itertools import chain

import numpy as np
import pytest

from datamodules.images.listing import ImageListing
from datamodules.images.splits import positions_of, split_of

SPLITS = ("train", "val", "test")


def split_paths(paths, holdout=0.2):
    return {split: [paths[i] for i in positions_of(paths, split, holdout)] for split in SPLITS}


def check_partition(paths, holdout=0.2):
    positions = [positions_of(paths, split, holdout).tolist() for split in SPLITS]
    assert sorted(chain(*positions)) == list(range(len(paths)))
    assert all(part == sorted(part) for part in positions)
    return [len(part) for part in positions]


def test_positions_are_an_array_and_take_a_generator():
    paths = [f"photos/{number}.jpg" for number in range(50)]
    positions = positions_of((path for path in paths), "train", 0.2)
    assert isinstance(positions, np.ndarray)
    assert positions.dtype == np.int64
    assert len(positions) == len(list(positions))
    listing = ImageListing.from_paths(paths)
    assert [listing[i] for i in positions] == [paths[i] for i in positions]
    assert len(positions_of([], "val", 0.2)) == 0


@pytest.mark.parametrize("holdout", [0.05, 0.2, 0.5])
def test_large_sets_of_unique_names_are_split_by_name_alone(holdout):
    paths = [f"photos/{number % 7}/{number}.jpg" for number in range(2000)]
    for split in SPLITS:
        expected = [i for i, path in enumerate(paths) if split_of(path, holdout) == split]
        assert positions_of(paths, split, holdout).tolist() == expected


@pytest.mark.parametrize("count", range(3, 12))
@pytest.mark.parametrize("holdout", [0.05, 0.2, 0.9])
def test_few_files_leave_no_split_empty(count, holdout):
    for trial in range(30):
        assert min(check_partition([f"{trial}_{number}.png" for number in range(count)], holdout)) >= 1


def test_an_empty_split_takes_the_training_files_of_smallest_hash():
    sets = ([f"{trial}_{number}.png" for number in range(4)] for trial in range(100))
    paths = next(paths for paths in sets if all(split_of(path, 0.2) == "train" for path in paths))
    # A file leaves training as the holdout grows past its place.
    by_hash = sorted(paths, key=lambda path: next(i for i in range(10_001) if split_of(path, i / 10_000) != "train"))
    assert split_paths(paths) == {
        "train": [p for p in paths if p in by_hash[2:]],
        "val": by_hash[:1],
        "test": by_hash[1:2],
    }


def test_a_split_that_is_there_stays():
    paths = [f"{number}.png" for number in range(10_000)]
    held = [path for path in paths if split_of(path, 0.2) == "test"][:2]
    kept = next(path for path in paths if split_of(path, 0.2) == "train")
    found = split_paths([*held, kept])
    assert found["train"] == [kept]
    assert sorted(found["test"] + found["val"]) == sorted(held)
    assert len(found["val"]) == 1


def test_two_files_and_a_set_that_holds_nothing_out_stay_as_they_are():
    for paths, holdout in ((["a.png", "b.png"], 0.2), ([f"{number}.png" for number in range(9)], 0.0)):
        assert all(split_of(path, holdout) == split for split in SPLITS for path in split_paths(paths, holdout)[split])


def test_files_that_share_a_name_are_spread_over_the_splits():
    paths = [f"/data/logos/brand{number}/logo.png" for number in range(500)]
    sizes = check_partition(paths)
    assert sizes[0] == pytest.approx(400, abs=40)
    assert sizes[1] == pytest.approx(50, abs=25)


def test_a_unique_name_is_not_moved_by_names_that_repeat():
    unique = [f"/data/photos/{number}.jpg" for number in range(300)]
    found = split_paths([*unique, "/data/a/logo.png", "/data/b/logo.png"])
    for split in SPLITS:
        assert [p for p in found[split] if "photos" in p] == [p for p in unique if split_of(p, 0.2) == split]


@pytest.mark.parametrize("names", [[f"b{n}/logo.png" for n in range(40)], [f"{n}.png" for n in range(4)]])
def test_a_moved_or_shuffled_set_keeps_its_splits(names):
    shuffled = random.Random(0).sample(names, len(names))
    found = [
        split_paths([f"{root}{name}" for name in order])
        for root, order in (("", names), ("logos/", names), ("/mnt/elsewhere/logos/", shuffled))
    ]
    for split in SPLITS:
        assert (
            len(
                {
                    frozenset(path.removeprefix("/mnt/elsewhere/").removeprefix("logos/") for path in part[split])
                    for part in found
                }
            )
            == 1
        )


def test_a_file_listed_twice_is_in_one_split():
    paths = ["a/x.png", "a/y.png", "a/z.png"] * 2
    check_partition(paths)
    found = split_paths(paths)
    assert all(len(found[split]) == 2 and len(set(found[split])) == 1 for split in SPLITS)


def test_relative_and_absolute_paths_mix():
    check_partition(["/data/a/logo.png", "b/logo.png", "logo.png"])
