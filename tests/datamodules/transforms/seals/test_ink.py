"""The ink model, one effect at a time, against a press that has none."""

import dataclasses

import cv2
import numpy as np
import pytest

from datamodules.transforms.seals.designs import SealSettings, draw_design
from datamodules.transforms.seals.ink import Impression, InkSettings, dropout_sector, flat, press
from datamodules.transforms.seals.layouts import KINDS, SealDesign
from datamodules.transforms.seals.stamps import Stamp, draw_stamp

NONE = (0.0, 0.0)
# Full pressure, no spread, no noise and no accident.
EVEN = InkSettings(
    spread=NONE, roughness=NONE, bleed=NONE, softness=(0.3, 0.3), load=(1.0, 1.0), pressure=(1.0, 1.0), tilt=NONE,
    mottle=NONE, starve=NONE, tooth=NONE, rim=NONE, solids=NONE, dropout_chance=0.0, double_chance=0.0,
    smear_chance=0.0, splatter_chance=0.0,
)  # fmt: skip


@pytest.fixture(scope="module")
def stamp() -> Stamp:
    return draw_stamp(draw_design(np.random.default_rng(1), SealSettings(kinds=(("round", 1.0),))), 180, 20)


@pytest.fixture(scope="module")
def block() -> Stamp:
    return draw_stamp(SealDesign("square", "red", (), (), yin=True), 180)


def pressed(stamp: Stamp, seed: int = 0, **changes: object) -> Impression:
    return press(stamp, dataclasses.replace(EVEN, **changes), np.random.default_rng(seed))  # type: ignore[arg-type]


def test_flat_is_the_coverage_itself(stamp: Stamp) -> None:
    clean = flat(stamp)
    np.testing.assert_array_equal(clean.density, stamp.coverage)
    np.testing.assert_array_equal(clean.area, stamp.area)
    assert (clean.lines, clean.kind, clean.color) == (stamp.lines, stamp.kind, stamp.color)


def test_an_even_press_prints_the_stamp_at_one_density(stamp: Stamp) -> None:
    density = pressed(stamp).density
    full = 1 / (1 + np.exp(-3.1))
    deep, far = stamp.distance > 1.5, stamp.distance < -3
    assert deep.sum() > 100
    np.testing.assert_allclose(density[deep], full, atol=0.02)
    assert density[far].max() < 0.002
    missed = (density > full / 2) != (stamp.coverage > 0.5)
    assert np.abs(stamp.distance[missed]).max() < 0.3


@pytest.mark.parametrize("kind", KINDS)
def test_any_press_stays_within_bounds_and_repeats_itself(kind: str) -> None:
    for seed in range(8):
        rng = np.random.default_rng(seed)
        own = draw_stamp(draw_design(rng, SealSettings(kinds=((kind, 1.0),))), 130, 10.0 * seed)  # type: ignore[arg-type]
        first, second = (press(own, InkSettings(), np.random.default_rng(seed)) for _ in range(2))
        np.testing.assert_array_equal(first.density, second.density)
        assert first.density.dtype == np.float32
        assert first.density.shape == own.coverage.shape
        assert first.density.min() >= 0
        assert first.density.max() < 1.35
        ink = own.coverage > 0.5
        assert first.density[ink].mean() > 5 * first.density[own.distance < -6].mean()
        other = press(own, InkSettings(), np.random.default_rng(seed + 100))
        assert (other.density != first.density).any()


def test_spread_makes_every_stroke_wider(stamp: Stamp) -> None:
    thin, even, wide = (pressed(stamp, spread=(s, s)).density for s in (-0.5, 0.0, 1.2))
    assert (thin <= even + 1e-6).all()
    assert (even <= wide + 1e-6).all()
    assert wide.sum() > 1.15 * even.sum() > 1.15 * thin.sum()
    # Thin strokes stay where wide ones do: no stroke of the stamp is lost.
    assert (wide[stamp.coverage > 0.5] > 0.45).all()


def test_roughness_moves_edges_only(block: Stamp) -> None:
    even, rough = pressed(block).density, pressed(block, roughness=(0.5, 0.5)).density
    changed = np.abs(rough - even) > 0.02
    assert changed.sum() > 200
    assert np.abs(block.distance[changed]).max() < 5
    assert abs(float(rough.sum() / even.sum()) - 1) < 0.02


def test_bleed_only_adds_ink_near_edges_and_along_one_direction(block: Stamp) -> None:
    even, crept = pressed(block).density, pressed(block, bleed=(1.5, 1.5)).density
    gain = crept - even
    assert gain.min() > -1e-6
    assert gain.sum() > 20
    assert np.abs(block.distance[gain > 0.02]).max() < 9


def test_softness_widens_the_fall(block: Stamp) -> None:
    hard, soft = (pressed(block, softness=(s, s)).density for s in (0.2, 1.5))

    def partial(density: np.ndarray) -> int:
        return int(((density > 0.1) & (density < 0.8)).sum())

    assert partial(soft) > 2 * partial(hard)


def test_less_pressure_and_a_starved_pad_print_less(block: Stamp) -> None:
    deep = block.distance > 5
    full, light = (pressed(block, pressure=(p, p)).density[deep].mean() for p in (1.0, 0.4))
    starved = pressed(block, starve=(2.5, 2.5)).density[deep].mean()
    assert light < 0.9 * full
    assert starved < 0.8 * full


def test_a_pads_load_scales_the_film(stamp: Stamp) -> None:
    np.testing.assert_allclose(pressed(stamp, load=(0.5, 0.5)).density, 0.5 * pressed(stamp).density, rtol=1e-5)


