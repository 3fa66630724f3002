import numpy as np
import pytest
import torch
from torchmetrics.functional.image import peak_signal_noise_ratio, structural_similarity_index_measure

from lightning_modules.functional import image_quality


@pytest.fixture
def pair():
    rng = np.random.default_rng(0)
    image = rng.random((3, 3, 33, 47), dtype=np.float32)
    other = np.clip(image + 0.05 * rng.standard_normal(image.shape, dtype=np.float32), 0, 1)
    return torch.from_numpy(image), torch.from_numpy(other)


def test_psnr_equals_torchmetrics_per_image_and_for_the_batch(pair):
    image, other = pair
    for value, a, b in zip(image_quality.psnr(image, other), image, other, strict=True):
        assert value.item() == pytest.approx(peak_signal_noise_ratio(a, b, data_range=1.0).item(), abs=1e-4)
    batch = peak_signal_noise_ratio(image, other, data_range=1.0).item()
    assert image_quality.batch_psnr(image, other).item() == pytest.approx(batch, abs=1e-4)
    assert torch.isinf(image_quality.psnr(image, image)).all()


def test_rmse_on_the_mask_by_hand(pair):
    image, _ = pair
    mask = torch.zeros(3, 1, 33, 47)
    mask[0, :, :5, :5] = 1
    mask[1, :, 10:, 10:] = 1
    changed = image + 0.1 * mask
    changed[2] += 0.5
    # Errors outside the mask do not count; the third image has none and counts 0, or not at all.
    assert image_quality.slbr_rmse_on_mask(changed, image, mask).item() == pytest.approx(25.6 * 2 / 3, rel=1e-4)
    assert image_quality.slbr_rmse_on_mask(changed, image, mask, skip_empty=True).item() == pytest.approx(
        25.6, rel=1e-4
    )
    assert image_quality.slbr_rmse(image + 0.1, image).item() == pytest.approx(25.6, rel=1e-4)


def test_ssim_equals_torchmetrics_inside_and_is_one_for_equal_images(pair):
    image, other = pair
    assert image_quality.ssim(image, image).numpy() == pytest.approx(np.ones(3), abs=1e-5)
    # Zero-padded by hand, torchmetrics (which leaves 5 pixels of border out) sees the same windows.
    a, b = (torch.nn.functional.pad(x.double(), (5, 5, 5, 5)) for x in (image, other))
    padded = [
        structural_similarity_index_measure(x[None], y[None], data_range=1.0, return_full_image=True)[1][0]
        for x, y in zip(a, b, strict=True)
    ]
    expected = [full[:, 5:-5, 5:-5].mean().item() for full in padded]
    assert image_quality.ssim(image, other).numpy() == pytest.approx(expected, abs=1e-4)


def test_ssim_falls_with_noise(pair):
    image, other = pair
    assert image_quality.ssim(image, other).max() < 0.999
