"""Squares to train on: the published split, the reference's frames, crops that depend on their key alone."""

import cv2
import numpy as np
import pytest
import torch
from torch.nn import functional as F

from datamodules.base import SampleKey
from datamodules.sa1b import Sa1bDataModule, first_names, framed, random_square


def write(folder, names, side=20):
    for number, name in enumerate(names):
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        pixels = np.random.default_rng(number).integers(0, 256, (side, side + 10, 3), np.uint8)
        cv2.imwrite(str(path), pixels)
    return str(folder)


def data_of(photos, **options):
    options = {"size": 16, "val_samples": 3, "test_samples": 2, "num_workers": 0, "batch_size": 2, **options}
    data = Sa1bDataModule(photos=photos, **options)
    data.setup("fit")
    data.setup("test")
    return data


def names_of(data, split):
    dataset = data.datasets[split]
    return [dataset[SampleKey(0, index)]["path"].rsplit("/", 1)[-1] for index in range(len(dataset))]


def test_the_first_names_are_validation_the_next_test_the_rest_training(tmp_path):
    names = [f"sa_{number}.png" for number in range(1, 13)]
    # The folders' order is not that of the names.
    photos = write(tmp_path, [f"{'ba'[number % 2]}/{name}" for number, name in enumerate(names)])
    data = data_of(photos)
    ordered = sorted(names)
    assert names_of(data, "val") == ordered[:3] == ["sa_1.png", "sa_10.png", "sa_11.png"]
    assert names_of(data, "test") == ordered[3:5]
    assert sorted(names_of(data, "train")) == ordered[5:]


def test_shards_split_as_their_folder_does(tmp_path):
    from experiments.prepare_sa1b import sa1b

    photos = write(tmp_path / "photos", [f"sa_{number}.png" for number in range(9)])
    sa1b([tmp_path / "photos"], tmp_path / "shards", size=16, images_per_shard=4, workers=1)
    plain, sharded = data_of(photos), data_of(str(tmp_path / "shards"))
    for split in ("train", "val", "test"):
        assert names_of(sharded, split) == names_of(plain, split)


def test_splits_of_drawn_scenes_are_disjoint():
    data = data_of("procedural://20?size=16")
    paths = [set(names_of(data, split)) for split in ("train", "val", "test")]
    assert [len(found) for found in paths] == [15, 3, 2]
    assert len(set.union(*paths)) == 20


def test_pictures_of_their_own_take_nothing_from_the_others(tmp_path):
    photos = write(tmp_path / "photos", [f"p{number}.png" for number in range(6)])
    tested = write(tmp_path / "tested", [f"t{number}.png" for number in range(4)])
    data = data_of(photos, test_photos=tested)
    assert names_of(data, "test") == ["t0.png", "t1.png"]
    assert names_of(data, "val") == ["p0.png", "p1.png", "p2.png"]
    assert names_of(data, "train") == ["p3.png", "p4.png", "p5.png"]


def test_first_names_are_the_sorted_distinct_ones():
    rng = np.random.default_rng(0)
    names = [f"sa_{number}.jpg" for number in rng.integers(0, 9000, 20_000)]
    for count in (0, 1, 700):
        assert first_names(iter(names), count) == sorted(set(names))[:count]


def test_frames_are_those_of_the_reference():
    image = torch.rand(3, 90, 140, generator=torch.Generator().manual_seed(0))
    whole = F.interpolate(image[None], size=(64, 99), mode="bilinear", antialias=True)[0]
    assert torch.equal(framed(image, 64, "short_side"), whole)
    # 17.5 rounds to the even 18.
    assert torch.equal(framed(image, 64, "center_crop"), whole[:, :, 18:82])
    assert framed(image, 64, "squash").shape == (3, 64, 64)


def test_random_squares_stay_inside_and_reach_their_bounds():
    image = torch.zeros(3, 40, 60)
    image[0] = torch.arange(60)
    image[1] = torch.arange(40)[:, None]
    sides = set()
    for draw in range(300):
        square = random_square(image, 1, 0.5, np.random.default_rng(draw))
        assert square.shape == (3, 1, 1)
    for draw in range(300):
        rng = np.random.default_rng(draw)
        square = random_square(image, 20, 0.5, rng)
        assert square.shape == (3, 20, 20)
        span = float(square[1, -1, 0] - square[1, 0, 0]) * 20 / 19
        sides.add(round(span))
    assert min(sides) >= 19
    assert max(sides) in (39, 40)


def test_a_sample_depends_on_its_key_alone(tmp_path):
    photos = write(tmp_path, [f"{number}.png" for number in range(8)], side=40)
    one, two = data_of(photos), data_of(photos)
    first = one.datasets["train"][SampleKey(1, 2)]
    two.datasets["train"][SampleKey(0, 0)]
    assert torch.equal(two.datasets["train"][SampleKey(1, 2)]["image"], first["image"])
    assert not torch.equal(two.datasets["train"][SampleKey(2, 2)]["image"], first["image"])
    assert not torch.equal(data_of(photos, seed=5).datasets["train"][SampleKey(1, 2)]["image"], first["image"])
    assert first["image"].dtype == torch.uint8
    # Frozen sets are the same for every seed and epoch.
    frozen = data_of(photos, seed=5).datasets["val"][SampleKey(3, 0)]["image"]
    assert torch.equal(one.datasets["val"][SampleKey(0, 0)]["image"], frozen)


def test_what_a_user_gets_wrong_is_one_line(tmp_path):
    photos = write(tmp_path, ["a.png", "b.png"])
    with pytest.raises(ValueError, match=r"has 2 pictures, not more than data.val_samples 3 and data.test_samples 2"):
        data_of(photos)
    with pytest.raises(ValueError, match=r"set data.eval_batch_size to 1, got 2"):
        Sa1bDataModule(eval_view="short_side", batch_size=2)
    with pytest.raises(ValueError, match=r"data.least_scale"):
        Sa1bDataModule(least_scale=0)


def test_loaders_give_batches(tmp_path):
    photos = write(tmp_path, [f"{number}.png" for number in range(12)])
    data = data_of(photos, eval_size=12)
    batch = next(iter(data.train_dataloader()))
    assert batch["image"].shape == (2, 3, 16, 16)
    assert next(iter(data.val_dataloader()))["image"].shape == (2, 3, 12, 12)
