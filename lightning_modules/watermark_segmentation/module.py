"""Watermark segmentation: which pixels of a picture belong to a visible mark."""

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, TypedDict

import torch
from torch import Tensor

from lightning_modules.exporting import ExportProgram
from lightning_modules.supervised import SupervisedModule
from lightning_modules.weights import usable

from .exporting import export_program
from .inference import InferenceSettings, predict_batch
from .losses import MEANS_OVER_IMAGES, LossName, SegmentationLoss, masked_l1_loss
from .network import WatermarkNetwork

DEFAULT_THRESHOLD = 0.5
SHIPPED_WEIGHTS = Path(__file__).parents[2] / "experiments/watermark_segmentation/weights/sealmark_small.safetensors"


class SegmentationOutputs(TypedDict):
    """What ``validation_step`` and ``test_step`` return, for callbacks to read."""

    index: Tensor
    """Stable position in the data set, int64 (B,)."""
    probability: Tensor
    """Probability of a mark, (B, 1, H, W)."""
    mask: Tensor
    """Truth in {0, 1}, (B, 1, H, W)."""
    ignore: Tensor
    """True where a pixel does not count, bool (B, 1, H, W)."""
    family: list[str]
    """Kind of mark, or ``clean``."""
    opacity: Tensor
    """Mean opacity of the marks, nan for clean images, (B,)."""
    image: Tensor
    """The input in [0, 1], (B, 3, H, W)."""


