"""Splits share no picture, batches are balanced and repeatable, views are what they say, whoever drew the picture."""

import csv
import io
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from datamodules.base import SampleKey, collate_samples
from datamodules.compressed_spectra import CompressedSpectraDataModule, PairSampler
from datamodules.images.errors import UnreadableImageError
from datamodules.images.procedural import draw_scene
from datamodules.images.randomness import sample_rng
from datamodules.spectra_samples import REFERENCE_STREAM, EvaluationViews, Pictures, training_crop
from datamodules.spectra_sets import PictureSet, open_pictures
from datamodules.transforms.spectrum_crops import CropSettings
from datamodules.transforms.spectrum_reference import ReferenceSettings, process

WINDOW = 32
DRAWN = {
    "real": "procedural://3000?size=40",
    "generators": {"shuffle": "toy://shuffle?count=3000&size=40", "grid8": "toy://grid8?count=3000&size=40"},
    "window": WINDOW,
    "num_workers": 0,
}


def write_pictures(
    folder: Path, count: int, seed: int, size_hw: tuple[int, int] = (48, 56), ending: str = "png"
) -> str:
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(count):
        pixels = draw_scene(np.random.default_rng(1000 * seed + number), size_hw)
        Image.fromarray(pixels).save(folder / f"{folder.name}_{number:03}.{ending}")
    return str(folder)


def paths_of(data: CompressedSpectraDataModule, split: str) -> list[str]:
    sets = data.picture_sets(split)  # type: ignore[arg-type]
    return [part.source.path(int(position)) for part in sets for position in part.positions]


@pytest.fixture
def folders(tmp_path: Path) -> dict[str, str]:
    names = ("photos", "alpha", "beta")
    return {name: write_pictures(tmp_path / name, 20, seed) for seed, name in enumerate(names)}


def of_folders(folders: dict[str, str], **options: object) -> CompressedSpectraDataModule:
    generators = {name: folders[name] for name in ("alpha", "beta")}
    given = {"real": folders["photos"], "generators": generators, "window": WINDOW, "num_workers": 0, "holdout": 0.4}
    return CompressedSpectraDataModule(**given | options)  # type: ignore[arg-type]


def test_splits_share_no_picture_and_miss_none(folders: dict[str, str]) -> None:
    parts = [set(paths_of(of_folders(folders), split)) for split in ("train", "val", "test")]
    assert sum(map(len, parts)) == len(set.union(*parts)) == 60
    drawn = CompressedSpectraDataModule(**DRAWN)
    parts = [set(paths_of(drawn, split)) for split in ("train", "val", "test")]
    assert sum(map(len, parts)) == len(set.union(*parts)) == 9000


def test_stored_splits_are_a_manifest_of_the_same_splits(folders: dict[str, str], tmp_path: Path) -> None:
    data = of_folders(folders)
    stored = tmp_path / "run" / "splits.csv"
    data.write_splits(stored)
    again = CompressedSpectraDataModule(manifest=str(stored), window=WINDOW, num_workers=0)
    for split in ("train", "val", "test"):
        assert paths_of(again, split) == paths_of(data, split)
        assert [part.generator for part in again.picture_sets(split)] == ["real", "alpha", "beta"]


def test_class_balance_holds_in_every_batch_and_generators_take_turns() -> None:
    data = CompressedSpectraDataModule(**DRAWN, batch_size=6, train_samples=36)
    data.setup("fit")
    seen: Counter[str] = Counter()
    for batch in data.train_dataloader():
        assert batch["image"].shape == (6, 3, WINDOW, WINDOW)
        assert batch["image"].dtype == torch.uint8
        assert batch["label"].sum() == 3
        assert [name != "real" for name in batch["generator"]] == (batch["label"] == 1).tolist()
        seen.update(batch["generator"])
    assert seen == {"real": 18, "shuffle": 9, "grid8": 9}


