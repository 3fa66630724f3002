"""The embedder: a small U-Net that draws a pattern for the luminance of a picture."""

from collections.abc import Sequence
from functools import partial
from itertools import pairwise
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

EmbedderVariant = Literal["gelu_group", "relu_batch"]

GROUPS = 8
CHANNELS = (16, 32, 64, 128)
BLOCKS = 8
_YUV_FROM_RGB = ((0.299, 0.587, 0.114), (-0.14713, -0.28886, 0.436), (0.615, -0.51499, -0.10001))


class RGBToYUV(nn.Module):
    """Maps RGB (B, 3, H, W) to YUV; its matrix is in published state dicts, as ``M``."""

    M: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("M", torch.tensor(_YUV_FROM_RGB))

    def forward(self, image: Tensor) -> Tensor:
        """Return Y, U and V."""
        return torch.cat([self._row(image, row) for row in range(3)], dim=1)

    def luma(self, image: Tensor) -> Tensor:
        """Return Y alone, (B, 1, H, W)."""
        return self._row(image, 0)

    def _row(self, image: Tensor, row: int) -> Tensor:
        # Sums and not a matrix product, which autocast would compute in 16 bits.
        red, green, blue = self.M[row]
        value: Tensor = image[:, 0:1] * red + image[:, 1:2] * green + image[:, 2:3] * blue
        return value


class ChannelNorm(nn.Module):
    """Layer norm over the channels of each pixel of (B, C, H, W)."""

    def __init__(self, channels: int, eps: float = 1e-6) -> None:
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(channels))
        self.bias = nn.Parameter(torch.zeros(channels))

    def forward(self, features: Tensor) -> Tensor:
        """Return normalised features."""
        normed = F.layer_norm(features.permute(0, 2, 3, 1), self.weight.shape, self.weight, self.bias, self.eps)
        return normed.permute(0, 3, 1, 2)


class ResidualBlock(nn.Module):
    """Two convolutions with norm and activation, plus a 1 × 1 convolution of the input."""

    def __init__(self, inputs: int, outputs: int, variant: EmbedderVariant) -> None:
        super().__init__()
        conv = partial(nn.Conv2d, kernel_size=3, padding=1, bias=False)
        self.double_conv = nn.Sequential(
            conv(inputs, outputs), _norm(outputs, variant), _activation(variant),
            conv(outputs, outputs), _norm(outputs, variant), _activation(variant),
        )  # fmt: skip
        self.res_conv = nn.Conv2d(inputs, outputs, 1)

    def forward(self, features: Tensor) -> Tensor:
        """Return features of the same sides."""
        both: Tensor = self.double_conv(features) + self.res_conv(features)
        return both


class DownBlock(nn.Module):
    """Halves the sides, then a residual block."""

    def __init__(self, inputs: int, outputs: int, variant: EmbedderVariant) -> None:
        super().__init__()
        self.down = nn.Conv2d(inputs, outputs, 3, stride=2, padding=1)
        self.conv = ResidualBlock(outputs, outputs, variant)

    def forward(self, features: Tensor) -> Tensor:
        """Return features of half the sides."""
        halved: Tensor = self.conv(self.down(features))
        return halved


class Upsample(nn.Module):
    """Doubles the sides by bilinear interpolation and a convolution."""

    def __init__(self, inputs: int, outputs: int, variant: EmbedderVariant) -> None:
        super().__init__()
        self.upsample_block = nn.Sequential(
            nn.Upsample(scale_factor=2, mode="bilinear", align_corners=False),
            nn.ReflectionPad2d(1),
            nn.Conv2d(inputs, outputs, 3, bias=False),
            ChannelNorm(outputs),
            _activation(variant),
        )

    def forward(self, features: Tensor) -> Tensor:
        """Return features of twice the sides."""
        doubled: Tensor = self.upsample_block(features)
        return doubled


