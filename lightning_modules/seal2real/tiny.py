"""A small Stable Diffusion trained from nothing: the backbone of the quickstart, where there are no weights to load."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, TypedDict

import torch
from torch import Tensor

from lightning_modules.base import RANDOM, ProvenanceModule, Schedule
from lightning_modules.functional.pixels import to_unit
from lightning_modules.weights import load_weights

from .backbone import DiffusionBackbone, denoising_errors, draw_noise
from .tiny_parts import TinySettings

_DRAWS_SEED = 77  # of the noise that all evaluated pictures see


class PretrainingOutputs(TypedDict):
    """What ``validation_step`` and ``test_step`` return."""

    index: Tensor
    """Stable position in the data set, int64 (B,)."""
    reconstruction: Tensor
    """Mean absolute difference of a picture from what the VAE makes of it, float32 (2B,)."""
    error: Tensor
    """Denoising error of its latents under its caption, float32 (2B,)."""


class TinyDiffusionModule(ProvenanceModule):
    """Trains first a VAE, then a U-Net on its latents, on pictures of both domains with a caption each.

    The text encoder stays as it is drawn from the seed. Not for several processes: its two halves take turns.

    Args:
        vae_channels: Of each level of the VAE; each level after the first halves the side.
        latent_channels: Of its latents.
        unet_channels: Of each level of the U-Net; the first attends to the caption.
        prompt_dim: Length of a caption's vectors.
        head_dim: Channels of an attention head.
        latent_side: Of the latents that a stock pipeline makes where it is told no size.
        seed: Of the first weights.
        vae_steps: Steps of the VAE, before the U-Net's.
        kl_weight: Of the divergence of latents from a normal distribution.
        real_captions: Of real pictures; one is drawn each time. Not the phrases that stage 1 starts from: it would
            have nothing left to learn.
        fake_captions: Of synthetic ones.
        caption_dropout: Share of pictures with an empty caption, for guidance.
        lr: Learning rate.
        weight_decay: Decay of the weights.
        optimizer: Which optimiser.
        schedule: Course of the learning rate, per step.
        warmup_steps: Steps of linear rise.
        min_lr: Where cosine and one_cycle end.
        weights: A checkpoint of this module to start from; ``random`` for none.
    """

    scale: Tensor
    captions: Tensor

    def __init__(
        self,
        vae_channels: tuple[int, ...] = (16, 32),
        latent_channels: int = 8,
        unet_channels: tuple[int, ...] = (32, 64),
        prompt_dim: int = 32,
        head_dim: int = 4,
        latent_side: int = 16,
        seed: int = 0,
        vae_steps: int = 400,
        kl_weight: float = 1e-6,
        real_captions: tuple[str, ...] = ("a scanned page with a red stamp", "a photo of a document"),
        fake_captions: tuple[str, ...] = ("a drawn page with a synthetic stamp", "an image of a document"),
        caption_dropout: float = 0.1,
        lr: float = 1e-3,
        weight_decay: float = 0.0,
        optimizer: Literal["adam", "adamw"] = "adamw",
        schedule: Schedule = "constant",
        warmup_steps: int = 0,
        min_lr: float = 0.0,
        weights: str | None = None,
    ) -> None:
        super().__init__()
        if not real_captions or not fake_captions:
            raise ValueError("`real_captions` and `fake_captions` must hold at least one caption each")
        self.save_hyperparameters()
        self.build()

    def build(self) -> None:
        """Build the parts, then load ``weights``."""
        self.configure_models()
        path = self.hparams["weights"]
        if path is not None and path != RANDOM:
            load_weights(self, path)
            self._use_scale()

    def configure_models(self) -> None:
        """Build a miniature whose VAE and U-Net are trained."""
        h: Any = self.hparams
        settings = TinySettings(
            vae_channels=tuple(h.vae_channels),
            latent_channels=h.latent_channels,
            unet_channels=tuple(h.unet_channels),
            prompt_dim=h.prompt_dim,
            head_dim=h.head_dim,
            latent_side=h.latent_side,
        )
        self.backbone = DiffusionBackbone.tiny(settings, h.seed)
        self.backbone.vae.requires_grad_(True)
        self.backbone.unet.requires_grad_(True)
        self.register_buffer("scale", torch.zeros(()))  # 0 until the VAE is trained
        captions = self.backbone.embed([*h.real_captions, *h.fake_captions, ""])
        self.register_buffer("captions", captions, persistent=False)

    def configure_losses(self) -> None:
        """Have none of its own."""

    def on_fit_start(self) -> None:
        """Refuse several processes, and take the scale of a checkpoint."""
        if self.trainer.world_size > 1:
            raise ValueError("TinyDiffusionModule trains its halves in turns: run it with --trainer.devices 1")
        self._use_scale()

    def on_test_start(self) -> None:
        """Take the scale of a checkpoint."""
        self._use_scale()

    on_validation_start = on_test_start

    def accumulation_obstacle(self) -> str | None:
        """Name what is measured and drawn by batch."""
        return "it scales latents by their deviation in one batch: take a larger data.batch_size"

    def training_step(self, batch: Mapping[str, Any], batch_idx: int) -> Tensor:
        """Return the loss of the VAE, or of the U-Net once the VAE has had its steps."""
        images = _pictures(batch)
        if self.global_step < self.hparams["vae_steps"]:
            loss = self._vae_loss(images)
            self.log("train/reconstruction", loss.detach(), prog_bar=True, batch_size=len(images))
        else:
            loss = self._unet_loss(images)
            self.log("train/denoising", loss.detach(), prog_bar=True, batch_size=len(images))
        self.log("train/loss", loss.detach(), batch_size=len(images))
        return loss

    def validation_step(self, batch: Mapping[str, Any], batch_idx: int) -> PretrainingOutputs:
        """Return reconstruction and denoising errors of fixed draws, and log their means."""
        outputs = self.test_step(batch, batch_idx)
        count = len(batch["index"])
        self.log("val/reconstruction", outputs["reconstruction"].mean(), batch_size=count)
        self.log("val/loss", outputs["error"].mean(), prog_bar=True, batch_size=count)
        return outputs

    @torch.no_grad()
    def test_step(self, batch: Mapping[str, Any], batch_idx: int) -> PretrainingOutputs:
        """Return reconstruction and denoising errors of fixed draws."""
        images = _pictures(batch)
        latents = self.backbone.encode(images)
        difference = (self.backbone.decode(latents) - images).abs().flatten(1).mean(1)
        generator = torch.Generator().manual_seed(_DRAWS_SEED)
        noise, timesteps = draw_noise(latents, 0, self.backbone.steps, generator)
        captions = self._captions(len(images) // 2, first=True)
        errors = denoising_errors(self.backbone, latents, noise, timesteps, captions)
        return {"index": batch["index"], "reconstruction": difference, "error": errors}

    def save_model(self, folder: str) -> Path:
        """Write the model as a folder that stock diffusers loads; return its path."""
        self._use_scale()
        return self.backbone.save(folder)

    def _vae_loss(self, images: Tensor) -> Tensor:
        mean, log_variance = self.backbone.encode_moments(images)
        decoded = self.backbone.vae.decode(self.backbone.latents_of(mean, log_variance) / self._factor()).sample
        divergence = 0.5 * (mean.square() + log_variance.exp() - 1 - log_variance).mean()
        loss: Tensor = (decoded.float() - (2 * images - 1)).abs().mean() + self.hparams["kl_weight"] * divergence
        return loss

    def _unet_loss(self, images: Tensor) -> Tensor:
        with torch.no_grad():
            mean, log_variance = self.backbone.encode_moments(images)
            if not self.scale:
                self.scale.copy_(1 / mean.std())
                self._use_scale()
            latents = self.backbone.latents_of(mean, log_variance)
        noise, timesteps = draw_noise(latents, 0, self.backbone.steps)
        captions = self._captions(len(images) // 2)
        return denoising_errors(self.backbone, latents, noise, timesteps, captions).mean()

    def _captions(self, count: int, first: bool = False) -> Tensor:
        """Return captions of as many real pictures, then of as many synthetic ones, (2B, T, D)."""
        real, fake = (len(self.hparams[name]) for name in ("real_captions", "fake_captions"))
        if first:
            chosen = torch.tensor([0] * count + [real] * count)
        else:
            chosen = torch.cat([torch.randint(real, (count,)), real + torch.randint(fake, (count,))])
            chosen[torch.rand(2 * count) < self.hparams["caption_dropout"]] = real + fake
        captions: Tensor = self.captions[chosen.to(self.device)]
        return captions

    def _factor(self) -> float:
        return float(self.backbone.vae.config.scaling_factor)

    def _use_scale(self) -> None:
        if self.scale:
            self.backbone.vae.register_to_config(scaling_factor=float(self.scale))


def _pictures(batch: Mapping[str, Any]) -> Tensor:
    return to_unit(torch.cat([batch["real"], batch["image"]]))
