"""How much two images differ: errors, signal-to-noise and structural similarity, of values in [0, 1]."""

import torch
from torch import Tensor
from torch.nn import functional as F

# SLBR and DENet report errors of values in [0, 1] times this.
SLBR_SCALE = 256.0


def image_mse(image: Tensor, target: Tensor) -> Tensor:
    """Return the mean squared error of each image (B,)."""
    return (image - target).square().flatten(1).mean(dim=1)


def psnr(image: Tensor, target: Tensor) -> Tensor:
    """Return the peak signal-to-noise ratio of each image in dB (B,); infinite where they are equal."""
    return -10.0 * image_mse(image, target).log10()


def batch_psnr(image: Tensor, target: Tensor) -> Tensor:
    """Return the ratio of the error of all images together, as SLBR does; it depends on the batch's size."""
    return -10.0 * image_mse(image, target).mean().log10()


def slbr_rmse(image: Tensor, target: Tensor) -> Tensor:
    """Return the mean over images of the root mean squared error, times 256 as in SLBR's tables."""
    return SLBR_SCALE * image_mse(image, target).sqrt().mean()


def slbr_rmse_on_mask(image: Tensor, target: Tensor, mask: Tensor, skip_empty: bool = False) -> Tensor:
    """Return RMSEw: the mean over images of the root mean squared error on the mask, times 256.

    Args:
        image: (B, C, H, W).
        target: (B, C, H, W).
        mask: (B, 1, H, W) in {0, 1}.
        skip_empty: Leave images without any mask out, instead of counting them 0 as SLBR does.
    """
    squared = ((image - target) * mask).square().flatten(1).sum(dim=1)
    area = mask.flatten(1).sum(dim=1) * image.shape[1]
    errors = SLBR_SCALE * (squared / area.clamp(min=1)).sqrt()
    return errors[area > 0].mean() if skip_empty else errors.mean()


def ssim(image: Tensor, target: Tensor) -> Tensor:
    """Return the structural similarity of each image (B,), with the zero-padded borders of SLBR's and others' code.

    Gaussian window 11 x 11, sigma 1.5, constants 0.01² and 0.03². torchmetrics leaves the borders out.

    Args:
        image: (B, C, H, W).
        target: (B, C, H, W).
    """
    channels = image.shape[1]
    offsets = torch.arange(11, dtype=image.dtype, device=image.device) - 5
    window = (-offsets.square() / (2 * 1.5**2)).exp()
    window = window / window.sum()

    def smooth(values: Tensor) -> Tensor:
        rows = F.conv2d(values, window.view(1, 1, 11, 1).expand(channels, 1, 11, 1), padding=(5, 0), groups=channels)
        return F.conv2d(rows, window.view(1, 1, 1, 11).expand(channels, 1, 1, 11), padding=(0, 5), groups=channels)

    mean_a, mean_b = smooth(image), smooth(target)
    var_a = smooth(image * image) - mean_a.square()
    var_b = smooth(target * target) - mean_b.square()
    covariance = smooth(image * target) - mean_a * mean_b
    luminance = (2 * mean_a * mean_b + 0.01**2) / (mean_a.square() + mean_b.square() + 0.01**2)
    structure = (2 * covariance + 0.03**2) / (var_a + var_b + 0.03**2)
    return (luminance * structure).flatten(1).mean(dim=1)
