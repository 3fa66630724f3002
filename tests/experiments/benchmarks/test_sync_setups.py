"""Both sides of the benchmark evaluate the same set-ups and agree on the errors."""

import torch

from experiments.benchmarks.sync_setups import measure
from lightning_modules.syncseal.network import SyncNetwork


def test_both_sides_find_the_same_corners():
    torch.manual_seed(0)
    network = SyncNetwork(
        embedder_channels=(8, 16),
        embedder_blocks=1,
        detector_depths=(1, 1, 1, 1),
        detector_dims=(8, 8, 16, 16),
        size=32,
    )
    row = measure(moves=3, side=48, network=network)
    assert row["what"].startswith("63 set-ups")
    assert row["ratio"] > 0
    assert row["median_difference_px"] < 1e-3
