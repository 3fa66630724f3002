"""Views for training and tasks of edited copies: who is a copy of whom, and that no photo is in two splits."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from datamodules.base import SampleKey
from datamodules.copy_evaluation import BACKGROUND, QUERY, REFERENCE
from datamodules.disc import DiscDataModule
from datamodules.transforms.copy_edits import EDITS
from datamodules.transforms.copy_views import ViewSettings

DRAWN = "procedural://4000?size=64"


def drawn(**options: object) -> DiscDataModule:
    defaults = {"photos": DRAWN, "views": ViewSettings("blur", 32), "references": 12, "queries": 14, "background": 5}
    return DiscDataModule(**defaults | {"eval_resize": "skew_32", "num_workers": 0} | options)


def test_views_of_a_photo_differ_and_are_told_by_its_position() -> None:
    data = drawn(batch_size=4, seed=3)
    data.setup("fit")
    batch = data.on_after_batch_transfer(next(iter(data.train_dataloader())), 0)
    assert batch["views"].shape == (4, 2, 3, 32, 32)
    assert batch["views"].dtype == torch.float32
    assert batch["views"].max() <= 1
    assert (batch["views"][:, 0] - batch["views"][:, 1]).abs().flatten(1).mean(dim=1).min() > 0.01
    assert len(set(batch["index"].tolist())) == 4


def test_a_sample_is_a_function_of_its_key() -> None:
    data = drawn(train_samples=6)
    data.setup("fit")
    views = data.datasets["train"]
    torch.testing.assert_close(views[SampleKey(1, 2)]["views"], views[SampleKey(1, 2)]["views"], rtol=0, atol=0)
    assert not torch.equal(views[SampleKey(1, 2)]["views"], views[SampleKey(2, 2)]["views"])
    # A drawn source goes on to new scenes in the next epoch.
    assert views[SampleKey(0, 5)]["index"] == 5
    assert views[SampleKey(1, 0)]["index"] == 6


def test_a_photo_that_comes_again_in_an_epoch_keeps_its_index(tmp_path: Path) -> None:
    for i in range(12):
        Image.fromarray(np.full((40, 40, 3), 20 * i, np.uint8)).save(tmp_path / f"{i}.png")
    data = DiscDataModule(str(tmp_path), views=ViewSettings("simclr", 32), train_samples=30, num_workers=0)
    data.datasets["train"] = data.build_dataset("train")
    views = data.datasets["train"]
    count = len(views.photos)
    assert views[SampleKey(0, 1)]["index"] == views[SampleKey(0, 1 + count)]["index"]
    assert views[SampleKey(0, 1)]["path"] == views[SampleKey(0, 1 + count)]["path"]


@pytest.mark.parametrize(("copied", "background"), [(None, 5), (0, 5), (12, 0), (3, 0), (12, 5)])
def test_every_query_but_the_sourceless_is_made_of_its_reference(copied: int | None, background: int) -> None:
    data = drawn(copied=copied, background=background, queries=14)
    data.setup("test")
    task, copies = data.retrieval_task("test"), data.datasets["test"]
    samples = [copies[SampleKey(0, i)] for i in range(len(copies))]
    assert [sample["role"] for sample in samples] == task.role.tolist()
    assert np.bincount(task.role, minlength=3).tolist() == [12, 14, background]
    assert len(task.names) == len(set(task.names)) == len(copies)
    path = [sample["path"] for sample in samples]
    of_role = {role: {path[i] for i in np.flatnonzero(task.role == role)} for role in (REFERENCE, QUERY, BACKGROUND)}
    assert not of_role[BACKGROUND] & (of_role[REFERENCE] | of_role[QUERY])
    expected = {(q, r) for q in np.flatnonzero(task.role == QUERY) for r in range(12) if path[q] == path[r]}
    assert set(map(tuple, task.pairs.tolist())) == expected
    assert len(expected) == (7 if copied is None else copied)


def test_groups_are_the_edits_and_an_untouched_query_is_its_reference() -> None:
    count = 2 * len(EDITS)
    data = drawn(references=count, queries=count, copied=count, background=2, photos="procedural://40000?size=48")
    data.setup("test")
    task, copies = data.retrieval_task("test"), data.datasets["test"]
    assert set(EDITS) <= set(task.groups)
    assert {"untouched", "mild", "strong"} <= set(task.groups)
    assert all(len(task.groups[kind]) == 2 for kind in EDITS)
    source = dict(task.pairs.tolist())
    for query in task.groups["untouched"].tolist():
        torch.testing.assert_close(copies[SampleKey(0, query)]["image"], copies[SampleKey(0, source[query])]["image"])
    changed = [
        not torch.equal(copies[SampleKey(0, query)]["image"], copies[SampleKey(0, source[query])]["image"])
        for query in task.groups["strong"].tolist()
    ]
    assert all(changed)


def test_splits_share_no_photo_and_seeds_make_no_difference_to_tasks() -> None:
    first, second = drawn(seed=1), drawn(seed=2)
    for data in (first, second):
        data.setup("fit")
        data.setup("test")
    for split in ("val", "test"):
        image = first.datasets[split][SampleKey(0, 20)]["image"]
        torch.testing.assert_close(second.datasets[split][SampleKey(7, 20)]["image"], image, rtol=0, atol=0)
    positions = [set(first.datasets[split].photos.positions) for split in ("train", "val", "test")]
    assert sum(map(len, positions)) == len(set.union(*positions))


def test_too_few_photos_say_how_many_are_needed() -> None:
    with pytest.raises(ValueError, match=r"200 references.*needs more photos than the 40 .*lower data.references"):
        drawn(references=200, queries=100, copied=0, background=0).setup("test")
    with pytest.raises(ValueError, match="3 queries without source needs more photos than the 40"):
        drawn(references=35, queries=10, copied=7, background=5).setup("test")
    with pytest.raises(ValueError, match="13 queries cannot be copies of 12"):
        drawn(copied=13, queries=12).setup("test")


def test_few_photos_are_each_edited_in_many_ways() -> None:
    ways = len(EDITS)
    data = drawn(references=3, queries=5 * ways, copied=3 * ways, background=35)
    data.setup("test")
    task, copies = data.retrieval_task("test"), data.datasets["test"]
    path = [copies[SampleKey(0, i)]["path"] for i in range(len(copies))]
    assert all(path[query] == path[reference] for query, reference in task.pairs.tolist())
    queries = np.flatnonzero(task.role == QUERY)
    got = {(path[query], copies.kind_of(number)) for number, query in enumerate(queries.tolist())}
    assert len(got) == 5 * ways  # five photos, every way once each
    assert not {path[query] for query in queries[3 * ways :]} & {path[reference] for reference in range(3)}


def test_pictures_of_several_sizes_share_a_batch() -> None:
    data = drawn(eval_resize="short_32", references=20, queries=34, copied=20, eval_batch_size=54)
    data.setup("test")
    batch = data.on_after_batch_transfer(next(iter(data.test_dataloader())), 0)
    sizes = [tuple(image.shape[-2:]) for image in batch["image"]]
    assert len(sizes) == 54
    assert len(set(sizes)) > 1
    assert all(min(size) == 32 for size in sizes)
