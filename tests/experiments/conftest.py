"""Runs the command in this process, in a folder of its own, on the smallest recipe."""

import logging
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

CONFIGS = Path(__file__).parents[2] / "configs"
SMALL = (
    *("--config", str(CONFIGS / "watermark_segmentation" / "quickstart.yaml")),
    *("--config", str(CONFIGS / "env" / "smoke.yaml")),
    *("--model.encoder", "tu-mobilenetv3_small_050", "--model.encoder_depth", "5"),
    *("--model.decoder_channels", "[16,12,8,8,4]"),
    *("--data.photos", "procedural://1000?size=40", "--data.size", "32"),
    *("--data.val_samples", "4", "--data.test_samples", "4", "--data.train_samples", "8"),
)


@pytest.fixture
def sealmark(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[..., int]:
    """Return a function that runs a command on the small recipe and gives its exit code; later words win."""
    import lightning  # noqa: F401

    from experiments.cli import main

    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("SEALMARK_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(sys, "argv", ["sealmark"])
    for name in ("lightning", "lightning.pytorch", "lightning.fabric"):
        # Lightning's loggers hold the stderr of their first use, which pytest has closed since.
        for handler in logging.getLogger(name).handlers:
            monkeypatch.setattr(handler, "stream", sys.stderr, raising=False)

    def call(command: str, *words: object, recipe: tuple[str, ...] = SMALL) -> int:
        try:
            return main([command, *recipe, *(str(word) for word in words)])
        except SystemExit as error:
            return int(error.code or 0)

    return call
