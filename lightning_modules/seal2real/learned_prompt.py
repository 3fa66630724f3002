"""A prompt that is learned in place of a phrase."""

from typing import Literal

import torch
from torch import Tensor, nn

from .backbone import DiffusionBackbone

Space = Literal["output", "token"]


class LearnedPrompt(nn.Module):
    """Vectors that start as those of a phrase; all or some of them are free.

    Of outputs, the first is free only where all are, since it is the same for every phrase. Of tokens, the free ones
    stand between start and end, as in textual inversion: what the phrase has beyond them is left out.

    Args:
        backbone: Whose text encoder reads the phrase.
        phrase: Where learning starts.
        num_tokens: How many vectors are free; None for all.
        space: Whether they are outputs of the text encoder, or tokens that it reads.
    """

    tied: Tensor

    def __init__(
        self, backbone: DiffusionBackbone, phrase: str, num_tokens: int | None = None, space: Space = "output"
    ) -> None:
        super().__init__()
        self.space = space
        vectors = (backbone.embed if space == "output" else backbone.token_vectors)([phrase])[0]
        length = len(vectors)
        most = length if space == "output" else length - 2
        count = most if num_tokens is None else num_tokens
        if not 1 <= count <= most:
            raise ValueError(f"model.num_tokens must be from 1 to {most} for {space} vectors here, got {num_tokens}")
        self.start = 0 if count == length else 1
        self.values = nn.Parameter(vectors[self.start : self.start + count].clone())
        # Not saved: phrase and backbone give it again.
        tied = vectors if space == "output" else backbone.token_vectors([""])[0]
        self.register_buffer("tied", tied, persistent=False)

    def forward(self, backbone: DiffusionBackbone) -> Tensor:
        """Return the prompt as outputs of the text encoder, (1, T, D)."""
        count = len(self.values)
        if self.space == "output":
            rest = self.tied[self.start + count :]
            return torch.cat([self.tied[: self.start], self.values, rest])[None]
        # Start, the free ones, end, and as much padding as there is room for.
        vectors = torch.cat([self.tied[:1], self.values, self.tied[1 : len(self.tied) - count]])
        return backbone.embed_vectors(vectors[None])

    @torch.no_grad()
    def start_from(self, prompt: Tensor, tokens: Tensor | None) -> None:
        """Go on from a prompt of a file (T, D), and from its tokens (k, E) where those are learned."""
        given = tokens if self.space == "token" else prompt
        if given is None:
            raise ValueError("the file of prompts has no tokens: it was learned with model.space output")
        wanted = self.values.shape if self.space == "token" else self.tied.shape
        if given.shape != wanted:
            raise ValueError(
                f"the file's prompts are {(*given.shape,)}, the model's {(*wanted,)}: use the backbone and the "
                f"num_tokens that they were learned with"
            )
        if self.space == "output":
            self.tied.copy_(prompt)
            given = prompt[self.start : self.start + len(self.values)]
        self.values.copy_(given)
