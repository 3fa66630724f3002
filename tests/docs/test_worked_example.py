"""The worked example of docs/adding_a_method.md is right, learns, and is what the page quotes."""

import csv
import io
import json
import logging
import re
import sys
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest
import scipy.fft
import torch
from PIL import Image

ROOT = Path(__file__).parents[2]
EXAMPLE = ROOT / "docs" / "worked_example"
RECIPE = EXAMPLE / "jpeg_quality_example" / "quickstart.yaml"
PAGE = ROOT / "docs" / "adding_a_method.md"
# A fenced block under a comment that names the file it was taken from.
QUOTE = re.compile(r"<!-- from (?P<file>\S+) -->\n```(?:python|yaml)\n(?P<code>.*?)```", re.DOTALL)


@pytest.fixture(autouse=True)
def example(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the example be imported, as PYTHONPATH does for a reader."""
    monkeypatch.syspath_prepend(str(EXAMPLE))


@pytest.fixture
def sealmark(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[..., int]:
    """Return a function that runs the command in this process and gives its exit code."""
    import lightning  # noqa: F401

    from experiments.cli import main

    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("SEALMARK_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(sys, "argv", ["sealmark"])
    for name in ("lightning", "lightning.pytorch", "lightning.fabric"):
        # Lightning's loggers hold the stderr of their first use, which pytest has closed since.
        for handler in logging.getLogger(name).handlers:
            monkeypatch.setattr(handler, "stream", sys.stderr, raising=False)

    def call(*words: object) -> int:
        try:
            return main([str(word) for word in words])
        except SystemExit as error:
            return int(error.code or 0)

    return call


@pytest.mark.parametrize("quality", [1, 2, 10, 49, 50, 51, 75, 95, 99, 100])
def test_steps_are_those_that_libjpeg_writes(quality: int) -> None:
    from jpeg_quality_example.network import quantisation_steps

    packed = io.BytesIO()
    Image.new("L", (8, 8)).save(packed, "JPEG", quality=quality)
    assert quantisation_steps(quality).tolist() == list(Image.open(packed).quantization[0])


@pytest.mark.parametrize("quality", [0, 101])
def test_quality_outside_its_range_is_refused(quality: int) -> None:
    from jpeg_quality_example.network import quantisation_steps

    with pytest.raises(ValueError, match=f"got {quality}"):
        quantisation_steps(quality)


def test_cosines_are_those_of_scipy_and_leave_the_rest_out() -> None:
    from jpeg_quality_example.network import block_cosines

    luma = np.random.default_rng(0).normal(size=(19, 30))
    got = block_cosines(torch.from_numpy(luma)[None, None]).numpy()
    blocks = [luma[top : top + 8, left : left + 8] for top in (0, 8) for left in (0, 8, 16)]
    wanted = np.stack([scipy.fft.dctn(block, norm="ortho").ravel() for block in blocks], axis=1)
    np.testing.assert_allclose(got[0], wanted, atol=1e-12)


@pytest.mark.parametrize("quality", [20, 50, 80, 90])
def test_the_true_quality_fits_best_before_anything_is_learned(quality: int) -> None:
    from jpeg_quality_example.data import recompress
    from jpeg_quality_example.network import CANDIDATES, QualityNetwork

    noise = np.random.default_rng(quality).integers(0, 256, (64, 64, 3), np.uint8)
    pixels = recompress(cv2.GaussianBlur(noise, (0, 0), 1.0), quality)
    features = QualityNetwork().features(torch.from_numpy(pixels).permute(2, 0, 1)[None] / 255)
    assert CANDIDATES[int(features[0, : len(CANDIDATES)].argmax())] == quality


def test_errors_are_counted_in_points_and_by_band(tmp_path: Path) -> None:
    from jpeg_quality_example.evaluation import QualityEstimation

    from callbacks.metrics.bootstrap import value_of

    true, estimated = np.array([20.0, 60.0, 70.0, 90.0]), np.array([30.0, 56.0, 70.0, 70.0])
    rows = QualityEstimation().rows(
        None, {"quality": torch.from_numpy(estimated), "true_quality": torch.from_numpy(true)}, None
    )
    table = {name: np.asarray(column) for name, column in rows.items()}
    values = {name: value_of(statistic, 4) for name, statistic in QualityEstimation().summarise(table).items()}
    assert values == {
        "absolute_error_points": pytest.approx((10 + 4 + 0 + 20) / 4),
        "bias_points": pytest.approx((10 - 4 + 0 - 20) / 4),
        "within_5_points": pytest.approx(0.5),
        "absolute_error_points/quality_0-49": pytest.approx(10),
        "absolute_error_points/quality_50-79": pytest.approx(2),
        "absolute_error_points/quality_80-100": pytest.approx(20),
    }


def test_samples_repeat_and_splits_share_no_scene(tmp_path: Path) -> None:
    from jpeg_quality_example.data import RecompressedScenesDataModule

    from datamodules.base import SampleKey

    data = RecompressedScenesDataModule(scenes="procedural://40?size=32", size=24, num_workers=0, test_samples=8)
    data.setup("fit")
    data.setup("test")
    first, again = (data.datasets["train"][SampleKey(2, 5)] for _ in range(2))
    assert torch.equal(first["image"], again["image"])
    assert first["quality"] == again["quality"]
    positions = [set(data.datasets[split].positions) for split in ("train", "val", "test")]
    assert set.union(*positions) == set(range(40))
    assert sum(map(len, positions)) == 40


def test_example_learns_tests_and_predicts_by_the_command(sealmark: Callable[..., int], tmp_path: Path) -> None:
    from experiments.prepare import drawn

    drawn(tmp_path / "scenes", count=40, size=80)
    small = (*("--data.scenes", tmp_path / "scenes", "--data.holdout", "0.4", "--data.num_workers", "0"),
             *("--data.val_samples", "32", "--data.test_samples", "64"))  # fmt: skip
    steps = (*("--trainer.max_steps", "100", "--trainer.val_check_interval", "100", "--trainer.log_every_n_steps", "1"),
             *("--model.schedule", "constant"))  # fmt: skip
    assert sealmark("fit", "--config", RECIPE, *small, *steps) == 0
    run = tmp_path / "runs" / "jpeg_quality" / "quickstart" / "version_0"
    losses = [float(row["train/loss"]) for row in read_csv(run / "metrics.csv") if row["train/loss"]]
    assert len(losses) == 100
    assert np.mean(losses[-10:]) < 0.6 * np.mean(losses[:10])

    words = ("--config", run / "config.yaml", "--ckpt_path", run / "checkpoints" / "last.ckpt")
    assert sealmark("test", *words) == 0
    results = {(row["metric"], row["group"]): row for row in read_csv(run.with_name("version_1") / "results.csv")}
    error = results["absolute_error_points", ""]
    assert int(error["n"]) == 64
    assert float(error["value"]) < 15, "always answering 52 would be 21 points off"

    for quality in (15, 90):
        Image.open(tmp_path / "scenes" / "scenes_000000.png").save(tmp_path / f"{quality}.jpg", quality=quality)
    Image.new("RGB", (5, 9)).save(tmp_path / "tiny.png")
    paths = [str(tmp_path / name) for name in ("15.jpg", "90.jpg", "tiny.png")]
    assert sealmark("predict", *words, "--data.paths", json.dumps(paths), "--predictions.output_dir", tmp_path) == 0
    low, high, tiny = map(json.loads, (tmp_path / "predictions.rank0.jsonl").read_text().splitlines())
    assert low["path"] == paths[0]
    assert low["quality"] < high["quality"]
    assert tiny["quality"] is None


def read_csv(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


@pytest.mark.parametrize("form", ["torchscript", *(pytest.param(f, marks=pytest.mark.slow) for f in ("onnx", "pt2"))])
def test_exported_file_answers_as_the_module(tmp_path: Path, form: str) -> None:
    from jpeg_quality_example.module import JpegQualityModule

    from experiments.export import write_checked

    torch.manual_seed(0)
    program = JpegQualityModule().export_program()
    assert write_checked(program, program.metadata, form, tmp_path / f"quality.{form}") <= 1e-4


def test_page_quotes_files_word_for_word() -> None:
    page = PAGE.read_text(encoding="utf-8")
    quotes = list(QUOTE.finditer(page))
    assert len(quotes) == len(re.findall(r"^```(?:python|yaml)$", page, re.MULTILINE)) > 5, "a block without its file"
    for quote in quotes:
        assert quote["code"] in (ROOT / quote["file"]).read_text(encoding="utf-8"), quote.group()
