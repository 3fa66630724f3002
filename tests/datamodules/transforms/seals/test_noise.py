"""Noise tiles: standard, without seams, and windows that depend on their generator alone."""

import numpy as np
import pytest

from datamodules.transforms.seals import noise
from datamodules.transforms.seals.noise import fibre_noise, smooth_noise


@pytest.mark.parametrize("sigma", [0.7071, 1.0, 2.8284, 11.3137])
def test_smooth_noise_is_standard_and_as_coarse_as_asked(sigma: float) -> None:
    field = smooth_noise((512, 512), sigma, np.random.default_rng(0))
    assert field.dtype == np.float32
    assert abs(float(field.mean())) < 1e-3
    assert float(field.std()) == pytest.approx(1, abs=1e-3)
    # White noise after a Gaussian blur: neighbours at distance 1 correlate with exp(-1 / (4 sigma^2)).
    correlation = float((field[:, 1:] * field[:, :-1]).mean())
    assert correlation == pytest.approx(np.exp(-1 / (4 * sigma**2)), abs=0.05)


def test_noise_has_no_seam_where_the_tile_repeats() -> None:
    field = smooth_noise((700, 900), 3.0, np.random.default_rng(1))
    assert field.shape == (700, 900)
    for axis in (0, 1):
        steps = np.abs(np.diff(field, axis=axis)).mean(axis=1 - axis)
        assert steps.max() < 1.6 * steps.mean()


def test_windows_follow_their_generator() -> None:
    first, again, other = (smooth_noise((60, 80), 1.0, np.random.default_rng(seed)) for seed in (5, 5, 6))
    np.testing.assert_array_equal(first, again)
    assert np.abs(first - other).max() > 1


def test_fibres_are_longer_in_one_direction() -> None:
    for angle in range(noise._ANGLES):
        field = noise._fibres(angle)[:512, :512]
        turn = np.pi * angle / noise._ANGLES
        dx, dy = round(4 * np.cos(turn)), round(4 * np.sin(turn))
        along = (field * np.roll(field, (dy, dx), (0, 1))).mean()
        across = (field * np.roll(field, (dx, -dy), (0, 1))).mean()
        assert along > across + 0.3
    assert float(fibre_noise((512, 512), np.random.default_rng(0)).std()) == pytest.approx(1, abs=1e-3)
