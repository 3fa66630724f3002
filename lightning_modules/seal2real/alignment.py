"""Which tokens of one prompt stand for which of another, and how strongly each token is to be attended to."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from difflib import SequenceMatcher

import torch
from torch import Tensor


@dataclass(frozen=True)
class TokenAlignment:
    """For each token of the edited prompt, the token of the source prompt whose attention it takes."""

    share: Tensor
    """Of the source's attention in the edited one, float32 (T,): 1 for aligned tokens, else 0."""
    source: Tensor
    """Position in the source prompt, int64 (T,); 0 where nothing is aligned."""

    def to(self, device: torch.device) -> TokenAlignment:
        """Return the same on another device."""
        return TokenAlignment(self.share.to(device), self.source.to(device))


def align_tokens(source: Sequence[int], edited: Sequence[int]) -> TokenAlignment:
    """Return the alignment of two padded prompts, as ids of tokens.

    Runs of tokens that are equal, and runs that were replaced by as many, are aligned one to one.
    """
    if len(source) != len(edited):
        raise ValueError(f"two prompts to align must be padded to one length, got {len(source)} and {len(edited)}")
    share, position = torch.zeros(len(edited)), torch.zeros(len(edited), dtype=torch.int64)
    matcher = SequenceMatcher(None, list(source), list(edited))
    for kind, start, stop, new_start, new_stop in matcher.get_opcodes():
        if kind == "equal" or (kind == "replace" and stop - start == new_stop - new_start):
            share[new_start:new_stop] = 1
            position[new_start:new_stop] = torch.arange(start, stop)
    return TokenAlignment(share, position)


def align_in_place(length: int) -> TokenAlignment:
    """Return the alignment of each position with itself: that of learned prompts, which have no words."""
    return TokenAlignment(torch.ones(length), torch.arange(length))


def token_weights(length: int, weights: Iterable[tuple[int, float]]) -> Tensor:
    """Return a factor for each token, float32 (length,): 1, or as listed by position; other positions are ignored."""
    factors = torch.ones(length)
    for position, factor in weights:
        if 0 <= position < length:
            factors[position] = factor
    return factors
