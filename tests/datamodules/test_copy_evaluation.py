"""DISC's folder layout: roles, names, truth, sizes of batches, and what is said when something is missing."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from datamodules.base import SampleKey
from datamodules.copy_evaluation import DiscEvaluationDataModule, image_id, resize_as_pillow

FACTS = Path(__file__).parents[1] / "goldens" / "sscd" / "metrics_manifest.json"
GOLDEN_IMAGES = Path(__file__).parents[2] / ".." / "shared" / "goldens" / "sscd" / "images"
SIZES = ((40, 60), (60, 40), (50, 50))


def save(path, number):
    path.parent.mkdir(parents=True, exist_ok=True)
    height, width = SIZES[number % 3]
    Image.fromarray(np.random.default_rng(number).integers(0, 256, (height, width, 3), np.uint8)).save(path)


@pytest.fixture
def disc(tmp_path):
    """Ten references, seven queries of which three have sources, five of the background."""
    for folder, letter, digits, count in (("val_ref", "R", 6, 10), ("val_query", "Q", 5, 7), ("training", "T", 6, 5)):
        for number in range(count):
            save(tmp_path / folder / f"{letter}{number:0{digits}d}.png", number)
    truth = "query_id,reference_id\nQ00000,R000004\nQ00001,\nQ00002,R000009\nQ00002,R000001\nQ00002,R000001\n"
    (tmp_path / "val_groundtruth_matches.csv").write_text(truth)
    return tmp_path


def loaded(data, split="test"):
    data.setup("test" if split == "test" else "validate")
    loader = data.test_dataloader() if split == "test" else data.val_dataloader()
    return [data.on_after_batch_transfer(batch, 0) for batch in loader]


def test_roles_names_and_order_are_the_references(disc):
    data = DiscEvaluationDataModule(str(disc), num_workers=0)
    data.setup("test")
    images, task = data.datasets["test"], data.retrieval_task("test")
    facts = json.loads(FACTS.read_text())["disc_dataset"]
    assert facts["order"] == "refs, queries, training"
    assert task.role.tolist() == [0] * 10 + [1] * 7 + [2] * 5
    firsts = [images[SampleKey(0, index)] for index in (0, 10, 17)]
    for item, sample, index in zip(facts["first_items"], firsts, (0, 10, 17), strict=True):
        assert task.names[index] == item["name"]
        assert (sample["index"], sample["role"]) == (index, item["split"])
        assert Path(sample["path"]).relative_to(disc).with_suffix(".jpg") == Path(item["file"])
    assert [(task.names[q], task.names[r]) for q, r in task.pairs] == [
        ("Q00000", "R000004"), ("Q00002", "R000009"), ("Q00002", "R000001"),
    ]  # fmt: skip


def test_validation_leaves_the_background_out(disc):
    data = DiscEvaluationDataModule(str(disc), num_workers=0)
    data.setup("validate")
    assert len(data.datasets["val"]) == 17
    assert len(data.retrieval_task("val").names) == 17


@pytest.mark.parametrize("resize", ["short_30", "long_30", "skew_32"])
def test_batches_hold_images_of_one_size_where_they_can(disc, resize):
    data = DiscEvaluationDataModule(str(disc), resize=resize, eval_batch_size=4, num_workers=0)
    batches = loaded(data)
    seen = {}
    for batch in batches:
        for index, image in zip(batch["index"].tolist(), batch["image"], strict=True):
            seen[index] = image if image.dtype == torch.uint8 else (image * 255).round().byte()
    assert sorted(seen) == list(range(22))
    stacked = [isinstance(batch["image"], torch.Tensor) for batch in batches]
    # Of three sizes at most two batches lie on a border.
    assert sum(not one for one in stacked) <= (0 if resize.startswith("skew") else 2)
    for index, path in ((3, "val_ref/R000003.png"), (11, "val_query/Q00001.png"), (19, "training/T000002.png")):
        pixels = np.asarray(Image.open(disc / path))
        assert np.array_equal(seen[index].permute(1, 2, 0), resize_as_pillow(pixels, resize))


def test_an_unreadable_image_is_left_out_where_asked(disc):
    (disc / "val_ref" / "R000003.png").write_text("no image")
    batches = loaded(DiscEvaluationDataModule(str(disc), num_workers=0, on_unreadable="skip", eval_batch_size=5))
    assert sorted(index for batch in batches for index in batch["index"].tolist()) == [*range(3), *range(4, 22)]
    assert [Path(s["path"]).name for batch in batches for s in batch["skipped"]] == ["R000003.png"]


def test_paths_can_be_set_one_by_one(disc, tmp_path):
    save(tmp_path / "mine" / "a" / "holiday.png", 1)
    (tmp_path / "list.csv").write_text("path\nmine/a/holiday.png\n")
    (tmp_path / "mine.csv").write_text("holiday,R000002\n")
    data = DiscEvaluationDataModule(
        str(disc), queries=str(tmp_path / "list.csv"), background="procedural://3?size=32", ground_truth="mine.csv"
    )
    data.setup("test")
    task = data.retrieval_task("test")
    assert task.pairs.tolist() == [[10, 2]]
    assert task.role.tolist() == [0] * 10 + [1] + [2] * 3
    without = DiscEvaluationDataModule(str(disc), background=None)
    without.setup("test")
    assert len(without.datasets["test"]) == 17


def test_what_is_missing_is_named_up_front(disc):
    for wrong, message in (
        ({"root": str(disc / "no")}, "no ground truth .*: set data.root"),
        ({"queries": "nothing"}, "no queries at .*nothing: set data.queries"),
        ({"background": "nothing"}, "no background at .*nothing: set data.background .*, or null to do without"),
    ):
        with pytest.raises(FileNotFoundError, match=message):
            DiscEvaluationDataModule(**({"root": str(disc)} | wrong)).setup("test")
    with pytest.raises(ValueError, match="resize mode 'tall_3' is none of"):
        DiscEvaluationDataModule(str(disc), resize="tall_3")
    with pytest.raises(ValueError, match="DiscEvaluationDataModule has no train split"):
        DiscEvaluationDataModule(str(disc)).setup("fit")


def test_truth_about_absent_images_is_an_error(disc):
    (disc / "val_groundtruth_matches.csv").write_text("Q00000,R000004\nQ00099,R000001\nQ00098,R000001\n")
    data = DiscEvaluationDataModule(str(disc))
    data.setup("test")
    with pytest.raises(ValueError, match="names 2 queries that are not there, such as Q00098"):
        data.retrieval_task("test")
    save(disc / "val_query" / "more" / "Q00003.png", 0)
    (disc / "val_groundtruth_matches.csv").write_text("Q00000,R000004\n")
    data = DiscEvaluationDataModule(str(disc))
    data.setup("test")
    with pytest.raises(ValueError, match="two queries have the id Q00003"):
        data.retrieval_task("test")


@pytest.mark.parametrize(
    ("stem", "role", "wanted"),
    [("Q7", 1, "Q00007"), ("r000012", 0, "R000012"), ("T3", 2, "T000003"), ("IMG_1", 1, "IMG_1"), ("R5", 1, "R5")],
)
def test_ids_are_the_challenges(stem, role, wanted):
    assert image_id(stem, role) == wanted


@pytest.mark.skipif(not GOLDEN_IMAGES.is_dir(), reason="the goldens' images are not beside the checkout")
@pytest.mark.parametrize("name", ["astronaut", "camera_gray", "chelsea", "chelsea_tall", "coffee", "tiny"])
@pytest.mark.parametrize(
    ("mode", "stored"), [("short_288", "small_288"), ("skew_320", "skew_320"), ("long_200", "long_200")]
)
def test_resizing_is_that_of_the_reference(name, mode, stored):
    image, wanted = (
        np.array(Image.open(GOLDEN_IMAGES / f"{file}.png").convert("RGB")) for file in (name, f"{name}.{stored}")
    )
    difference = np.abs(resize_as_pillow(image, mode).astype(int) - wanted)
    # Newer Pillow resizes tall images vertically first.
    assert difference.max() <= (1 if (name, mode) == ("chelsea_tall", "skew_320") else 0)
