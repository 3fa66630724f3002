"""FID against its formula with a small network in Inception's place, and what is said where there is none."""

import numpy as np
import pytest
import torch

from callbacks.metrics.inception_distances import FEWEST, inception_distances, inception_weights
from lightning_modules.functional.realism import frechet_distance


class Pooled(torch.nn.Module):
    """Mean and deviation of each channel."""

    num_features = 6

    def forward(self, image):
        return torch.cat([image.float().mean((2, 3)), image.float().std((2, 3))], 1)


def test_fid_is_the_distance_of_features_and_kid_of_one_set_is_near_zero():
    rng = np.random.default_rng(0)
    real, other = (rng.normal(100, scale, (60, 3, 12, 12)).clip(0, 255).astype(np.uint8) for scale in (10, 25))
    found = inception_distances(real, other, Pooled(), torch.device("cpu"))
    features = [Pooled()(torch.from_numpy(crops)).double().numpy() for crops in (real, other)]
    ones = np.ones((1, 60))
    assert found["fid"] == pytest.approx(frechet_distance(*features, ones, ones)[0], rel=1e-4)
    same = inception_distances(real[:50], real[::-1][:50].copy(), Pooled(), torch.device("cpu"))
    assert abs(same["kid"]) < 1e-3 * abs(found["kid"])


def test_too_few_pictures_are_not_measured():
    few = np.zeros((FEWEST - 1, 3, 8, 8), np.uint8)
    assert inception_distances(few, few, Pooled(), torch.device("cpu")) == {}


def test_missing_weights_are_named(tmp_path, monkeypatch):
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    assert str(tmp_path / "checkpoints") in inception_weights()
    (tmp_path / "mine.pth").write_bytes(b"")
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert inception_weights(str(tmp_path / "mine.pth")) == "torch-fidelity is not installed"
    monkeypatch.setattr("importlib.util.find_spec", lambda name: object())
    assert inception_weights(str(tmp_path / "mine.pth")) == tmp_path / "mine.pth"
