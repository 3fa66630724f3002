"""The pair of networks around a picture: mark it, and say how it was moved."""

import re
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .detector import DEPTHS, DIMS, OUTPUTS, Detector
from .embedder import BLOCKS, CHANNELS, Embedder, EmbedderVariant, RGBToYUV
from .jnd import JND, Border

SIZE = 256
SCALING_W = 0.2
SCALING_I = 1.0


class Embedded(NamedTuple):
    """What embedding gives."""

    pattern: Tensor
    """(B, 1 or 3, H, W), before `scaling_w`."""
    marked: Tensor
    """(B, 3, H, W) in [0, 1], on levels of 8 bits."""


class SyncNetwork(nn.Module):
    """Marks pictures of any size with a pattern, and finds where the corners of a moved one were.

    The state dict is the published one: ``embedder``, ``detector``, ``rgb2yuv`` and ``attenuation``.

    Args:
        embedder: ``gelu_group`` or ``relu_batch``: activation and norm.
        embedder_channels: Of each level of the U-Net.
        embedder_blocks: Residual blocks at its coarsest level.
        detector_depths: Blocks of each stage of the ConvNeXt.
        detector_dims: Channels of each stage.
        detector_outputs: Numbers a picture: a logit, eight coordinates, and what a training adds.
        attenuation: ``jnd_1_1``, ``jnd_3_3``, ``jnd_1_3`` or ``jnd_3_1`` for channels in and out, or ``none``.
        jnd_border: ``zero`` as published, or ``reflect``.
        scaling_w: Strength of the pattern.
        scaling_i: Of the picture.
        size: Side of what both networks see.
    """

    def __init__(
        self,
        embedder: EmbedderVariant = "gelu_group",
        embedder_channels: Sequence[int] = CHANNELS,
        embedder_blocks: int = BLOCKS,
        detector_depths: Sequence[int] = DEPTHS,
        detector_dims: Sequence[int] = DIMS,
        detector_outputs: int = OUTPUTS,
        attenuation: str = "jnd_1_1",
        jnd_border: Border = "zero",
        scaling_w: float = SCALING_W,
        scaling_i: float = SCALING_I,
        size: int = SIZE,
    ) -> None:
        super().__init__()
        self.scaling_w, self.scaling_i, self.size = scaling_w, scaling_i, size
        self.embedder = Embedder(embedder, embedder_channels, embedder_blocks)
        self.detector = Detector(detector_depths, detector_dims, detector_outputs)
        self.rgb2yuv = RGBToYUV()
        self.attenuation = _attenuation(attenuation, jnd_border)
        self._architecture = {
            "embedder": embedder,
            "embedder_channels": tuple(embedder_channels),
            "embedder_blocks": embedder_blocks,
            "detector_depths": tuple(detector_depths),
            "detector_dims": tuple(detector_dims),
            "detector_outputs": detector_outputs,
            "attenuation": attenuation,
            "jnd_border": jnd_border,
        }
        if size % self.embedder.stride or size < self.detector.stride:
            raise ValueError(
                f"`size` must be a multiple of {self.embedder.stride} and {self.detector.stride} or more for these "
                f"networks, got {size}"
            )

    @property
    def arguments(self) -> dict[str, Any]:
        """What another network like this one is made with."""
        return self._architecture | {
            "scaling_w": self.scaling_w, "scaling_i": self.scaling_i, "size": self.size,
        }  # fmt: skip

    def embed(self, images: Tensor, lowres_attenuation: bool = False) -> Embedded:
        """Mark images (B, 3, H, W) in [0, 1]; without gradients, large ones in little memory.

        Args:
            images: RGB, any sides.
            lowres_attenuation: Attenuate at the networks' size, before the pattern is resized: faster, less exact.
        """
        small = resized(images, (self.size, self.size))
        pattern = self.pattern(small)
        if self.attenuation is not None and lowres_attenuation:
            pattern = self.attenuation(small) * pattern
        pattern = resized(pattern, images.shape[-2:])
        if self.attenuation is not None and not lowres_attenuation:
            heat = self.attenuation(images) if torch.is_grad_enabled() else self.attenuation.in_strips(images)
            pattern = heat * pattern
        return Embedded(pattern, to_levels(self.blend(images, pattern)))

    def mark(self, images: Tensor) -> Embedded:
        """Mark images as in training: blended first, the difference attenuated, the pattern returned as it was."""
        pattern = resized(self.pattern(resized(images, (self.size, self.size))), images.shape[-2:])
        marked = self.blend(images, pattern)
        if self.attenuation is not None:
            marked = self.attenuation.attenuate(images, marked)
        return Embedded(pattern, to_levels(marked))

    def detect(self, images: Tensor) -> Tensor:
        """Return (B, outputs) of images of any sides: a logit, then x, y of TL, TR, BR, BL.

        Coordinates are (p − S/2) / (S/2), p in pixels 0 … S − 1 of the S × S frame: where the corner of what is seen
        was in the original.
        """
        found: Tensor = self.detector(resized(images, (self.size, self.size)))
        return found

    def pattern(self, small: Tensor) -> Tensor:
        """Return the pattern (B, 1, S, S) in (−1, 1) of images of the networks' size, float32."""
        drawn: Tensor = self.embedder(self.rgb2yuv.luma(small))
        return drawn.float()

    def blend(self, images: Tensor, pattern: Tensor) -> Tensor:
        """Return ``scaling_i`` · images + ``scaling_w`` · pattern."""
        scaled = images if self.scaling_i == 1 else self.scaling_i * images
        return scaled.add(pattern, alpha=self.scaling_w)

    def forward(self, images: Tensor) -> Tensor:
        """Return `detect`."""
        return self.detect(images)


def resized(images: Tensor, size_hw: Sequence[int]) -> Tensor:
    """Return images (B, C, H, W) resized by antialiased bilinear interpolation; as they are where they fit."""
    if tuple(images.shape[-2:]) == tuple(size_hw):
        return images
    return F.interpolate(images, size=tuple(size_hw), mode="bilinear", align_corners=False, antialias=True)


def to_levels(images: Tensor) -> Tensor:
    """Return images in [0, 1] on levels of 8 bits; the gradient passes the rounding. Takes over its input."""
    if not torch.is_grad_enabled():
        return images.clamp_(0, 1).mul_(255).round_().div_(255)
    clamped = images.clamp(0, 1)
    return clamped + ((clamped * 255).round() / 255 - clamped).detach()


def _attenuation(name: str, border: Border) -> JND | None:
    if name == "none":
        return None
    match = re.fullmatch(r"jnd_([13])_([13])", name)
    if match is None:
        raise ValueError(f"`attenuation` must be jnd_1_1, jnd_3_3, jnd_1_3, jnd_3_1 or none, got {name!r}")
    return JND(int(match[1]), int(match[2]), border)
