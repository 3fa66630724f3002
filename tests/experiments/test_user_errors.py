"""What a user can get wrong is answered in one line that names it, and nothing is lost."""

import json
import os
import pickle
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from datamodules.images.splits import split_of

CONFIGS = Path(__file__).parents[2] / "configs"


@pytest.fixture
def error(sealmark: Callable[..., int], capfd: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """Return a function that runs a failing command and gives its one line of error."""

    def call(*words: object, **options: Any) -> str:
        capfd.readouterr()
        code = sealmark(*words, **options)
        told = capfd.readouterr().err
        lines = [line for line in told.splitlines() if line.startswith("sealmark: error: ")]
        assert code != 0, told
        assert len(lines) == 1, told
        assert "Traceback" not in told
        return lines[0]

    return call


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """A folder of readable pictures."""
    folder = tmp_path / "photos"
    folder.mkdir()
    rng = np.random.default_rng(0)
    for number in range(12):
        pixels = rng.integers(0, 255, (40, 48, 3), np.uint8)
        Image.fromarray(pixels).save(folder / f"{number:02d}.png")
    return folder


def broken(folder: Path, name: str = "05.png") -> Path:
    path = folder / name
    path.write_bytes(path.read_bytes()[:60])
    return path


def test_typo_in_a_flag_names_it(error: Callable[..., str]) -> None:
    assert "encodr" in error("fit", "--model.encodr", "resnet18")


@pytest.mark.parametrize("key", ["trainer.default_root_dir", "predictions.output_dir"])
def test_an_address_is_no_folder_to_write_to(error: Callable[..., str], tmp_path: Path, key: str) -> None:
    assert f"{key} 's3://bucket/runs'" in error("predict", f"--{key}", "s3://bucket/runs")
    assert not list(tmp_path.glob("s3*"))


def test_typo_in_a_file_names_the_key(error: Callable[..., str], tmp_path: Path) -> None:
    overlay = tmp_path / "mine.yaml"
    overlay.write_text("trainer:\n  max_epoch: 3\n")
    assert "max_epoch" in error("fit", "--config", overlay)


def test_abbreviated_flag_is_refused(error: Callable[..., str]) -> None:
    assert "max_epoch" in error("fit", "--trainer.max_epoch", "3")


def test_wrong_type_names_key_and_value(error: Callable[..., str]) -> None:
    told = error("fit", "--data.batch_size", "many")
    assert "batch_size" in told
    assert "many" in told


def test_what_a_class_says_of_its_arguments_stands_alone(error: Callable[..., str], tmp_path: Path) -> None:
    named = ("fit", "--config", CONFIGS / "syncseal" / "quickstart.yaml", "--model.geometric.weights", "{rotat: 1}")
    told = error(*named)
    assert told.startswith("sealmark: error: geometric.weights has rotat; known are identity, crop, hflip, rotate")
    assert "Union" not in told
    assert "Given value" not in told


def test_missing_config_names_the_file(error: Callable[..., str]) -> None:
    assert "nowhere.yaml" in error("fit", "--config", "nowhere.yaml", recipe=())


def test_missing_photos_name_the_folder(error: Callable[..., str]) -> None:
    assert "no/photos" in error("fit", "--data.photos", "no/photos")


def test_empty_folder_says_what_was_looked_for(error: Callable[..., str], tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    told = error("predict", "--data.paths", tmp_path / "empty", *weights(tmp_path))
    assert "empty" in told
    assert ".jpg" in told


def test_unreadable_image_stops_a_run_by_name(error: Callable[..., str], photos: Path) -> None:
    name = next(path.name for path in sorted(photos.iterdir()) if split_of(path.name, 0.2) == "train")
    broken(photos, name)
    told = error("fit", "--data.photos", photos, "--data.batch_size", "4")
    assert name in told
    assert "on_unreadable" in told


def test_unreadable_image_is_left_out_and_listed(sealmark: Callable[..., int], photos: Path, tmp_path: Path) -> None:
    path = broken(photos)
    words = ("--data.paths", photos, "--data.on_unreadable", "skip", "--predictions.output_dir", tmp_path / "out")
    assert sealmark("predict", *words, "--trainer.limit_predict_batches", "1.0", *weights(tmp_path)) == 0
    skipped = [json.loads(line) for line in (tmp_path / "out" / "skipped.rank0.jsonl").read_text().splitlines()]
    assert [entry["path"] for entry in skipped] == [str(path)]
    done = (tmp_path / "out" / "predictions.rank0.jsonl").read_text().splitlines()
    assert len(done) == 11


def weights(folder: Path) -> tuple[str, str]:
    """Save weights of the small recipe's network and return the flag that names them."""
    from lightning_modules.watermark_segmentation.module import WatermarkSegmentationModule
    from lightning_modules.weights import save_weights

    module = WatermarkSegmentationModule(encoder="tu-mobilenetv3_small_050", decoder_channels=[16, 12, 8, 8, 4])
    save_weights(module, folder / "small.safetensors", {})
    return "--model.weights", str(folder / "small.safetensors")


def test_weights_of_another_network_name_keys(error: Callable[..., str], tmp_path: Path) -> None:
    _, path = weights(tmp_path)
    told = error("test", "--model.encoder", "resnet18", "--model.weights", path)
    assert "small.safetensors" in told
    assert "missing" in told


def test_checkpoint_of_another_network_is_refused(
    error: Callable[..., str], sealmark: Callable[..., int], tmp_path: Path
) -> None:
    assert sealmark("fit") == 0
    checkpoint = next(tmp_path.glob("runs/**/last.ckpt"))
    told = error("test", "--model.decoder_channels", "[16,12,8,8,8]", "--ckpt_path", checkpoint)
    assert "does not fit the model of this config (size mismatch for " in told
    assert len(told) < 1500
    told = error("test", "--model.encoder", "resnet18", "--ckpt_path", checkpoint)
    assert re.search(
        r"\(\d+ missing, first \S+; \d+ unexpected, first \S+?(; size .*)?\): use the config.yaml of", told
    )
    predicted = checkpoint.parents[1] / "config.yaml"
    predicted.write_text(predicted.read_text() + "verbose: true\n")
    told = error("fit", "--config", predicted, recipe=())
    assert "option 'verbose': the config is of a validate, test or predict run; use" in told


def test_missing_checkpoint_names_the_file(error: Callable[..., str]) -> None:
    assert "gone.ckpt" in error("test", "--ckpt_path", "gone.ckpt")


class Dangerous:
    """Writes a file when it is unpickled the ordinary way."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return os.system, (f"touch {self.target}",)


@pytest.mark.parametrize("flag", ["--ckpt_path", "--model.weights"])
def test_checkpoint_that_would_execute_code_is_refused_unrun(
    error: Callable[..., str], tmp_path: Path, flag: str
) -> None:
    victim = tmp_path / "executed"
    path = tmp_path / "evil.ckpt"
    torch.save({"state_dict": Dangerous(victim), "pytorch-lightning_version": "2.6.6"}, path)
    assert "evil.ckpt" in error("test", flag, path)
    assert not victim.exists()
    pickle.loads(pickle.dumps(Dangerous(victim)))
    assert victim.exists(), "the file is dangerous where it is loaded carelessly"


@pytest.mark.parametrize("command", ["fit", "validate", "test"])
def test_config_cannot_switch_safe_loading_off(error: Callable[..., str], tmp_path: Path, command: str) -> None:
    victim = tmp_path / "executed"
    torch.save({"state_dict": Dangerous(victim), "pytorch-lightning_version": "2.6.6"}, tmp_path / "evil.ckpt")
    overlay = tmp_path / "careless.yaml"
    overlay.write_text(f"weights_only: false\nckpt_path: {tmp_path / 'evil.ckpt'}\n")
    assert "evil.ckpt" in error(command, "--config", overlay)
    assert not victim.exists()


@pytest.mark.parametrize("command", ["fit", "test"])
@pytest.mark.parametrize("path", ["http://127.0.0.1:9/a.ckpt", "simplecache::file:///a.ckpt"])
def test_checkpoint_from_elsewhere_is_refused(error: Callable[..., str], command: str, path: str) -> None:
    told = error(command, "--ckpt_path", path)
    assert path in told
    assert "download it first" in told


def damaged(folder: Path, kind: str) -> Path:
    path = folder / f"{kind}.ckpt"
    if kind == "truncated":
        torch.save({"state_dict": {"a": torch.zeros(1000)}}, path)
        path.write_bytes(path.read_bytes()[:2000])
    elif kind == "empty":
        path.write_bytes(b"")
    elif kind == "state_dict":
        torch.save({"a": torch.zeros(3)}, path)
    else:
        Path(weights(folder)[1]).rename(path := folder / "weights.safetensors")
    return path


@pytest.mark.parametrize("by", ["flag", "file"])
@pytest.mark.parametrize(
    ("kind", "wanted"),
    [
        ("truncated", "copy or download it again"),
        ("empty", "is empty"),
        ("state_dict", "--model.weights"),
        ("safetensors", "--model.weights"),
    ],
)
def test_unusable_checkpoint_is_named_with_what_to_do(
    error: Callable[..., str], sealmark: Callable[..., int], tmp_path: Path, kind: str, wanted: str, by: str
) -> None:
    path = damaged(tmp_path, kind)
    words: tuple[object, ...] = ("--ckpt_path", path)
    if by == "file":
        (tmp_path / "mine.yaml").write_text(f"ckpt_path: {path}\n")
        words = ("--config", tmp_path / "mine.yaml")
    told = error("test", *words)
    assert str(path) in told
    assert wanted in told
    assert sealmark("test", *words) == 2


@pytest.mark.skipif(torch.cuda.is_available(), reason="asks for what is not there")
def test_missing_gpu_names_the_setting(error: Callable[..., str]) -> None:
    told = error("fit", "--config", CONFIGS / "env" / "gpu.yaml")
    assert "trainer.accelerator" in told
    assert "cpu.yaml" in told


def test_settings_that_lightning_refuses_are_told(error: Callable[..., str]) -> None:
    assert "overfit_batches" in error("fit", "--trainer.overfit_batches", "-1")


@pytest.mark.parametrize(
    "words",
    [
        ("--trainer.enable_progress_bar", "false"),
        ("--trainer.callbacks+", "lightning.pytorch.callbacks.TQDMProgressBar"),
    ],
)
def test_our_progress_bar_gives_way(sealmark: Callable[..., int], capsys: pytest.CaptureFixture[str], words) -> None:
    assert sealmark("fit", *words) == 0
    told = capsys.readouterr().out
    assert not [line for line in told.splitlines() if line.startswith("train: ")], "a line of our own bar"


@pytest.mark.parametrize(
    ("words", "wanted"),
    [
        (("prepare", "drawn", "--out", "x"), "--out"),
        (("prepare", "drawn", "--output", "x", "--count", "many"), "many"),
        (("prepare", "drawn"), "output"),
        (("prepare", "paint"), "paint"),
        (("export", "--out", "x.onnx"), "--out"),
        (("export", "--output", "x", "--format", "gif"), "gif"),
        (("prepare", "drawn", "--output", "x", "--count", "-5"), "--count must be at least 1, got -5"),
        (
            ("prepare", "masksim", "--output", "x", "--raise_images", "p", "--window", "0"),
            "--window must be at least 1",
        ),
        (("index", "calibrate", "--index", "x", "--descriptors", "y", "--pairs", "z", "--matches", "-3"), "--matches"),
        (("prepare", "drawn", "--output", __file__), "a file is there, or on the way to it"),
        (("prepare", "manifest", "--images", "x", "--output", "."), ". is a folder: name the CSV file"),
    ],
)
def test_mistakes_with_tools_are_one_line(
    error: Callable[..., str], sealmark: Callable[..., int], capfd: pytest.CaptureFixture[str], words, wanted: str
) -> None:
    assert wanted in error(*words, recipe=())
    assert sealmark(*words, recipe=()) == 2
    assert len(capfd.readouterr().err.splitlines()) == 1


def test_second_run_beside_the_first_takes_a_folder_of_its_own(sealmark: Callable[..., int], tmp_path: Path) -> None:
    assert sealmark("fit") == 0
    first = {path: path.stat().st_mtime_ns for path in tmp_path.glob("runs/**/*") if path.is_file()}
    assert sealmark("fit") == 0
    versions = sorted(path.name for path in (tmp_path / "runs" / "watermark_segmentation" / "quickstart").iterdir())
    assert versions == ["version_0", "version_1"]
    assert {path: path.stat().st_mtime_ns for path in first} == first, "nothing of the first run was touched"


def test_batch_size_zero_is_refused(error: Callable[..., str]) -> None:
    assert "batch_size" in error("fit", "--data.batch_size", "0")
