"""JPEG quality estimation: which quality was a picture last saved with?"""

import copy
from collections.abc import Mapping
from typing import Any, Literal, TypedDict

from torch import Tensor, nn

from lightning_modules.base import ProvenanceModule
from lightning_modules.exporting import ExportProgram
from lightning_modules.functional.pixels import to_unit

from .network import BLOCK, QualityNetwork


class QualityOutputs(TypedDict):
    """What ``validation_step`` and ``test_step`` return, for callbacks to read."""

    index: Tensor
    """Stable position in the data set, int64 (B,)."""
    quality: Tensor
    """Estimated quality, (B,)."""
    true_quality: Tensor
    """The quality that the picture was saved with, (B,)."""


class JpegQualityModule(ProvenanceModule):
    """Estimates the quality by least absolute error.

    Args:
        width: Units of the hidden layer.
        lr: Peak learning rate.
        weight_decay: Decay of weights; AdamW leaves biases out.
        optimizer: Which optimiser.
        schedule: Course of the learning rate, per step.
        warmup_steps: Steps of linear rise.
        min_lr: Where cosine and one_cycle end.
        weights: File to start from.
    """

    def __init__(
        self,
        width: int = 64,
        lr: float = 3e-2,
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
        self.network = QualityNetwork(self.hparams["width"])

    def configure_losses(self) -> None:
        """Build the loss."""
        self.quality_loss = nn.L1Loss()

    def forward(self, image: Tensor) -> Tensor:
        """Return the quality of RGB images (B, 3, H, W) in [0, 1], (B,)."""
        quality: Tensor = self.network(image)
        return quality

    def training_step(self, batch: Mapping[str, Any], batch_idx: int) -> Tensor:
        """Return the loss."""
        loss, _ = self._shared_step(batch)
        self.log("train/loss", loss, prog_bar=True, batch_size=len(batch["image"]))
        return loss

    def validation_step(self, batch: Mapping[str, Any], batch_idx: int) -> QualityOutputs:
        """Log the loss and return what the callbacks read."""
        return self._evaluation_step(batch, "val")

    def test_step(self, batch: Mapping[str, Any], batch_idx: int) -> QualityOutputs:
        """Log the loss and return what the callbacks read."""
        return self._evaluation_step(batch, "test")

    def predict_step(self, batch: Mapping[str, Any], batch_idx: int) -> dict[str, Any]:
        """Return a record for each image; images of any sizes come as a list, in uint8."""
        records = []
        for path, index, image in zip(batch["path"], batch["index"].tolist(), batch["image"], strict=True):
            # A picture without one whole block has no quality to be seen.
            quality = float(self.forward(to_unit(image[None]))) if min(image.shape[-2:]) >= BLOCK else None
            records.append({"path": path, "index": index, "quality": quality})
        return {"records": records, "images": []}

    def export_program(self) -> ExportProgram:
        """Return a copy of the network and the facts that a user of the file needs."""
        return ExportProgram(
            network=copy.deepcopy(self.network).cpu().float().eval().requires_grad_(False),
            output_name="quality",
            # torch.export takes a single block for a size that cannot vary.
            min_side=2 * BLOCK,
            metadata={
                "method": "jpeg_quality",
                "input": "image: float32 (B, 3, H, W), RGB, 0 to 1, sides of 16 or more, as decoded from the file",
                "output": "quality: float32 (B,), 10 to 95",
                "license": "MIT",
            },
        )

    def _shared_step(self, batch: Mapping[str, Any]) -> tuple[Tensor, Tensor]:
        quality = self.forward(batch["image"])
        loss: Tensor = self.quality_loss(quality, batch["quality"])
        return loss, quality

    def _evaluation_step(self, batch: Mapping[str, Any], stage: str) -> QualityOutputs:
        loss, quality = self._shared_step(batch)
        self.log(f"{stage}/loss", loss, prog_bar=True, sync_dist=True, batch_size=len(batch["image"]))
        return {"index": batch["index"], "quality": quality, "true_quality": batch["quality"]}
