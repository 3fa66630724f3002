"""Geometry of documents against OpenCV's and against areas."""

import cv2
import numpy as np
import pytest

from datamodules.transforms.documents.pages import draw_sheet
from datamodules.transforms.documents.placing import clipped, draw_layout, mapped, on_pixels, scale_at

SHEET = draw_sheet(np.random.default_rng(0), 400, 9)


def layout(seed: int, device: str = "phone", **options: bool):  # type: ignore[no-untyped-def]
    kinds = ("round", "square")
    return draw_layout(np.random.default_rng(seed), SHEET, kinds, 200, (0.3, 0.4), device, **options)  # type: ignore[arg-type]


def test_points_go_where_opencv_puts_them() -> None:
    matrix = layout(0).matrix
    points = np.random.default_rng(1).uniform(0, 400, (20, 2))
    wanted = cv2.perspectiveTransform(points[None], matrix)[0]
    np.testing.assert_allclose(mapped(matrix, points), wanted, atol=1e-9)


def test_warped_pixels_lie_where_their_corners_are_mapped() -> None:
    """A bright square's middle, of corners, is the middle of its warped light."""
    matrix = np.array([[1.1, 0.1, 3.3], [-0.05, 0.95, 2.6], [1e-4, -2e-4, 1]])
    image = np.zeros((60, 60), np.float32)
    image[20:26, 30:36] = 1
    moved = cv2.warpPerspective(image, on_pixels(matrix), (80, 80), flags=cv2.INTER_LINEAR)
    rows, columns = np.indices(moved.shape) + 0.5
    middle = np.array([(moved * columns).sum(), (moved * rows).sum()]) / moved.sum()
    np.testing.assert_allclose(middle, mapped(matrix, np.array([[33.0, 23.0]]))[0], atol=0.05)
    assert moved.sum() == pytest.approx(36 * scale_at(matrix, 33, 23) ** 2, rel=0.02)


@pytest.mark.parametrize("seed", range(20))
def test_the_frame_shows_the_first_seal(seed: int) -> None:
    for device in ("scan", "phone"):
        got = layout(seed, device)
        place = got.places[0]
        x, y = mapped(got.matrix, np.array([[place.x, place.y]]))[0]
        assert -0.3 * place.side < x < 200 + 0.3 * place.side
        assert -0.3 * place.side < y < 200 + 0.3 * place.side


def test_without_geometry_the_frame_is_only_moved() -> None:
    matrix = layout(0, geometry=False).matrix
    np.testing.assert_allclose(matrix[:2, :2], np.eye(2))
    np.testing.assert_allclose(matrix[2], [0, 0, 1])


def test_clipping_keeps_what_lies_inside() -> None:
    square = np.array([[0, 0], [10, 0], [10, 10], [0, 10.0]])
    turned = np.array([[5, -5], [15, 5], [5, 15], [-5, 5.0]])
    # The square's corners lie on the diamond's edges.
    assert cv2.contourArea(clipped(turned, square).astype(np.float32)) == pytest.approx(100)
    half = square + np.array([5, 0])
    assert cv2.contourArea(clipped(half, square[::-1]).astype(np.float32)) == pytest.approx(50)
    assert len(clipped(square + 30, square)) == 0
    np.testing.assert_allclose(clipped(square / 2 + 1, square), square / 2 + 1)
