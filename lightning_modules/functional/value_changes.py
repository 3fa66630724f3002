"""Changes of pixel values for a batch, with a strength a sample; images are RGB in [0, 1] (B, 3, H, W).

What libraries compute on the CPU (median, WebP) lets the gradient through as if nothing had happened.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from functools import cache
from typing import Any, Literal

import cv2
import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn import functional as F

# ITU-R BT.601 as torchvision rounds it, and in full.
_ADJUSTING_GREY = (0.2989, 0.587, 0.114)
_GREY = (0.299, 0.587, 0.114)

_Target = Literal["black", "mean", "grey"]
Kernel = npt.NDArray[np.float64]
Plane = npt.NDArray[Any]


def adjust_brightness(images: Tensor, factors: Tensor) -> Tensor:
    """Scale values (B,); 1 changes nothing, 0 is black."""
    return _mixed(images, factors, "black")


def adjust_contrast(images: Tensor, factors: Tensor) -> Tensor:
    """Scale differences to the mean grey of each image by factors (B,)."""
    return _mixed(images, factors, "mean")


def adjust_saturation(images: Tensor, factors: Tensor) -> Tensor:
    """Scale differences to each pixel's grey by factors (B,)."""
    return _mixed(images, factors, "grey")


def adjust_hue(images: Tensor, turns: Tensor) -> Tensor:
    """Turn hues by parts of a circle (B,), saturation and value kept."""
    value, lowest = images.amax(1, keepdim=True), images.amin(1, keepdim=True)
    spread = value - lowest
    safe = torch.where(spread > 0, spread, torch.ones_like(spread))
    red, green, blue = images[:, :1], images[:, 1:2], images[:, 2:]
    sector = torch.where(
        value == red,
        (green - blue) / safe,
        torch.where(value == green, 2 + (blue - red) / safe, 4 + (red - green) / safe),
    )
    # Of hue h, a channel lies below the value by the spread times a trapezium over the circle of six sectors.
    phase = images.new_tensor([5.0, 3.0, 1.0])[:, None, None] + sector + 6 * _each(turns, images)
    phase = phase.remainder(6)
    return value - spread * torch.minimum(phase, 4 - phase).clamp(0, 1)


def to_grey(images: Tensor) -> Tensor:
    """Return three equal channels of luma."""
    return _weighted(images, _GREY).expand_as(images)


def gaussian_blur(images: Tensor, kernel_sizes: Tensor) -> Tensor:
    """Blur by odd kernel sizes (B,), sigma 0.3 ((k - 1) / 2 - 1) + 0.8, borders mirrored at the last pixel."""
    if images.device.type == "cpu":
        blurred: Tensor = _BlurOnCpu.apply(images, [_gaussian(size) for size in kernel_sizes.tolist()])
        return blurred
    reach = int(kernel_sizes.max()) // 2
    kernels = _gaussians(kernel_sizes, reach).to(images)
    batch, channels, height, width = images.shape
    padded = F.pad(images, (reach, reach, reach, reach), mode="reflect")
    weights = kernels.repeat_interleave(channels, 0)
    flat = padded.reshape(1, batch * channels, height + 2 * reach, width + 2 * reach)
    rows = F.conv2d(flat, weights[:, None, None, :], groups=batch * channels)
    return F.conv2d(rows, weights[:, None, :, None], groups=batch * channels).reshape(images.shape)


def median_filter(images: Tensor, kernel_size: int) -> Tensor:
    """Take the median of the medians of each window's rows, zeros outside: nearly the window's, and faster."""
    reach = kernel_size // 2
    with torch.no_grad():
        padded = F.pad(images.clamp(0, 1), (reach, reach, reach, reach))
        rows = padded.unfold(-1, kernel_size, 1).median(-1).values
        filtered = rows.unfold(-2, kernel_size, 1).median(-1).values
    return straight_through(images, filtered)


def add_noise(images: Tensor, noise: Tensor, deviations: Tensor) -> Tensor:
    """Add noise of unit deviation (B, 3, H, W), scaled by deviations (B,)."""
    return (images + noise * _each(deviations, images)).clamp(0, 1)


def webp(images: Tensor, qualities: Tensor) -> Tensor:
    """Compress as lossy WebP of a quality (B,) by the codec's library on the CPU."""
    return straight_through(images, through_codec(images, ".webp", cv2.IMWRITE_WEBP_QUALITY, qualities))


def through_codec(images: Tensor, suffix: str, quality_flag: int, qualities: Tensor) -> Tensor:
    """Return images rounded to 8 bits, encoded by OpenCV at qualities (B,), and decoded."""
    # Arrays, not tensors: threads have no part in the caller's inference mode.
    originals = images.detach().cpu().float().clamp(0, 1).numpy()
    changed = np.empty_like(originals)

    def compress(row: int) -> None:
        # Through contiguous planes of one picture: three times faster than turning the whole batch into bytes.
        planes = [cv2.convertScaleAbs(plane, alpha=255) for plane in originals[row]]
        encoded = cv2.imencode(suffix, cv2.merge(planes[::-1]), [quality_flag, int(qualities[row])])[1]
        decoded = cv2.split(cv2.imdecode(encoded, cv2.IMREAD_COLOR))[::-1]
        for plane, levels in zip(changed[row], decoded, strict=True):
            np.divide(levels, 255, out=plane, dtype=np.float32)

    threads = min(torch.get_num_threads(), len(originals))
    if threads > 1:  # OpenCV lets other threads of Python run meanwhile
        with ThreadPoolExecutor(threads) as pool:
            list(pool.map(compress, range(len(originals))))
    else:
        list(map(compress, range(len(originals))))
    return torch.from_numpy(changed).to(images)


