"""A cache made by the command holds what its module makes of the same crops, and serves it by picture and view."""

import csv
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

from datamodules.base import SampleKey
from datamodules.compressed_spectra import CompressedSpectraDataModule
from datamodules.images.procedural import draw_scene
from datamodules.spectra_cache import SpectraCacheDataModule, read_about
from experiments.cache_spectra import write_spectra as spectra
from lightning_modules.masksim.module import MaskSimModule

WINDOW = 32
MODEL = {"generators": ["shuffle", "grid8"], "img_size": WINDOW, "preprocess": "cross_diff"}


def data_of(folder: Path) -> dict[str, object]:
    (folder / "photos").mkdir()
    for number in range(12):
        pixels = draw_scene(np.random.default_rng(number), (40, 44))
        Image.fromarray(pixels).save(folder / "photos" / f"{number:02}.png")
    toys = {name: f"toy://{name}?count=300&size=40" for name in MODEL["generators"]}
    return {
        "real": str(folder / "photos"),
        "generators": toys,
        "window": WINDOW,
        "holdout": 0.5,
        "val_samples": 2,
        "test_samples": 3,
        "test_views": ["native", "jpeg_70"],
        "eval_batch_size": 4,
        "num_workers": 0,
        "seed": 5,
    }


def recipe_of(folder: Path, data: dict[str, object]) -> Path:
    content = {
        "model": {"class_path": "lightning_modules.masksim.module.MaskSimModule", "init_args": MODEL},
        "data": {"class_path": "datamodules.compressed_spectra.CompressedSpectraDataModule", "init_args": data},
        "trainer": {"max_epochs": 1},
    }
    path = folder / "recipe.yaml"
    path.write_text(yaml.safe_dump(content))
    return path


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, CompressedSpectraDataModule]:
    folder = tmp_path_factory.mktemp("cache")
    data = data_of(folder)
    broken = folder / "photos" / "99.png"
    broken.write_bytes(b"\x89PNG\r\n\x1a\n")
    spectra(recipe_of(folder, data), folder / "cache", views=2, train_pictures=6)
    return folder / "cache", CompressedSpectraDataModule(**data)  # type: ignore[arg-type]


def served(cache: Path, split: str, **options: object) -> SpectraCacheDataModule:
    data = SpectraCacheDataModule(str(cache), num_workers=0, **options)  # type: ignore[arg-type]
    data.setup({"train": "fit", "val": "validate", "test": "test"}[split])
    return data


def test_frozen_rows_are_what_the_module_makes_of_the_views(made: tuple[Path, CompressedSpectraDataModule]) -> None:
    cache, images = made
    module = MaskSimModule(**MODEL).eval()  # cross_diff has no weights: any module makes the same spectra
    batch = next(iter(served(cache, "test", eval_batch_size=20).test_dataloader()))
    assert batch["views"] == ["native", "jpeg_70"]
    assert batch["spectrum"].shape == (len(batch["index"]), 2, 3, WINDOW, WINDOW // 2 + 1)
    assert batch["spectrum"].dtype == torch.float16
    test = images.build_dataset("test")
    wanted = {}
    for index in range(len(test)):
        try:
            sample = test[SampleKey(0, index)]
        except OSError:
            continue
        wanted[sample["path"]] = sample
    assert set(batch["path"]) == set(wanted)
    for place, path in enumerate(batch["path"]):
        with torch.no_grad():
            expected = module.cache_spectrum(wanted[path]["image"])
        torch.testing.assert_close(batch["spectrum"][place].float(), expected, atol=0.01, rtol=2e-3)
        assert batch["generator"][place] == wanted[path]["generator"]
        for name, value in batch["facts"].items():
            assert value[place].item() == pytest.approx(wanted[path]["facts"][name], nan_ok=True)
    assert batch["label"].tolist() == [float(name != "real") for name in batch["generator"]]
    assert batch["index"].tolist() == list(range(len(batch["path"])))
    with torch.no_grad():
        outputs = module.test_step(batch, 0)
    assert outputs["logit"].shape == (len(batch["index"]), 2, 2)


def test_training_views_differ_and_are_balanced(made: tuple[Path, CompressedSpectraDataModule]) -> None:
    cache, _ = made
    data = served(cache, "train", batch_size=4, train_samples=24)
    for batch in data.train_dataloader():
        assert batch["spectrum"].shape == (4, 3, WINDOW, WINDOW // 2 + 1)
        assert batch["label"].sum() == 2
    train = data.datasets["train"]
    shown: dict[str, list[torch.Tensor]] = {}
    for epoch in range(6):
        for index in range(0, 24, 2):
            sample = train[SampleKey(epoch, index)]
            assert torch.equal(sample["spectrum"], train[SampleKey(epoch, index)]["spectrum"])
            shown.setdefault(sample["path"], []).append(sample["spectrum"])
    kinds = {path: len({bytes(each.numpy().tobytes()) for each in found}) for path, found in shown.items()}
    assert set(kinds.values()) == {2}


def test_unreadable_pictures_are_in_no_row(made: tuple[Path, CompressedSpectraDataModule]) -> None:
    cache, _ = made
    with (cache / "index.csv").open() as file:
        lines = list(csv.DictReader(file))
    assert not any("99.png" in line["path"] for line in lines)
    assert [int(line["row"]) for line in lines] == list(range(len(lines)))
    assert read_about(cache)["rows"] == len(lines)
    array = np.load(cache / "spectra.npy", mmap_mode="r")
    assert array.dtype == np.float16
    assert np.abs(array[: len(lines)]).max(axis=(1, 2, 3)).min() > 0


def test_no_picture_is_in_two_splits(made: tuple[Path, CompressedSpectraDataModule]) -> None:
    parts = []
    for split in ("train", "val", "test"):
        dataset = served(made[0], split).datasets[split]
        parts.append({record["path"] for record in dataset.records})
    assert sum(map(len, parts)) == len(set.union(*parts))


def test_mistakes_are_told(made: tuple[Path, CompressedSpectraDataModule], tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="sealmark prepare spectra"):
        served(tmp_path, "train")
    with pytest.raises(FileExistsError, match="exists"):
        spectra(tmp_path / "none.yaml", made[0])
    with pytest.raises(FileNotFoundError, match="no such recipe"):
        spectra(tmp_path / "none.yaml", tmp_path / "new")
