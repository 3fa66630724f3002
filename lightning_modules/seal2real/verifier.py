"""Authenticity: was a questioned impression made by the seal of a specimen, or by a re-cut one?"""

from collections.abc import Mapping
from typing import Any, Literal, TypedDict

from torch import Tensor
from torch.nn import functional as F

from lightning_modules.supervised import SupervisedModule

from .verifier_network import VerifierNetwork


class VerificationOutputs(TypedDict):
    """What ``validation_step`` and ``test_step`` return, for callbacks to read."""

    index: Tensor
    """Stable position in the data set, int64 (B,)."""
    logit: Tensor
    """High where both impressions are called those of one seal, (B,)."""
    authentic: Tensor
    """Whether they are, bool (B,)."""
    kind: list[str]
    """Outline of the seal."""


class SealVerifierModule(SupervisedModule):
    """Verifies pairs: the crop of a questioned seal on its page and a specimen of a seal, its clean ink.

    The paper names the task and says nothing of it; pairs, network and loss are ours.

    Args:
        width: Channels of the first layer.
        reach: Displacements that are compared, in cells of four pixels, to each side.
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
        width: int = 16,
        reach: int = 2,
        lr: float = 3e-3,
        weight_decay: float = 1e-2,
        optimizer: Literal["adam", "adamw", "sgd"] = "adamw",
        schedule: Literal["constant", "cosine", "one_cycle"] = "one_cycle",
        warmup_steps: int = 0,
        min_lr: float = 1e-6,
        weights: str | None = None,
    ) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.build()

    def configure_models(self) -> None:
        """Build the network."""
        self.network = VerifierNetwork(self.hparams["width"], self.hparams["reach"])

    def configure_losses(self) -> None:
        """Nothing to hold: the loss is a function."""

    def forward(self, image: Tensor, reference: Tensor) -> Tensor:
        """Return the logit of "one seal" (B,) of images (B, 3, H, W) and specimens (B, 1, H, W) in [0, 1]."""
        logit: Tensor = self.network(image, reference)
        return logit

    def _shared_step(self, batch: Mapping[str, Any]) -> tuple[Tensor, Tensor]:
        logit = self.forward(batch["image"], batch["reference"])
        return F.binary_cross_entropy_with_logits(logit, batch["authentic"].to(logit.dtype)), logit

    def _outputs(self, batch: Mapping[str, Any], found: Tensor) -> VerificationOutputs:
        return {
            "index": batch["index"],
            "logit": found.float(),
            "authentic": batch["authentic"].bool(),
            "kind": batch["kind"],
        }
