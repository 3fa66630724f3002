"""Text under seals: reading the printed lines that a seal lies over."""

from collections.abc import Mapping
from string import ascii_letters, digits, punctuation
from typing import Any, Literal, TypedDict

import torch
from torch import Tensor
from torch.nn import functional as F

from lightning_modules.supervised import SupervisedModule

from .reader_network import BLANK, STEP_PX, ReaderNetwork, decode, encode

# Printable ASCII, and what typesetters put into Latin pages beside it.
ALPHABET = f" {digits}{ascii_letters}{punctuation}–—’‘“”·•№€£©"


class ReadingOutputs(TypedDict):
    """What ``validation_step`` and ``test_step`` return, for callbacks to read."""

    index: Tensor
    """Stable position in the data set, int64 (B,)."""
    read: list[str]
    """What was read."""
    text: list[str]
    """What is printed."""


class SealReaderModule(SupervisedModule):
    """Reads crops of printed lines by connectionist temporal classification, the likeliest letter at each place.

    The paper names the task and says nothing of it; network and loss are ours, and small.

    Args:
        alphabet: Letters that can be read.
        width: Channels of the first layer.
        lr: Peak learning rate.
        weight_decay: Decay of weights; AdamW leaves norms and biases out.
        optimizer: Which optimiser.
        schedule: Course of the learning rate, per step.
        warmup_steps: Steps of linear rise.
        min_lr: Where cosine and one_cycle end.
        weights: File to start from: ours or a checkpoint.
    """

    def __init__(
        self,
        alphabet: str = ALPHABET,
        width: int = 16,
        lr: float = 3e-3,
        weight_decay: float = 1e-2,
        optimizer: Literal["adam", "adamw", "sgd"] = "adamw",
        schedule: Literal["constant", "cosine", "one_cycle"] = "one_cycle",
        warmup_steps: int = 0,
        min_lr: float = 1e-6,
        weights: str | None = None,
    ) -> None:
        super().__init__()
        if not alphabet or len(set(alphabet)) < len(alphabet):
            raise ValueError(f"model.alphabet must name each letter once, got {alphabet!r}")
        self.save_hyperparameters()
        self.build()

    def configure_models(self) -> None:
        """Build the network."""
        self.network = ReaderNetwork(len(self.hparams["alphabet"]), self.hparams["width"])

    def configure_losses(self) -> None:
        """Nothing to hold: the loss is a function."""

    def forward(self, image: Tensor) -> Tensor:
        """Return log probabilities (B, W / 2, letters + 1) of RGB lines (B, 3, 24, W) in [0, 1]."""
        found: Tensor = self.network(image)
        return found

    def _shared_step(self, batch: Mapping[str, Any]) -> tuple[Tensor, Tensor]:
        found = self.forward(batch["image"])
        letters, lengths = encode(batch["text"], self.hparams["alphabet"])
        steps = torch.div(batch["width"].cpu() + STEP_PX - 1, STEP_PX, rounding_mode="floor")
        # A line that is too narrow for its letters has no alignment: its infinite loss counts as none.
        loss = F.ctc_loss(
            found.transpose(0, 1), letters.to(found.device), steps, lengths, blank=BLANK, zero_infinity=True
        )
        return loss, found

    def _outputs(self, batch: Mapping[str, Any], found: Tensor) -> ReadingOutputs:
        read = decode(found, batch["width"], self.hparams["alphabet"])
        return {"index": batch["index"], "read": read, "text": batch["text"]}
