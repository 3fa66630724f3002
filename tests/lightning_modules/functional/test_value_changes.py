import cv2
import numpy as np
import pytest
import scipy.ndimage
import torch
import torchvision.transforms.v2.functional as tv

from lightning_modules.functional import value_changes as change

IMAGES = torch.rand(4, 3, 24, 30, generator=torch.Generator().manual_seed(0))
STRENGTHS = torch.tensor([0.3, 0.8, 1.5, 2.2])
TURNS = torch.tensor([-0.3, -0.1, 0.15, 0.5])


@pytest.mark.parametrize(
    ("ours", "theirs", "strengths"),
    [
        (change.adjust_brightness, tv.adjust_brightness, STRENGTHS),
        (change.adjust_contrast, tv.adjust_contrast, STRENGTHS),
        (change.adjust_saturation, tv.adjust_saturation, STRENGTHS),
        (change.adjust_hue, tv.adjust_hue, TURNS),
    ],
)
def test_each_sample_has_torchvision_s_adjustment(ours, theirs, strengths):
    expected = torch.stack([theirs(image, float(by)) for image, by in zip(IMAGES, strengths, strict=True)])
    assert (ours(IMAGES, strengths) - expected).abs().max() < 2e-6


@pytest.mark.parametrize("name", ["adjust_brightness", "adjust_contrast", "adjust_saturation"])
def test_adjustments_pass_torchvision_s_gradient_and_none_of_what_is_cut_off(name):
    weights = torch.linspace(-1, 1, IMAGES.numel()).view_as(IMAGES)
    ours, theirs = IMAGES.clone().requires_grad_(), IMAGES.clone().requires_grad_()
    (getattr(change, name)(ours, STRENGTHS) * weights).sum().backward()
    expected = [getattr(tv, name)(image, float(by)) for image, by in zip(theirs, STRENGTHS, strict=True)]
    (torch.stack(expected) * weights).sum().backward()
    torch.testing.assert_close(ours.grad, theirs.grad, rtol=0, atol=2e-6)
    cut = torch.stack(expected)[2:].detach()
    assert ((cut == 0) | (cut == 1)).float().mean() > 0.05


def test_black_stays_black_without_a_gradient():
    images = torch.zeros(1, 3, 4, 4, requires_grad=True)
    change.adjust_brightness(images, STRENGTHS[:1]).sum().backward()
    assert torch.equal(images.grad, torch.zeros_like(images))


def test_hue_of_grey_is_grey_and_its_gradient_is_finite():
    grey = torch.full((1, 3, 4, 4), 0.4, requires_grad=True)
    turned = change.adjust_hue(grey, torch.tensor([0.2]))
    turned.sum().backward()
    assert torch.equal(turned, grey)
    assert grey.grad.isfinite().all()


def test_grey_is_luma():
    expected = (IMAGES * torch.tensor([0.299, 0.587, 0.114])[:, None, None]).sum(1, keepdim=True).expand(-1, 3, -1, -1)
    assert (change.to_grey(IMAGES) - expected).abs().max() < 1e-6


def test_blur_is_opencv_s_with_a_kernel_each():
    sizes = torch.tensor([3, 9, 17, 5])
    blurred = change.gaussian_blur(IMAGES, sizes)
    for number, size in enumerate(sizes.tolist()):
        picture = IMAGES[number].permute(1, 2, 0).numpy()
        expected = cv2.GaussianBlur(picture, (size, size), 0.15 * size + 0.35, borderType=cv2.BORDER_REFLECT_101)
        np.testing.assert_allclose(blurred[number].permute(1, 2, 0), expected, atol=1e-5)


def test_blur_passes_the_gradient():
    images = IMAGES[:2, :, :10, :12].double().requires_grad_()
    assert torch.autograd.gradcheck(lambda values: change.gaussian_blur(values, torch.tensor([3, 7])), (images,))


def test_blur_of_one_pixel_changes_nothing():
    images = IMAGES[:1].clone().requires_grad_()
    blurred = change.gaussian_blur(images, torch.tensor([1]))
    blurred.sum().backward()
    assert torch.equal(blurred, images)
    assert torch.equal(images.grad, torch.ones_like(images))


def test_median_is_that_of_medians_of_rows():
    filtered = change.median_filter(IMAGES, 5)
    plane = IMAGES[0, 1].numpy()
    rows = scipy.ndimage.median_filter(plane, (1, 5), mode="constant")
    expected = scipy.ndimage.median_filter(rows, (5, 1), mode="constant")
    np.testing.assert_allclose(filtered[0, 1], expected, atol=1e-7)


def test_median_takes_an_impulse_away():
    image = torch.full((1, 3, 9, 9), 0.5)
    image[..., 4, 4] = 1.0
    assert torch.equal(change.median_filter(image, 3)[..., 2:-2, 2:-2], torch.full((1, 3, 5, 5), 0.5))


def test_noise_has_the_asked_deviation():
    noise = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(1))
    noisy = change.add_noise(torch.full((2, 3, 64, 64), 0.5), noise, torch.tensor([0.01, 0.05]))
    np.testing.assert_allclose((noisy - 0.5).std((1, 2, 3)), [0.01, 0.05], rtol=0.05)


def test_webp_loses_more_at_lower_quality_and_passes_the_gradient():
    smooth = torch.nn.functional.interpolate(IMAGES[:2], scale_factor=3, mode="bilinear").requires_grad_()
    packed = change.webp(smooth, torch.tensor([20, 95]))
    first, second = (packed - smooth).detach().square().mean((1, 2, 3))
    assert 0 < second < 0.5 * first < 0.01
    packed.sum().backward()
    assert torch.equal(smooth.grad, torch.ones_like(smooth))
