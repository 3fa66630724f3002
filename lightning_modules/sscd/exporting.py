"""The exported form of SSCD: an image in, its descriptor out; or called as the published files are."""

from __future__ import annotations

import copy
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lightning_modules.exporting import ExportProgram
from lightning_modules.functional.normalization import IMAGENET_MEAN, IMAGENET_STD

from .network import DescriptorNetwork

ExportInput = Literal["image", "normalised"]
# Of the code, and of the published weights too.
_LICENSE = "MIT"
_INPUTS: dict[ExportInput, str] = {
    "image": "image: float32 (B, 3, H, W), RGB, 0 to 1; scaled inside",
    "normalised": (
        "image: float32 (B, 3, H, W), RGB, 0 to 1, minus "
        f"{list(IMAGENET_MEAN)}, divided by {list(IMAGENET_STD)}: as the published files take it"
    ),
}
# Below, the deepest features are a single pixel, and torch.export takes one for a size that cannot vary.
_MIN_SIDE = 33


class PublishedNetwork(nn.Module):
    """Maps normalised images to descriptors of length one; its state dict is the published torchvision layout."""

    def __init__(self, backbone: nn.Module) -> None:
        super().__init__()
        self.backbone = backbone

    def forward(self, normalised: Tensor) -> Tensor:
        """Return descriptors (B, D)."""
        return F.normalize(self.backbone(normalised), dim=1, eps=1e-12)


def export_program(
    network: DescriptorNetwork, backbone: str, resize: str, export_input: ExportInput = "image"
) -> ExportProgram:
    """Return a copy of the network and the facts a user of the file needs.

    Args:
        network: What to export.
        backbone: Its trunk's name.
        resize: How images are resized before; it is not in the file.
        export_input: ``image`` takes RGB in [0, 1]; ``normalised`` is called as the published files are, with
            ImageNet's mean and deviation already applied, and has their keys.
    """
    if export_input not in _INPUTS:
        raise ValueError(f"`export_input` must be image or normalised, got {export_input!r}")
    own = copy.deepcopy(network).cpu().float().eval().requires_grad_(False)
    own.to(memory_format=torch.contiguous_format)
    return ExportProgram(
        network=own if export_input == "image" else PublishedNetwork(own.backbone),
        output_name="descriptor",
        min_side=_MIN_SIDE,
        metadata={
            "method": "sscd",
            "backbone": backbone,
            "dims": own.dims,
            "resize": resize,
            "input": f"{_INPUTS[export_input]}; sides of {_MIN_SIDE} or more; resized before as `resize` says",
            "output": f"descriptor: float32 (B, {own.dims}) of length one; the inner product is the similarity",
            "license": _LICENSE,
        },
    )