def straight_through(images: Tensor, changed: Tensor) -> Tensor:
    """Return the changed values with the gradient of clamping alone."""
    through: Tensor = _StraightThrough.apply(images, changed)
    return through


def _mixed(images: Tensor, factors: Tensor, target: _Target) -> Tensor:
    mixed: Tensor = _Mixed.apply(images, _each(factors, images), target)
    return mixed


class _Mixed(torch.autograd.Function):
    """Factor f: f of the image and 1 - f of what it moves away from, cut to [0, 1], in few passes over the values."""

    @staticmethod
    def forward(ctx: Any, images: Tensor, factors: Tensor, target: _Target) -> Tensor:
        """Return the changed images."""
        if target == "black":
            mixed = images * factors
        elif target == "mean":
            mean = _weighted(images.mean((-2, -1), keepdim=True), _ADJUSTING_GREY)
            mixed = torch.addcmul(mean * (1 - factors), images, factors)
        else:
            mixed = torch.addcmul(_weighted(images, _ADJUSTING_GREY).mul_(1 - factors), images, factors)
        mixed.clamp_(0, 1)
        ctx.save_for_backward(mixed, factors)
        ctx.target = target
        return mixed

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        """Return the gradient, none where values were cut off or lie at the ends, as clamping has it."""
        mixed, factors = ctx.saved_tensors
        inside = torch.ops.aten.hardtanh_backward(gradient, mixed, 0.0, 1.0)
        passed = inside * factors
        if ctx.target == "black":
            return passed, None, None
        grey = inside.sum(1, keepdim=True).mul_(1 - factors)
        if ctx.target == "mean":
            grey = grey.mean((-2, -1), keepdim=True)
        return torch.addcmul(passed, grey, grey.new_tensor(_ADJUSTING_GREY)[:, None, None]), None, None


class _BlurOnCpu(torch.autograd.Function):
    """The same blur by OpenCV, whose separable filter is 3 to 15 times faster than torch's convolution here."""

    @staticmethod
    def forward(ctx: Any, images: Tensor, kernels: list[Kernel]) -> Tensor:
        """Return blurred images."""
        ctx.kernels = kernels
        blurred = torch.empty_like(images, memory_format=torch.contiguous_format)
        for image, target, kernel in zip(images.detach().numpy(), blurred.numpy(), kernels, strict=True):
            for plane, result in zip(image, target, strict=True):
                cv2.sepFilter2D(plane, -1, kernel, kernel, dst=result, borderType=cv2.BORDER_REFLECT_101)
        return blurred

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        """Return the gradient of each image."""
        spread = torch.empty_like(gradient, memory_format=torch.contiguous_format)
        for image, target, kernel in zip(gradient.contiguous().numpy(), spread.numpy(), ctx.kernels, strict=True):
            for plane, result in zip(image, target, strict=True):
                result[...] = _spread(plane, kernel)
        return spread, None


def _spread(plane: Plane, kernel: Kernel) -> Plane:
    """Return a plane (H, W) blurred beyond its borders, and what is there folded back in: the blur's transpose."""
    reach = len(kernel) // 2
    if reach == 0:
        return plane
    wide = cv2.copyMakeBorder(plane, reach, reach, reach, reach, cv2.BORDER_CONSTANT, value=0)
    wide = cv2.sepFilter2D(wide, -1, kernel, kernel, borderType=cv2.BORDER_CONSTANT)
    for side in (wide, wide.T):
        side[reach + 1 : 2 * reach + 1] += side[:reach][::-1]
        side[-2 * reach - 1 : -reach - 1] += side[-reach:][::-1]
    inner: Plane = wide[reach:-reach, reach:-reach]
    return inner


class _StraightThrough(torch.autograd.Function):
    """One pass over the values, where adding a detached difference takes four."""

    @staticmethod
    def forward(ctx: Any, images: Tensor, changed: Tensor) -> Tensor:
        """Return the changed values."""
        ctx.save_for_backward(images)
        return changed.view_as(changed)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        """Return the gradient where the original lies between 0 and 1, and none at the ends, as clamping has it."""
        (images,) = ctx.saved_tensors
        return torch.ops.aten.hardtanh_backward(gradient, images, 0.0, 1.0), None


def _each(strengths: Tensor, images: Tensor) -> Tensor:
    return strengths.to(images)[:, None, None, None]


def _weighted(images: Tensor, weights: tuple[float, float, float]) -> Tensor:
    """Return weighted sums of the channels (B, 1, H, W), in one pass over the values."""
    sums = images.new_tensor(weights)[None] @ images.flatten(2)
    return sums.view(images.shape[0], 1, *images.shape[2:])


@cache
def _gaussian(size: int) -> Kernel:
    kernel: Kernel = _gaussians(torch.tensor([size]), int(size) // 2)[0].numpy()
    return kernel


def _gaussians(kernel_sizes: Tensor, reach: int) -> Tensor:
    """Return kernels (B, 2 reach + 1), zero beyond each one's size."""
    offsets = torch.arange(-reach, reach + 1, device=kernel_sizes.device, dtype=torch.float64)
    sizes = kernel_sizes.double()[:, None]
    weights = (-0.5 * (offsets / (0.15 * sizes + 0.35)) ** 2).exp() * (offsets.abs() <= sizes // 2)
    return weights / weights.sum(1, keepdim=True)
