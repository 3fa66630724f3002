"""Edits of evaluation queries: repeatable, of the strength that their group says, and true to the photo."""

import cv2
import numpy as np
import pytest

from datamodules.images.procedural import draw_scene
from datamodules.transforms.copy_edits import EDITS, edit, edit_group


@pytest.fixture(scope="module")
def photo():
    return draw_scene(np.random.default_rng(8), (144, 190))


@pytest.fixture(scope="module")
def other():
    return draw_scene(np.random.default_rng(9), (120, 100))


def best_match(picture, part):
    """The least mean squared difference of a part to any place of a picture."""
    return cv2.matchTemplate(picture, part, cv2.TM_SQDIFF).min() / part.size


@pytest.mark.parametrize("name", EDITS)
def test_edit_repeats_differs_and_leaves_the_photo(name, photo, other):
    before = photo.copy()
    first, again, another = (edit(photo, name, np.random.default_rng(seed), other) for seed in (3, 3, 4))
    np.testing.assert_array_equal(first, again)
    np.testing.assert_array_equal(photo, before)
    assert first.dtype == np.uint8
    assert first.flags.c_contiguous
    assert not np.shares_memory(first, photo)
    if name != "untouched":
        assert first.shape != another.shape or (first != another).any()


@pytest.mark.parametrize("name", EDITS)
@pytest.mark.parametrize("size_hw", [(1, 1), (9, 9), (2, 60), (33, 5)])
def test_any_photo_can_be_edited(name, size_hw):
    photo = np.random.default_rng(0).integers(0, 256, (*size_hw, 3), np.uint8)
    photo.setflags(write=False)
    for seed in range(3):
        edited = edit(photo, name, np.random.default_rng(seed))
        assert edited.ndim == 3
        assert edited.shape[2] == 3
        assert edited.size


def test_groups_and_unknown_names(photo):
    assert {edit_group(name) for name in EDITS} == {"untouched", "mild", "strong"}
    with pytest.raises(ValueError, match=r"`name` must be one of untouched, mild/jpeg.*, got 'jpeg'"):
        edit(photo, "jpeg", np.random.default_rng(0))
    np.testing.assert_array_equal(edit(photo, "untouched", np.random.default_rng(0)), photo)


def test_mild_edits_keep_the_picture_and_strong_ones_do_not(photo, other):
    def distance(name, seed):
        edited = edit(photo, name, np.random.default_rng(seed), other)
        small = [cv2.resize(image, (24, 24), interpolation=cv2.INTER_AREA).astype(float) for image in (photo, edited)]
        return np.abs(small[0] - small[1]).mean()

    median = {name: np.median([distance(name, seed) for seed in range(7)]) for name in EDITS}
    assert max(value for name, value in median.items() if name.startswith("mild")) < 10
    moving = ("crop", "rotation", "colour", "overlay", "shuffle", "background", "screenshot", "perspective")
    assert min(median[f"strong/{name}"] for name in (*moving, "combination")) > 10


@pytest.mark.parametrize(("name", "low", "high"), [("mild/crop", 0.85, 0.95), ("strong/crop", 0.25, 0.6)])
def test_crops_are_parts_of_the_photo_of_the_asked_area(name, low, high, photo):
    areas = []
    for seed in range(12):
        part = edit(photo, name, np.random.default_rng(seed))
        assert best_match(photo, part) < 0.05  # the search is by Fourier transform
        areas.append(part.size / photo.size)
    assert low - 0.02 < min(areas) < max(areas) < high + 0.02
    assert max(areas) - min(areas) > 0.4 * (high - low)


def test_shuffle_keeps_every_pixel_of_the_tiles(photo):
    square = np.ascontiguousarray(photo[:144, :144])  # all grids divide it
    shuffled = edit(square, "strong/shuffle", np.random.default_rng(1))
    assert (shuffled != square).mean() > 0.3
    np.testing.assert_array_equal(np.sort(shuffled.reshape(-1, 3), axis=0), np.sort(square.reshape(-1, 3), axis=0))


def test_background_and_screenshot_hold_the_whole_photo(photo, other):
    for seed in range(4):
        page = edit(photo, "strong/screenshot", np.random.default_rng(seed))
        assert best_match(page, photo) < 0.05
        assert page.size > 1.15 * photo.size
        laid = edit(photo, "strong/background", np.random.default_rng(seed), other)
        assert laid.shape == photo.shape
        scales = np.sqrt(np.linspace(0.2, 0.5, 40))
        found = min(
            best_match(laid, cv2.resize(photo, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA))
            for scale in scales
        )
        apart = min(best_match(other, cv2.resize(photo, None, fx=scale, fy=scale)[:100, :90]) for scale in scales[:3])
        assert found < 0.35 * apart


def test_quality_falls_from_mild_to_strong_jpeg(photo):
    def noise(name):
        return np.mean(
            [
                np.square(edit(photo, name, np.random.default_rng(seed)) - photo.astype(float)).mean()
                for seed in range(6)
            ]
        )

    assert 0 < noise("mild/jpeg") < noise("strong/jpeg") / 2


def test_resize_and_pixels_have_the_sizes_asked_for(photo):
    for seed in range(8):
        factor = edit(photo, "mild/resize", np.random.default_rng(seed)).shape[0] / photo.shape[0]
        assert 0.59 < factor < 0.91
        squares = edit(photo, "strong/pixels", np.random.default_rng(seed))
        assert squares.shape == photo.shape
        rows = 1 + (squares[1:] != squares[:-1]).any((1, 2)).sum()
        assert 30 <= rows <= 64
