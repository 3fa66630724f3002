"""Prompt-to-prompt: an edited prompt paints while attention stays where the source prompt put it.

The reference keeps what it saved from one pass of the U-Net for the next, on the modules themselves, where a later call
finds it. Here both prompts go through the U-Net side by side, and nothing is kept.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from .alignment import TokenAlignment
from .sampling import NoiseModel

Window = tuple[float, float]


@dataclass(frozen=True)
class EditSettings:
    """How strongly an edited prompt is held to the source. Defaults are the reference's."""

    guidance: float = 7.5
    cross_window: Window = (0.0, 1.0)
    """Noise levels, t/1000 from the clean 0 to the noisy 1, at which attention to aligned tokens is the source's."""
    self_window: Window = (0.0, 1.0)
    """Those at which attention between places is the source's: it carries the layout."""

    def __post_init__(self) -> None:
        for name in ("cross_window", "self_window"):
            low, high = getattr(self, name)
            if low > high:
                raise ValueError(f"`{name}` must be two levels, the lower first, got {[low, high]}")


def edited_attention(
    edited: Tensor, source: Tensor | None, alignment: TokenAlignment | None, weights: Tensor | None
) -> Tensor:
    """Return attention probabilities (N, Q, T) of the edited prompt with the source's put in.

    Args:
        edited: Probabilities under the edited prompt (N, Q, T).
        source: Those under the source prompt; None to keep the edited ones.
        alignment: Which tokens take whose attention; None for all of the source's, as between places.
        weights: A factor for each token (T,), applied last; sums are not 1 any more.
    """
    if source is not None and alignment is None:
        edited = source
    elif source is not None and alignment is not None:
        share = alignment.share.to(edited.dtype)
        edited = edited * (1 - share) + source.index_select(-1, alignment.source) * share
    return edited if weights is None else edited * weights.to(edited.dtype)


@dataclass
class AttentionEdit:
    """What the processors of one U-Net do in the passes that follow.

    A batch holds equal shares: without a prompt, under the source prompt and, where there is one, under the edited.
    """

    alignment: TokenAlignment | None = None
    weights: Tensor | None = None
    shares: int = 3
    cross: bool = True
    """Whether attention to tokens is the source's now."""
    places: bool = True
    """Whether attention between places is."""

    def apply(self, probabilities: Tensor, to_tokens: bool) -> Tensor:
        """Return the probabilities (shares · N, Q, T) of a batch with its last share edited."""
        *before, last = probabilities.chunk(self.shares)
        taken = (self.cross if to_tokens else self.places) and self.shares == 3
        alignment, weights = (self.alignment, self.weights) if to_tokens else (None, None)
        return torch.cat([*before, edited_attention(last, before[-1] if taken else None, alignment, weights)])


class EditingProcessor:
    """Computes one attention layer of a U-Net as an `AttentionEdit` says."""

    def __init__(self, edit: AttentionEdit) -> None:
        self.edit = edit

    def __call__(
        self, attn: Any, hidden_states: Tensor, encoder_hidden_states: Tensor | None = None, **_: Any
    ) -> Tensor:
        """Return the layer's output (B, Q, C) for places (B, Q, C) and, in cross-attention, tokens (B, T, D)."""
        context = hidden_states if encoder_hidden_states is None else encoder_hidden_states
        query, key, value = (
            attn.head_to_batch_dim(layer(states))
            for layer, states in ((attn.to_q, hidden_states), (attn.to_k, context), (attn.to_v, context))
        )
        probabilities = attn.get_attention_scores(query, key)
        probabilities = self.edit.apply(probabilities, to_tokens=encoder_hidden_states is not None)
        output: Tensor = attn.batch_to_head_dim(torch.bmm(probabilities, value))
        for layer in attn.to_out:
            output = layer(output)
        return output


@contextmanager
def editing(unet: nn.Module, edit: AttentionEdit) -> Iterator[None]:
    """Put processors into every attention layer of a U-Net of diffusers, and take them out again."""
    network: Any = unet
    before = network.attn_processors
    if not before:
        raise ValueError(f"{type(unet).__name__} has no attention layers to edit")
    network.set_attn_processor({name: EditingProcessor(edit) for name in before})
    try:
        yield
    finally:
        network.set_attn_processor(before)


def edit_step(
    model: NoiseModel,
    edit: AttentionEdit,
    latents: Tensor,
    timestep: Tensor,
    prompts: tuple[Tensor, ...],
    settings: EditSettings,
) -> Tensor:
    """Return the guided noise (B, C, h, w) under the last of two or three prompts (1 or B, T, D), the empty one first.

    With two prompts there is no edited one: only weights change the source's own attention. To be called inside of
    `editing`.
    """
    count, level = len(latents), float(timestep) / 1000
    edit.shares = len(prompts)
    edit.cross = settings.cross_window[0] <= level <= settings.cross_window[1]
    edit.places = settings.self_window[0] <= level <= settings.self_window[1]
    batch = torch.cat([prompt.expand(count, -1, -1) for prompt in prompts])
    timesteps = timestep.to(latents.device).expand(len(batch))
    empty, *_, last = model(torch.cat([latents] * len(prompts)), timesteps, batch).chunk(len(prompts))
    return empty + settings.guidance * (last - empty)


def edit_latents(
    model: NoiseModel,
    unet: nn.Module,
    sampler: Any,
    noise: Tensor,
    prompts: tuple[Tensor, ...],
    edit: AttentionEdit,
    settings: EditSettings,
) -> Tensor:
    """Return latents (B, C, h, w) sampled under the edited prompt, held to the source.

    Args:
        model: Of the noise, by ``unet``.
        unet: Whose attention is edited.
        sampler: Of `sampling.make_sampler`.
        noise: Standard normal or inverted, (B, C, h, w).
        prompts: The empty one, the source and, where there is one, the edited: (1 or B, T, D) each.
        edit: Alignment and weights.
        settings: Guidance and windows.
    """
    latents: Tensor = noise * sampler.init_noise_sigma
    with editing(unet, edit):
        for timestep in sampler.timesteps:
            taken = sampler.scale_model_input(latents, timestep)
            noise_now = edit_step(model, edit, taken, timestep, prompts, settings)
            latents = sampler.step(noise_now, timestep, latents).prev_sample
    return latents
