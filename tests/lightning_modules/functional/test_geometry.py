import cv2
import numpy as np
import pytest
import torch
from torch.nn import functional as F

from lightning_modules.functional import geometry

FRAME = geometry.frame_corners_px(48, 64)


def random_quads(count, spread=12.0, seed=0):
    noise = torch.from_numpy(np.random.default_rng(seed).uniform(-spread, spread, (count, 4, 2)))
    return FRAME + noise


def smooth_picture(height=48, width=64):
    """Waves long enough for bilinear sampling."""
    y, x = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    waves = [0.5 + 0.4 * torch.sin(x / a + y / b) for a, b in ((9, 14), (13, 8), (20, 11))]
    return torch.stack(waves)[None].double()


def solved(source, target):
    """The eight linear equations of four points."""
    rows, values = [], []
    for (x, y), (u, v) in zip(source, target, strict=True):
        rows += [[x, y, 1, 0, 0, 0, -u * x, -u * y], [0, 0, 0, x, y, 1, -v * x, -v * y]]
        values += [u, v]
    return np.append(np.linalg.solve(rows, values), 1).reshape(3, 3)


def test_homographies_are_numpy_s_and_opencv_s():
    source, target = random_quads(20), random_quads(20, seed=1)
    ours = geometry.homography_from_quads(source, target)
    for number in range(20):
        expected = cv2.getPerspectiveTransform(
            source[number].numpy().astype(np.float32), target[number].numpy().astype(np.float32)
        )
        np.testing.assert_allclose(ours[number], expected, rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(
            ours[number], solved(source[number].numpy(), target[number].numpy()), rtol=1e-9, atol=1e-11
        )
    np.testing.assert_allclose(geometry.apply_homography(ours, source), target, atol=1e-10)


def test_points_move_as_in_opencv():
    homography = geometry.homography_from_quads(FRAME, random_quads(1)[0])
    points = np.random.default_rng(3).uniform(0, 64, (30, 2))
    expected = cv2.perspectiveTransform(points[:, None], homography.numpy())[:, 0]
    np.testing.assert_allclose(geometry.apply_homography(homography, torch.from_numpy(points)), expected, atol=1e-9)


def test_inverse_and_composition():
    first, second, third = (random_quads(10, seed=seed) for seed in range(3))
    there = geometry.homography_from_quads(first, second)
    back = geometry.invert_homography(there)
    np.testing.assert_allclose(back, geometry.homography_from_quads(second, first), rtol=1e-8, atol=1e-10)
    np.testing.assert_allclose(geometry.apply_homography(back @ there, first), first, atol=1e-9)
    onward = geometry.homography_from_quads(second, third)
    np.testing.assert_allclose(geometry.apply_homography(onward @ there, first), third, atol=1e-9)


def test_a_mirrored_quad_has_a_proper_inverse():
    flip = geometry.homography_from_quads(FRAME, FRAME[[1, 0, 3, 2]])
    inside = torch.tensor([[10.0, 7.0]], dtype=torch.float64)
    for homography in (flip, geometry.invert_homography(flip)):
        np.testing.assert_allclose(geometry.apply_homography(homography, inside), [[53.0, 7.0]], atol=1e-12)
        assert (torch.cat((inside[0], torch.ones(1))) @ homography[2]) > 0


def test_composed_quads_are_what_two_warps_show():
    first, second = random_quads(1, 5), random_quads(1, 5, seed=1)
    picture = smooth_picture()
    twice = geometry.warp(geometry.warp(picture, second), first)
    once = geometry.warp(picture, geometry.compose_quads(first, second, 48, 64))
    assert (twice - once)[..., 12:-12, 12:-12].abs().max() < 0.01


def test_quads_that_cannot_be_used():
    line = torch.tensor([[0.0, 0], [10, 0], [20, 0], [30, 0]])
    dented = torch.tensor([[0.0, 0], [20, 0], [5, 5], [0, 20]])
    crossed = torch.tensor([[0.0, 0], [20, 20], [20, 0], [0, 20]])
    bad = torch.stack([line, dented, crossed, torch.zeros(4, 2), torch.full((4, 2), float("nan"))])
    far = FRAME.float().clone()
    far[2] = torch.tensor([float("inf"), 3.0])
    assert not geometry.is_usable_quad(torch.cat((bad, far[None]))).any()
    good = torch.stack([FRAME, FRAME[[1, 0, 3, 2]], FRAME.roll(2, 0), FRAME * 3 - 40])
    assert geometry.is_usable_quad(good).all()


def test_identity_changes_nothing():
    picture = torch.rand(2, 3, 48, 64)
    for compat in (False, True):
        assert (geometry.warp(picture, FRAME.repeat(2, 1, 1), compat=compat) - picture).abs().max() < 2e-5


def test_flips_and_half_turns_are_exact():
    picture = torch.rand(1, 3, 48, 64)
    flip = geometry.warp(picture, FRAME[None, [1, 0, 3, 2]])
    turn = geometry.warp(picture, FRAME[None].roll(2, 1))
    assert (flip - picture.flip(-1)).abs().max() < 2e-5
    assert (turn - picture.flip(-1, -2)).abs().max() < 2e-5


def test_a_published_flip_is_a_pixel_off():
    picture = torch.rand(1, 3, 48, 64)
    flip = geometry.warp(picture, FRAME[None, [1, 0, 3, 2]], compat=True)
    assert (flip[..., :-1] - picture.flip(-1)[..., 1:]).abs().max() < 2e-5
    assert flip[..., -1].abs().max() < 2e-5


def test_warp_samples_where_opencv_does():
    picture, quads = smooth_picture(), random_quads(3)
    warped = geometry.warp(picture.repeat(3, 1, 1, 1), quads)
    for number in range(3):
        homography = geometry.homography_from_quads(FRAME, quads[number]).numpy()
        expected = cv2.warpPerspective(
            picture[0].permute(1, 2, 0).numpy().astype(np.float32), homography, (64, 48),
            flags=cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP,
        )  # fmt: skip
        np.testing.assert_allclose(warped[number].permute(1, 2, 0), expected, atol=1e-4)


def test_each_sample_of_a_batch_is_warped_by_itself():
    picture, quads = torch.rand(4, 3, 48, 64), random_quads(4)
    together = geometry.warp(picture, quads)
    for number in range(4):
        alone = geometry.warp(picture[number : number + 1], quads[number : number + 1])
        assert torch.equal(alone[0], together[number])


def test_unwarping_undoes_a_warp_and_compat_is_half_a_pixel_off():
    picture = smooth_picture()
    quads = torch.tensor([[[10.0, 8.0], [50, 10], [52, 40], [8, 38]]], dtype=torch.float64)
    attacked = geometry.warp(picture, quads)
    straight, ok = geometry.unwarp(attacked, quads)
    middle = (..., slice(14, 34), slice(16, 44))
    assert ok.tolist() == [True]
    assert (straight - picture)[middle].abs().max() < 0.004
    published = geometry.unwarp(attacked, quads + 0.9, compat=True).images
    assert (published - picture)[middle].abs().max() > 0.01


def test_on_the_horizon_and_beyond_it_nothing_is_shown():
    """The quad's upper and lower sides meet at x = 48: the pixels there are infinitely far away."""
    quads = torch.tensor([[[20.0, 10.0], [40, 20], [40, 28], [20, 38]]])
    straight = geometry.unwarp(torch.ones(1, 1, 48, 64), quads, (48, 64)).images[0, 0]
    inside = cv2.fillConvexPoly(np.zeros((48, 64), np.uint8), quads[0].numpy().astype(np.int32), 1)
    assert straight.isfinite().all()
    assert straight[cv2.dilate(inside, np.ones((5, 5))) == 0].abs().max() == 0
    assert straight[cv2.erode(inside, np.ones((5, 5))) == 1].min() > 0.99


def test_a_bad_quad_leaves_its_picture_alone_and_its_neighbours_right():
    picture = torch.rand(3, 3, 48, 64)
    quads = random_quads(3, 4).float()
    expected = geometry.unwarp(picture, quads).images
    quads[1] = float("nan")
    images, ok = geometry.unwarp(picture, quads)
    assert ok.tolist() == [True, False, True]
    assert torch.equal(images[1], picture[1])
    assert torch.equal(images[[0, 2]], expected[[0, 2]])


def test_unwarping_to_another_size():
    picture = smooth_picture().float()
    frame = geometry.frame_corners_px(96, 100)[None]
    images, _ = geometry.unwarp(picture, frame, (96, 100))
    expected = F.interpolate(picture, (96, 100), mode="bilinear", antialias=True)
    assert (images - expected).abs().max() < 1e-4


def test_fill_and_mirrored_borders():
    picture = smooth_picture().float().repeat(3, 1, 1, 1)
    quads = (FRAME - 20).repeat(3, 1, 1)  # the picture moves to the right and down by 20
    fill = torch.tensor([0.0, 0.25, 0.5])[:, None, None, None]
    moved = geometry.warp(picture, quads, fill, torch.tensor([False, False, True]))
    assert moved[0, :, :18, :18].max() == 0
    assert (moved[1, :, :18, :18] - 0.25).abs().max() < 1e-6
    for number in range(2):
        assert (moved[number, :, 20:, 20:] - picture[number, :, :28, :44]).abs().max() < 1e-4
    expected = cv2.copyMakeBorder(picture[2].permute(1, 2, 0).numpy(), 20, 0, 20, 0, cv2.BORDER_REFLECT)[:48, :64]
    np.testing.assert_allclose(moved[2].permute(1, 2, 0), expected, atol=1e-4)


def test_normalisation_is_the_published_one_and_decodes_back():
    frame = geometry.frame_corners_px(256, 256)
    one = 127 / 128
    assert geometry.normalise_corners(frame).tolist() == [-1, -1, one, -1, one, one, -1, one]
    quads = random_quads(5)
    back = geometry.decode_corners(geometry.normalise_corners(quads, 64), 64, 64, size=64)
    np.testing.assert_allclose(back, quads, atol=1e-12)
    corners = geometry.decode_corners(geometry.normalise_corners(frame), 300, 500)
    np.testing.assert_allclose(corners, geometry.frame_corners_px(300, 500), atol=1e-10)


def test_compat_decoding_rounds_halves_to_even():
    normalised = geometry.normalise_corners(torch.tensor([[2.5, 3.5], [2.4, 3.6], [-0.5, 0.5], [7, 8]]))
    decoded = geometry.decode_corners(normalised, 256, 256, compat=True)
    assert decoded.tolist() == [[2, 4], [2, 4], [0, 0], [7, 8]]


def test_corner_error_is_the_mean_distance():
    shifted = FRAME + torch.tensor([3.0, 4.0])
    shifted[0] = FRAME[0]
    assert float(geometry.corner_error_px(shifted, FRAME)) == 15 / 4


def test_gradients_reach_pictures_and_quads():
    picture = smooth_picture(8, 9).requires_grad_()
    start = geometry.frame_corners_px(8, 9)[None] * 0.8 + 0.33
    assert torch.autograd.gradcheck(lambda image: geometry.warp(image, start), (picture,))
    quads = start.clone().requires_grad_()
    geometry.homography_from_quads(start * 1.1, quads).sum().backward()
    assert quads.grad.isfinite().all()


@pytest.mark.parametrize("fill", [0.0, 0.7])
@pytest.mark.parametrize("memory", [torch.contiguous_format, torch.channels_last])
def test_opencv_samples_as_torch_does_forwards_and_backwards(fill, memory):
    """Pictures in float32 go through OpenCV, those in float64 through `grid_sample`."""
    generator = torch.Generator().manual_seed(3)
    quads = geometry.frame_corners_px(40, 56).expand(6, 4, 2)
    quads = quads + 14 * torch.rand(6, 4, 2, generator=generator, dtype=torch.float64) - 7
    pictures = torch.rand(6, 3, 40, 56, generator=generator).to(memory_format=memory)
    weights = torch.rand(6, 3, 40, 56, generator=generator)
    results = []
    for kind in (torch.float32, torch.float64):
        given = pictures.to(kind).detach().clone().requires_grad_()
        warped = geometry.warp(given, quads, fill=fill)
        (warped * weights).sum().backward()
        results.append((warped.double(), given.grad.double()))
    for ours, exact in zip(*results, strict=True):
        torch.testing.assert_close(ours, exact, rtol=0, atol=1e-4)
