"""Seal2Real, stage 1: what do real seals look like to a frozen diffusion model, and what do synthetic ones?"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, TypedDict

import torch
from torch import Tensor

from lightning_modules.base import RANDOM, ProvenanceModule, Schedule
from lightning_modules.functional.pixels import to_unit
from lightning_modules.functional.sample_draws import SampleDraws
from lightning_modules.weights import load_weights, read_weights

from .backbone import DiffusionBackbone, Precision, denoising_errors, draw_noise
from .classification import classify, prior_errors
from .latent_cache import LatentCache
from .learned_prompt import LearnedPrompt, Space
from .picture_sizes import floored
from .prompt_files import PromptPair, holds_prompts, read_prompts, write_prompts

__all__ = ["PriorOutputs", "PromptPriorModule", "classify"]
_PICTURES = ("real", "image")
_DRAWS_SEED = 2303  # of the noise that all evaluated pictures see


class PriorOutputs(TypedDict):
    """What ``validation_step`` and ``test_step`` return: the real crops of the batch, then its synthetic ones."""

    index: Tensor
    """Stable position in the data set, int64 (B,)."""
    score: Tensor
    """How much more real than fake, float32 (2B,)."""
    is_real: Tensor
    """Whether the crop is real, bool (2B,)."""
    errors: Tensor
    """Mean denoising error under the real prompt and under the fake one, float32 (2B, 2)."""


class PromptPriorModule(ProvenanceModule):
    """Learns two prompts: one that explains real pictures to a frozen Stable Diffusion, one for synthetic pictures.

    Defaults are those of the released code, but for its weight decay of 0.01 (AdamW's own), which shrinks prompts.

    Args:
        backbone: A local folder in diffusers layout, a hub id, or ``tiny`` for a miniature with random weights.
        backbone_precision: Of the frozen weights.
        real_phrase: What the prompt of real pictures starts as.
        fake_phrase: What the prompt of synthetic ones starts as.
        num_tokens: How many of a prompt's vectors are learned; null for all.
        space: Whether outputs of the text encoder are learned, or the tokens that it reads: textual inversion.
        timesteps: Whether each picture has its own timestep, or all of a kind in a batch have one.
        t_range: First timestep of training and the one after the last.
        posterior: Whether a picture's latents are a sample of the VAE's posterior, or its mode.
        contrast_weight: Of a hinge on the error under the other prompt less that under the own one, at the same
            timestep and noise; the released code has none.
        contrast_margin: Where the hinge ends, as a share of the error.
        cache_latents: Whether pictures are encoded once; they must then be the same in every epoch.
        eval_draws: Timesteps and noises that a picture is classified by, the same for all pictures.
        eval_t_range: Range of those timesteps.
        longest_side: To which predict shrinks larger pictures.
        lr: Learning rate.
        weight_decay: Decay of the prompts.
        optimizer: Which optimiser.
        schedule: Course of the learning rate, per step.
        warmup_steps: Steps of linear rise.
        min_lr: Where cosine and one_cycle end.
        weights: File to start from: a checkpoint, or the file of prompts of an earlier run; ``random`` to evaluate
            the phrases.
    """

    def __init__(
        self,
        backbone: str,
        backbone_precision: Precision = "float32",
        real_phrase: str = "a real seal",
        fake_phrase: str = "a fake seal",
        num_tokens: int | None = None,
        space: Space = "output",
        timesteps: Literal["each", "batch"] = "each",
        t_range: tuple[int, int] = (0, 1000),
        posterior: Literal["sample", "mode"] = "sample",
        contrast_weight: float = 0.0,
        contrast_margin: float = 0.02,
        cache_latents: bool = False,
        eval_draws: int = 4,
        eval_t_range: tuple[int, int] = (20, 980),
        longest_side: int = 512,
        lr: float = 1e-3,
        weight_decay: float = 0.0,
        optimizer: Literal["adam", "adamw"] = "adamw",
        schedule: Schedule = "constant",
        warmup_steps: int = 0,
        min_lr: float = 0.0,
        weights: str | None = None,
    ) -> None:
        super().__init__()
        if contrast_weight < 0 or contrast_margin < 0:
            raise ValueError("`contrast_weight` and `contrast_margin` must not be negative")
        if eval_draws < 1:
            raise ValueError(f"`eval_draws` must be at least 1, got {eval_draws}")
        self.save_hyperparameters()
        self.build()

    def build(self) -> None:
        """Build backbone and prompts, then load ``weights`` of either kind."""
        self.configure_models()
        self.configure_losses()
        path = self.hparams["weights"]
        if path is None or path == RANDOM:
            return
        if holds_prompts(read_weights(path)[0]):
            pair = read_prompts(path)
            real, fake = pair.tokens or (None, None)
            self.real_prompt.start_from(pair.real, real)
            self.fake_prompt.start_from(pair.fake, fake)
        else:
            load_weights(self, path)

    def configure_models(self) -> None:
        """Load the backbone and make the two prompts."""
        h: Any = self.hparams
        self.backbone = DiffusionBackbone.load(h.backbone, h.backbone_precision)
        for name, (low, high) in (("t_range", h.t_range), ("eval_t_range", h.eval_t_range)):
            if not 0 <= low < high <= self.backbone.steps:
                raise ValueError(f"`{name}` must ascend within 0 and {self.backbone.steps}, got {low} and {high}")
        self.real_prompt = LearnedPrompt(self.backbone, h.real_phrase, h.num_tokens, h.space)
        self.fake_prompt = LearnedPrompt(self.backbone, h.fake_phrase, h.num_tokens, h.space)

    def configure_losses(self) -> None:
        """Prepare the cache of latents."""
        self.cache = LatentCache(self.backbone.encode_moments)

    def prompts(self) -> Tensor:
        """Return the real and the fake prompt, (2, T, D)."""
        return torch.cat([self.real_prompt(self.backbone), self.fake_prompt(self.backbone)])

    def forward(self, image: Tensor) -> Tensor:
        """Return how much more real than fake images (B, 3, H, W) in [0, 1] look, (B,)."""
        h: Any = self.hparams
        return classify(self.backbone, image, self.prompts(), h.eval_draws, self._eval_generator(), h.eval_t_range)

    def accumulation_obstacle(self) -> str | None:
        """Name a timestep that the whole batch shares."""
        if self.hparams["timesteps"] == "each":
            return None
        return "a batch has one timestep: set model.timesteps to each, or take a larger data.batch_size"

    def training_step(self, batch: Mapping[str, Any], batch_idx: int) -> Tensor:
        """Return the denoising loss of real pictures under one prompt plus that of synthetic ones under the other."""
        draws = self.sample_draws(batch["index"], streams=len(_PICTURES))
        latents = self._latents(batch, draws)
        noise, timesteps = self._draw(latents, draws, batch_idx)
        loss, errors = self.prior_loss(latents, noise, timesteps)
        count = len(batch["index"])
        self.log("train/loss", loss.detach(), prog_bar=True, sync_dist=True, batch_size=count)
        for name, values in zip(("real", "fake"), errors.detach().chunk(2), strict=True):
            self.log(f"train/error_{name}", values.mean(), sync_dist=True, batch_size=count)
        return loss

    def prior_loss(self, latents: Tensor, noise: Tensor, timesteps: Tensor) -> tuple[Tensor, Tensor]:
        """Return the loss, and the error of each picture under its own prompt.

        Args:
            latents: Of as many real pictures as synthetic ones, real first, (2B, C, h, w).
            noise: What is added to them.
            timesteps: How much of it, (2B,).
        """
        h: Any = self.hparams
        own = self.prompts().repeat_interleave(len(latents) // 2, dim=0)
        errors = denoising_errors(self.backbone, latents, noise, timesteps, own)
        real, fake = errors.chunk(2)
        loss = real.mean() + fake.mean()
        if h.contrast_weight:
            other = denoising_errors(self.backbone, latents, noise, timesteps, own.roll(len(real), 0))
            # Errors differ by factors between timesteps, and between prompts by some percent.
            shortfall = errors * (1 + h.contrast_margin) - other
            loss = loss + h.contrast_weight * 2 * torch.relu(shortfall).mean()
        return loss, errors

    @torch.no_grad()
    def validation_step(self, batch: Mapping[str, Any], batch_idx: int) -> PriorOutputs:
        """Return what the callbacks read, and log the loss of the fixed draws."""
        outputs = self.test_step(batch, batch_idx)
        real, fake = outputs["errors"].chunk(2)
        loss = real[:, 0].mean() + fake[:, 1].mean()
        self.log("val/loss", loss, prog_bar=True, sync_dist=True, batch_size=len(batch["index"]))
        return outputs

    @torch.no_grad()
    def test_step(self, batch: Mapping[str, Any], batch_idx: int) -> PriorOutputs:
        """Return what the callbacks read."""
        h: Any = self.hparams
        images = to_unit(torch.cat([batch["real"], batch["image"]]))
        latents = self.backbone.encode(images)
        errors = prior_errors(
            self.backbone, latents, self.prompts(), h.eval_draws, self._eval_generator(), tuple(h.eval_t_range)
        )
        is_real = torch.arange(len(images), device=errors.device) < len(batch["real"])
        return {"index": batch["index"], "score": errors[1] - errors[0], "is_real": is_real, "errors": errors.T}

    @torch.no_grad()
    def predict_step(self, batch: Mapping[str, Any], batch_idx: int) -> dict[str, Any]:
        """Return ``records`` of a batch of images of any sizes: which of the two prompts explains each better."""
        records: list[dict[str, Any]] = []
        for image, path, index in zip(batch["image"], batch["path"], batch["index"].tolist(), strict=True):
            side = self.backbone.downscale
            score = None
            if min(image.shape[-2:]) >= side:
                score = float(self(floored(image, side, self.hparams["longest_side"])[None].to(self.device)))
            verdict = None if score is None else ("real" if score > 0 else "fake")
            records.append({"path": path, "index": index, "score": score, "verdict": verdict})
        return {"records": records, "images": []}

    def prompt_pair(self) -> PromptPair:
        """Return the prompts as they are now, with what they come from."""
        h: Any = self.hparams
        with torch.no_grad():
            real, fake = self.prompts()
        names = ("backbone", "real_phrase", "fake_phrase", "num_tokens", "space")
        metadata = {name: h[name] for name in names} | {"steps": self.steps_taken()}
        tokens = (self.real_prompt.values, self.fake_prompt.values) if h.space == "token" else None
        return PromptPair(real, fake, metadata, tokens)

    def save_prompts(self, path: str) -> Path:
        """Write the prompts as one file that stock pipelines can use; return its path."""
        return write_prompts(path, self.prompt_pair())

    def steps_taken(self) -> int:
        """Return how many optimiser steps the prompts have had."""
        fitting = self._trainer is not None and self.trainer.state.fn == "fit"
        return int(self.trainer.global_step) if fitting else self.loaded_progress[1]

    def _draw(self, latents: Tensor, draws: SampleDraws, batch_idx: int) -> tuple[Tensor, Tensor]:
        h: Any = self.hparams
        low, high = h.t_range
        noise, timesteps = draw_noise(latents, low, high, draws)
        if h.timesteps == "batch":
            # One for each kind, the same on all processes: drawn for the batch's number, behind the samples' streams.
            of_kinds = self.sample_draws(torch.tensor([batch_idx]), streams=2 * len(_PICTURES)).keys[len(_PICTURES) :]
            timesteps = SampleDraws(of_kinds).integer(low, high - 1).repeat_interleave(len(latents) // 2).to(timesteps)
        return noise, timesteps

    @torch.no_grad()
    def _latents(self, batch: Mapping[str, Any], draws: SampleDraws) -> Tensor:
        """Return the latents of the batch's real pictures, then of its synthetic ones, (2B, C, h, w)."""
        means, log_variances = zip(*(self._moments(batch, name) for name in _PICTURES), strict=True)
        spread = torch.cat(log_variances) if self.hparams["posterior"] == "sample" else None
        return self.backbone.latents_of(torch.cat(means), spread, draws)

    def _moments(self, batch: Mapping[str, Any], name: str) -> tuple[Tensor, Tensor]:
        images = to_unit(batch[name])
        if self.hparams["cache_latents"]:
            return self.cache.moments(name, batch["index"].tolist(), images)
        return self.backbone.encode_moments(images)

    def _eval_generator(self) -> torch.Generator:
        # On the CPU: the same draws on every device.
        return torch.Generator().manual_seed(_DRAWS_SEED)
