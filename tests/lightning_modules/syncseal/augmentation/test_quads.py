import math

import cv2
import numpy as np
import torch

from lightning_modules.functional.geometry import frame_corners_px, is_usable_quad
from lightning_modules.syncseal.augmentation import quads as change

FRAME = frame_corners_px(60, 80)[None]


def inside(quads, points):
    polygon = quads.numpy().astype(np.float32)
    return all(cv2.pointPolygonTest(polygon, tuple(map(float, point)), True) >= -1e-3 for point in points)


def crop(quads, area, seed=0, count=50):
    rng = torch.Generator().manual_seed(seed)
    aspects = torch.rand(count, change.CROP_TRIES, generator=rng, dtype=torch.float64) * 1.5 + 0.5
    places = torch.rand(count, change.CROP_TRIES + 1, 2, generator=rng, dtype=torch.float64)
    return change.cropped(quads.repeat(count, 1, 1), torch.full((count,), area, dtype=torch.float64), aspects, places)


def test_quarter_turns_relabel_and_a_turn_of_all_four_is_none():
    none = torch.zeros(1, dtype=torch.float64)
    assert change.rotated(FRAME, torch.tensor([1]), none)[0].tolist() == FRAME[0].roll(-1, 0).tolist()
    quads = FRAME
    for _ in range(4):
        quads = change.rotated(quads, torch.tensor([-1]), none)
    assert torch.equal(quads, FRAME)


def test_rotation_keeps_shape_and_middle():
    angle = torch.tensor([33.0])
    quads = change.rotated(FRAME, torch.zeros(1, dtype=torch.int64), angle)
    assert torch.allclose(quads.mean(1), FRAME.mean(1))
    side = quads[0, 1] - quads[0, 0]
    assert math.isclose(math.degrees(math.atan2(side[1], side[0])), 33, abs_tol=1e-9)
    assert math.isclose(float(side.norm()), 79, abs_tol=1e-9)


def test_inner_crop_after_rotation_is_the_largest_that_fits():
    for degrees in (-40.0, 7.0, 45.0):
        quads = change.rotated_inside(FRAME, torch.tensor([degrees]))
        assert inside(FRAME[0], quads[0])
        larger = quads.mean(1) + (quads[0] - quads.mean(1)) * 1.01
        assert not inside(FRAME[0], larger)


def test_flips_swap_corners():
    assert torch.equal(change.flipped(FRAME, 0)[0], FRAME[0, [1, 0, 3, 2]])
    assert torch.equal(change.flipped(FRAME, 1)[0], FRAME[0, [3, 2, 1, 0]])


def test_crops_keep_the_asked_area_and_lie_inside():
    for area in (0.1, 0.5):
        kept = crop(FRAME, area)
        sides = (kept[:, 2] - kept[:, 0]).prod(1)
        np.testing.assert_allclose(sides, area * 79 * 59, rtol=1e-9)
        assert all(inside(FRAME[0], corners) for corners in kept)
        aspects = (kept[:, 2, 0] - kept[:, 0, 0]) / (kept[:, 2, 1] - kept[:, 0, 1])
        assert aspects.min() > 0.49
        assert aspects.max() < 2.01
        assert aspects.std() > 0.2


def test_crop_takes_the_first_try_that_fits():
    """Of a square at 0.9, aspect 1 fits and 2 does not."""
    square = frame_corners_px(101, 101)[None]
    aspects = torch.tensor([[2.0, 0.5, 1.0, 1.05] + [1.1] * 6], dtype=torch.float64)
    places = torch.zeros(1, change.CROP_TRIES + 1, 2, dtype=torch.float64)
    kept = change.cropped(square, torch.tensor([0.9], dtype=torch.float64), aspects, places)[0]
    np.testing.assert_allclose(kept[2] - kept[0], [90**1 * (100 / 90) ** 0.5 * 0.9**0.5] * 2, rtol=0.06)
    assert float(kept[2, 0]) == float(kept[2, 1])


def test_crop_of_a_turned_quad_lies_inside_unless_no_try_did():
    turned = change.rotated(FRAME, torch.zeros(1, dtype=torch.int64), torch.tensor([30.0]))
    kept = crop(turned, 0.1, count=200)
    share = np.mean([inside(turned[0], corners) for corners in kept])
    assert share > 0.8


def test_fallback_of_large_crops_is_a_square_as_often_as_published():
    square = frame_corners_px(256, 256)[None]
    for area, published in ((0.8, 0.025), (0.9, 0.23), (0.95, 0.49)):
        kept = crop(square, area, count=4000)
        size = kept[:, 2] - kept[:, 0]
        squares = ((size[:, 0] - size[:, 1]).abs() < 1e-6).double().mean()
        assert abs(squares - published) < 4 * (published * (1 - published) / 4000) ** 0.5 + 0.006


def test_reframing_moves_the_view():
    one = torch.ones(1, dtype=torch.float64)
    assert torch.equal(change.reframed(FRAME, 0 * one, 0 * one, one, one), FRAME)
    wider = change.reframed(FRAME, -0.5 * one, 0 * one, 1.5 * one, 2 * one)[0]
    assert wider.tolist() == [[-39.5, 0], [118.5, 0], [118.5, 118], [-39.5, 118]]


def test_folded_quads_are_brought_back_to_convex_ones():
    rng = torch.Generator().manual_seed(0)
    shares = (torch.rand(2000, 4, 2, generator=rng, dtype=torch.float64) * 2 - 1) * 0.5
    start = FRAME.repeat(2000, 1, 1)
    moved = change.distorted(start, shares)
    bad = ~is_usable_quad(moved)
    assert 0.01 < bad.double().mean() < 0.3
    mended = change.convex(moved, start)
    assert is_usable_quad(mended).all()
    assert torch.equal(mended[~bad], moved[~bad])
