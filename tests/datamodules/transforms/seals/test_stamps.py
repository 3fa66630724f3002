"""Stamps: exact geometry, labels that hold their ink, distances, canvases; at every angle and for every outline."""

import math
from dataclasses import replace

import cv2
import numpy as np
import pytest
from scipy.ndimage import distance_transform_edt

from datamodules.transforms.seals import lettering, stamps
from datamodules.transforms.seals.designs import SealSettings, draw_design
from datamodules.transforms.seals.layouts import KINDS, Hairline, Kind, Ring, SealDesign, SealText
from datamodules.transforms.seals.outlines import outline, star_points
from datamodules.transforms.seals.seal_fonts import latin_faces
from datamodules.transforms.seals.stamps import Stamp, draw_stamp

FACE = latin_faces()[0]


def drawn(kind: Kind, seed: int) -> SealDesign:
    return draw_design(np.random.default_rng(seed), SealSettings(kinds=((kind, 1.0),)))


def bare(design: SealDesign, *lines: SealText) -> SealDesign:
    """The outline with some lines and nothing else, so that its canvas is the whole design's."""
    return replace(design, lines=lines, rings=(), hairlines=(), star=0.0, yin=False)


def inside(stamp: Stamp, polygon: np.ndarray) -> np.ndarray:
    """Pixels that a polygon, whose whole numbers are corners of pixels, touches."""
    mask = np.zeros(stamp.coverage.shape, np.uint8)
    cv2.fillPoly(mask, [np.round((polygon - 0.5) * 16).astype(np.int32)], 1, cv2.LINE_8, 4)
    return mask > 0


@pytest.mark.parametrize("kind", KINDS)
def test_same_seed_same_stamp(kind: Kind) -> None:
    first, second = (draw_stamp(drawn(kind, 4), 120, 33.0) for _ in range(2))
    for name in ("coverage", "distance", "area"):
        np.testing.assert_array_equal(getattr(first, name), getattr(second, name))
    assert [line.text for line in first.lines] == [line.text for line in second.lines]
    other = draw_stamp(drawn(kind, 5), 120, 33.0)
    assert other.coverage.shape != first.coverage.shape or (other.coverage != first.coverage).any()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("angle", [0.0, 17.0, 90.0, 133.0, -71.0, 180.0])
def test_every_outline_stays_inside_its_canvas_at_every_angle(kind: Kind, angle: float) -> None:
    for seed in range(3):
        stamp = draw_stamp(drawn(kind, seed), 96.5, angle)
        rim = np.ones(stamp.coverage.shape, bool)
        rim[2:-2, 2:-2] = False
        assert not stamp.coverage[rim].any()
        assert not stamp.area[rim].any()
        # The silhouette holds all ink, but for anti-aliased edges.
        assert not stamp.coverage[~cv2.dilate(stamp.area.astype(np.uint8), np.ones((3, 3))).astype(bool)].any()
        for line in stamp.lines:
            assert line.polygon.min() >= 0
            assert (line.polygon <= np.array(stamp.coverage.shape[::-1])).all()


@pytest.mark.parametrize("kind", KINDS)
def test_polygons_hold_their_own_ink_and_no_other_lines(kind: Kind) -> None:
    for seed in range(12):
        design = drawn(kind, seed)
        angle = 37.0 * seed
        stamp = draw_stamp(design, 150, angle)
        alone = [draw_stamp(bare(design, line), 150, angle) for line in design.lines]
        for i, (line, own) in enumerate(zip(stamp.lines, alone, strict=True)):
            assert own.coverage.shape == stamp.coverage.shape
            held = inside(stamp, line.polygon)
            total = own.coverage.sum()
            assert total > 10, line.text
            assert own.coverage[~held].sum() < 0.002 * total, (seed, line.text)
            for j, other in enumerate(alone):
                if i != j:
                    assert other.coverage[held].sum() < 0.004 * other.coverage.sum(), (seed, line.text, j)


