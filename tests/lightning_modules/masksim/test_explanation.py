"""Peaks, periods and pictures of similarity maps."""

import math

import numpy as np
import pytest

from lightning_modules.masksim.explanation import (
    Peak,
    dilate,
    draw_crops,
    draw_map,
    find_peaks,
    jpeg_grid_warning,
    mean_map,
    summary,
)


def wave_spectrum(shape: tuple[int, int], fx: float, fy: float, noise: float = 1.0) -> np.ndarray:
    """The log-spectrum of a plane wave in noise, in fftshift layout: what a map is made of."""
    rng = np.random.default_rng(0)
    y, x = np.mgrid[: shape[0], : shape[1]]
    image = rng.normal(0, noise, shape) + 0.5 * np.cos(2 * np.pi * (fx * x + fy * y))
    return np.fft.fftshift(np.abs(np.fft.fft2(image))) / math.sqrt(image.size)


def with_peaks(shape: tuple[int, int], *places: tuple[int, int], height: float = 30.0) -> np.ndarray:
    """Noise with lines at these bins from the zero frequency (row, column) and at their mirror images."""
    values = np.random.default_rng(1).normal(size=shape)
    for row, column in places:
        for sign in (1, -1):
            values[(shape[0] // 2 + sign * row) % shape[0], (shape[1] // 2 + sign * column) % shape[1]] += height
    return values


@pytest.mark.parametrize("shape", [(94, 94), (95, 64)])
@pytest.mark.parametrize(("fx", "fy"), [(0.25, 0.0), (0.1, 0.3), (0.2, -0.15), (0.0, 0.4), (-0.3, 0.1)])
def test_a_wave_is_found_at_its_frequency_with_its_period_and_direction(shape, fx, fy):
    (peak,) = find_peaks(wave_spectrum(shape, fx, fy), count=1)
    if fx < 0:
        fx, fy = -fx, -fy
    assert peak.frequency_xy == pytest.approx((fx, fy), abs=0.5 / 64 + 1e-9)
    period_x, period_y = peak.period_xy
    assert (period_x is None) == (peak.frequency_xy[0] == 0)
    assert period_y is None or period_y == pytest.approx(abs(1 / peak.frequency_xy[1]))
    assert peak.period == pytest.approx(1 / math.hypot(fx, fy), rel=0.08)
    assert peak.direction_deg == pytest.approx(math.degrees(math.atan2(fy, fx)), abs=3)
    assert peak.strength > 5


def test_noise_has_no_peaks_and_a_slope_is_none():
    assert find_peaks(np.random.default_rng(0).normal(size=(94, 94))) == []
    fy, fx = (np.fft.fftshift(np.fft.fftfreq(94)) for _ in range(2))
    slope = 100 * np.exp(-20 * np.hypot(fx[None], fy[:, None])) + np.random.default_rng(0).normal(size=(94, 94))
    assert find_peaks(slope) == [], "brightness and large shapes are in every image"


@pytest.mark.parametrize("shape", [(64, 64), (63, 64)])
def test_each_pair_is_listed_once_also_at_the_nyquist_frequency(shape):
    places = [(10, 12), (-20, 7), (0, -32), (13, -32), (0, 16)]
    found = find_peaks(with_peaks(shape, *places), count=20)
    bins = {(round(peak.frequency_xy[1] * shape[0]), round(peak.frequency_xy[0] * shape[1])) for peak in found}
    assert len(bins) == len(found) == len(places)
    wanted = {(10, 12), (-20, 7), (0, 32), (0, 16)}
    assert wanted <= bins
    assert bins - wanted <= {(13, 32), (-13, 32)}


def test_peaks_come_strongest_first_and_share_is_the_part_of_all_that_is_above_zero():
    values = np.zeros((64, 64))
    for row, column, height in ((10, 0, 3.0), (0, 20, 5.0)):
        values[32 + row, 32 + column] = values[32 - row, 32 - column] = height
    values += 1e-6 * np.random.default_rng(0).normal(size=values.shape)
    first, second = find_peaks(values, count=2)
    assert (first.frequency_xy[0], second.frequency_xy[1]) == (20 / 64, 10 / 64)
    assert first.share == pytest.approx(10 / 16, rel=1e-3)
    assert second.share == pytest.approx(6 / 16, rel=1e-3)
    assert len(find_peaks(values, count=1)) == 1


@pytest.mark.parametrize(
    ("bins", "place", "wanted"),
    [
        (478, (0, 60), True),  # 478/8 is 59.75
        (478, (60, 120), True),
        (478, (0, 61), False),
        (478, (30, 60), False),
        (478, (0, 239), True),
        (64, (8, 16), True),
        (64, (9, 16), False),
    ],
)
def test_the_jpeg_grid_is_multiples_of_an_eighth(bins, place, wanted):
    (peak,) = find_peaks(with_peaks((bins, bins), place), count=1)
    assert peak.on_jpeg_grid == wanted
    warning = jpeg_grid_warning([peak])
    assert (warning is not None) == wanted
    assert warning is None or warning.startswith("1 of 1 peaks lie")


def test_records_are_json_able_and_rounded():
    (peak,) = find_peaks(with_peaks((64, 64), (0, 8)), count=1)
    record = peak.record()
    assert record["period_xy"] == [8.0, None]
    assert record["frequency_xy"] == [0.125, 0.0]
    assert all(not isinstance(value, float) or value == round(value, 5) for value in record.values())
    for place in ((0, -32), (-32, 0), (0, 8), (8, 0)):
        (peak,) = find_peaks(with_peaks((64, 64), place), count=1)
        assert "-0.0" not in str(peak.record()["frequency_xy"])


def test_the_mean_over_channels_sums_to_the_similarity():
    similarity = np.random.default_rng(0).normal(size=(3, 8, 8)).astype(np.float32)
    assert mean_map(similarity).sum() == pytest.approx(similarity.sum(axis=(1, 2)).mean(), abs=1e-5)


def test_dilation_is_a_maximum_filter():
    values = np.random.default_rng(0).normal(size=(9, 7))
    got = dilate(values, 5)
    for row in range(9):
        for column in range(7):
            window = values[max(0, row - 2) : row + 3, max(0, column - 2) : column + 3]
            assert got[row, column] == window.max()
    assert dilate(values, 1) is values


def test_the_picture_shows_bright_bins_where_their_frequency_is():
    bright = with_peaks((94, 94))
    bright[47 + 19 : 47 + 22, 47 + 29 : 47 + 32] += 50
    lit = draw_map(bright, "t", dilation=1).astype(int)
    yellow = np.argwhere((lit[..., 0] > 240) & (lit[..., 1] > 220) & (lit[..., 2] < 60))
    inside = yellow[(yellow[:, 1] < lit.shape[1] - 104)]
    side = 94 * 5
    middle = inside.mean(axis=0) - (74, 66)
    np.testing.assert_allclose(middle, [(67 + 0.5) / 94 * side, (77 + 0.5) / 94 * side], atol=3)


def test_the_picture_rings_peaks_orange_only_on_the_jpeg_grid():
    def orange(peaks: list[Peak]) -> int:
        picture = draw_map(with_peaks((64, 64)), "t", "s", peaks).astype(int)
        return int((np.abs(picture - (255, 140, 0)).sum(axis=2) < 30).sum())

    on = find_peaks(with_peaks((64, 64), (8, 8)), count=1)
    off = find_peaks(with_peaks((64, 64), (9, 12)), count=1)
    assert orange(on) > 20 > orange(off) == orange([])


def test_a_constant_map_can_be_drawn_and_has_no_peaks():
    assert find_peaks(np.zeros((32, 32))) == []
    assert draw_map(np.zeros((32, 32)), "nothing").dtype == np.uint8


def test_crops_are_tinted_by_what_they_say():
    image = np.full((1000, 1600, 3), 128, np.uint8)
    boxes = [(0, 0, 512, 512), (1088, 0, 1600, 512), (544, 488, 1056, 1000)]
    picture = draw_crops(image, boxes, [4.0, -4.0, 0.0], "title").astype(int)
    assert picture.shape == (480 + 28, 768, 3)
    scale = 768 / 1600
    reds = []
    for left, top, right, bottom in boxes:
        place = 28 + int((top + bottom) / 2 * scale), int((left + right) / 2 * scale)
        reds.append(picture[place][0] - picture[place][2])
    assert reds[0] > 40
    assert reds[1] < -40
    assert reds[2] == 0


def test_the_summary_names_the_scores_and_the_strongest_period():
    peaks = find_peaks(with_peaks((64, 64), (0, 8)), count=1)
    assert summary(peaks, {"logit": 1.25}) == "logit 1.25; strongest period 8.00 px"
    assert summary([], {"logit": 1.25}) == "logit 1.25; no peak stands out"
