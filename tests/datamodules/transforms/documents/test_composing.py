"""Ink on paper against the formula of optical density, in floats."""

import numpy as np
import pytest

from datamodules.transforms.documents.composing import Ink, draw_ink, inked, printed_alpha, transmittance
from datamodules.transforms.seals.layouts import COLORS

RED = Ink((0.82, 0.12, 0.18), growth=(1.4, 1.1, 0.9), strength=0.9)
LIGHT = (1.0, 1.0, 1.0)


def page_of(*values: int) -> np.ndarray:
    return np.repeat(np.array(values, np.uint8)[None, :, None], 3, axis=2)


def test_ink_follows_the_formula_of_density() -> None:
    rng = np.random.default_rng(0)
    page = rng.integers(0, 256, (40, 50, 3), np.uint8)
    density = rng.random((40, 50)).astype(np.float32) * 1.3
    film = (density * RED.strength)[..., None] ** np.array(RED.growth)
    wanted = page * np.exp(np.log(np.array(RED.rgb)) * film)
    got = inked(page, density, RED, LIGHT)
    assert np.abs(got - wanted).max() < 2.5  # densities and shares are bytes


def test_no_ink_changes_nothing_and_black_stays_black_without_veil() -> None:
    page = page_of(0, 60, 128, 255)
    np.testing.assert_array_equal(inked(page, np.zeros((1, 4), np.float32), RED, LIGHT), page)
    full = inked(page, np.ones((1, 4), np.float32), RED, LIGHT)
    assert not full[0, 0].any()
    assert (np.diff(full.astype(int).sum(axis=2)[0]) > 0).all()


def test_a_veil_lightens_dark_toner_in_the_colour_of_the_ink_and_leaves_paper() -> None:
    page, density = page_of(0, 255), np.ones((1, 2), np.float32)
    veiled = Ink(RED.rgb, RED.growth, RED.strength, veil=0.2)
    bare, seen = inked(page, density, RED, LIGHT)[0], inked(page, density, veiled, LIGHT)[0]
    np.testing.assert_array_equal(bare[1], seen[1])
    wanted = 255 * 0.2 * RED.strength * np.array(RED.rgb)
    np.testing.assert_allclose(seen[0], wanted, atol=2.5)


def test_a_thin_film_of_red_is_more_orange_than_a_thick_one() -> None:
    ink = draw_ink(np.random.default_rng(0), "red")
    table = transmittance(Ink((0.8, 0.15, 0.15), ink.growth))[:, 0].astype(float)
    # At the same green, an orange has less blue.
    thin, thick = table[60], table[200]
    assert thin[1] > thin[2]
    assert thick[2] > thick[1]


@pytest.mark.parametrize("color", COLORS)
def test_inks_are_of_their_colour(color: str) -> None:
    for seed in range(20):
        red, green, blue = draw_ink(np.random.default_rng(seed), color).rgb  # type: ignore[arg-type]
        assert min(red, green, blue) > 0
        assert max(red, green, blue) <= 1
        assert color != "red" or red > 1.5 * max(green, blue)
        assert color not in ("blue", "violet") or blue > max(red, green)
        assert color != "black" or max(red, green, blue) < 0.3


def test_alpha_is_the_printed_density() -> None:
    density = np.array([[0, 0.5, 1.3]], np.float32)
    np.testing.assert_allclose(printed_alpha(density, Ink((0.5, 0.5, 0.5), strength=0.9)), [[0, 0.45, 1]], atol=1e-6)
    np.testing.assert_allclose(Ink((0.5,) * 3, (2.0,) * 3, 0.7, 0.1).plain().growth, (1, 1, 1))
