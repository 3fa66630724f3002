"""The share of a step that goes into looking for NaN is one, of hooks that were called."""

import pytest
import torch

from experiments.benchmarks import bad_numbers
from lightning_modules.syncseal.augmentation.settings import ValueSettings
from lightning_modules.syncseal.module import SyncSealModule

TINY = {
    "size": 16,
    "embedder_channels": (8, 16),
    "embedder_blocks": 1,
    "detector_depths": (1, 1),
    "detector_dims": (8, 8),
    "values": ValueSettings(stages=0),
}


def test_a_row_is_of_one_run(monkeypatch: pytest.MonkeyPatch) -> None:
    batch = {"image": torch.rand(2, 3, 16, 16), "index": torch.arange(2)}
    monkeypatch.setattr(bad_numbers, "CASES", {"syncseal": lambda **_: SyncSealModule(**TINY)})
    monkeypatch.setattr(bad_numbers, "batch_of", lambda *_: batch)
    row = bad_numbers.measure("syncseal", 2)
    assert row["what"] == "syncseal: 2 steps"
    assert 0 < row["hooks_ms"] < row["step_ms"]
    assert row["share"] == row["hooks_ms"] / row["step_ms"]
