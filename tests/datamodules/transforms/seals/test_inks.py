"""Colours of ink: of their class, and how a film's thickness turns them."""

import colorsys

import numpy as np
import pytest

from datamodules.transforms.seals.inks import absorbance, draw_ink, film_absorbance
from datamodules.transforms.seals.layouts import COLORS


def test_inks_are_of_their_class() -> None:
    rng = np.random.default_rng(0)
    for color in COLORS:
        for _ in range(50):
            red, green, blue = draw_ink(rng, color)
            assert 0 <= min(red, green, blue) <= max(red, green, blue) <= 1
            hue, _, value = colorsys.rgb_to_hsv(red, green, blue)
            if color == "red":
                assert red > 1.8 * max(green, blue)
            if color == "blue":
                assert 0.56 < hue < 0.67
            if color == "violet":
                assert 0.67 < hue < 0.8
            if color == "black":
                assert value < 0.26


def test_a_full_film_on_white_is_the_ink_itself() -> None:
    rgb = (0.8, 0.2, 0.3)
    np.testing.assert_allclose(np.exp(-absorbance(rgb)), rgb, rtol=1e-6)
    np.testing.assert_allclose(np.exp(-film_absorbance(rgb, np.ones((1, 1)), 0.0))[0, 0], rgb, rtol=1e-6)
    assert np.isfinite(absorbance((0.0, 0.0, 0.0))).all()


def test_films_absorb_in_proportion_without_a_turn_of_the_hue() -> None:
    density = np.random.default_rng(1).random((5, 6)).astype(np.float32)
    np.testing.assert_allclose(
        film_absorbance((0.8, 0.2, 0.3), density, 0.0), density[..., None] * absorbance((0.8, 0.2, 0.3)), rtol=1e-6
    )


def test_thick_red_is_more_crimson_than_thin_red_and_no_film_absorbs_nothing() -> None:
    film = film_absorbance((0.85, 0.12, 0.25), np.array([[0.0, 0.25, 1.2]]), 0.3)[0]
    assert not film[0].any()
    shares = film[1:, 2] / film[1:, 1]
    assert shares[1] > shares[0] * 1.1
    assert (np.diff(film, axis=0) > 0).all()
    assert film_absorbance((0.85, 0.12, 0.25), np.array([[1.2]])).dtype == np.float32
    assert film[1, 0] / film[1, 1] == pytest.approx(film[2, 0] / film[2, 1])
