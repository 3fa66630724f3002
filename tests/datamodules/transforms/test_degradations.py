"""Degradations keep size and type, repeat from a seed, and do what their numbers say."""

import cv2
import numpy as np
import pytest

from datamodules.transforms.degradations import add_noise, degrade, jpeg_roundtrip, resize_roundtrip

IMAGE = cv2.GaussianBlur(np.random.default_rng(0).integers(0, 255, (64, 80, 3), np.uint8), (0, 0), 2)


def test_noise_has_the_asked_spread_and_repeats() -> None:
    flat = np.full((200, 200, 3), 128, np.uint8)
    noisy = add_noise(flat, 6.0, np.random.default_rng(1))
    assert noisy.astype(float).std() == pytest.approx(6.0, rel=0.05)
    assert noisy.mean() == pytest.approx(128, abs=0.2)
    assert np.array_equal(noisy, add_noise(flat, 6.0, np.random.default_rng(1)))
    assert not np.array_equal(noisy, add_noise(flat, 6.0, np.random.default_rng(2)))


def test_noise_does_not_wrap_around() -> None:
    assert add_noise(np.zeros((50, 50, 3), np.uint8), 5.0, np.random.default_rng(0)).max() < 40


def test_jpeg_loses_more_at_lower_quality_and_keeps_channel_order() -> None:
    errors = [np.abs(jpeg_roundtrip(IMAGE, q).astype(int) - IMAGE).mean() for q in (95, 60, 20)]
    assert errors == sorted(errors)
    red = np.zeros((16, 16, 3), np.uint8)
    red[..., 0] = 200
    assert jpeg_roundtrip(red, 90)[8, 8].argmax() == 0


def test_resizing_removes_detail_alone() -> None:
    worn = resize_roundtrip(IMAGE, 0.5)
    assert worn.shape == IMAGE.shape
    assert cv2.Laplacian(worn, cv2.CV_64F).var() < cv2.Laplacian(IMAGE, cv2.CV_64F).var()
    assert worn.mean() == pytest.approx(IMAGE.mean(), abs=0.5)


def test_chain_repeats_from_its_generator() -> None:
    for seed in range(8):
        first, again = (degrade(IMAGE, np.random.default_rng(seed)) for _ in range(2))
        assert np.array_equal(first, again)
        assert first.shape == IMAGE.shape
        assert first.dtype == np.uint8