def test_tilt_prints_one_side_lighter(block: Stamp) -> None:
    density = pressed(block, tilt=(1.5, 1.5), starve=(1.5, 1.5)).density
    h, w = density.shape
    top, low = density[: h // 2], density[h // 2 :]
    quarters = [half[:, side] for half in (top, low) for side in (slice(0, w // 2), slice(w // 2, w))]
    means = [float(quarter[quarter > 0].mean()) for quarter in quarters]
    assert max(means) - min(means) > 0.15


def test_the_papers_tooth_takes_more_ink_where_the_pressure_is_low(block: Stamp) -> None:
    deep = block.distance > 5
    deviations = [
        float(pressed(block, tooth=(1.0, 1.0), starve=(1.0, 1.0), pressure=(p, p)).density[deep].std())
        for p in (1.5, 1.0, 0.6)
    ]
    assert deviations == sorted(deviations)
    assert deviations[-1] > 2 * deviations[0]
    assert pressed(block).density[deep].std() < 0.002


def test_mottle_is_broad_and_tooth_is_fine(block: Stamp) -> None:
    deep = cv2.erode((block.distance > 5).astype(np.uint8), np.ones((9, 9))) > 0

    def kept(density: np.ndarray) -> float:
        """Share of the variation that is left after a blur of 5 px."""
        return float(cv2.GaussianBlur(density, (0, 0), 5)[deep].std() / density[deep].std())

    assert kept(pressed(block, mottle=(0.3, 0.3), starve=(2.0, 2.0)).density) > 0.8
    assert kept(pressed(block, tooth=(0.8, 0.8), starve=(2.0, 2.0)).density) < 0.45


def test_rims_are_darker_and_solids_paler(block: Stamp) -> None:
    rim = pressed(block, rim=(0.3, 0.3)).density
    edge, deep = (block.distance > 0) & (block.distance < 1), block.distance > 20
    assert edge.sum() > 500
    assert rim[edge].mean() > 1.2 * pressed(block).density[edge].mean()
    solid = pressed(block, solids=(0.3, 0.3)).density
    np.testing.assert_allclose(solid[deep], 0.7 * pressed(block).density[deep], rtol=1e-3)
    np.testing.assert_allclose(rim[deep], pressed(block).density[deep], rtol=1e-3)


def test_a_dropout_takes_ink_in_its_sector_only(block: Stamp) -> None:
    changes = {"dropout_chance": 1.0, "dropout_deg": (60.0, 60.0), "dropout_depth": (1.0, 1.0), "starve": (1.0, 1.0)}
    for seed in range(4):
        whole = pressed(block, seed, starve=(1.0, 1.0)).density
        part = pressed(block, seed, **changes).density
        lost = whole - part
        assert lost.min() > -1e-5
        y, x = np.nonzero(lost > 0.01)
        angles = np.arctan2(y + 0.5 - block.centre[1], x + 0.5 - block.centre[0])
        away = np.angle(np.exp(1j * (angles - angles[len(angles) // 2])))
        assert np.degrees(np.ptp(away)) < 60.5
        assert (lost > 0.3).sum() > 500
        assert np.hypot(x - block.centre[0], y - block.centre[1]).min() > 0.1 * 90


def test_the_sector_points_where_it_is_told(block: Stamp) -> None:
    sector = dropout_sector(block, np.pi / 2, 80)  # y runs down
    cx, cy = (round(v) for v in block.centre)
    assert sector[cy + 70, cx] == pytest.approx(1, abs=0.05)
    assert sector[cy - 70, cx] == sector[cy, cx - 70] == sector[cy, cx + 70] == 0
    assert sector[cy, cx] == 0


def test_a_second_strike_adds_a_paler_shifted_print(stamp: Stamp) -> None:
    once = pressed(stamp).density
    twice = pressed(stamp, double_chance=1.0, double_px=(6.0, 6.0), double_strength=(0.3, 0.3)).density
    assert (twice >= once).all()
    extra = np.where(once < 0.02, twice, 0)
    assert 0.2 < extra.max() < 0.32
    far = cv2.distanceTransform((stamp.coverage < 0.5).astype(np.uint8), cv2.DIST_L2, 5)
    assert far[extra > 0.1].max() < 6 * 180 / 260 + 2


def test_a_smear_only_adds_ink_and_mostly_on_one_side(stamp: Stamp) -> None:
    once = pressed(stamp).density
    dragged = pressed(stamp, smear_chance=1.0, smear_px=(9.0, 9.0)).density
    gain = dragged - once
    assert gain.min() >= 0
    ys, xs = np.nonzero(once > 0.4)
    new_y, new_x = np.nonzero(gain > 0.05)
    assert np.hypot(new_y.mean() - ys.mean(), new_x.mean() - xs.mean()) > 0.5
    assert 0.02 < gain.sum() / once.sum() < 0.6


def test_splatter_adds_a_few_small_drops(block: Stamp) -> None:
    ring = draw_stamp(SealDesign("round", "red", (), (), star=0.3), 180)
    gain = pressed(ring, splatter_chance=1.0).density - pressed(ring).density
    count, _ = cv2.connectedComponents((gain > 0.2).astype(np.uint8))
    assert 2 <= count - 1 <= 15
    assert gain.min() >= 0
    assert gain.sum() < 0.02 * gain.size


def test_settings_that_contradict_themselves_are_refused() -> None:
    with pytest.raises(ValueError, match=r"spread must run from low to high, got \(1.0, 0.0\)"):
        InkSettings(spread=(1.0, 0.0))
    with pytest.raises(ValueError, match="dropout_chance must be a share"):
        InkSettings(dropout_chance=1.5)
