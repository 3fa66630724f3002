"""The exported form of watermark segmentation: an image in, the probability of a mark in each pixel out."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from lightning_modules.exporting import ExportProgram

if TYPE_CHECKING:
    from .module import WatermarkSegmentationModule
    from .network import WatermarkNetwork

# Of the network's own code and of weights trained on drawn images. Mix-Transformer encoders are not free to use.
_LICENSE = "MIT"
_MIT_ENCODER_LICENSE = "MIT for the head; NVIDIA Source Code License (non-commercial) for the Mix-Transformer encoder"


class ProbabilityNetwork(nn.Module):
    """Maps RGB images in [0, 1] to mark probabilities (B, 1, H, W)."""

    def __init__(self, network: WatermarkNetwork) -> None:
        super().__init__()
        self.network = network
        self.stride = int(network.stride)

    def forward(self, image: Tensor) -> Tensor:
        """Return the probability of a mark in each pixel."""
        height, width = image.shape[-2], image.shape[-1]
        padded = _first(_first(image, 2, self._padded(height)), 3, self._padded(width))
        logits: Tensor = self.network(padded)
        return _first(_first(logits, 2, height), 3, width).sigmoid()

    def _padded(self, length: int) -> int:
        return (length + self.stride - 1) // self.stride * self.stride


def _first(image: Tensor, dim: int, count: int) -> Tensor:
    """Return the first `count` rows or columns, the last one repeated where there are fewer.

    The network pads its input likewise. But torch.export takes a padding of nothing, or a slice of everything, for
    other code than a padding of something, and then refuses all sizes but those like its example. An index is the
    same code for all.
    """
    index = torch.arange(count, device=image.device).clamp(max=image.shape[dim] - 1)
    return image.index_select(dim, index)


def export_program(module: WatermarkSegmentationModule) -> ExportProgram:
    """Return a copy of the module's network with its activation, and the facts a user of the file needs."""
    network = copy.deepcopy(module.network).cpu().float().eval().to(memory_format=torch.contiguous_format)
    encoder = str(module.hparams["encoder"])
    return ExportProgram(
        network=ProbabilityNetwork(network).requires_grad_(False),
        # Below, the deepest features are a single pixel, and torch.export takes one for a size that cannot vary.
        min_side=network.stride + 1,
        metadata={
            "method": "watermark_segmentation",
            "architecture": str(module.hparams["architecture"]),
            "encoder": encoder,
            "classes": ["watermark"],
            "threshold": float(module.threshold),
            "input": f"image: float32 (B, 3, H, W), RGB, 0 to 1, sides of {network.stride + 1} or more; scaled inside",
            "output": "probability: float32 (B, 1, H, W); a pixel above the threshold is mark",
            "license": _MIT_ENCODER_LICENSE if encoder.startswith("mit_") else _LICENSE,
        },
    )
