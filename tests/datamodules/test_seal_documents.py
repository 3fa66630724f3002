"""Samples for Seal2Real: the same on any worker, never paired, never in two splits; whole documents for predict."""

import cv2
import numpy as np
import pytest
import torch

from datamodules.base import SampleKey
from datamodules.seal_documents import SealDocumentsDataModule
from datamodules.seal_sources import REAL_FROM, boxes_in, split_seed
from datamodules.transforms.documents.samples import DocumentSettings, draw_document
from experiments.prepare_seals import Plan, finish, make_chunk

SMALL = DocumentSettings(size=96, sheets=3)


def data_of(**options):
    options = {"size": 48, "settings": SMALL, "batch_size": 4, "num_workers": 0, "train_samples": 12, **options}
    data = SealDocumentsDataModule(val_samples=6, test_samples=6, predict_samples=3, **options)
    for stage in ("fit", "test"):
        data.setup(stage)
    return data


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    folder = tmp_path_factory.mktemp("set")
    plan = Plan(10, 5, SMALL)
    for plane in ("images", "pages", "ink", "visible", "alpha", "area", ".parts"):
        (folder / plane).mkdir()
    make_chunk(plan, folder, 0)
    finish(plan, folder)
    return folder


def photos_in(folder, count=12):
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(count):
        document = draw_document(77, number, SMALL)
        cv2.imwrite(str(folder / f"photo_{number}.png"), document.image[..., ::-1])
    return folder


@pytest.mark.parametrize("view", ["page", "seal", "patch"])
def test_a_sample_has_labels_of_its_view(view):
    sample = data_of(view=view).datasets["train"][SampleKey(0, 3)]
    for name in ("image", "page", "real"):
        assert sample[name].dtype == torch.uint8
        assert sample[name].shape == (3, 48, 48)
    for name in ("ink", "visible", "text"):
        assert sample[name].dtype == torch.bool
        assert sample[name].shape == (1, 48, 48)
    assert sample["alpha"].dtype == torch.uint8
    changed = (sample["image"] != sample["page"]).any(0, keepdim=True)
    assert sample["ink"].any()
    assert changed[sample["alpha"] > 100].float().mean() > 0.9
    assert not changed[sample["alpha"] == 0].any() or view != "patch"  # others are resized


def test_synthetic_and_real_are_different_documents_of_two_domains():
    data = data_of(view="page", size=96)
    sample = data.datasets["train"][SampleKey(0, 2)]
    seed = split_seed(data.seed, "train")
    synthetic = draw_document(seed, 2, DocumentSettings(size=96, sheets=3, domain="clean"))
    real = draw_document(seed, REAL_FROM + 2, DocumentSettings(size=96, sheets=3, domain="degraded"))
    np.testing.assert_array_equal(sample["image"].permute(1, 2, 0), synthetic.image)
    np.testing.assert_array_equal(sample["real"].permute(1, 2, 0), real.image)
    assert (sample["path"], sample["real_path"]) == (synthetic.path, real.path)


def test_samples_are_the_same_on_any_worker():
    def images(workers):
        loader = data_of(num_workers=workers, view="patch").val_dataloader()
        batches = list(loader)
        return [torch.cat([batch[name] for batch in batches]) for name in ("image", "real", "ink", "index")]

    for alone, spread in zip(images(0), images(2), strict=True):
        torch.testing.assert_close(alone, spread, rtol=0, atol=0)


def test_epochs_differ_unless_they_are_to_repeat():
    for redraw in (True, False):
        dataset = data_of(redraw=redraw).datasets["train"]
        first, second = (dataset[SampleKey(epoch, 1)] for epoch in (0, 1))
        assert torch.equal(first["image"], second["image"]) != redraw
        assert torch.equal(first["real"], second["real"]) != redraw


def test_splits_share_no_drawn_document():
    data = data_of()
    paths = {
        split: {data.datasets[split][SampleKey(0, index)][name] for index in range(6) for name in ("path", "real_path")}
        for split in ("train", "val", "test")
    }
    assert not paths["train"] & paths["val"]
    assert not paths["val"] & paths["test"]
    # Evaluation is frozen whatever the run's seed is, and no seed of a run reaches its documents.
    other = data_of(seed=1)
    assert other.datasets["val"][SampleKey(0, 0)]["path"] in paths["val"]
    assert {split_seed(seed, "train") for seed in range(50)}.isdisjoint({split_seed(0, "val"), split_seed(0, "test")})


