"""The released program of Seal2Real: the whole U-Net and one prompt, fine-tuned together on real pictures."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypedDict

import torch
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor
from torch.optim import Adam

from lightning_modules.base import RANDOM, ProvenanceModule
from lightning_modules.functional.pixels import to_unit
from lightning_modules.functional.sample_draws import SampleDraws
from lightning_modules.sharding import shard
from lightning_modules.weights import load_weights

from .backbone import DiffusionBackbone, denoising_errors, draw_noise
from .classification import prior_errors
from .learned_prompt import LearnedPrompt
from .picture_sizes import stretched
from .prompt_files import read_prompts

_DRAWS_SEED = 1162  # of the noise that all evaluated pictures see


class FinetuningOutputs(TypedDict):
    """What ``validation_step`` and ``test_step`` return."""

    index: Tensor
    """Stable position in the data set, int64 (B,)."""
    error: Tensor
    """Mean denoising error of the real crops under the prompt, float32 (B,)."""


class JointFinetuneModule(ProvenanceModule):
    """Fine-tunes the U-Net and the prompt of real pictures by the denoising loss, as the released ``train.py`` does.

    Its synthetic pictures and their prompt are not here: it loads them and leaves them out of the loss. Both of its
    optimisers are Adam; here they are two groups of one.

    Args:
        backbone: A local folder in diffusers layout, a hub id, or ``tiny``.
        phrase: What the prompt starts as.
        prompts: File of stage 1 to start from in place of the phrase.
        side: What pictures are stretched to, their aspect not kept; 512 in the released program, null for as they are.
        repeats: How often each picture is in a step, with noise and timestep of its own.
        gradient_checkpointing: Whether the U-Net computes twice to need less memory.
        eval_draws: Timesteps and noises of the validation loss.
        lr: Learning rate of the prompt.
        unet_lr: Learning rate of the U-Net.
        weights: A checkpoint of this module to start from; ``random`` for none.
    """

    def __init__(
        self,
        backbone: str,
        phrase: str = "a real seal",
        prompts: str | None = None,
        side: int | None = None,
        repeats: int = 3,
        gradient_checkpointing: bool = False,
        eval_draws: int = 4,
        lr: float = 2e-3,
        unet_lr: float = 2e-6,
        weights: str | None = None,
    ) -> None:
        super().__init__()
        if repeats < 1:
            raise ValueError(f"`repeats` must be at least 1, got {repeats}")
        self.save_hyperparameters()
        self.build()

    def build(self) -> None:
        """Build backbone and prompt, then load ``prompts`` and ``weights``."""
        self.configure_models()
        h: Any = self.hparams
        if h.prompts is not None:
            self.prompt.start_from(read_prompts(h.prompts).real, None)
        if h.weights is not None and h.weights != RANDOM:
            load_weights(self, h.weights)

    def configure_models(self) -> None:
        """Load the backbone, with a U-Net that is trained, and make the prompt."""
        h: Any = self.hparams
        self.backbone = DiffusionBackbone.load(h.backbone)
        self.backbone.unet.requires_grad_(True)
        self.backbone.set_gradient_checkpointing(h.gradient_checkpointing)
        self.prompt = LearnedPrompt(self.backbone, h.phrase)

    def configure_model(self) -> None:
        """Spread what is trained over the processes where the strategy is made for it."""
        if self.device_mesh is None:
            return
        mesh, unet = self.device_mesh["data_parallel"], self.backbone.unet
        shard(unet, [*unet.down_blocks, unet.mid_block, *unet.up_blocks], mesh)
        shard(self.prompt, [], mesh)

    def configure_losses(self) -> None:
        """Have none of its own: the loss is `denoising_errors`."""

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """Return Adam with a rate for the prompt and one for the U-Net."""
        h: Any = self.hparams
        unet = {"params": list(self.backbone.unet.parameters()), "lr": h.unet_lr}
        return Adam([{"params": list(self.prompt.parameters()), "lr": h.lr}, unet])

    def forward(self, latents: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        """Return the denoising error (B,) of latents under the prompt."""
        return denoising_errors(self.backbone, latents, noise, timesteps, self.prompt(self.backbone))

    def training_step(self, batch: Mapping[str, Any], batch_idx: int) -> Tensor:
        """Return the mean denoising error of the real crops, each taken several times."""
        with torch.no_grad():
            draws = self.sample_draws(batch["index"])
            latents = self.backbone.latents_of(*self.backbone.encode_moments(self._pictures(batch)), draws)
        repeats = self.hparams["repeats"]
        latents = latents.repeat(repeats, 1, 1, 1)
        draws = SampleDraws(self.sample_draws(batch["index"], streams=1 + repeats).keys[len(batch["index"]) :])
        loss: Tensor = self(latents, *draw_noise(latents, 0, self.backbone.steps, draws)).mean()
        self.log("train/loss", loss.detach(), prog_bar=True, sync_dist=True, batch_size=len(batch["real"]))
        return loss

    def validation_step(self, batch: Mapping[str, Any], batch_idx: int) -> FinetuningOutputs:
        """Return the errors of fixed draws, and log their mean."""
        outputs = self.test_step(batch, batch_idx)
        self.log("val/loss", outputs["error"].mean(), prog_bar=True, sync_dist=True, batch_size=len(batch["index"]))
        return outputs

    @torch.no_grad()
    def test_step(self, batch: Mapping[str, Any], batch_idx: int) -> FinetuningOutputs:
        """Return the errors of fixed draws."""
        latents = self.backbone.encode(self._pictures(batch))
        draws = torch.Generator().manual_seed(_DRAWS_SEED)
        errors = prior_errors(self.backbone, latents, self.prompt(self.backbone), self.hparams["eval_draws"], draws)
        return {"index": batch["index"], "error": errors[0]}

    def save_model(self, folder: str) -> Path:
        """Write the fine-tuned model as a folder that stock diffusers loads; return its path."""
        return self.backbone.save(folder)

    def _pictures(self, batch: Mapping[str, Any]) -> Tensor:
        images, side = to_unit(batch["real"]), self.hparams["side"]
        return images if side is None else stretched(images, side)
