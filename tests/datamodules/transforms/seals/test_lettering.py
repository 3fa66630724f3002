"""Letters of seals: equal gaps along arcs, exact directions, sizes and stroke widths of tiles."""

import math

import numpy as np
import pytest
from scipy.integrate import quad

from datamodules.transforms.seals import lettering
from datamodules.transforms.seals.layouts import SealText
from datamodules.transforms.seals.lettering import Placed, advance, natural_length, on_ellipse, place, tile_of
from datamodules.transforms.seals.seal_fonts import latin_faces

FACE = latin_faces()[0]
AXES = [(1.0, 1.0), (0.8, 0.55), (0.62, 0.9)]


def arc_length(a: float, b: float, first: float, last: float) -> float:
    return quad(lambda t: math.hypot(a * math.cos(t), b * math.sin(t)), first, last)[0]


@pytest.mark.parametrize(("a", "b"), AXES)
@pytest.mark.parametrize("under", [False, True])
def test_points_on_an_ellipse_are_at_their_arc_length_and_face_along_it(a: float, b: float, under: bool) -> None:
    along = np.linspace(-0.9, 0.9, 13)
    x, y, turn = on_ellipse(a, b, along, under)
    np.testing.assert_allclose((x / a) ** 2 + (y / b) ** 2, 1, atol=1e-4)
    for px, py, length, angle in zip(x, y, along, turn, strict=True):
        t = math.atan2(px / a, (py if under else -py) / b)
        assert arc_length(a, b, 0, t) == pytest.approx(length, abs=2e-4)
        tangent = np.array([a * math.cos(t), (-b if under else b) * math.sin(t)])
        tangent /= np.linalg.norm(tangent)
        np.testing.assert_allclose([math.cos(angle), math.sin(angle)], tangent, atol=1e-3)


def gaps(line: SealText, axes: tuple[float, float]) -> list[float]:
    """Free arc length between the widths of neighbours, measured by integration."""
    a, b = axes[0] - line.inset, axes[1] - line.inset
    letters = place(line, axes, 200)
    angles = [math.atan2(at.x / a, (at.y if line.layout == "under" else -at.y) / b) for at in letters]
    widths = [advance(char, line.face) * line.height * line.condense for char in line.text]
    return [
        arc_length(a, b, angles[i], angles[i + 1]) - (widths[i] + widths[i + 1]) / 2 for i in range(len(letters) - 1)
    ]


@pytest.mark.parametrize("axes", [(1.0, 1.0), (1.0, 0.65)])
@pytest.mark.parametrize("layout", ["over", "under"])
def test_letters_on_an_arc_have_equal_gaps_by_arc_length(axes: tuple[float, float], layout: str) -> None:
    line = SealText("HARBOUR WIM LTD", "title", FACE, layout, 0.16, 2.2, 0.8, inset=0.2)  # type: ignore[arg-type]
    found = gaps(line, axes)
    widths = [advance(char, FACE) * 0.16 * 0.8 for char in line.text]
    np.testing.assert_allclose(found, (2.2 - sum(widths)) / 14, atol=1e-3)


@pytest.mark.parametrize("layout", ["over", "under"])
def test_letters_on_an_arc_read_from_left_to_right_with_their_feet_on_the_ring_or_off_it(layout: str) -> None:
    line = SealText("ABCDE", "title", FACE, layout, 0.16, 1.4, 0.8, inset=0.2)  # type: ignore[arg-type]
    letters = place(line, (1.0, 1.0), 200)
    assert [at.x for at in letters] == sorted(at.x for at in letters)
    assert all((at.y > 0) == (layout == "under") for at in letters)
    upwards = [(math.sin(at.turn), -math.cos(at.turn)) for at in letters]
    outwards = [at.x * x + at.y * y for at, (x, y) in zip(letters, upwards, strict=True)]
    np.testing.assert_allclose(outwards, -0.8 if layout == "under" else 0.8, atol=1e-3)


def test_rows_run_right_and_columns_down() -> None:
    row = place(SealText("ABC", "usage", FACE, "row", 0.2, 1.0, x=0.1, y=0.3), (1.0, 1.0), 200)
    assert {at.y for at in row} == {0.3}
    assert row[0].x < row[1].x < row[2].x
    first, last = (advance(char, FACE) * 0.2 / 2 for char in "AC")
    assert (row[0].x - first + row[-1].x + last) / 2 == pytest.approx(0.1)
    column = place(SealText("ABC", "name", FACE, "column", 0.2, 1.0, x=0.1, y=0.3), (1.0, 1.0), 200)
    assert {at.x for at in column} == {0.1}
    np.testing.assert_allclose([at.y for at in column], [-0.1, 0.3, 0.7])


def test_a_tiles_size_is_a_capitals_height_and_never_below_the_wanted_one() -> None:
    for wanted in (7.0, 20.0, 43.0, 90.0):
        tile = tile_of("H", FACE, wanted)
        assert wanted <= tile.unit < wanted * 1.35 + 2
        rows = np.nonzero((tile.mask > 127).any(axis=1))[0]
        assert np.ptp(rows) + 1 == pytest.approx(tile.unit, abs=1.5)
        # A capital's middle is the tile's.
        assert (rows[0] + rows[-1] + 1) / 2 == pytest.approx(tile.middle[1], abs=1.0)
    assert natural_length("HH", FACE, 0.5) == pytest.approx(advance("H", FACE))


def test_stroke_width_of_bars_is_their_width() -> None:
    for width in (3, 6, 11):
        bar = np.zeros((200, 60), np.uint8)
        bar[5:195, 20 : 20 + width] = 255
        assert lettering._stroke(bar) == pytest.approx(width, rel=0.08)


def test_a_space_has_width_and_no_ink() -> None:
    tile = tile_of(" ", FACE, 30)
    assert tile.advance > 0.1
    assert tile.mask.max() == 0
    assert tile.reach == (0, 0, 0, 0)
    assert isinstance(place(SealText("A B", "name", FACE, "row", 0.2, 0.6), (1, 1), 100)[1], Placed)
