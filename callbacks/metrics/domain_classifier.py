"""A small network that is told two domains of pictures apart: trained on some, asked about the others."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

Crops = NDArray[np.uint8]
"""Pictures (N, 3, S, S) of one size."""
Floats = NDArray[np.float64]
SMALLEST = 16
FINE_GAIN = 16.0


@dataclass(frozen=True)
class JudgeSettings:
    """How judges are trained.

    Args:
        steps: Optimiser steps of each.
        batch_size: Pictures a step, half of them of each domain.
        lr: Peak learning rate.
        width: Channels of the first layer; a picture is described by four times as many features.
        folds: Parts of the data; each is judged by a network that was trained on the others.
        seed: Of weights, order and parts.
    """

    steps: int = 200
    batch_size: int = 32
    lr: float = 3e-3
    width: int = 12
    folds: int = 2
    seed: int = 0

    def __post_init__(self) -> None:
        least = {"steps": 1, "batch_size": 2, "width": 1, "folds": 2, "seed": 0}
        for name, bound in least.items():
            if getattr(self, name) < bound:
                raise ValueError(f"`{name}` of JudgeSettings must be at least {bound}, got {getattr(self, name)}")


class DomainClassifier(nn.Module):
    """Three strided convolutions, pooled to means and deviations: texture and tone, not layout.

    They see the picture and, enlarged, what is left of it without its surroundings: grain of a few levels is a cue that
    a short training would not find otherwise.

    Args:
        width: Channels of the first layer.
    """

    def __init__(self, width: int = 12) -> None:
        super().__init__()
        widths = (6, width, 2 * width, 2 * width)
        self.layers = nn.Sequential(
            *(
                nn.Sequential(
                    nn.Conv2d(before, after, 5 if place == 0 else 3, stride=2, padding=1),
                    nn.BatchNorm2d(after),
                    nn.SiLU(),
                )
                for place, (before, after) in enumerate(pairwise(widths))
            )
        )
        self.head = nn.Linear(4 * width, 1)

    def features(self, image: Tensor) -> Tensor:
        """Return (B, 4 width) of RGB pictures (B, 3, H, W) in [0, 1] of 16 pixels and more."""
        fine = image - F.avg_pool2d(F.pad(image, (1, 1, 1, 1), mode="replicate"), 3, stride=1)
        maps = self.layers(torch.cat([image * 4 - 2, fine * FINE_GAIN], 1))
        return torch.cat([maps.mean((2, 3)), maps.std((2, 3))], 1)

    def forward(self, image: Tensor) -> Tensor:
        """Return the logit of the domain that was called true, (B,)."""
        logit: Tensor = self.head(self.features(image)).squeeze(1)
        return logit


def folds_of(groups: Sequence[str], folds: int, seed: int = 0) -> NDArray[np.int64]:
    """Deal groups to parts of nearly equal size, (N,); pictures of one group are in one part.

    Args:
        groups: What each picture belongs to.
        folds: Number of parts.
        seed: Of the dealing.
    """
    names, group_of = np.unique(np.asarray(groups, dtype=np.str_), return_inverse=True)
    if len(names) < folds:
        raise ValueError(f"{len(names)} different pictures cannot be dealt to {folds} parts: evaluate more samples")
    order = np.random.default_rng(seed).permutation(len(names))
    place = np.empty(len(names), dtype=np.int64)
    place[order] = np.arange(len(names)) % folds
    return place[group_of]


def train_judge(positive: Crops, negative: Crops, settings: JudgeSettings, device: torch.device) -> DomainClassifier:
    """Train a network to say which pictures are of the first set.

    Args:
        positive: The set whose logit is high.
        negative: The other one.
        settings: How.
        device: Where.
    """
    if min(len(positive), len(negative)) == 0 or min(positive.shape[-2:]) < SMALLEST:
        raise ValueError(
            f"a domain classifier needs pictures of both domains of {SMALLEST} px and more, "
            f"got {len(positive)} and {len(negative)} of {positive.shape[-1]} px"
        )
    # Callbacks run in inference mode, and the run's own random stream must not notice.
    with torch.inference_mode(False), torch.enable_grad(), torch.random.fork_rng(_indices(device)):
        torch.manual_seed(settings.seed)
        judge = DomainClassifier(settings.width).to(device)
        optimizer = torch.optim.AdamW(judge.parameters(), lr=settings.lr, weight_decay=1e-2)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, settings.lr, total_steps=settings.steps + 1)
        rng = np.random.default_rng([settings.seed, 1])
        half = settings.batch_size // 2
        target = torch.cat([torch.ones(half), torch.zeros(half)]).to(device)
        for _ in range(settings.steps):
            picked = np.concatenate([part[rng.integers(len(part), size=half)] for part in (positive, negative)])
            logit = judge(_mirrored(_unit(picked, device), rng))
            optimizer.zero_grad()
            loss = F.binary_cross_entropy_with_logits(logit, target)
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            schedule.step()
    return judge.eval()


def describe(judge: DomainClassifier, crops: Crops, device: torch.device) -> tuple[Floats, Floats]:
    """Return logits (N,) and features (N, F) of pictures."""
    logits, features = [], []
    with torch.no_grad():
        for start in range(0, len(crops), 64):
            found = judge.features(_unit(crops[start : start + 64], device))
            features.append(found.double().cpu().numpy())
            logits.append(judge.head(found).squeeze(1).double().cpu().numpy())
    if not features:
        return np.zeros(0), np.zeros((0, judge.head.in_features))
    return np.concatenate(logits), np.concatenate(features)


def _unit(crops: Crops, device: torch.device) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(crops)).to(device).float() / 255


def _mirrored(images: Tensor, rng: np.random.Generator) -> Tensor:
    for axis in (2, 3):
        if rng.random() < 0.5:
            images = images.flip(axis)
    return images


def _indices(device: torch.device) -> list[int]:
    return [device.index or 0] if device.type == "cuda" else []
