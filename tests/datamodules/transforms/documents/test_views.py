"""Squares of documents: what they show and how masks are resized."""

import cv2
import numpy as np
import pytest

from datamodules.transforms.documents.views import Square, around, ink_like, seen, square_of

RNG = np.random.default_rng


def test_a_page_is_shown_whole_and_its_proportions_stay() -> None:
    square = square_of("page", 32, (40, 100), (), np.zeros((40, 100), np.bool_), RNG(0))
    assert square == Square(0, -30, 100)
    image = np.zeros((40, 100, 3), np.uint8)
    image[:, 50:] = 200
    got = seen(image, square, 100)
    np.testing.assert_array_equal(got, np.repeat(image[:1], 100, axis=0))


def test_a_seal_at_the_border_is_shown_from_within() -> None:
    ink = np.zeros((100, 80), np.bool_)
    for box in ((60.0, -5.0, 95.0, 30.0), (0.0, 85.0, 30.0, 100.0)):
        square = square_of("seal", 32, ink.shape, [box], ink, RNG(0))
        assert 0 <= square.left <= 80 - square.side
        assert 0 <= square.top <= 100 - square.side


def test_a_seal_is_shown_with_room_on_every_side() -> None:
    box = (10.0, 20.0, 50.0, 40.0)
    for seed in range(10):
        square = square_of("seal", 32, (100, 100), [box], np.zeros((100, 100), np.bool_), RNG(seed))
        assert square.left <= 8
        assert square.left + square.side >= 52
        assert 44 <= square.side <= 65
    assert around((0, 0, 30, 20), 0) == Square(0, -5, 30)


def test_a_patch_has_its_own_scale_and_lies_over_ink() -> None:
    ink = np.zeros((90, 120), np.bool_)
    ink[70:80, 100:110] = True
    for seed in range(20):
        square = square_of("patch", 32, ink.shape, (), ink, RNG(seed))
        assert square.side == 32
        assert 0 <= square.left <= 88
        assert 0 <= square.top <= 58
        assert seen(ink, square, 32).any()


def test_masks_stay_masks_and_are_mirrored_as_pictures_are() -> None:
    mask = RNG(0).random((20, 20)) > 0.5
    square = Square(-10, -10, 40)
    got = seen(mask, square, 40)
    assert got.dtype == np.bool_
    np.testing.assert_array_equal(got, np.pad(mask, 10, mode="reflect"))
    np.testing.assert_array_equal(255 * got, seen(255 * mask.astype(np.uint8), square, 40))


@pytest.mark.parametrize("size", [16, 60])
def test_pictures_are_resized_as_opencv_does(size: int) -> None:
    image = RNG(0).integers(0, 256, (50, 50, 3), np.uint8)
    method = cv2.INTER_AREA if size < 30 else cv2.INTER_LINEAR
    wanted = cv2.resize(image[10:40, 5:35], (size, size), interpolation=method)
    np.testing.assert_array_equal(seen(image, Square(5, 10, 30), size), wanted)


def test_colourful_pixels_are_taken_for_ink() -> None:
    image = np.full((60, 60, 3), 180, np.uint8)
    image[20:30, 20:30] = (200, 40, 50)
    found = ink_like(image)
    assert found[25, 25]
    assert not found[5, 5]
    assert not found[50, 50]
