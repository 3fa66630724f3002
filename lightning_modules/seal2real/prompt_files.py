"""The file that stage 1 leaves: two prompts that stock pipelines take as ``prompt_embeds``."""

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from safetensors.torch import save_file
from torch import Tensor

from lightning_modules.weights import read_weights

REAL, FAKE = "prompt_real", "prompt_fake"
REAL_TOKENS, FAKE_TOKENS = "tokens_real", "tokens_fake"


@dataclass(frozen=True)
class PromptPair:
    """Two learned prompts, as outputs of the text encoder.

    Args:
        real: Prompt of real pictures, (T, D).
        fake: Prompt of synthetic ones, (T, D).
        metadata: Backbone, phrases and steps they come from; JSON-able.
        tokens: Where they were learned as tokens: the vectors of both, (k, E) each, that textual inversion takes.
    """

    real: Tensor
    fake: Tensor
    metadata: Mapping[str, Any] = field(default_factory=dict)
    tokens: tuple[Tensor, Tensor] | None = None

    def __post_init__(self) -> None:
        """Refuse prompts that are no pair."""
        if self.real.ndim != 2 or self.real.shape != self.fake.shape:
            raise ValueError(
                f"a pair of prompts is two of one shape (T, D), got {(*self.real.shape,)} and {(*self.fake.shape,)}"
            )


def write_prompts(path: str | os.PathLike[str], pair: PromptPair) -> Path:
    """Write a pair of prompts as one safetensors file, whole or not at all; return its path."""
    tensors = {REAL: pair.real, FAKE: pair.fake}
    if pair.tokens is not None:
        tensors |= {REAL_TOKENS: pair.tokens[0], FAKE_TOKENS: pair.tokens[1]}
    file = Path(path)
    file.parent.mkdir(parents=True, exist_ok=True)
    partial = file.with_name(f".{file.name}.{os.getpid()}.partial")
    try:
        plain = {name: value.detach().float().cpu().contiguous().clone() for name, value in tensors.items()}
        save_file(plain, partial, {key: json.dumps(value) for key, value in pair.metadata.items()})
        os.replace(partial, file)
    finally:
        partial.unlink(missing_ok=True)
    return file


def read_prompts(path: str | os.PathLike[str]) -> PromptPair:
    """Return the pair of prompts of a file."""
    if not Path(path).exists():
        raise FileNotFoundError(
            f"no prompts at {path}: train stage 1 (configs/seal2real/prompts.yaml) and give the file that it wrote"
        )
    tensors, metadata = read_weights(path)
    if not holds_prompts(tensors):
        raise ValueError(f"{path} holds no {REAL} and {FAKE}: give the file that stage 1 wrote")
    real, fake = (_without_batch(tensors[name]) for name in (REAL, FAKE))
    tokens = (tensors[REAL_TOKENS], tensors[FAKE_TOKENS]) if REAL_TOKENS in tensors else None
    return PromptPair(real, fake, metadata, tokens)


def holds_prompts(tensors: Mapping[str, Tensor]) -> bool:
    """Return whether these are the tensors of a file of prompts."""
    return REAL in tensors and FAKE in tensors


def _without_batch(prompt: Tensor) -> Tensor:
    return prompt[0] if prompt.ndim == 3 and len(prompt) == 1 else prompt