def test_written_sets_and_photos_take_the_place_of_drawn_ones(written, tmp_path):
    photos = photos_in(tmp_path / "photos")
    data = data_of(seals=str(written), real=str(photos), view="seal", train_samples=None, holdout=0.5)
    seen = {split: {} for split in ("train", "val", "test")}
    for split, found in seen.items():
        dataset = data.datasets[split]
        for index in range(len(dataset)):
            sample = dataset[SampleKey(0, index)]
            found.setdefault("path", set()).add(sample["path"])
            found.setdefault("real_path", set()).add(sample["real_path"])
            assert sample["image"].shape == sample["real"].shape == (3, 48, 48)
    for name in ("path", "real_path"):
        assert not seen["train"][name] & seen["val"][name]
        assert not seen["train"][name] & seen["test"][name]
    assert all(str(written) in path for path in seen["train"]["path"])


def test_photos_with_masks_are_cut_around_their_seals(tmp_path):
    for part in ("images", "masks"):
        (tmp_path / part).mkdir()
    image = np.full((120, 160, 3), 220, np.uint8)
    mask = np.zeros((120, 160), np.uint8)
    cv2.circle(image, (40, 60), 25, (40, 40, 200), 4)
    cv2.circle(mask, (40, 60), 25, 255, 4)
    for number in range(8):
        cv2.imwrite(str(tmp_path / "images" / f"{number}.png"), image)
        cv2.imwrite(str(tmp_path / "masks" / f"{number}-gt.png"), mask)
    sample = data_of(real=str(tmp_path), view="seal", holdout=0.5).datasets["train"][SampleKey(0, 0)]
    red = (sample["real"][0].int() - sample["real"][2].int()) > 60
    rows, columns = torch.nonzero(red, as_tuple=True)
    assert rows.max() - rows.min() > 28
    assert columns.min() > 1


def test_boxes_are_around_what_lies_together():
    mask = np.zeros((100, 200), np.bool_)
    mask[10:40, 10:50] = mask[50:90, 120:180] = True
    mask[95, 3] = True  # a speck
    assert sorted(boxes_in(mask)) == [(10, 10, 50, 40), (120, 50, 180, 90)]


def batches_of(data):
    data.setup("predict")
    return [data.on_after_batch_transfer(batch, 0) for batch in data.predict_dataloader()]


def test_predict_gives_whole_documents_with_their_labels():
    batches = batches_of(data_of(batch_size=2))
    assert sum(len(batch["image"]) for batch in batches) == 3
    for batch in batches:
        for image, ink, boxes, labels in zip(
            batch["image"], batch["ink"], batch["boxes"], batch["labels"], strict=True
        ):
            assert image.shape == (3, 96, 96)
            assert ink.shape == (1, 96, 96)
            assert image.dtype == ink.dtype == torch.uint8
            assert len(boxes) == len(labels["annotations"])
            assert boxes.shape[1] == 4
            assert all("category_id" in row for row in labels["annotations"])
        assert set(batch) >= {"page", "visible", "alpha", "area", "path", "index"}


def test_predict_goes_on_where_it_stopped():
    data = data_of(batch_size=1)
    first = batches_of(data)[0]["path"][0]
    data.exclude_from_prediction({first})
    assert [batch["index"].item() for batch in data.predict_dataloader()] == [1, 2]


def test_predict_takes_written_sets_and_pictures_with_masks(written):
    (whole,) = batches_of(data_of(paths=str(written), batch_size=20))
    (masked,) = batches_of(data_of(paths=str(written / "images"), masks=str(written / "ink"), batch_size=20))
    assert len(whole["image"]) == len(masked["image"]) == 10
    for one, other in zip(whole["image"], masked["image"], strict=True):
        assert torch.equal(one, other)
    assert [row["text"] != [] for row in whole["labels"]].count(True) > 5
    assert all(row == {"annotations": [], "text": []} for row in masked["labels"])


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"size": 4}, "data.size"),
        ({"seals": "/nowhere"}, "annotations.json"),
    ],
)
def test_mistakes_are_told_in_one_line(options, told):
    with pytest.raises((ValueError, FileNotFoundError), match=told) as caught:
        data_of(**options)
    assert "\n" not in str(caught.value)


def test_pictures_without_masks_are_refused(tmp_path):
    data = data_of(paths=str(photos_in(tmp_path, 2)))
    with pytest.raises(ValueError, match=r"data\.masks"):
        data.setup("predict")
