"""Corners by matching and by a grid of messages, on pictures whose motion is known."""

import cv2
import numpy as np
import pytest

from datamodules.images.procedural import draw_scene
from datamodules.images.randomness import sample_rng
from lightning_modules.syncseal.matching import (
    fit_grid,
    frame_corners,
    grid_corners,
    match_corners,
    published_numbers,
    quadrant_masks,
)


def moved(scene, quad):
    """The picture whose corners were at a quad of the scene."""
    height, width = scene.shape[:2]
    homography = cv2.getPerspectiveTransform(quad.astype(np.float32), frame_corners(height, width).astype(np.float32))
    return cv2.warpPerspective(scene, homography, (width, height))


@pytest.mark.parametrize("size", [(160, 160), (192, 320)])
def test_matching_finds_the_corners_of_square_and_other_pictures(size):
    height, width = size
    coarse = np.random.default_rng(0).integers(0, 256, (height // 8, width // 8, 3), np.uint8)
    scene = cv2.resize(coarse, (width, height), interpolation=cv2.INTER_CUBIC)
    quad = (
        frame_corners(*size) * [0.8, 0.75] + [0.1 * width, 0.15 * height] + np.array([[0, 0], [4, -3], [0, 5], [-3, 2]])
    )
    found = match_corners(scene, moved(scene, quad))
    assert np.linalg.norm(found - quad, axis=1).max() < 2
    assert np.allclose(match_corners(scene, scene), frame_corners(*size), atol=1e-6)


def test_a_picture_without_features_matches_nothing():
    flat = np.full((64, 64, 3), 128, np.uint8)
    scene = draw_scene(sample_rng(3, 0, 1), (64, 64))
    assert match_corners(flat, flat) is None
    assert match_corners(scene, flat) is None


def test_published_numbers_go_by_the_width():
    corners = frame_corners(100, 200)
    numbers = published_numbers(corners, 100, 200).reshape(4, 2)
    assert numbers[:, 0].tolist() == [-1, 1, 1, -1]
    # A true answer has y in (-0.5, 0.5), which no decoder of squares takes for the frame.
    assert np.abs(numbers[:, 1]).max() == pytest.approx(99 / 199)
    assert published_numbers(None, 5, 5).tolist() == [-1, -1, 1, -1, 1, 1, -1, 1]


def labels_of(rows, columns, size=256):
    labels = np.zeros((size, size), np.int8)
    labels[rows:] += 2
    labels[:, columns:] += 1
    return labels


def test_cuts_are_found_where_they_are():
    assert fit_grid(labels_of(150, 170)) == (0.0, 149.0, 169.0, False)
    assert fit_grid(labels_of(150, 170)[:, ::-1]) == (0.0, 149.0, 85.0, True)


def test_a_rotated_grid_gives_its_angle():
    from scipy import ndimage

    turned = ndimage.rotate(labels_of(128, 128) + 1, -9, reshape=False, order=0) - 1
    angle, row, column, mirrored = fit_grid(turned)
    assert angle == pytest.approx(9, abs=1)
    assert not mirrored
    assert abs(row - 127) <= 2
    assert abs(column - 127) <= 2


def test_corners_of_a_cut_picture():
    # The cross at 160 of 256: what is seen are the upper left 128/160 of the original.
    corners = grid_corners((0.0, 160.0, 160.0, False), 256)
    assert np.allclose(corners, frame_corners(256, 256) * 0.8)
    turned = grid_corners((90.0, 127.0, 127.0, False), 256)
    assert np.allclose(turned, np.roll(frame_corners(256, 256), 1, axis=0))
    assert np.allclose(grid_corners((0.0, 9.0, 9.0, True), 256), frame_corners(256, 256)[[1, 0, 3, 2]])


def test_masks_leave_a_cross():
    masks = quadrant_masks(256)
    assert masks.sum(axis=0).max() == 1
    assert not masks[:, 119:138].any()
    assert not masks[:, :, 119:138].any()
