"""Losses of the forger: what pulls its pictures towards the real prior, and what holds them to what was drawn."""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

PriorKind = Literal["full", "sds", "dds", "vsd"]
NoiseWeight = Literal["one_minus_alpha", "sqrt", "uniform"]
TERMS = ("pixel", "outside", "low_pass", "edge", "lpips", "variation")
_EPSILON = 1e-8


@dataclass(frozen=True)
class PriorSettings:
    """How the real prior pulls."""

    kind: PriorKind = "dds"
    """``full``: the denoising error under the real prompt, with its gradient through the U-Net. ``sds``: without the
    U-Net's Jacobian. ``dds``: the noise seen under the real prompt less that under the fake one. ``vsd``: less that of
    an adapter of the same U-Net, with a prompt of its own, that learns the forger's pictures meanwhile."""
    weight: float = 1.0
    """Of the prior, against the content."""
    normalise: bool = True
    """Divide each picture's gradient on its latents by its mean size, so that ``weight`` means the same for all."""
    noise_weight: NoiseWeight = "one_minus_alpha"
    """Weight of a noise level: 1 - alpha_bar, its root, or 1. ``full`` takes 1 always."""
    t_range: tuple[int, int] = (20, 980)
    """Noise levels drawn, the second excluded."""
    around_seal: bool = True
    """Whether only latents under the allowed mask count."""
    lora_rank: int = 4
    """Of the adapter of ``vsd``."""
    lora_lr: float = 1e-4
    """Learning rate of the adapter and its prompt."""

    def __post_init__(self) -> None:
        low, high = self.t_range
        if not 0 <= low < high:
            raise ValueError(f"model.prior.t_range must be two rising numbers from 0 on, got {list(self.t_range)}")
        if self.weight < 0:
            raise ValueError(f"model.prior.weight must not be negative, got {self.weight}")
        if self.kind == "vsd" and self.weight == 0:
            raise ValueError("model.prior.weight must be above 0 for vsd: its branch learns from the same pass")
        if self.lora_rank < 1:
            raise ValueError(f"model.prior.lora_rank must be at least 1, got {self.lora_rank}")


@dataclass(frozen=True)
class ContentSettings:
    """What holds a forged picture to the drawn one: the weight of each term, 0 to leave it out."""

    pixel: float = 1.0
    """L1 over the whole picture."""
    outside: float = 0.0
    """L1 off the ink."""
    low_pass: float = 0.0
    """L1 of means over squares, on the ink."""
    low_pass_side: int = 4
    """Side of these squares in pixels."""
    edge: float = 0.0
    """L1 where the drawn picture has edges, on the ink."""
    lpips: float = 0.0
    """Perceptual distance by AlexNet, where its weights are on this machine."""
    variation: float = 0.0
    """Total variation of the change."""

    def __post_init__(self) -> None:
        for name in TERMS:
            if getattr(self, name) < 0:
                raise ValueError(f"model.content.{name} must not be negative, got {getattr(self, name)}")
        if self.low_pass_side < 1:
            raise ValueError(f"model.content.low_pass_side must be at least 1, got {self.low_pass_side}")

    @property
    def held(self) -> bool:
        """Whether any term counts."""
        return any(getattr(self, name) > 0 for name in TERMS)


def denoising_error(predicted: Tensor, noise: Tensor, where: Tensor | None = None) -> Tensor:
    """Return the mean squared error (B,) of predicted noise (B, C, h, w), over ``where`` (B, 1, h, w) if given."""
    squares = (predicted - noise).square()
    return squares.flatten(1).mean(1) if where is None else masked_mean(squares, where)


def noise_weight(alphas_cumprod: Tensor, timesteps: Tensor, kind: NoiseWeight) -> Tensor:
    """Return the weight (B,) of noise levels."""
    variance = 1 - alphas_cumprod.to(timesteps.device)[timesteps].float()
    if kind == "uniform":
        return torch.ones_like(variance)
    return variance if kind == "one_minus_alpha" else variance.sqrt()


def distillation_gradient(real: Tensor, other: Tensor, weight: Tensor, where: Tensor | None = None) -> Tensor:
    """Return the direction on latents, (B, C, h, w): weighted difference of two predictions, 0 off ``where``."""
    gradient = weight.view(-1, 1, 1, 1) * (real - other)
    return gradient if where is None else gradient * where


