"""Which of two prompts explains a picture better: zero-shot classification by denoising."""

from collections.abc import Sequence

import torch
from torch import Tensor

from .backbone import DiffusionBackbone, denoising_errors


def prior_errors(
    backbone: DiffusionBackbone,
    latents: Tensor,
    prompts: Tensor,
    draws: int = 4,
    generator: torch.Generator | None = None,
    t_range: tuple[int, int] = (20, 980),
) -> Tensor:
    """Return the mean denoising error (P, B) of latents (B, C, h, w) under prompts (P, T, D).

    All prompts and pictures see the same draws: differences between prompts are some percent of the errors.

    Args:
        backbone: Whose U-Net predicts.
        latents: Of the pictures, scaled.
        prompts: Text-encoder outputs.
        draws: Number of pairs of timestep and noise; timesteps are spread evenly over the range.
        generator: Of the draws.
        t_range: First timestep and the one after the last.
    """
    low, high = t_range
    place = latents.device if generator is None else generator.device
    shares = (torch.arange(draws, device=place) + torch.rand(draws, generator=generator, device=place)) / draws
    timesteps = (low + shares * (high - low)).long().clamp(max=high - 1).to(latents.device)
    noises = torch.randn((draws, 1, *latents.shape[1:]), generator=generator, device=place).to(latents.device)
    total = latents.new_zeros(len(prompts), len(latents), dtype=torch.float32)
    for timestep, noise in zip(timesteps, noises, strict=True):
        steps, shared = timestep.expand(len(latents)), noise.expand_as(latents)
        for row, prompt in zip(total, prompts, strict=True):
            row += denoising_errors(backbone, latents, shared, steps, prompt[None])
    return total / draws


@torch.no_grad()
def classify(
    backbone: DiffusionBackbone,
    images: Tensor,
    prompts: tuple[Tensor, Tensor] | Sequence[Tensor] | Tensor,
    draws: int = 4,
    generator: torch.Generator | None = None,
    t_range: tuple[int, int] = (20, 980),
) -> Tensor:
    """Return how much more real than fake images (B, 3, H, W) in [0, 1] look, (B,).

    That is the denoising error under the fake prompt less the one under the real prompt.

    Args:
        backbone: Whose networks are asked.
        images: The pictures.
        prompts: Real and fake, (T, D) each.
        draws: Number of pairs of timestep and noise, shared by both prompts.
        generator: Of the draws.
        t_range: First timestep and the one after the last.
    """
    pair = torch.stack(list(prompts))
    errors = prior_errors(backbone, backbone.encode(images), pair, draws, generator, t_range)
    return errors[1] - errors[0]