def test_every_rank_gets_balanced_batches_of_its_own() -> None:
    dealt = [
        [key.index for key in PairSampler(range(24), seed=0, rank=rank, world_size=2, shuffle=True, pad=True)]
        for rank in range(2)
    ]
    assert sorted(dealt[0] + dealt[1]) == list(range(24))
    assert all(len({index % 2 for index in part[i : i + 2]}) == 2 for part in dealt for i in range(0, 12, 2))
    resumed = PairSampler(range(24), seed=0, rank=1, world_size=2, shuffle=True, pad=True)
    resumed.skip = 4
    assert [key.index for key in resumed] == dealt[1][4:]


def test_no_picture_comes_twice_before_all_have_come(folders: dict[str, str]) -> None:
    data = of_folders(folders, train_samples=12)
    order = data.build_dataset("train").order
    real = len(data.picture_sets("train")[0])
    picks = [order(SampleKey(epoch, index)) for epoch in range(10) for index in range(0, 12, 2)]
    assert sorted(picks[:real]) == list(range(real))
    assert picks[:real] != list(range(real))
    assert sorted(picks[real : 2 * real]) == list(range(real))
    assert picks[real : 2 * real] != picks[:real]


def test_reference_balance_draws_both_classes_equally_often(tmp_path: Path) -> None:
    real = write_pictures(tmp_path / "many", 30, 0)
    fake = write_pictures(tmp_path / "few", 6, 1)
    data = CompressedSpectraDataModule(
        real=real, generators={"few": fake}, balanced="reference", window=WINDOW, train_samples=2000
    )
    order = data.build_dataset("train").order
    first = len(data.picture_sets("train")[0])
    picks = np.array([order(SampleKey(0, index)) for index in range(2000)])
    assert abs((picks < first).mean() - 0.5) < 4 * 0.5 / np.sqrt(2000)
    share = np.bincount(picks[picks < first], minlength=first) / (picks < first).sum()
    assert share.max() < 3 / first


def test_a_sample_is_a_function_of_seed_epoch_and_place() -> None:
    one, two = (CompressedSpectraDataModule(**DRAWN, seed=seed, train_samples=20) for seed in (1, 2))
    train = one.build_dataset("train")
    first = train[SampleKey(3, 5)]
    assert torch.equal(first["image"], one.build_dataset("train")[SampleKey(3, 5)]["image"])
    assert first["path"] != train[SampleKey(4, 5)]["path"]
    assert not torch.equal(first["image"], two.build_dataset("train")[SampleKey(3, 5)]["image"])
    frozen = [data.build_dataset("test")[SampleKey(0, 3)]["image"] for data in (one, two)]
    assert torch.equal(*frozen)


def test_views_are_the_files_crop_and_its_copies(folders: dict[str, str]) -> None:
    names = ["native", "levelled", "jpeg_75", "webp_80", "resize_0.75"]
    data = of_folders(folders, test_views=names, eval_batch_size=4)
    data.setup("test")
    batch = data.on_after_batch_transfer(next(iter(data.test_dataloader())), 0)
    assert batch["image"].shape == (4, 5, 3, WINDOW, WINDOW)
    assert batch["views"] == names
    picture = np.asarray(Image.open(batch["path"][0]))
    native = (batch["image"][0, 0] * 255).round().byte().permute(1, 2, 0).numpy()
    np.testing.assert_array_equal(native, picture[8 : 8 + WINDOW, 8 : 8 + WINDOW])
    packed = io.BytesIO()
    Image.fromarray(native).save(packed, "JPEG", quality=75)
    packed_view = (batch["image"][0, 2] * 255).round().permute(1, 2, 0).numpy()
    assert np.abs(packed_view - np.asarray(Image.open(packed), np.float32)).max() <= 1
    assert all(65 <= quality <= 100 for quality in batch["facts"]["jpeg_quality_levelled"].tolist())


