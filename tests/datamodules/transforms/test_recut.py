"""Specimens and their forgeries: what stays, what moves, and that the seal's own turn is heeded."""

import cv2
import numpy as np
import pytest

from datamodules.transforms.recut import (
    GENUINE,
    Axis,
    Change,
    RecutSettings,
    Registration,
    cut,
    draw_change,
    draw_registration,
    specimen,
    square_around,
)

SIDE = 160
STILL = Registration()


def seal(turn=0.0):
    """A ring with letters on its upper arc, and its silhouette."""
    plane, middle = np.zeros((SIDE, SIDE), np.uint8), (SIDE - 1) / 2
    cv2.circle(plane, (80, 80), 68, 255, 4, cv2.LINE_AA)
    for angle in np.arange(-90, 91, 30):
        at = np.radians(angle + turn)
        center = (int(middle + 50 * np.sin(at)), int(middle - 50 * np.cos(at)))
        cv2.circle(plane, center, 6, 255, -1, cv2.LINE_AA)
    cv2.circle(plane, (80, 80), 14, 255, -1, cv2.LINE_AA)
    area = np.zeros((SIDE, SIDE), np.uint8)
    cv2.circle(area, (80, 80), 70, 1, -1)
    return plane > 127, area > 0


def inked(values):
    return values > 127


def overlap(a, b):
    return (a & b).sum() / (a | b).sum()


def made(change, turn=0.0, axis=None, registration=STILL):
    ink, area = seal(turn)
    return inked(specimen(ink, area, axis or Axis(turn), change, registration, SIDE))


def test_the_genuine_specimen_is_the_ink():
    assert overlap(made(GENUINE), seal()[0]) > 0.97
    small = specimen(*seal(), Axis(), GENUINE, STILL, 80)
    ink = cv2.resize(seal()[0].astype(np.float32), (80, 80), interpolation=cv2.INTER_AREA)
    assert np.abs(small / 255 - ink).mean() < 0.02


@pytest.mark.parametrize(
    "change", [Change(spacing=0.16), Change(shrink=0.09), Change(centre=-0.12), Change(weight=0.3), Change(weight=-0.3)]
)
def test_a_change_is_seen_and_rings_stay(change):
    genuine, recut = made(GENUINE), made(change)
    assert overlap(genuine, recut) < 0.96
    rows, columns = np.mgrid[:SIDE, :SIDE] - 80
    ring = np.abs(np.hypot(rows, columns) - 68) < 1
    assert recut[ring].mean() > 0.9


def test_spacing_moves_letters_apart_about_the_seals_own_top():
    def letters(turn):
        mask = made(Change(spacing=0.16), turn)
        rows, columns = np.mgrid[:SIDE, :SIDE] - (SIDE - 1) / 2
        band = (np.abs(np.hypot(rows, columns) - 50) < 7) & mask
        _, _, _, centers = cv2.connectedComponentsWithStats(band.astype(np.uint8))
        angles = np.degrees(np.arctan2(centers[1:, 0] - 79.5, 79.5 - centers[1:, 1])) - turn
        return np.sort((angles + 180) % 360 - 180)

    upright = letters(0)
    assert upright[-1] - upright[0] > 188, "the arc of 180 degrees is wider"
    assert np.allclose(upright, -upright[::-1], atol=2), "evenly to both sides"
    assert np.allclose(letters(75), upright, atol=2)


def test_weight_changes_the_area_of_strokes_by_its_share():
    bars = np.zeros((SIDE, SIDE), bool)
    bars[20:140:20, 20:140] = True
    for offset in range(1, 8):
        bars[20 + offset : 148 : 20, 20:140] = True
    area = np.ones((SIDE, SIDE), bool)
    wide, thin = (inked(specimen(bars, area, Axis(), Change(weight=w), STILL, SIDE)).sum() for w in (0.3, -0.3))
    plain = bars.sum()
    assert wide / plain == pytest.approx(1.3, abs=0.08)
    assert thin / plain == pytest.approx(0.7, abs=0.08)


def test_registration_moves_the_whole_seal():
    moved = made(GENUINE, registration=Registration(shift=(0.05, -0.025)))
    assert overlap(moved, np.roll(made(GENUINE), (-4, 8), (0, 1))) > 0.95
    turned = made(GENUINE, registration=Registration(turn_deg=20))
    assert overlap(turned, made(GENUINE, turn=20)) > 0.85, "clockwise"


def test_draws_stay_in_their_bounds():
    settings = RecutSettings(changes=(2, 3))
    for seed in range(40):
        change = draw_change(np.random.default_rng(seed), settings)
        values = {name: abs(getattr(change, name)) for name in ("spacing", "shrink", "centre", "weight")}
        made_ones = [name for name, value in values.items() if value]
        assert 2 <= len(made_ones) <= 3
        assert all(getattr(settings, name)[0] <= values[name] <= getattr(settings, name)[1] for name in made_ones)
        laid = draw_registration(np.random.default_rng(seed), settings)
        assert abs(laid.turn_deg) <= settings.turn_deg
        assert max(map(abs, laid.shift)) <= settings.shift
    with pytest.raises(ValueError, match="changes of RecutSettings"):
        RecutSettings(changes=(0, 2))


def test_windows_reach_beyond_the_picture():
    picture = np.arange(20 * 30, dtype=np.uint16).reshape(20, 30).astype(np.uint8)
    left, top, side = square_around((10, 4, 20, 12))
    assert (left + side / 2, top + side / 2) == pytest.approx((15, 8), abs=0.51)
    assert side == 12
    assert np.array_equal(cut(picture, (5, 3, 6)), picture[3:9, 5:11])
    over = cut(picture, (-3, 16, 8))
    assert over.shape == (8, 8)
    assert np.array_equal(over[:4, 3:], picture[16:20, :5])
    assert (over[:4, 0] == picture[16:20, 0]).all()
