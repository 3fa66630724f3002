"""Both sides of the benchmark change and move pictures, and let gradients through."""

import numpy as np
import pytest
import torch

from datamodules.images.procedural import draw_scene
from experiments.benchmarks import augmentation
from experiments.benchmarks.augmentation import reference_side, sealmark_side


@pytest.fixture(autouse=True)
def small(monkeypatch):
    monkeypatch.setattr(augmentation, "BATCH", 6)
    monkeypatch.setattr(augmentation, "SIZE", 40)


@pytest.mark.parametrize("maker", [reference_side, sealmark_side])
def test_a_side_attacks_every_picture(maker):
    scenes = np.stack([draw_scene(np.random.default_rng(number), (40, 40)) for number in range(6)])
    images = (torch.from_numpy(scenes.transpose(0, 3, 1, 2).copy()).float() / 255).requires_grad_()
    attacked = maker(1)(images)
    assert attacked.shape == images.shape
    assert ((attacked - images).abs().amax((1, 2, 3)) > 0.05).all()
    attacked.sum().backward()
    assert (images.grad.abs().amax((1, 2, 3)) > 0).all()


def test_rows_have_both_ratios():
    rows = augmentation.measure(torch.device("cpu"), turns=1)
    assert [("backward" in row["what"]) for row in rows] == [False, True]
    assert min(row[name] for row in rows for name in ("ratio", "cpu_ratio")) > 0
