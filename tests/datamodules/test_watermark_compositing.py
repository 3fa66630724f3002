"""Splits are disjoint and frozen, batches are the contract's, both engines run from folders."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from datamodules.base import SampleKey
from datamodules.images.errors import UnreadableImageError
from datamodules.watermark_compositing import WatermarkCompositingDataModule, random_square


@pytest.fixture
def folders(tmp_path: Path) -> tuple[Path, Path]:
    rng = np.random.default_rng(0)
    photos, logos = tmp_path / "photos", tmp_path / "logos"
    photos.mkdir()
    logos.mkdir()
    for number in range(30):
        Image.fromarray(rng.integers(0, 255, (60, 80, 3), np.uint8)).save(photos / f"p{number}.jpg")
        Image.fromarray(rng.integers(0, 255, (24, 40, 4), np.uint8)).save(logos / f"l{number}.png")
    return photos, logos


def module(folders: tuple[Path, Path], **options: object) -> WatermarkCompositingDataModule:
    given = {"photos": str(folders[0]), "logos": str(folders[1]), "size": 32, "val_samples": 6, "test_samples": 6}
    return WatermarkCompositingDataModule(**(given | options), num_workers=0, holdout=0.4)


def test_photos_and_logos_of_the_splits_are_disjoint_and_complete(folders: tuple[Path, Path]) -> None:
    data = module(folders)
    photos = [data._photos(split) for split in ("train", "val", "test")]
    named = [{part.source.path(i) for i in part.positions} for part in photos]
    assert sum(map(len, named)) == len(set.union(*named)) == 30
    logos = [set(data._logo_paths(split)) for split in ("train", "val", "test")]
    assert sum(map(len, logos)) == len(set.union(*logos)) == 30


def test_another_file_moves_no_file_to_another_split(folders: tuple[Path, Path]) -> None:
    before = set(module(folders)._logo_paths("test"))
    Image.new("RGBA", (8, 8), "red").save(folders[1] / "a_new_one.png")
    assert before <= set(module(folders)._logo_paths("test"))


def test_drawn_scenes_of_the_splits_are_disjoint() -> None:
    data = WatermarkCompositingDataModule(photos="procedural://1000?size=40")
    parts = [set(data._photos(split).positions) for split in ("train", "val", "test")]
    assert sum(map(len, parts)) == len(set.union(*parts)) == 1000


def test_validation_is_frozen_and_training_is_not(folders: tuple[Path, Path]) -> None:
    validation = [module(folders, seed=seed).build_dataset("val")[SampleKey(0, 2)]["image"] for seed in (1, 2)]
    assert torch.equal(*validation)
    training = module(folders, seed=1).build_dataset("train")
    assert not torch.equal(training[SampleKey(0, 2)]["image"], training[SampleKey(1, 2)]["image"])
    other = module(folders, seed=2).build_dataset("train")
    assert not torch.equal(training[SampleKey(0, 2)]["image"], other[SampleKey(0, 2)]["image"])


@pytest.mark.parametrize("engine", ["sealmark", "reference"])
def test_batch_is_what_the_module_reads(folders: tuple[Path, Path], engine: str) -> None:
    data = module(folders, engine=engine, batch_size=3)
    data.setup("fit")
    raw = next(iter(data.train_dataloader()))
    batch = data.on_after_batch_transfer(raw, 0)
    assert batch["image"].shape == (3, 3, 32, 32)
    assert batch["image"].dtype == batch["mask"].dtype == torch.float32
    assert 0 <= batch["image"].min() <= batch["image"].max() <= 1
    assert set(batch["mask"].unique().tolist()) <= {0.0, 1.0}
    assert batch["ignore"].dtype == torch.bool
    assert len(batch["family"]) == len(batch["path"]) == 3
    assert batch["opacity"].dtype.is_floating_point


def test_parts_come_when_they_are_asked_for(folders: tuple[Path, Path]) -> None:
    without = module(folders).build_dataset("val")[SampleKey(0, 0)]
    with_parts = module(folders, parts=True).build_dataset("val")[SampleKey(0, 0)]
    assert not {"alpha", "color"} & without.keys()
    assert with_parts["alpha"].shape == (1, 32, 32)
    assert with_parts["color"].shape == (3, 32, 32)
    assert torch.equal(without["image"], with_parts["image"])


def test_test_sources_of_ones_own_replace_the_hashed_part(folders: tuple[Path, Path], tmp_path: Path) -> None:
    own = tmp_path / "own"
    own.mkdir()
    Image.new("RGBA", (8, 8), "red").save(own / "brand.png")
    data = module(folders, test_logos=str(own))
    assert [Path(path).name for path in data._logo_paths("test")] == ["brand.png"]
    assert len(data._logo_paths("train")) > 10


def test_reference_engine_without_logos_says_which_key_is_missing() -> None:
    with pytest.raises(ValueError, match=r"--data\.logos"):
        WatermarkCompositingDataModule(engine="reference")


def test_square_is_a_part_of_the_photo() -> None:
    photo = np.arange(40 * 60 * 3, dtype=np.uint32).reshape(40, 60, 3).astype(np.uint8)
    photo[..., 0] = np.arange(60)[None]  # columns tell where the square was cut and whether it was mirrored
    for seed in range(10):
        square = random_square(photo, 20, np.random.default_rng(seed), smallest=0.5)
        assert square.shape == (20, 20, 3)
        steps = np.diff(square[10, :, 0].astype(int))
        assert (steps >= 0).all() or (steps <= 0).all()


def test_what_is_tested_on_is_not_trained_on(folders: tuple[Path, Path], tmp_path: Path) -> None:
    logos = folders[1]
    link = tmp_path / "tested"
    link.mkdir()
    tested = sorted(logos.iterdir())[:5]
    for path in tested:
        (link / f"other_name_{path.name}").symlink_to(path)
    data = module(folders, test_logos=str(link), test_photos=str(folders[0]))
    for split in ("train", "val"):
        assert not {Path(path).resolve() for path in data._logo_paths(split)} & {path.resolve() for path in tested}
    with pytest.raises(ValueError, match=r"no file of data\.photos .* is left for the train split"):
        data._photos("train")
    with pytest.raises(ValueError, match=r"draws the scenes of data\.photos: give it another seed than 3"):
        WatermarkCompositingDataModule(
            photos="procedural://1000?seed=3&size=40", test_photos="procedural://50?seed=3&size=64"
        )._photos("test")


def test_frozen_sets_take_logo_marks_from_files_alone(folders: tuple[Path, Path]) -> None:
    data = module(folders, drawn_fraction=0.5)
    assert [data.build_dataset(split).marks.drawn_fraction for split in ("train", "val", "test")] == [0.5, 0, 0]


def test_a_broken_logo_is_left_out_or_stops(folders: tuple[Path, Path]) -> None:
    broken = Path(module(folders)._logo_paths("train")[0])
    broken.write_bytes(b"no image")
    with pytest.raises(UnreadableImageError, match=broken.name):
        module(folders).build_dataset("train")
    with pytest.warns(UserWarning, match=f"logo left out: .*{broken.name}"):
        module(folders, on_unreadable="skip").build_dataset("train")