@pytest.mark.parametrize("kind", KINDS)
def test_polygons_are_clockwise_with_as_many_points_above_as_below(kind: Kind) -> None:
    for seed in range(6):
        for line in draw_stamp(drawn(kind, seed), 120, 50.0 * seed).lines:
            x, y = line.polygon.T.astype(float)
            assert (x * np.roll(y, -1) - y * np.roll(x, -1)).sum() > 0  # clockwise where y runs down
            assert len(x) % 2 == 0
            upper, lower = line.polygon[: len(x) // 2], line.polygon[len(x) // 2 :][::-1]
            heights = np.linalg.norm(upper - lower, axis=1)
            np.testing.assert_allclose(heights, heights.mean(), rtol=0.02)


@pytest.mark.parametrize(("layout", "angle"), [("over", 0), ("over", 160), ("under", -40), ("row", 75), ("column", 20)])
def test_letters_are_drawn_in_reading_order_along_their_polygon(layout: str, angle: float) -> None:
    length = 1.2 if layout == "column" else 1.4
    line = SealText("HIMN", "title", FACE, layout, 0.2, length, inset=0.3)  # type: ignore[arg-type]
    blank = SealDesign("round", "red", (line,), ())
    whole = draw_stamp(blank, 200, angle)
    upper, lower = np.split(whole.lines[0].polygon, 2)
    lower = lower[::-1]
    start, end = (upper[0] + lower[0]) / 2, (upper[-1] + lower[-1]) / 2
    if layout == "column":
        start, end = (upper[0] + upper[1]) / 2, (lower[0] + lower[1]) / 2
    sheet = stamps._Sheet(100, angle, whole.centre)
    along = []
    for letter in lettering.place(line, (1.0, 1.0), 200):
        alone = np.zeros(whole.coverage.shape, np.uint8)
        stamps._paste(alone, sheet, letter)
        # The letter is where the stamp has ink.
        assert np.minimum(whole.coverage, alone / 255.0).sum() > 0.9 * alone.sum() / 255
        ys, xs = np.nonzero(alone > 127)
        along.append(float((np.array([xs.mean(), ys.mean()]) + 0.5 - start) @ (end - start)))
    assert along == sorted(along)
    assert 0 < along[0] < along[-1] < float((end - start) @ (end - start))


def test_discs_rings_and_rectangles_have_their_exact_area() -> None:
    for side in (60.0, 139.0, 200.5, 260.0):
        disc = draw_stamp(SealDesign("round", "red", (), (), yin=True), side)
        assert math.sqrt(disc.coverage.sum() / math.pi) == pytest.approx(side / 2, abs=0.06)
        assert disc.area.sum() == pytest.approx(math.pi * side**2 / 4, rel=0.006)
        ring = draw_stamp(SealDesign("round", "red", (), (Ring(0.1, 0.06),)), side)
        assert ring.coverage.sum() == pytest.approx(math.pi * side**2 / 4 * (0.9**2 - 0.84**2), rel=0.02)
        block = draw_stamp(SealDesign("square", "red", (), (), yin=True, aspect=0.5), side, 30)
        assert block.coverage.sum() == pytest.approx(side**2 / 2, rel=0.006)
        oval = draw_stamp(SealDesign("oval", "red", (), (), yin=True, aspect=0.7), side, 70)
        assert oval.coverage.sum() == pytest.approx(math.pi * side**2 / 4 * 0.7, rel=0.006)
        triangle = draw_stamp(SealDesign("triangular", "red", (), (), yin=True), side, 10)
        assert triangle.coverage.sum() == pytest.approx(side**2 * math.sqrt(3) / 4, rel=0.012)


def test_a_star_is_a_pentagram_with_a_tip_upwards() -> None:
    tips = star_points(0.4)
    radii = np.linalg.norm(tips, axis=1)
    np.testing.assert_allclose(radii[::2], 0.4)
    np.testing.assert_allclose(radii[1::2], 0.4 * 0.382)
    assert tips[0] == pytest.approx((0, -0.4))
    # In a pentagram the waist lies on the straight line between two tips, two apart.
    way, waist = tips[4] - tips[0], tips[1] - tips[0]
    assert way[0] * waist[1] - way[1] * waist[0] == pytest.approx(0, abs=1e-4)
    stamp = draw_stamp(SealDesign("round", "red", (), (), star=0.4), 200, 36.0 + 180)
    area = 0.5 * abs((tips * np.roll(tips[:, ::-1], -1, 0) * np.array([1, -1])).sum()) * 100**2
    assert stamp.coverage.sum() == pytest.approx(area, rel=0.02)
    # Turned by 216 degrees, three tenths and half a turn, it looks as before but for pixels.
    upright = draw_stamp(SealDesign("round", "red", (), (), star=0.4), 200, 0.0)
    assert np.abs(stamp.coverage - upright.coverage).mean() < 0.002


def test_outlines_move_inwards_by_their_inset() -> None:
    for kind in KINDS:
        design = SealDesign(kind, "red", (), (), aspect=0.7 if kind in ("oval", "square") else 1.0)
        outer, inner = outline(design), outline(design, 0.1)
        distances = []
        for point in inner:
            ends = np.roll(outer, -1, 0)
            way = ends - outer
            share = np.clip(((point - outer) * way).sum(1) / (way**2).sum(1), 0, 1)
            distances.append(np.linalg.norm(point - (outer + share[:, None] * way), axis=1).min())
        assert min(distances) == pytest.approx(0.1, abs=0.015 if kind == "oval" else 0.003)


def test_turning_by_quarter_turns_only_turns_the_pixels() -> None:
    design = drawn("round", 2)
    straight, quarter = draw_stamp(design, 160, 0.0), draw_stamp(design, 160, 90.0)
    turned = np.rot90(straight.coverage, -1)  # clockwise
    assert np.abs(turned - quarter.coverage).mean() < 0.01
    assert np.corrcoef(turned.ravel(), quarter.coverage.ravel())[0, 1] > 0.98
    height = straight.coverage.shape[0]
    for before, after in zip(straight.lines, quarter.lines, strict=True):
        np.testing.assert_allclose(
            np.stack([height - before.polygon[:, 1], before.polygon[:, 0]], 1), after.polygon, atol=0.05
        )


@pytest.mark.parametrize("side", [90, 200])
def test_distance_is_scipys_to_a_third_of_a_pixel(side: int) -> None:
    stamp = draw_stamp(drawn("round", 7), side, 12.0)
    factor = stamp.fine.shape[0] // stamp.coverage.shape[0]
    ink = stamp.fine > 127
    exact = (distance_transform_edt(ink) - distance_transform_edt(~ink)) - np.where(ink, 0.5, -0.5)
    h, w = stamp.coverage.shape
    exact = exact.reshape(h, factor, w, factor).mean(axis=(1, 3)) / factor
    near = np.abs(exact) < 6
    assert np.abs(stamp.distance - exact)[near].max() < 0.34
    assert np.abs(stamp.distance - exact)[near].mean() < 0.04
    assert (stamp.distance[stamp.coverage > 0.95] > 0).mean() > 0.99
    assert (stamp.distance[stamp.coverage < 0.05] < 0).mean() > 0.99


def test_a_ring_is_as_deep_as_half_its_width() -> None:
    stamp = draw_stamp(SealDesign("round", "red", (), (Ring(0.0, 0.1),)), 200)
    assert stamp.distance.max() == pytest.approx(5.0, abs=0.4)
    middle = stamp.distance[stamp.coverage.shape[0] // 2, stamp.coverage.shape[1] // 2]
    assert middle == pytest.approx(-90, rel=0.03)


def test_yin_words_are_cut_out_of_a_filled_block() -> None:
    line = SealText("HALE", "name", FACE, "row", 0.4, 1.4)
    yin = draw_stamp(SealDesign("square", "red", (line,), (), yin=True), 150)
    words = draw_stamp(SealDesign("square", "red", (line,), ()), 150)
    inner = cv2.erode(yin.area.astype(np.uint8), np.ones((5, 5))) > 0
    np.testing.assert_allclose(yin.coverage[inner], 1 - words.coverage[inner], atol=0.01)
    assert inside(yin, yin.lines[0].polygon)[words.coverage > 0.5].all()


def test_hairlines_only_take_ink_away_along_their_chord() -> None:
    plain = SealDesign("round", "red", (), (), yin=True)
    cut = replace(plain, hairlines=(Hairline(0.0, 0.5, 0.02),))
    lost = draw_stamp(plain, 200).coverage - draw_stamp(cut, 200).coverage
    assert lost.min() >= 0
    rows = np.nonzero(lost.sum(axis=1) > 1)[0]
    middle = draw_stamp(plain, 200).centre[1] + 50
    assert abs(rows - middle).max() < 3
    assert lost.sum() == pytest.approx(0.02 * 100 * 200 * math.sqrt(0.75), rel=0.1)


def test_stroke_width_grows_with_the_seal() -> None:
    line = SealText("HILT", "name", FACE, "row", 0.4, 1.2)
    small, large = (draw_stamp(SealDesign("square", "red", (line,), ()), side).lines[0] for side in (80, 240))
    assert large.stroke_px == pytest.approx(3 * small.stroke_px, rel=0.12)
    # Half the area of a letter's coverage by its strokes' length is what a ruler would say: I is one stroke.
    bar = draw_stamp(SealDesign("square", "red", (replace(line, text="I", length=0.2),), ()), 240)
    columns = (bar.coverage > 0.5).sum(axis=1)
    assert bar.lines[0].stroke_px == pytest.approx(np.median(columns[columns > 0]), rel=0.25)


def test_a_seal_too_small_to_read_is_refused() -> None:
    with pytest.raises(ValueError, match=r"side_px must be 16 or more, got 9"):
        draw_stamp(drawn("round", 0), 9)


@pytest.mark.parametrize("kind", KINDS)
def test_words_keep_clear_of_rings_and_stars(kind: Kind) -> None:
    for seed in range(12):
        design = drawn(kind, 50 + seed)
        figure = draw_stamp(replace(design, lines=(), hairlines=(), yin=False), 150, 11.0 * seed).coverage
        for line in design.lines:
            words = draw_stamp(bare(design, line), 150, 11.0 * seed).coverage
            assert np.minimum(words, figure).sum() < 1.5, (seed, line.text)
