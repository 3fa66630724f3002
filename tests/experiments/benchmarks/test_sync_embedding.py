import json

import pytest
import torch

from experiments.benchmarks import sync_embedding
from lightning_modules.syncseal.network import SyncNetwork

SMALL = {
    "embedder_channels": (8, 16), "embedder_blocks": 1, "detector_depths": (1, 1), "detector_dims": (8, 12), "size": 32,
}  # fmt: skip


def test_both_sides_mark_alike():
    torch.manual_seed(0)
    network = SyncNetwork(**SMALL).eval()
    torch.nn.init.normal_(network.embedder.unet.outc.weight, std=2.0)
    image = sync_embedding.make_image((120, 90))
    given = image.clone()
    with torch.inference_mode():
        ours, plain = (side(network, image) for side in sync_embedding.SIDES.values())
    assert torch.equal(image, given)
    assert (ours - image).abs().mean() > 1e-3
    assert (ours - plain).abs().max() < 1.01 / 255
    assert ((ours - plain).abs() > 1e-4).float().mean() < 1e-3


@pytest.mark.parametrize("side", sync_embedding.SIDES)
def test_a_turn_measures_time_and_memory(side):
    row = sync_embedding.mark_once(side, (64, 80), **SMALL)
    assert row["seconds"] > 0
    assert 0.05 < row["before_gb"] <= row["peak_gb"] < 50


def test_the_median_time_and_the_largest_memory_are_reported(tmp_path, monkeypatch, capsys):
    seconds = iter([3.0, 30.0, 1.0, 10.0, 2.0, 20.0])
    monkeypatch.setattr(
        sync_embedding,
        "_in_fresh_process",
        lambda side: {"seconds": (s := next(seconds)), "before_gb": 0.1, "peak_gb": s / 10, "threads": 2},
    )
    sync_embedding.main(["--json", str(tmp_path / "rows.json")])
    report = json.loads((tmp_path / "rows.json").read_text())
    assert (report["ours"]["seconds"], report["ours"]["peak_gb"]) == (2.0, 0.3)
    assert (report["plain"]["seconds"], report["plain"]["peak_gb"]) == (20.0, 3.0)
    assert "ours: one image of 4000x3000" in capsys.readouterr().out