def normalised(gradient: Tensor, where: Tensor | None = None) -> Tensor:
    """Return gradients (B, C, h, w) whose mean absolute value over ``where`` is 1 for each picture."""
    size = gradient.abs()
    mean = size.flatten(1).mean(1) if where is None else masked_mean(size, where)
    return gradient / mean.clamp_min(_EPSILON).view(-1, 1, 1, 1)


def carry(latents: Tensor, gradient: Tensor, value: Tensor, where: Tensor | None = None) -> Tensor:
    """Return a loss of a given value whose gradient on latents is the given one, over the number of latents that count.

    Args:
        latents: (B, C, h, w), with their graph.
        gradient: What is to reach them, (B, C, h, w).
        value: What the loss shows, (B,).
        where: Latents that count, (B, 1, h, w).
    """
    pull = (latents - latents.detach()) * gradient.detach()
    counted = pull[0].numel() if where is None else _count(where, pull.shape[1])
    return (value.detach() + pull.flatten(1).sum(1) / counted).mean()


def latent_mask(mask: Tensor, side: int) -> Tensor:
    """Return which latents see a mask (B, 1, H, W): float (B, 1, H / side, W / side) of 0 and 1."""
    return F.max_pool2d(mask.float(), side)


def masked_mean(values: Tensor, where: Tensor) -> Tensor:
    """Return the mean (B,) of (B, C, H, W) over ``where`` (B, 1, H, W); 0 where that is empty."""
    return (values * where).flatten(1).sum(1) / _count(where, values.shape[1])


def pixel_l1(forged: Tensor, drawn: Tensor) -> Tensor:
    """Return the mean absolute difference."""
    return (forged - drawn).abs().mean()


def low_pass_l1(forged: Tensor, drawn: Tensor, ink: Tensor, side: int) -> Tensor:
    """Return the mean absolute difference of means over squares that hold ink."""
    change = F.avg_pool2d(forged - drawn, side, ceil_mode=True)
    return masked_mean(change.abs(), F.max_pool2d(ink.float(), side, ceil_mode=True)).mean()


def edge_l1(forged: Tensor, drawn: Tensor, ink: Tensor) -> Tensor:
    """Return the mean absolute difference on ink, weighted by the drawn picture's steps to its neighbours."""
    gray = drawn.mean(1, keepdim=True)
    steps = F.pad((gray[..., :, 1:] - gray[..., :, :-1]).abs(), (0, 1)) + F.pad(
        (gray[..., 1:, :] - gray[..., :-1, :]).abs(), (0, 0, 0, 1)
    )
    return masked_mean((forged - drawn).abs() * steps, ink.float()).mean()


def total_variation(change: Tensor) -> Tensor:
    """Return the mean absolute step between neighbours of (B, C, H, W)."""
    across = (change[..., :, 1:] - change[..., :, :-1]).abs().mean()
    return across + (change[..., 1:, :] - change[..., :-1, :]).abs().mean()


def content_terms(forged: Tensor, drawn: Tensor, ink: Tensor, settings: ContentSettings) -> dict[str, Tensor]:
    """Return the weighted terms that are asked for, by name; all but LPIPS, which is a network's.

    Args:
        forged: (B, 3, H, W) in [0, 1].
        drawn: The forger's input, alike.
        ink: (B, 1, H, W), bool.
        settings: Weights.
    """
    terms: dict[str, Tensor] = {}
    if settings.pixel:
        terms["pixel"] = settings.pixel * pixel_l1(forged, drawn)
    if settings.outside:
        terms["outside"] = settings.outside * masked_mean((forged - drawn).abs(), (ink == 0).float()).mean()
    if settings.low_pass:
        terms["low_pass"] = settings.low_pass * low_pass_l1(forged, drawn, ink, settings.low_pass_side)
    if settings.edge:
        terms["edge"] = settings.edge * edge_l1(forged, drawn, ink)
    if settings.variation:
        terms["variation"] = settings.variation * total_variation(forged - drawn)
    return terms


def _count(where: Tensor, channels: int) -> Tensor:
    return (where.flatten(1).sum(1) * channels).clamp_min(1)
