"""From a picture's latent back to the noise that sampling makes it of: DDIM inversion, corrected where it errs."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from .sampling import NoiseModel, guided

NoiseAt = Callable[[Tensor, Tensor], Tensor]
"""From latents (B, C, h, w) and a timestep to the noise in them."""

_LOOK_BACK = 0.25  # of a step


@dataclass(frozen=True)
class InversionSettings:
    """How the steps of an inversion are corrected. Numbers are the reference's."""

    refine_iterations: int = 3
    """Corrections of a step at most; 0 for plain DDIM inversion."""
    refine_strength: float = 0.9
    """Share of an error that a correction takes back, and what that is multiplied by where corrections shrink."""
    refine_skip: float = 0.7
    """Share of the steps, from the clean end, that are not corrected."""
    stop_below: float = 5.0
    """Error, summed over a latent, that is not worth a correction."""
    rule: Literal["sampling", "reference"] = "sampling"
    """Where a correction asks for the noise, and when corrections shrink. ``sampling``: where the way back will ask for
    it, so that corrections converge to its inverse, and after one that did not help. ``reference``: at the cleaner
    end of the step, without a prompt a quarter of a step before it, and each time: its test for help always fails."""

    def __post_init__(self) -> None:
        if self.refine_iterations < 0:
            raise ValueError(f"`refine_iterations` must not be negative, got {self.refine_iterations}")
        if not 0 <= self.refine_skip <= 1:
            raise ValueError(f"`refine_skip` must be from 0 to 1, got {self.refine_skip}")
        if self.rule not in ("sampling", "reference"):
            raise ValueError(f"`rule` must be sampling or reference, got {self.rule!r}")


def time_grid(steps: int, levels: int = 1000) -> list[int]:
    """Return the ``steps + 1`` timesteps of an inversion, from clean to noisy."""
    if not 1 <= steps < levels:
        raise ValueError(f"`steps` must be from 1 to {levels - 1}, got {steps}")
    return [int(time) for time in np.linspace(0, levels - 1, steps + 1)]


def move(latents: Tensor, noise: Tensor, kept: Tensor, wanted: Tensor) -> Tensor:
    """Return latents taken from one noise level to another along the noise in them (DDIM, no randomness).

    Args:
        latents: (B, C, h, w).
        noise: In them.
        kept: Share of the signal's power in them: the schedule's cumulative product of alphas.
        wanted: That in the answer.
    """
    clean = (latents - (1 - kept).sqrt() * noise) / kept.sqrt()
    return wanted.sqrt() * clean + (1 - wanted).sqrt() * noise


def invert_latents(
    model: NoiseModel,
    kept: Tensor,
    latents: Tensor,
    prompts: tuple[Tensor, Tensor],
    steps: int = 50,
    guidance: float = 3.0,
    settings: InversionSettings | None = None,
) -> Tensor:
    """Return the noisy latents (B, C, h, w) from which `walk_back` comes to ``latents``.

    Args:
        model: Of the noise.
        kept: The schedule's cumulative product of alphas (T,).
        latents: Clean ones (B, C, h, w).
        prompts: The empty one and that which describes the picture, (1 or B, T, D) each.
        steps: Of the walk.
        guidance: As in `sampling.guided`.
        settings: Of the corrections.
    """
    settings = settings or InversionSettings()
    empty, prompt = prompts
    grid = time_grid(steps, len(kept))
    for step, (time, later) in enumerate(itertools.pairwise(grid)):
        # A later step starts from what this one answers: an error here is carried to the end.
        now = torch.full((len(latents),), float(time), device=latents.device)
        noise = guided(model, latents, now, prompt, empty, guidance)
        found = move(latents, noise, kept[time], kept[later])
        if step >= int(steps * settings.refine_skip):
            times = asked_times(time, later, settings).to(latents.device)[:, None]

            def back(candidate: Tensor, times: Tensor = times, time: int = time, later: int = later) -> Tensor:
                predicted = guided(model, candidate, times.expand(2, len(candidate)), prompt, empty, guidance)
                return move(candidate, predicted, kept[later], kept[time])

            found = refine(latents, found, back, settings)
        latents = found
    return latents


def asked_times(time: int, later: int, settings: InversionSettings) -> Tensor:
    """Return when a correction of the step asks for the noise: without a prompt, and with it."""
    if settings.rule == "sampling":
        return torch.tensor([float(later), float(later)])
    return torch.tensor([time - _LOOK_BACK * (later - time), float(time)])


def refine(wanted: Tensor, candidate: Tensor, back: Callable[[Tensor], Tensor], settings: InversionSettings) -> Tensor:
    """Return, of each sample, the candidate that a step back takes nearest to what is wanted.

    Args:
        wanted: Where a step back should lead (B, C, h, w).
        candidate: To start from.
        back: A step back.
        settings: How often, how far and how long candidates are corrected.
    """
    best, least = candidate, wanted.new_full((len(wanted),), torch.inf)
    strength = wanted.new_full((len(wanted),), settings.refine_strength)
    for _ in range(settings.refine_iterations):
        error = wanted - back(candidate)
        distance = error.abs().flatten(1).sum(1)
        better = distance < least
        best, least = torch.where(_each(better), candidate, best), torch.where(better, distance, least)
        open_ = distance >= settings.stop_below
        if not open_.any():
            break
        failed = ~better if settings.rule == "sampling" else torch.ones_like(better)
        strength = torch.where(failed, strength * settings.refine_strength, strength)
        candidate = candidate + error * _each(strength * open_)
    return best


def walk_back(noise_at: NoiseAt, kept: Tensor, latents: Tensor, steps: int = 50) -> Tensor:
    """Return clean latents (B, C, h, w) of noisy ones, by the steps that `invert_latents` took.

    Args:
        noise_at: The noise to take out, such as guided or edited predictions.
        kept: The schedule's cumulative product of alphas (T,).
        latents: Noisy ones (B, C, h, w).
        steps: Of the walk.
    """
    grid = time_grid(steps, len(kept))[::-1]
    for time, earlier in itertools.pairwise(grid):
        noise = noise_at(latents, torch.tensor(float(time), device=latents.device))
        latents = move(latents, noise, kept[time], kept[earlier])
    return latents


def _each(values: Tensor) -> Tensor:
    """Return a value a sample (B,) as (B, 1, 1, 1)."""
    return values.reshape(-1, 1, 1, 1)
