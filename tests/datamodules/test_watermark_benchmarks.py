import re

import cv2
import numpy as np
import pytest
import torch

from datamodules.base import SampleKey
from datamodules.watermark_benchmarks import LAYOUTS, WatermarkBenchmarkDataModule

COUNT = 12
SIZE = 40

# Written out from the authors' descriptions, not from the table under test: file of id -> what is in it.
TREES = {
    "clwd": ("{part}/Watermarked_image/{id}.jpg", "{part}/Mask/{id}.png", "{part}/Watermark_free_image/{id}.jpg"),
    "lvw": ("{part}/image/{id}.png", "{part}/mask/{id}.png", "{part}/background/{id}.png"),
    "logo_h": ("{part}_images/image/{id}.png", "{part}_images/mask/{id}.png", "natural/{photo}.jpg"),
    "alpha1": ("{part}/image/{id}.jpg", "{part}/mask/{id}.png", None),
}
TREES |= dict.fromkeys(("logo_l", "logo_gray", "logo30k"), TREES["logo_h"])
EXTRA = {
    "clwd": {"alpha": "{part}/Alpha/{id}.png", "color": "{part}/Watermark/{id}.png"},
    "lvw": {"alpha": "{part}/alpha/{id}.png"},
} | {key: {"color": "{part}_images/wm/{id}.png"} for key in ("logo_h", "logo_l", "logo_gray", "logo30k")}


def write(path, pixels):
    path.parent.mkdir(parents=True, exist_ok=True)
    assert cv2.imwrite(str(path), pixels[..., ::-1] if pixels.ndim == 3 else pixels)


def mask_of(number, side=SIZE):
    mask = np.zeros((side, side), np.uint8)
    mask[5 : 15 + number % 7, 8:30] = 255
    return mask


def ids_of(layout, part):
    start = 0 if part == "train" else 100
    names = [str(start + number) for number in range(COUNT)]
    return [f"{int(name) // 3:04d}-logo{name}" for name in names] if layout.startswith("logo") else names


def make(root, layout, side=SIZE, count=COUNT):
    logo = layout.startswith("logo")
    for part in ("train", "val" if logo else "test"):
        for number, id_ in enumerate(ids_of(layout, part)[:count]):
            image, mask, target = TREES[layout]
            fields = {"part": part, "id": id_, "photo": id_.split("-")[0]}
            write(root / image.format(**fields), np.full((side, side, 3), [200, 100, 10 * number], np.uint8))
            write(root / mask.format(**fields), mask_of(number, side))
            if target:
                write(root / target.format(**fields), np.full((side, side, 3), [10, 20, 30], np.uint8))
            for name, pattern in EXTRA.get(layout, {}).items():
                pixels = np.full((side, side, 3), [102, 102, 102] if name == "alpha" else [250, 0, 5], np.uint8)
                write(root / pattern.format(**fields), pixels)
    return root


def module(root, layout, **options):
    return WatermarkBenchmarkDataModule(str(root), layout, **({"size": SIZE, "num_workers": 0} | options))


def samples(data, split):
    dataset = data.build_dataset(split)
    return [dataset[SampleKey(0, index)] for index in range(len(dataset))]


def test_every_layout_is_tested():
    assert set(TREES) == set(LAYOUTS)


@pytest.mark.parametrize("layout", sorted(TREES))
def test_samples_of_every_layout(tmp_path, layout):
    data = module(make(tmp_path, layout), layout)
    found = samples(data, "test")
    assert len(found) == COUNT
    names = sorted(ids_of(layout, "test" if not layout.startswith("logo") else "val"))
    for index, sample in enumerate(found):
        number = ids_of(layout, "val" if layout.startswith("logo") else "test").index(names[index])
        assert sample["index"] == index
        assert f"/{names[index]}." in sample["path"]
        assert sample["family"] == "benchmark"
        assert sample["has_mark"] is True
        assert sample["image"].dtype == torch.uint8
        middle = sample["image"][:, 2, 2].int() - torch.tensor([200, 100, 10 * number])
        assert middle.abs().max() <= 8  # JPEG
        np.testing.assert_array_equal(sample["mask"][0].numpy(), mask_of(number))
        assert sample["ignore"].shape == sample["mask"].shape
        assert not sample["ignore"].any()
        expected_keys = {"alpha", "color"} & set(EXTRA.get(layout, {})) | ({"target"} if TREES[layout][2] else set())
        assert {"alpha", "color", "target"} & set(sample) == expected_keys
        if "target" in sample:
            assert (sample["target"][:, 0, 0].int() - torch.tensor([10, 20, 30])).abs().max() <= 8
        if "alpha" in sample:
            np.testing.assert_array_equal(sample["alpha"][0].numpy(), np.where(mask_of(number) > 0, 102, 0))
            assert sample["opacity"] == pytest.approx(0.4)
        else:
            assert np.isnan(sample["opacity"])
        if "color" in sample:
            np.testing.assert_array_equal(sample["color"][0].numpy(), np.where(mask_of(number) > 0, 250, 0))


