"""The perceptual distance as a loss, where AlexNet's weights are on this machine; it is never downloaded."""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

WEIGHTS = "alexnet-owt-7be5be79.pth"


class PerceptualDistance:
    """LPIPS with gradients; no part of the module that holds it, so in no checkpoint of it."""

    def __init__(self) -> None:
        path = Path(torch.hub.get_dir()) / "checkpoints" / WEIGHTS
        if not path.is_file():
            raise ValueError(
                f"model.content.lpips needs AlexNet's weights at {path}: put torchvision's file there, or set it to 0"
            )
        from torchmetrics.image.lpip import LearnedPerceptualImagePatchSimilarity

        self.metric: Any = LearnedPerceptualImagePatchSimilarity(net_type="alex", normalize=True)
        self.metric.requires_grad_(False)

    def __deepcopy__(self, memo: dict[int, Any]) -> "PerceptualDistance":
        """Return itself: it never changes."""
        return self

    def __call__(self, forged: Tensor, drawn: Tensor) -> Tensor:
        """Return the mean distance of pictures (B, 3, H, W) in [0, 1]."""
        metric = self.metric.to(forged.device)
        distance: Tensor = metric(forged.float(), drawn.float())
        metric.reset()
        return distance