class WatermarkSegmentationModule(SupervisedModule):
    """Segments visible marks; without heads it is the reference's network and loads its released file.

    Defaults are ours. The reference: ``encoder=mit_b5``, ``encoder_weights=imagenet``, ``loss=dice``, ``lr=2e-4``,
    ``optimizer=adam``, ``schedule=cosine``, ``min_lr=1e-5``. Encoders named ``mit_*`` are for non-commercial use.

    Args:
        architecture: Any architecture of smp.
        encoder: Any encoder of smp, or ``tu-`` and the name of a timm model.
        encoder_weights: Start of the encoder; ignored where ``weights`` are given.
        encoder_depth: Number of encoder stages; the architecture's own where null.
        decoder_channels: Channels of the decoder's blocks; the architecture's own where null.
        decoder_norm: Norm of the decoder's blocks; the architecture's own where null. Batch norm sees the samples of
            one process: choose another where batches are tiny, or synchronise it on GPUs.
        alpha_head: Also predict the opacity of the mark.
        color_head: Also predict the colour of the mark.
        loss: Terms on the mask; see ``losses.py``.
        alpha_weight: Weight of the L1 on opacity, taken on the mask.
        color_weight: Weight of the L1 on colour, weighted by opacity.
        lr: Peak learning rate.
        weight_decay: Decay of weights; AdamW leaves norms and biases out.
        optimizer: Which optimiser.
        schedule: Course of the learning rate, per step.
        warmup_steps: Steps of linear rise.
        min_lr: Where cosine and one_cycle end.
        ema_decay: Decay of the exponential moving average of the weights that is validated and saved; 0 for none.
        threshold: Pixels above it are mark. Null takes the calibrated one of the weights or checkpoint, else 0.5.
        channels_last: Memory layout of the network.
        weights: File to start from: ours, a checkpoint, or the reference's released file; ``shipped`` takes the weights
            that come with this repository.
        inference: How an image becomes a mask in predict.
    """

    def __init__(
        self,
        architecture: str = "Unet",
        encoder: str = "tu-resnet10t",
        encoder_weights: Literal["imagenet"] | None = None,
        encoder_depth: int | None = None,
        decoder_channels: list[int] | None = None,
        decoder_norm: Literal["batchnorm", "layernorm", "instancenorm", "identity"] | None = None,
        alpha_head: bool = False,
        color_head: bool = False,
        loss: LossName = "bce_image_dice",
        alpha_weight: float = 1.0,
        color_weight: float = 1.0,
        lr: float = 1e-3,
        weight_decay: float = 1e-2,
        optimizer: Literal["adam", "adamw", "sgd"] = "adamw",
        schedule: Literal["constant", "cosine", "one_cycle"] = "one_cycle",
        warmup_steps: int = 0,
        min_lr: float = 1e-6,
        ema_decay: float = 0.0,
        threshold: float | None = None,
        channels_last: bool = True,
        weights: str | None = None,
        inference: InferenceSettings | None = None,
    ) -> None:
        super().__init__()
        # A dataclass would make checkpoints unreadable for weights_only loading.
        self.save_hyperparameters(ignore=["inference"])
        self.inference = inference or InferenceSettings()
        self.threshold = DEFAULT_THRESHOLD if threshold is None else threshold
        self.build()

    @classmethod
    def shipped_weights(cls) -> Path | None:
        """Return our own weights, trained on drawn pictures alone; None where the file is not there."""
        return SHIPPED_WEIGHTS if SHIPPED_WEIGHTS.is_file() else None

    @staticmethod
    def weights_key_map(key: str) -> str:
        """Place the reference's ``mean``, ``std`` and ``model.*`` where this module has them."""
        return key if key.startswith("network.") else f"network.{key}"

    def configure_models(self) -> None:
        """Build the network."""
        h: Any = self.hparams
        self.network = WatermarkNetwork(
            architecture=h.architecture,
            encoder=h.encoder,
            encoder_weights=None if h.weights else h.encoder_weights,
            encoder_depth=h.encoder_depth,
            decoder_channels=h.decoder_channels,
            decoder_norm=h.decoder_norm,
            alpha_head=h.alpha_head,
            color_head=h.color_head,
        )
        if h.channels_last:
            self.network.to(memory_format=torch.channels_last)

    def configure_losses(self) -> None:
        """Build the loss on the mask."""
        self.mask_loss = SegmentationLoss(self.hparams["loss"])

    def forward(self, image: Tensor) -> Tensor:
        """Return mask logits (B, 1, H, W) of RGB images (B, 3, H, W) in [0, 1] of any size."""
        logits: Tensor = self.network(self._laid_out(image))
        return logits

    def probability(self, image: Tensor) -> Tensor:
        """Return the probability of a mark, (B, 1, H, W)."""
        return self.forward(image).float().sigmoid()

    def accumulation_obstacle(self) -> str | None:
        """Name the terms that are quotients of sums over the whole batch."""
        h: Any = self.hparams
        heads = [f"{part}_head" for part in ("alpha", "color") if h[f"{part}_head"]]
        names = [*([] if h.loss in MEANS_OVER_IMAGES else [f"loss {h.loss}"]), *heads]
        if not names:
            return None
        return (
            f"pixels of the whole batch divide {' and '.join(names)}: take model.loss "
            f"{' or '.join(MEANS_OVER_IMAGES)} without heads, more processes, or a larger data.batch_size"
        )

    def predict_step(self, batch: Mapping[str, Any], batch_idx: int) -> dict[str, Any]:
        """Return ``records`` and ``images`` of a batch of images of any sizes."""
        return predict_batch(self.probability, batch, self.inference, self.threshold, self.device)

    def prediction_fingerprint(self) -> str:
        """Return a hash of all that decides a prediction, so that a folder never mixes those of two models."""
        digest = hashlib.sha256(repr((self.threshold, self.inference)).encode())
        for key, value in self.state_dict().items():
            digest.update(key.encode())
            digest.update(value.detach().cpu().contiguous().numpy().tobytes())
        return digest.hexdigest()

    def export_program(self) -> ExportProgram:
        """Return the network with all that `sealmark export` puts around it."""
        return export_program(self)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Store the calibrated threshold."""
        checkpoint["calibration"] = {"threshold": self.threshold}

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Take the calibrated threshold, unless one was given by name."""
        super().on_load_checkpoint(checkpoint)
        self.restore_metadata(checkpoint)

    def restore_metadata(self, metadata: Mapping[str, Any]) -> None:
        """Take the calibrated threshold, unless one was given by name."""
        calibration = metadata.get("calibration")
        if calibration is not None and self.hparams["threshold"] is None:
            with usable("the calibration that came with the weights"):
                self.threshold = _share(float(calibration["threshold"]))

    def _laid_out(self, image: Tensor) -> Tensor:
        if self.hparams["channels_last"]:
            return image.contiguous(memory_format=torch.channels_last)
        return image

    def _shared_step(self, batch: Mapping[str, Any]) -> tuple[Tensor, Tensor]:
        heads = self.network.forward_heads(self._laid_out(batch["image"]))
        logits = heads["mask_logits"]
        loss: Tensor = self.mask_loss(logits, batch["mask"], batch.get("ignore"), self.sum_over_ranks)
        return loss + self._head_losses(heads, batch), logits

    def _head_losses(self, heads: Mapping[str, Tensor], batch: Mapping[str, Any]) -> Tensor:
        h: Any = self.hparams
        total = self.sum_over_ranks
        loss = heads["mask_logits"].new_zeros(())
        for part in heads.keys() & {"alpha", "color"}:
            if not {"alpha", part} <= batch.keys():
                raise ValueError(
                    f"model.{part}_head needs samples with the marks' alpha and colour: set data.parts true"
                )
        on_mark = batch["mask"] if batch.get("ignore") is None else batch["mask"] * ~batch["ignore"]
        if "alpha" in heads:
            loss = loss + h.alpha_weight * masked_l1_loss(heads["alpha"], batch["alpha"], on_mark, total)
        if "color" in heads:
            opacity = batch["alpha"] * on_mark
            loss = loss + h.color_weight * masked_l1_loss(heads["color"], batch["color"], opacity, total)
        return loss

    def _outputs(self, batch: Mapping[str, Any], found: Tensor) -> SegmentationOutputs:
        return {
            "index": batch["index"],
            "probability": found.float().sigmoid(),
            "mask": batch["mask"],
            "ignore": batch["ignore"],
            "family": batch["family"],
            "opacity": batch["opacity"],
            "image": batch["image"],
        }


def _share(threshold: float) -> float:
    if not 0 <= threshold <= 1:  # what is no number fails too
        raise ValueError(f"{threshold} is no probability")
    return threshold