def test_the_same_files_get_the_same_treatment_whatever_their_label(folders: dict[str, str]) -> None:
    source = open_pictures(folders["photos"])
    real, fake = (Pictures([PictureSet(source, range(8), name, "set")]) for name in ("real", "alpha"))
    names = ["native", "levelled", "webp_80"]
    frozen = [EvaluationViews(pictures, WINDOW, names, (65, 100), 0) for pictures in (real, fake)]
    qualities = set()
    for index in range(8):
        one, two = (views[SampleKey(0, index)] for views in frozen)
        assert one["label"] != two["label"]
        assert torch.equal(one["image"], two["image"])
        assert one["facts"]["jpeg_quality_levelled"] == two["facts"]["jpeg_quality_levelled"]
        qualities.add(one["facts"]["jpeg_quality_levelled"])
        crops = [training_crop(each, index, WINDOW, CropSettings(), sample_rng(3, 1, index)) for each in (real, fake)]
        np.testing.assert_array_equal(*crops)
    assert len(qualities) > 3


def test_facts_tell_the_packaging(tmp_path: Path) -> None:
    real = write_pictures(tmp_path / "photos", 6, 0, ending="jpg")
    fake = write_pictures(tmp_path / "fakes", 6, 1)
    data = CompressedSpectraDataModule(real=real, generators={"fakes": fake}, window=WINDOW, num_workers=0, holdout=0.5)
    data.setup("test")
    test = data.datasets["test"]
    batch = data.collate_evaluation([test[SampleKey(0, index)] for index in range(len(test))])
    expected = ["JPEG" if label == 0 else "PNG" for label in batch["label"].tolist()]
    assert batch["format"] == expected
    native = {"width", "height", "bytes_per_pixel", "jpeg_quality", "blockiness"}
    assert set(batch["facts"]) == native | {"jpeg_quality_levelled", "blockiness_levelled"}
    assert batch["facts"]["width"].tolist() == [56.0] * len(expected)
    found = batch["facts"]["jpeg_quality"]
    assert found.isnan().tolist() == [kind == "PNG" for kind in expected]
    assert torch.equal(batch["quality"].nan_to_num(-1), found.nan_to_num(-1))
    assert found[~found.isnan()].unique().tolist() == [75.0]
    assert batch["label"].dtype == torch.float32
    assert batch["index"].tolist() == list(range(len(expected)))


def test_calibration_takes_the_place_of_validation(folders: dict[str, str], tmp_path: Path) -> None:
    apart = write_pictures(tmp_path / "apart", 5, 9)
    data = of_folders(folders, calibration=apart)
    data.setup("validate")
    batch = next(iter(data.val_dataloader()))
    assert batch["generator"] == ["real"] * 5
    assert batch["views"] == ["native"]
    assert all(str(tmp_path / "apart") in path for path in batch["path"])
    fitting = of_folders(folders, calibration=apart)
    fitting.setup("fit")
    assert len(fitting.datasets["val"]) == len(paths_of(fitting, "val"))


@pytest.mark.parametrize("kind", ["grey", "deep", "alpha", "small", "turned"])
def test_odd_pictures_are_taken(kind: str, tmp_path: Path) -> None:
    real, fake = (write_pictures(tmp_path / name, 1, seed) for seed, name in enumerate(("real", "fake")))
    scene = draw_scene(np.random.default_rng(3), (48, 64))
    path = tmp_path / "real" / "real_000.png"
    if kind == "grey":
        Image.fromarray(scene[..., 0]).save(path)
    elif kind == "deep":
        Image.fromarray(scene[..., 0].astype(np.uint16) * 257).save(path)
    elif kind == "alpha":
        Image.fromarray(np.dstack([scene, np.full((48, 64), 128, np.uint8)])).save(path)
    elif kind == "small":
        Image.fromarray(scene[:10, :20]).save(path)
    else:
        exif = Image.Exif()
        exif[274] = 6
        Image.fromarray(scene).save(path, exif=exif)
    data = CompressedSpectraDataModule(
        test_real=real,
        test_generators={"f": fake},
        real=DRAWN["real"],
        generators={"f": "toy://shuffle?size=40"},
        window=WINDOW,
    )
    sample = data.build_dataset("test")[SampleKey(0, 0)]
    assert sample["image"].shape == (2, 3, WINDOW, WINDOW)
    assert sample["label"] == 0
    if kind == "grey":
        np.testing.assert_array_equal(sample["image"][0, 0].numpy(), scene[8:40, 16:48, 0])
    if kind == "turned":
        upright = np.rot90(scene, -1)
        np.testing.assert_array_equal(sample["image"][0].permute(1, 2, 0).numpy(), upright[16:48, 8:40])


