"""LPIPS where its weights are on this machine; it is never downloaded."""

from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

BACKBONE = "alexnet-owt-7be5be79.pth"


def lpips_weights() -> Path | None:
    """Return torchvision's AlexNet in torch's cache, None where it is not there."""
    path = Path(torch.hub.get_dir()) / "checkpoints" / BACKBONE
    return path if path.is_file() else None


def lpips(image: Tensor, marked: Tensor, compat: bool = False) -> Tensor:
    """Return the perceptual distance (AlexNet) of each pair of pictures (B,); NaN where the weights are not here.

    Args:
        image: (B, 3, H, W) in [0, 1].
        marked: (B, 3, H, W) in [0, 1].
        compat: Feed [0, 1] where the network wants [-1, 1], as the published evaluation does; its values are lower.
    """
    if lpips_weights() is None:
        return torch.full((len(image),), torch.nan)
    metric = _metric().to(image.device)
    values = []
    for pair in zip(image, marked, strict=True):
        metric.normalize = not compat
        values.append(metric(*(picture[None].float() for picture in pair)).detach().cpu())
        metric.reset()
    return torch.stack(values)


@cache
def _metric() -> Any:
    from torchmetrics.image.lpip import LearnedPerceptualImagePatchSimilarity

    return LearnedPerceptualImagePatchSimilarity(net_type="alex")
