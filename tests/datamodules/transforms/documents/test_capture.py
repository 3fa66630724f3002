"""Devices: a part gives what the whole gives, and each effect is there."""

from dataclasses import replace

import numpy as np
import pytest

from datamodules.transforms.documents import capture as capture_module
from datamodules.transforms.documents.capture import (
    BLOCK,
    CAPTURE_KINDS,
    REACH,
    CaptureKind,
    developed,
    draw_capture,
    noise_tile,
    tooth_tile,
)

HW = (160, 208)


def page(seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    image = np.full((*HW, 3), 235, np.uint8)
    for _ in range(60):
        y, x = rng.integers(0, HW[0] - 6), rng.integers(0, HW[1] - 20)
        image[y : y + 4, x : x + 18] = rng.integers(0, 200, 3)
    return image


@pytest.mark.parametrize("kind", CAPTURE_KINDS)
def test_a_part_gives_what_the_whole_gives(kind: CaptureKind) -> None:
    capture = draw_capture(np.random.default_rng(3), kind, HW)
    whole = developed(page(), capture)
    top, left, bottom, right = 32, 48, 128, 176
    part = developed(np.ascontiguousarray(page()[top:bottom, left:right]), capture, top, left)
    edge = BLOCK * (1 + REACH // BLOCK)
    inner = slice(edge, -edge)
    # Colours are enlarged from half the size across blocks: one pixel next to a foreign block may differ a little.
    difference = np.abs(part.astype(int) - whole[top:bottom, left:right])[inner, inner]
    assert (difference > 0).mean() < 0.02
    assert not difference[2:-2, 2:-2].any()


@pytest.mark.parametrize("kind", CAPTURE_KINDS)
def test_a_capture_is_decided_when_it_is_drawn(kind: CaptureKind) -> None:
    capture = draw_capture(np.random.default_rng(5), kind, HW)
    np.testing.assert_array_equal(developed(page(), capture), developed(page(), capture))
    other = draw_capture(np.random.default_rng(6), kind, HW)
    assert not np.array_equal(developed(page(), capture), developed(page(), other))


def test_phones_make_darker_and_more_uneven_pictures_than_scanners() -> None:
    light = {
        kind: [draw_capture(np.random.default_rng(seed), kind, HW) for seed in range(30)] for kind in ("scan", "phone")
    }
    exposure = {kind: np.mean([c.light for c in captures]) for kind, captures in light.items()}
    spread = {kind: np.mean([np.ptp(c.gain[8:-8:16, 8:-8:16]) for c in captures]) for kind, captures in light.items()}
    assert exposure["phone"] < exposure["scan"] - 0.1
    assert spread["phone"] > 1.5 * spread["scan"]


def test_some_phone_pictures_have_even_stripes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(capture_module, "MOIRE_SHARE", 1.0)
    monkeypatch.setattr(capture_module, "tooth_tile", lambda: np.full((1024, 1024), 128, np.uint8))
    for seed in range(5):
        gain = draw_capture(np.random.default_rng(seed), "phone", (128, 128)).gain.astype(float)
        power = np.abs(np.fft.fft2((gain - gain.mean()) * np.outer(np.hanning(128), np.hanning(128)))) ** 2
        rows, columns = np.meshgrid(np.fft.fftfreq(128), np.fft.fftfreq(128), indexing="ij")
        power[np.hypot(rows, columns) < 0.05] = 0  # light and shadow
        peak = np.unravel_index(power.argmax(), power.shape)
        near = np.minimum(
            np.hypot(rows - rows[peak], columns - columns[peak]), np.hypot(rows + rows[peak], columns + columns[peak])
        )
        assert power[near < 0.03].sum() > 0.5 * power.sum()
        assert 1 / 15 < np.hypot(rows[peak], columns[peak]) < 1 / 3.8


def test_a_fax_has_two_tones_and_no_colour() -> None:
    got = developed(page(), replace(draw_capture(np.random.default_rng(0), "fax", HW), quality=95, blur=0.4))
    assert np.ptp(got.astype(int), axis=2).max() <= 3
    assert ((got < 40) | (got > 215)).mean() > 0.85


def test_noise_has_the_deviation_that_was_asked_for() -> None:
    flat = np.full((*HW, 3), 128, np.uint8)
    quiet = replace(
        draw_capture(np.random.default_rng(0), "scan", HW), gain=np.full(HW, 200, np.uint8), sharpen=0.0, quality=100
    )
    for wanted in (0.0, 4.0):
        got = developed(flat, replace(quiet, noise=wanted)).astype(float)
        assert got[..., 1].std() == pytest.approx(wanted, abs=0.7)


def test_tiles_are_noise_around_the_middle_and_cannot_be_written_to() -> None:
    for tile in (noise_tile(), tooth_tile()):
        assert abs(float(tile.mean()) - 128) < 0.5
        assert 20 < float(tile.std()) < 26
        with pytest.raises(ValueError, match="read-only"):
            tile[0] = 0


def test_pictures_larger_than_the_tiles_go_on_from_their_beginning() -> None:
    capture = draw_capture(np.random.default_rng(0), "scan", (1100, 40))
    assert capture.gain.shape == (1100, 40)
    assert developed(np.full((1100, 40, 3), 200, np.uint8), capture).shape == (1100, 40, 3)