def test_shrinking_policy_reads_reduced_jpegs_and_keeps_the_label(tmp_path: Path) -> None:
    real = write_pictures(tmp_path / "photos", 4, 0, (200, 240), "jpg")
    fake = write_pictures(tmp_path / "fakes", 4, 1, (200, 240), "jpg")
    crops = CropSettings(resize_probability=0, fit_probability=1, jpeg_probability=0, webp_probability=0)
    data = CompressedSpectraDataModule(real=real, generators={"f": fake}, window=WINDOW, crops=crops, holdout=0.5)
    train = data.build_dataset("train")
    sample = train[SampleKey(0, 0)]
    assert sample["image"].shape == (3, WINDOW, WINDOW)
    assert sample["label"] == 0
    whole = np.asarray(Image.open(sample["path"]).convert("RGB"))
    # The crop shows two thirds of the picture or more: colours agree with a plain thumbnail.
    assert abs(sample["image"].float().mean() - whole.mean()) < 40


@pytest.mark.parametrize(("split", "mode"), [("train", "train"), ("val", "valid"), ("val", "train")])
def test_reference_processing_is_the_published_one(folders: dict[str, str], split: str, mode: str) -> None:
    """Generated pictures of the validation split are processed as in training, as published."""
    data = of_folders(folders, processing="reference", train_samples=8)
    dataset = data.build_dataset(split)  # type: ignore[arg-type]
    place = len(dataset) - 1 if (split, mode) == ("val", "train") else 1
    sample = dataset[SampleKey(0, place)]
    assert split == "train" or sample["label"] == (mode == "train")
    image = np.asarray(Image.open(sample["path"]))
    shown = sample["image"] if split == "train" else sample["image"][0]
    crop = shown.permute(1, 2, 0).numpy()
    state = int(sample_rng(data.seed if split == "train" else 0, 0, place, REFERENCE_STREAM).integers(2**32))
    settings = ReferenceSettings(WINDOW, mode)  # type: ignore[arg-type]
    wanted = process(image, int(sample["label"]), settings, np.random.RandomState(state))
    assert wanted is not None
    np.testing.assert_array_equal(crop, wanted[0])


def test_reference_processing_draws_another_picture_for_a_grey_one(folders: dict[str, str]) -> None:
    for path in paths_of(of_folders(folders), "train"):
        if "photos" in path:
            Image.open(path).convert("L").save(path)
    data = of_folders(folders, processing="reference", train_samples=40)
    train = data.build_dataset("train")
    assert all(train[SampleKey(0, index)]["label"] == 1 for index in range(40))
    frozen = of_folders(folders, processing="reference", window=50).build_dataset("val")
    with pytest.raises(UnreadableImageError, match=r"data\.window 50"):
        frozen[SampleKey(0, 0)]