class UpBlock(nn.Module):
    """Doubles the sides of features and of those skipped, then a residual block."""

    def __init__(self, inputs: int, outputs: int, variant: EmbedderVariant) -> None:
        super().__init__()
        self.up = Upsample(inputs, outputs, variant)
        self.conv = ResidualBlock(outputs, outputs, variant)

    def forward(self, features: Tensor, skipped: Tensor) -> Tensor:
        """Return features of twice the sides."""
        doubled: Tensor = self.conv(self.up(torch.cat([features, skipped * 2**-0.5], dim=1)))
        return doubled


class Bottleneck(nn.Module):
    """Residual blocks in a row."""

    def __init__(self, channels: int, blocks: int, variant: EmbedderVariant) -> None:
        super().__init__()
        self.model = nn.Sequential(*(ResidualBlock(channels, channels, variant) for _ in range(blocks)))

    def forward(self, features: Tensor) -> Tensor:
        """Return features of the same shape."""
        deeper: Tensor = self.model(features)
        return deeper


class UNet(nn.Module):
    """Maps (B, 1, H, W) to (B, 1, H, W) in (−1, 1); sides are multiples of the coarsest level's stride."""

    def __init__(self, channels: Sequence[int], blocks: int, variant: EmbedderVariant) -> None:
        super().__init__()
        steps = list(pairwise(channels))
        self.inc = ResidualBlock(1, channels[0], variant)
        self.downs = nn.ModuleList(DownBlock(fine, coarse, variant) for fine, coarse in steps)
        self.bottleneck = Bottleneck(channels[-1], blocks, variant)
        self.ups = nn.ModuleList(UpBlock(2 * coarse, fine, variant) for fine, coarse in reversed(steps))
        self.outc = nn.Conv2d(channels[0], 1, 1)

    def forward(self, image: Tensor) -> Tensor:
        """Return the pattern."""
        features = self.inc(image)
        skipped = []
        for down in self.downs:
            features = down(features)
            skipped.append(features)
        features = self.bottleneck(features)
        # The coarsest level skips to the first step up; the finest level's own features are not skipped at all.
        for up in self.ups:
            features = up(features, skipped.pop())
        pattern: Tensor = self.outc(features)
        return pattern.tanh()


class Embedder(nn.Module):
    """Draws a pattern in (−1, 1) for luminance in [0, 1].

    Args:
        variant: ``gelu_group`` is GELU with group norm, ``relu_batch`` ReLU with batch norm.
        channels: Of each level, from the finest; the sides are halved between levels.
        blocks: Residual blocks at the coarsest level.
    """

    def __init__(
        self, variant: EmbedderVariant = "gelu_group", channels: Sequence[int] = CHANNELS, blocks: int = BLOCKS
    ) -> None:
        super().__init__()
        _check(variant, channels, blocks)
        self.stride = 2 ** (len(channels) - 1)
        self.unet = UNet(channels, blocks, variant)

    def forward(self, luma: Tensor) -> Tensor:
        """Return patterns (B, 1, H, W) of luminance of the same shape."""
        pattern: Tensor = self.unet(luma * 2 - 1)
        return pattern


def _check(variant: str, channels: Sequence[int], blocks: int) -> None:
    if variant not in ("gelu_group", "relu_batch"):
        raise ValueError(f"`embedder` must be gelu_group or relu_batch, got {variant!r}")
    if len(channels) < 2 or min(channels) < 1 or blocks < 0:
        raise ValueError(f"`embedder_channels` must be two or more numbers above 0, got {list(channels)}")
    if variant == "gelu_group" and any(count % GROUPS for count in channels):
        raise ValueError(f"`embedder_channels` must be multiples of {GROUPS} for group norm, got {list(channels)}")


def _norm(channels: int, variant: EmbedderVariant) -> nn.Module:
    return nn.GroupNorm(GROUPS, channels) if variant == "gelu_group" else nn.BatchNorm2d(channels)


def _activation(variant: EmbedderVariant) -> nn.Module:
    return nn.GELU() if variant == "gelu_group" else nn.ReLU()
