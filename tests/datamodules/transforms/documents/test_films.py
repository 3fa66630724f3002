"""Films of ink: what lies beyond the paper or the picture is not there, and a line is legible if enough of it is."""

from dataclasses import replace

import numpy as np
import pytest

from datamodules.transforms.documents.composing import Ink
from datamodules.transforms.documents.films import Film, box_of, joined, label_of, on_paper, pressed_film, stamped
from datamodules.transforms.documents.placing import Place
from datamodules.transforms.seals.designs import draw_design
from datamodules.transforms.seals.ink import flat
from datamodules.transforms.seals.outlines import outline, turned
from datamodules.transforms.seals.stamps import draw_stamp

WH = (200, 180)
INK = Ink((0.8, 0.1, 0.2))


def film_at(x: float, y: float, side: float = 110, angle: float = 20) -> Film:
    design = draw_design(np.random.default_rng(4))
    stamp = draw_stamp(design, side, angle)
    edge = turned(outline(design), angle) * (side / 2) + np.array(stamp.centre)
    return pressed_film(stamp, flat(stamp), edge, INK, Place(x, y, side, angle), np.eye(3))


def test_a_film_that_is_only_moved_is_the_stamp() -> None:
    design = draw_design(np.random.default_rng(4))
    stamp = draw_stamp(design, 110, 20)
    film = film_at(stamp.centre[0] + 30 + 1e-6, stamp.centre[1] + 12 + 1e-6)
    height, width = stamp.coverage.shape
    assert (film.left, film.top) == (30, 12)
    np.testing.assert_allclose(film.coverage[:height, :width], stamp.coverage, atol=1e-4)
    for (_, _, polygon, stroke), line in zip(film.lines, stamp.lines, strict=True):
        np.testing.assert_allclose(polygon, line.polygon + np.array([30, 12]), atol=1e-3)
        assert stroke == pytest.approx(line.stroke_px, rel=1e-5)


def test_nothing_is_printed_beyond_the_paper() -> None:
    film = film_at(100, 90)
    paper = np.zeros(WH[::-1], np.bool_)
    paper[:, :100] = True
    got = on_paper(film, paper, np.array([[0, 0], [100, 0], [100, 180], [0, 180]]))
    planes, whole = joined([got], WH), joined([film], WH)
    for name in ("ink", "alpha", "area"):
        assert not getattr(planes, name)[:, 100:].any(), name
        np.testing.assert_array_equal(getattr(planes, name)[:, :100], getattr(whole, name)[:, :100])
    label = label_of(got, WH)
    assert label is not None
    assert label.box_xyxy[2] == 100
    assert label.outline[:, 0].max() <= 100
    page = np.full((*WH[::-1], 3), 255, np.uint8)
    assert (stamped(page, [got], (1, 1, 1))[:, 100:] == 255).all()


def test_a_line_is_legible_while_half_of_its_ink_is_seen() -> None:
    film = film_at(100, 90, side=160, angle=0)
    whole = label_of(film, WH)
    assert whole is not None
    assert any(line.legible for line in whole.lines)
    gone = label_of(replace(film, density=np.zeros_like(film.density)), WH)
    assert gone is not None
    assert not any(line.legible for line in gone.lines)
    thin = replace(film, lines=tuple((text, role, polygon, 1.1) for text, role, polygon, _ in film.lines))
    label = label_of(thin, WH)
    assert label is not None
    assert not any(line.legible for line in label.lines)
    # What lies beyond the picture is ink that cannot be seen.
    cut = label_of(film_at(100, 250, side=160, angle=0), WH)
    assert cut is None or not all(line.legible for line in cut.lines)


def test_a_seal_beyond_the_picture_has_no_label() -> None:
    film = film_at(500, 90)
    assert label_of(film, WH) is None
    assert box_of(film, WH) is None
    page = np.full((*WH[::-1], 3), 200, np.uint8)
    np.testing.assert_array_equal(stamped(page, [film], (1, 1, 1)), page)


def test_alpha_of_two_films_adds_up_as_layers_do() -> None:
    one, two = film_at(90, 90), film_at(110, 95, angle=70)
    single = [joined([film], WH).alpha.astype(float) for film in (one, two)]
    wanted = 1 - (1 - single[0]) * (1 - single[1])
    np.testing.assert_allclose(joined([one, two], WH).alpha, wanted, atol=1e-6)
