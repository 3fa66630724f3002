"""Pictures from noise under a prompt: the reference's sampler as a short loop over stock schedulers.

Stock pipelines rewrite their scheduler when they are built (`steps_offset` 0 becomes 1, each step of time moves by
one); a loop of our own keeps what it was given.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Literal

import torch
from torch import Tensor

from .backbone import DiffusionBackbone
from .libraries import from_diffusers

NoiseModel = Callable[[Tensor, Tensor, Tensor], Tensor]
"""From latents (B, C, h, w), timesteps (B,), prompts (B, T, D) to the noise in the latents."""
SamplerName = Literal["ddim", "lms"]
_LMS_KEYS = ("num_train_timesteps", "beta_start", "beta_end", "beta_schedule", "trained_betas")


def make_sampler(name: SamplerName, schedule: Mapping[str, Any], steps: int) -> Any:
    """Return a stock scheduler as the reference sets it up, with its ``steps`` timesteps set.

    Args:
        name: ``ddim``, deterministic; or ``lms``, linear multistep of order 4, what the reference edits with.
        schedule: Configuration of the backbone's noise schedule.
        steps: How many steps a picture takes.
    """
    if steps < 1:
        raise ValueError(f"`steps` must be at least 1, got {steps}")
    # Latents have no bounds to be clipped to, and noise models answer with noise whatever their network predicts.
    common = {"prediction_type": "epsilon", "clip_sample": False}
    if name == "ddim":
        sampler = from_diffusers("DDIMScheduler").from_config(schedule, **common)
    elif name == "lms":
        known = {key: schedule[key] for key in _LMS_KEYS if key in schedule}
        sampler = from_diffusers("LMSDiscreteScheduler")(**known)
    else:
        raise ValueError(f"`sampler` must be ddim or lms, got {name!r}")
    sampler.set_timesteps(steps)
    return sampler


def noise_model(backbone: DiffusionBackbone) -> NoiseModel:
    """Return the backbone's noise prediction for timesteps that may lie between whole ones."""

    def predict(latents: Tensor, timesteps: Tensor, prompts: Tensor) -> Tensor:
        # From velocity to noise it takes the level of a whole timestep.
        whole = backbone.prediction == "v_prediction" and timesteps.is_floating_point()
        at = timesteps.round().clamp(0, backbone.steps - 1).long() if whole else timesteps
        return backbone.predict_noise(latents, at, prompts)

    return predict


def guided(
    model: NoiseModel, latents: Tensor, timesteps: Tensor, prompt: Tensor, unconditional: Tensor, guidance: float
) -> Tensor:
    """Return the noise under a prompt, led away from that without one (classifier-free guidance).

    Args:
        model: Of the noise.
        latents: (B, C, h, w).
        timesteps: (B,), or (2, B): of the pass without a prompt and of that with it.
        prompt: (1 or B, T, D).
        unconditional: Of the empty phrase (1 or B, T, D).
        guidance: 1 for none, which takes half the time.
    """
    count = len(latents)
    without, within = timesteps.expand(2, count)
    if guidance == 1:
        return model(latents, within, prompt.expand(count, -1, -1))
    prompts = torch.cat([unconditional.expand(count, -1, -1), prompt.expand(count, -1, -1)])
    empty, named = model(torch.cat([latents, latents]), torch.cat([without, within]), prompts).chunk(2)
    return empty + guidance * (named - empty)


def sample_latents(
    model: NoiseModel, sampler: Any, noise: Tensor, prompt: Tensor, unconditional: Tensor, guidance: float = 7.5
) -> Tensor:
    """Return latents (B, C, h, w) of pictures under a prompt.

    Args:
        model: Of the noise.
        sampler: Of `make_sampler`.
        noise: Standard normal, (B, C, h, w).
        prompt: (1 or B, T, D).
        unconditional: Of the empty phrase (1 or B, T, D).
        guidance: As in `guided`; below 1 it counts as 1, as in the reference.
    """
    latents: Tensor = noise * sampler.init_noise_sigma
    for timestep in sampler.timesteps:
        taken = sampler.scale_model_input(latents, timestep)
        timesteps = timestep.to(latents.device).expand(len(latents))
        predicted = guided(model, taken, timesteps, prompt, unconditional, max(1.0, guidance))
        latents = sampler.step(predicted, timestep, latents).prev_sample
    return latents
