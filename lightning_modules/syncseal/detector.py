"""The detector: ConvNeXt V2 that says where the corners of what it sees were in the original."""

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .embedder import ChannelNorm

DEPTHS = (3, 3, 9, 3)
DIMS = (96, 192, 384, 768)
OUTPUTS = 9
"""A logit, then x and y of the four corners."""
_EPS = 1e-6


class GlobalResponseNorm(nn.Module):
    """Scales channels by their share of the energy of the picture; features are (B, H, W, C)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.zeros(1, 1, 1, channels))
        self.beta = nn.Parameter(torch.zeros(1, 1, 1, channels))

    def forward(self, features: Tensor) -> Tensor:
        """Return features of the same shape."""
        energy: Tensor = torch.linalg.vector_norm(features, dim=(1, 2), keepdim=True)
        share = energy / (energy.mean(dim=-1, keepdim=True) + _EPS)
        return self.gamma * (features * share) + self.beta + features


class ConvNeXtBlock(nn.Module):
    """A wide convolution of each channel, then two linear layers over channels, added to the input."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.dwconv = nn.Conv2d(channels, channels, 7, padding=3, groups=channels)
        self.norm = nn.LayerNorm(channels, eps=_EPS)
        self.pwconv1 = nn.Linear(channels, 4 * channels)
        self.grn = GlobalResponseNorm(4 * channels)
        self.pwconv2 = nn.Linear(4 * channels, channels)

    def forward(self, features: Tensor) -> Tensor:
        """Return features (B, C, H, W) of the same shape."""
        inner: Tensor = self.norm(self.dwconv(features).permute(0, 2, 3, 1))
        inner = self.pwconv2(self.grn(F.gelu(self.pwconv1(inner))))
        return features + inner.permute(0, 3, 1, 2)


class ConvNeXt(nn.Module):
    """Maps (B, 3, H, W) to features (B, dims[-1], H / 32, W / 32)."""

    def __init__(self, depths: Sequence[int], dims: Sequence[int]) -> None:
        super().__init__()
        stem = nn.Sequential(nn.Conv2d(3, dims[0], 4, stride=4), ChannelNorm(dims[0]))
        halvings = (
            nn.Sequential(ChannelNorm(before), nn.Conv2d(before, after, 2, stride=2))
            for before, after in pairwise(dims)
        )
        self.downsample_layers = nn.ModuleList([stem, *halvings])
        self.stages = nn.ModuleList(
            nn.Sequential(*(ConvNeXtBlock(dim) for _ in range(depth))) for depth, dim in zip(depths, dims, strict=True)
        )

    def forward(self, image: Tensor) -> Tensor:
        """Return the features."""
        features = image
        for downsample, stage in zip(self.downsample_layers, self.stages, strict=True):
            features = stage(downsample(features))
        return features


class CornerHead(nn.Module):
    """One linear layer over pooled features."""

    def __init__(self, features: int, outputs: int) -> None:
        super().__init__()
        self.linear = nn.Linear(features, outputs)

    def forward(self, pooled: Tensor) -> Tensor:
        """Return (B, outputs)."""
        corners: Tensor = self.linear(pooled)
        return corners


class Detector(nn.Module):
    """Maps RGB in [0, 1] to a logit and the corners' coordinates in the published normalisation, unbounded.

    Args:
        depths: Blocks of each stage.
        dims: Channels of each stage; the sides fall to a quarter before the first, to a half before each other.
        outputs: Numbers a picture; those of the published detector are 9.
    """

    def __init__(self, depths: Sequence[int] = DEPTHS, dims: Sequence[int] = DIMS, outputs: int = OUTPUTS) -> None:
        super().__init__()
        if len(depths) != len(dims) or not dims or min(*depths, *dims) < 1 or outputs < OUTPUTS:
            raise ValueError(
                f"`detector_depths` and `detector_dims` must be as many numbers above 0, and `detector_outputs` "
                f"{OUTPUTS} or more, got {list(depths)}, {list(dims)} and {outputs}"
            )
        self.stride = 4 * 2 ** (len(dims) - 1)
        self.convnext = ConvNeXt(depths, dims)
        self.head = CornerHead(dims[-1], outputs)

    def forward(self, image: Tensor) -> Tensor:
        """Return (B, outputs), float32."""
        features: Tensor = self.convnext(image * 2 - 1)
        # A coordinate in bfloat16 would be off by up to half a pixel of 256.
        with torch.autocast(image.device.type, enabled=False):
            corners: Tensor = self.head(features.float().mean(dim=(-2, -1)))
        return corners
