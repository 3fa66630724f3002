"""Training of a denoiser on photographs, so that MaskSim needs no weights of others."""

from collections.abc import Mapping
from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from lightning_modules.base import ProvenanceModule, Schedule
from lightning_modules.functional.color import rgb_to_ycbcr_studio
from lightning_modules.functional.pixels import to_unit

from .bank import Color
from .denoiser import DEPTH, WIDTH, DnCNN, full_precision
from .published import load_denoiser


class DenoiserModule(ProvenanceModule):
    """Learns to tell white noise of a known deviation from pictures, and answers in units of that deviation.

    A checkpoint of it is what ``denoiser_weights`` of `MaskSimModule` takes.

    Args:
        depth: Convolutions.
        width: Features between them.
        sigma_levels: Deviation of the noise, in levels of 8 bits.
        color: What pictures are turned into before noise is added; that of the detector to be trained.
        lr: Peak learning rate.
        weight_decay: Decay of weights.
        optimizer: Which optimiser.
        schedule: Course of the learning rate, per step.
        warmup_steps: Steps of linear rise.
        min_lr: Where the schedule ends.
        ema_decay: Decay of the average of the weights that is validated and saved; 0 for none.
        weights: File to start from: ours or the published denoiser.
    """

    def __init__(
        self,
        depth: int = DEPTH,
        width: int = WIDTH,
        sigma_levels: float = 3.0,
        color: Color = "ycbcr",
        lr: float = 1e-3,
        weight_decay: float = 0.0,
        optimizer: Literal["adam", "adamw", "sgd"] = "adam",
        schedule: Schedule = "cosine",
        warmup_steps: int = 0,
        min_lr: float = 1e-6,
        ema_decay: float = 0.0,
        weights: str | None = None,
    ) -> None:
        super().__init__()
        if sigma_levels <= 0:
            raise ValueError(f"`sigma_levels` must be positive, got {sigma_levels}")
        self.save_hyperparameters()
        self.build()

    def build(self) -> None:
        """Build the denoiser, then load ``weights`` if given."""
        self.configure_models()
        self.configure_losses()
        if self.hparams["weights"] is not None:
            load_denoiser(self.denoiser, self.hparams["weights"])

    def configure_models(self) -> None:
        """Build the denoiser."""
        self.denoiser = DnCNN(3, self.hparams["depth"], self.hparams["width"])

    def configure_losses(self) -> None:
        """Nothing to hold: the loss is a mean square."""

    def forward(self, image: Tensor) -> Tensor:
        """Return the residual of RGB images (B, 3, H, W) in [0, 1], two pixels smaller for each convolution."""
        residual: Tensor = self.denoiser(self._converted(image))
        return residual

    def accumulation_obstacle(self) -> str | None:
        """Name the number of real pictures, which may be another in each batch."""
        return "the loss is the mean over a batch's real pictures, whatever their number: take a larger data.batch_size"

    def training_step(self, batch: Mapping[str, Any], batch_idx: int) -> Tensor:
        """Return the mean square between the noise and what is taken for it."""
        clean = self._photographs(batch)
        # Each process may have another number, and the loss is the mean over the pictures of all.
        count = clean.new_tensor([len(clean), 1, len(clean) == 0])
        pictures, processes, without = self.sum_over_ranks(count).unbind()
        if without:
            raise ValueError("a batch has no real picture to learn from: set data.balanced to class, or take real ones")
        index = batch["index"][batch["label"] < 0.5] if "label" in batch else batch["index"]
        noise = self.sample_draws(index).noise(clean.shape[1:], clean.device)
        loss = self._loss(clean, noise.to(clean)) * (len(clean) * processes / pictures)
        self.log("train/loss", loss, prog_bar=True, batch_size=len(clean))
        return loss

    def validation_step(self, batch: Mapping[str, Any], batch_idx: int) -> None:
        """Log the loss under noise that is the same each time; 1 is a denoiser that sees nothing."""
        clean = self._photographs(batch)
        if not len(clean):
            return
        generator = torch.Generator().manual_seed(batch_idx)
        noise = torch.randn(clean.shape, generator=generator).to(clean)
        self.log("val/loss", self._loss(clean, noise), prog_bar=True, sync_dist=True, batch_size=len(clean))

    def backward(self, loss: Tensor, *args: Any, **kwargs: Any) -> None:
        """Run the backward pass in full precision, as the forward pass is."""
        with full_precision(self.device.type):
            super().backward(loss, *args, **kwargs)

    def _loss(self, clean: Tensor, noise: Tensor) -> Tensor:
        border = self.denoiser.depth
        found = self.denoiser(clean + noise * (self.hparams["sigma_levels"] / 255))
        return F.mse_loss(found, noise[..., border:-border, border:-border])

    def _photographs(self, batch: Mapping[str, Any]) -> Tensor:
        """Return the real pictures of a batch, of several views the first."""
        image = to_unit(batch["image"])
        image = image[:, 0] if image.ndim == 5 else image
        return self._converted(image[batch["label"] < 0.5] if "label" in batch else image)

    def _converted(self, image: Tensor) -> Tensor:
        if self.hparams["color"] == "rgb":
            return image
        return rgb_to_ycbcr_studio(image, truncate=True)