def test_the_seed_of_the_run_is_taken_where_none_is_named(tmp_path, monkeypatch):
    monkeypatch.setenv("PL_GLOBAL_SEED", "7")
    assert module(tmp_path, "clwd").seed == 7
    assert module(tmp_path, "clwd", seed=0).seed == 0


@pytest.mark.parametrize("layout", ["clwd", "logo_l"])
def test_train_and_validation_share_no_photo_and_cover_all(tmp_path, layout):
    data = module(make(tmp_path, layout), layout, val_fraction=0.4)
    ids = {split: data.build_dataset(split).files.ids for split in ("train", "val")}
    photos = {split: {id_.split("-")[0] for id_ in names} for split, names in ids.items()}
    assert not photos["train"] & photos["val"]
    assert sorted([*ids["train"], *ids["val"]]) == sorted(ids_of(layout, "train"))


def test_thresholds_and_resizing_of_masks(tmp_path):
    """CLWD counts from 0.1 and picks nearest pixels; Alpha1 counts from 0.5 after bilinear resizing."""
    for layout, expected in (("clwd", [0, 255, 255, 255]), ("alpha1", [0, 0, 0, 255])):
        root = make(tmp_path / layout, layout, count=1)
        levels = np.repeat(np.array([[25, 26, 127, 128]], np.uint8), 4, 0)
        write(root / TREES[layout][1].format(part="test", id="100"), levels)
        sample = samples(module(root, layout, size=4), "test")[0]
        assert sample["mask"][0, 0].tolist() == expected
        lower = samples(module(root, layout, size=4, mask_threshold=0.0), "test")[0]
        assert lower["mask"].min() == 255
        edge = np.zeros((8, 8), np.uint8)
        edge[:, 3:] = 255
        write(root / TREES[layout][1].format(part="test", id="100"), edge)
        mask = samples(module(root, layout, size=4, mask_threshold=0.4), "test")[0]["mask"][0, 0]
        # Columns 2 and 3 average to one half where bilinear; nearest takes column 2.
        assert mask.tolist() == ([0, 0, 255, 255] if layout == "clwd" else [0, 255, 255, 255])


def test_optional_folders_may_be_missing(tmp_path):
    root = make(tmp_path, "clwd", count=3)
    for folder in ("Alpha", "Watermark"):
        for file in (root / "test" / folder).iterdir():
            file.unlink()
        (root / "test" / folder).rmdir()
    data = module(root, "clwd")
    assert {"alpha", "color", "target"} & set(samples(data, "test")[0]) == {"target"}


def test_root_may_be_the_folder_above(tmp_path):
    make(tmp_path / "10kgray", "logo_gray")
    make(tmp_path / "10khigh", "logo_h", count=5)
    assert len(samples(module(tmp_path, "logo_gray"), "test")) == COUNT
    assert len(samples(module(tmp_path, "logo_h"), "test")) == 5


def test_training_flips_half_of_the_samples_with_their_masks(tmp_path):
    dataset = module(make(tmp_path, "clwd"), "clwd", val_fraction=0.4).build_dataset("train")
    plain = module(tmp_path, "clwd", val_fraction=0.4, flip=False).build_dataset("train")
    flipped = 0
    for epoch in range(20):
        for index in range(len(dataset)):
            sample, original = dataset[SampleKey(epoch, index)], plain[SampleKey(epoch, index)]
            turned = not torch.equal(sample["mask"], original["mask"])
            for key in ("mask", "image", "alpha", "color", "target"):
                assert torch.equal(sample[key], original[key].flip(-1) if turned else original[key])
            flipped += turned
    assert 0.35 < flipped / (20 * len(dataset)) < 0.65


def test_batches_reach_the_device_as_floats(tmp_path):
    data = module(make(tmp_path, "clwd"), "clwd", batch_size=4)
    data.setup("test")
    batch = next(iter(data.test_dataloader()))
    batch = data.on_after_batch_transfer(batch, 0)
    assert batch["image"].shape == (4, 3, SIZE, SIZE)
    assert set(batch["mask"].unique().tolist()) == {0.0, 1.0}
    assert batch["alpha"].max() == pytest.approx(0.4)
    assert batch["ignore"].dtype == torch.bool


def test_missing_pieces_are_named_in_one_line(tmp_path):
    expected = re.escape("clwd is expected as ") + r"\S*test/Watermarked_image/\*\.jpg; set data\.root"
    with pytest.raises(FileNotFoundError, match=expected):
        module(tmp_path, "clwd").build_dataset("test")
    root = make(tmp_path, "clwd")
    (root / "test/Mask/104.png").unlink()
    with pytest.raises(FileNotFoundError, match=r"1 of 12 images have no mask; add e\.g\. \S*test/Mask/104\.png$"):
        module(root, "clwd").build_dataset("test")
    with pytest.raises(ValueError, match=r"data\.layout must be one of clwd, .*, got 'CLWD'"):
        module(root, "CLWD")
    with pytest.raises(ValueError, match=r"data\.val_fraction must lie above 0"):
        module(root, "clwd", val_fraction=0)
    few = make(tmp_path / "few", "alpha1", count=1)
    with pytest.raises(ValueError, match=r"left for validation at data\.val_fraction 0\.05: change"):
        module(few, "alpha1").build_dataset("val")