def test_the_published_scheme_of_folders(tmp_path: Path) -> None:
    done = tmp_path / "processed_data"
    for seed, name in enumerate(("train/mit5k", "train/coco_train", "valid/coco_val", "JPEG_Qrandom/raise")):
        write_pictures(done / name, 3, seed)
    write_pictures(tmp_path / "data" / "newsynth" / "sd1", 30, 7)
    write_pictures(tmp_path / "data" / "newsynth" / "firefly", 30, 8)
    write_pictures(done / "JPEG_Qrandom" / "synthbuster" / "stable-diffusion-1-3", 3, 9)
    data = CompressedSpectraDataModule(root=str(tmp_path), window=WINDOW)
    named = {
        split: [(part.name, part.generator) for part in data.picture_sets(split)] for split in ("train", "val", "test")
    }
    assert named["train"] == [("mit5k", "real"), ("coco_train", "real"), ("sd1", "sd1"), ("firefly", "firefly")]
    assert named["val"] == [("coco_val", "real"), ("sd1", "sd1"), ("firefly", "firefly")]
    assert named["test"] == [("raise", "real"), ("stable-diffusion-1-3", "sd1")]
    fakes = [{path for path in paths_of(data, split) if "newsynth" in path} for split in ("train", "val")]
    assert not fakes[0] & fakes[1]
    assert len(fakes[0] | fakes[1]) == 60
    assert 1 <= len(fakes[1]) <= 14
    with pytest.raises(FileNotFoundError, match="raise"):
        CompressedSpectraDataModule(root=str(tmp_path), test_folder="uncompressed").picture_sets("test")


def test_manifest_labels_and_generators(tmp_path: Path) -> None:
    write_pictures(tmp_path / "p", 4, 0)
    rows = [("p/p_000.png", 0, "", "train"), ("p/p_001.png", 1, "sd1", "train"), ("p/p_002.png", 1, "", "valid")]
    write_manifest(tmp_path / "m.csv", ("path", "label", "generator", "split"), rows)
    data = CompressedSpectraDataModule(manifest=str(tmp_path / "m.csv"))
    assert [part.generator for part in data.picture_sets("train")] == ["real", "sd1"]
    assert [part.generator for part in data.picture_sets("val")] == ["generated"]
    with pytest.raises(ValueError, match="no picture of the test split"):
        data.picture_sets("test")
    write_manifest(tmp_path / "bad.csv", ("path", "label"), [("p/p_000.png", "maybe")])
    with pytest.raises(ValueError, match="'maybe' is none of"):
        CompressedSpectraDataModule(manifest=str(tmp_path / "bad.csv")).picture_sets("train")


def write_manifest(path: Path, header: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
    with path.open("w", newline="") as file:
        csv.writer(file).writerows([header, *rows])


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({}, "data.root, data.real with data.generators, or data.manifest"),
        ({"generators": {"shuffle": "toy://shuffle"}}, r"data\.generators needs data\.real"),
        ({"real": "procedural://900", "balanced": "class"}, "needs real and generated pictures"),
        ({"real": "procedural://9", "manifest": "m.csv"}, "in one way"),
        ({"real": "procedural://900?seed=1003", "generators": {"shuffle": "toy://shuffle"}}, "another seed"),
        ({"real": "procedural://900", "generators": {"a": "toy://bad"}}, "take one of nearest"),
    ],
)
def test_mistakes_are_told_in_one_line(options: dict[str, object], told: str) -> None:
    with pytest.raises(ValueError, match=told):
        CompressedSpectraDataModule(**options).setup("fit")  # type: ignore[arg-type]


def test_views_that_mean_nothing_are_refused() -> None:
    for name in ("jpeg", "jpeg_101", "resize_0", "sharp"):
        with pytest.raises(ValueError, match="none of native"):
            CompressedSpectraDataModule(**DRAWN, test_views=["native", name])


def test_a_broken_file_is_skipped_and_listed(folders: dict[str, str]) -> None:
    path = paths_of(of_folders(folders), "test")[1]
    Path(path).write_bytes(Path(path).read_bytes()[:200])
    data = of_folders(folders, on_unreadable="skip", eval_batch_size=3)
    data.setup("test")
    batch = next(iter(data.test_dataloader()))
    assert [entry["path"] for entry in batch["skipped"]] == [path]
    assert batch["index"].tolist() == [0, 2]
    assert collate_samples([data.datasets["test"][SampleKey(0, 0)]])["path"] == [batch["path"][0]]
