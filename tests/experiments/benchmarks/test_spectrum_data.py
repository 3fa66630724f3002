"""Both sides of the benchmark make samples of one kind by one policy."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from datamodules.images.procedural import draw_scene
from datamodules.images.sources import open_images
from datamodules.spectra_samples import Pictures
from datamodules.spectra_sets import PictureSet
from experiments.benchmarks import spectrum_data


@pytest.fixture
def photo(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(spectrum_data, "WINDOW", 64)
    path = tmp_path / "photo.jpg"
    Image.fromarray(draw_scene(np.random.default_rng(0), (400, 600), "landscape")).save(path, quality=95)
    return path


def test_sides_agree_on_average(photo: Path) -> None:
    pictures = Pictures([PictureSet(open_images(str(photo)), range(1), "real", "real")])
    settings = spectrum_data.same_policy(1.0)
    mine = torch.stack([spectrum_data.ours(pictures, 0, settings, draw) for draw in range(30)])
    theirs = torch.stack([spectrum_data.published(str(photo), 1.0, draw) for draw in range(30)])
    assert mine.shape == theirs.shape == (30, 3, 64, 64)
    assert mine.dtype == theirs.dtype == torch.float32
    # Of a shrunk photo both show two thirds or more of the shorter side: colours and contrast are the photo's.
    assert (mine.mean((0, 2, 3)) - theirs.mean((0, 2, 3))).abs().max() < 0.05
    assert 0.8 < mine.std() / theirs.std() < 1.25


@pytest.mark.parametrize(("shrunk", "least", "most"), [(0.0, 0, 0), (1.0, 40, 40), (0.5, 12, 28)])
def test_draws_shrink_as_often_as_asked(shrunk: float, least: int, most: int) -> None:
    below = sum(spectrum_data._draws(shrunk, draw).rand() < 0.5 for draw in range(40))
    assert least <= below <= most
