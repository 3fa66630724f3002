"""Both sides of the benchmark run the same networks, and leave a gradient on every one of their parameters."""

import pytest
import torch

from experiments.benchmarks import sync_step
from experiments.benchmarks.sync_step import measure, module_step, networks_alone
from lightning_modules.syncseal.module import SyncSealModule

TINY = {
    "size": 32,
    "embedder_channels": (8, 16),
    "embedder_blocks": 1,
    "detector_depths": (1, 1),
    "detector_dims": (8, 8),
}


@pytest.mark.parametrize("side", [module_step, networks_alone])
def test_a_side_reaches_every_parameter(side):
    torch.manual_seed(0)
    module = SyncSealModule(**TINY)
    side(module, torch.rand(2, 3, 32, 32))()
    names = [name for name, value in module.named_parameters() if value.requires_grad and value.grad is None]
    assert names == []


def test_a_row_has_both_sides(monkeypatch):
    monkeypatch.setitem(sync_step.CASES, "small", TINY)
    row = measure("small", turns=1, batch=2)
    assert row["what"].startswith("small: batch of 2 at 32 px")
    assert min(row[f"{name}_ms"] for name in ("step", "networks")) > 0
    assert row["ratio"] > 0
