"""The losses of the two players: embedder with detector against the discriminator."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from lightning_modules.functional.geometry import normalise_corners

CornerLoss = Literal["mae", "mse", "smooth_l1", "laplace"]
# Normalised coordinates: at 256 px, errors below 2.6 px are squared.
SMOOTH_BELOW = 0.02
# Of a laplace loss: a logarithm of the scale for each corner, kept from falling without end.
LOG_SCALES = 4
MIN_LOG_SCALE = -6.0


@dataclass(frozen=True)
class LossWeights:
    """What the terms of embedder and detector count; a term of weight 0 is not computed."""

    corners: float = 1.0
    discriminator: float = 0.1
    pixels: float = 0.0
    presence: float = 0.0


@dataclass(frozen=True)
class GeneratorLoss:
    """The loss of embedder and detector, and each term before its weight."""

    total: Tensor
    terms: dict[str, Tensor]


def generator_loss(
    terms: Mapping[str, Tensor], weights: LossWeights, discriminator_factor: float = 1.0
) -> GeneratorLoss:
    """Return the weighted sum of the terms that there are.

    Args:
        terms: By name: ``pixels``, ``discriminator``, ``presence``, ``corners``.
        weights: What each counts.
        discriminator_factor: 0 before the discriminator takes part, 1 after.
    """
    factors = {"discriminator": discriminator_factor}
    parts = [getattr(weights, name) * factors.get(name, 1.0) * value for name, value in terms.items()]
    return GeneratorLoss(torch.stack(parts).sum(), {name: value.detach() for name, value in terms.items()})


def targets_of(quads_px: Tensor, size_hw: tuple[int, ...], size: int) -> Tensor:
    """Return the detector's eight numbers (B, 8) of quads (B, 4, 2) in pixels of pictures of a size."""
    height, width = size_hw
    on_frame = quads_px * quads_px.new_tensor([(size - 1) / (width - 1), (size - 1) / (height - 1)])
    return normalise_corners(on_frame, size)


def corner_loss(predicted: Tensor, target: Tensor, kind: CornerLoss = "mae") -> Tensor:
    """Return the mean difference of normalised corners.

    Args:
        predicted: (B, 8); (B, 12) for ``laplace``, the last four being the logarithms of the corners' scales.
        target: (B, 8).
        kind: ``mae`` or ``mse`` as published, ``smooth_l1``, or the negative log likelihood of ``laplace``.
    """
    corners = predicted[:, :8]
    if kind == "mae":
        return F.l1_loss(corners, target)
    if kind == "mse":
        return F.mse_loss(corners, target)
    if kind == "smooth_l1":
        return F.smooth_l1_loss(corners, target, beta=SMOOTH_BELOW)
    log_scale = predicted[:, 8:].clamp_min(MIN_LOG_SCALE).repeat_interleave(2, dim=1)
    return ((corners - target).abs() * (-log_scale).exp() + log_scale).mean()


def presence_loss(marked: Tensor, unmarked: Tensor | None = None) -> Tensor:
    """Return the binary cross entropy of presence logits; both kinds count the same, whatever their numbers.

    Args:
        marked: Logits of marked images (B,).
        unmarked: Logits of images without a mark (U,). The reference has none, and its logit means nothing.
    """
    found = F.binary_cross_entropy_with_logits(marked, torch.ones_like(marked))
    if unmarked is None or not len(unmarked):
        return found
    return (found + F.binary_cross_entropy_with_logits(unmarked, torch.zeros_like(unmarked))) / 2


def adversarial_loss(logits_marked: Tensor) -> Tensor:
    """Return how little the discriminator takes marked images for originals."""
    return -logits_marked.mean()


def hinge_loss(logits_original: Tensor, logits_marked: Tensor) -> Tensor:
    """Return the discriminator's hinge loss: originals above 1, marked images below -1."""
    return 0.5 * (F.relu(1 - logits_original).mean() + F.relu(1 + logits_marked).mean())
