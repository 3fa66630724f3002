"""The base class of every method: build hooks, optimiser, learning-rate schedule, weights."""

import math
import os
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from lightning.pytorch import Callback, LightningModule
from lightning.pytorch.callbacks import EMAWeightAveraging
from lightning.pytorch.utilities import rank_zero_warn
from lightning.pytorch.utilities.types import OptimizerLRScheduler, OptimizerLRSchedulerConfig
from torch import Tensor
from torch.nn.modules.batchnorm import _BatchNorm
from torch.optim import SGD, Adam, AdamW, Optimizer
from torch.optim.lr_scheduler import LambdaLR

from lightning_modules.functional.sample_draws import SampleDraws
from lightning_modules.weights import load_weights, usable

SHIPPED = "shipped"
RANDOM = "random"
Schedule = Literal["constant", "cosine", "one_cycle"]


class ProvenanceModule(LightningModule, ABC):
    """Builds what the hooks describe and optimises it by scalar hyper-parameters.

    A subclass's ``__init__`` takes typed scalars, calls ``save_hyperparameters()`` and then ``build()``. Read from
    the hyper-parameters: ``lr``, ``weight_decay``, ``optimizer``, ``schedule``, ``warmup_steps``, ``min_lr`` and, where
    the subclass has them, ``weights`` and ``ema_decay``.
    """

    # How keys of foreign weight files are renamed; see `load_weights`.
    weights_key_map: Callable[[str], str] | None = None
    loaded_progress = (0, 0)  # epoch and step of a loaded checkpoint
    _batches_summed = 0  # whose gradients wait for the next step of the optimiser

    @abstractmethod
    def configure_models(self) -> None:
        """Set the networks as attributes."""

    @abstractmethod
    def configure_losses(self) -> None:
        """Set the losses as attributes."""

    def build(self) -> None:
        """Call the hooks, then load ``weights`` if given: a file, "shipped", or "random" for none on purpose."""
        self.configure_models()
        self.configure_losses()
        path = self.hparams.get("weights")
        if path == SHIPPED:
            self.load_shipped_weights()
        elif path is not None and path != RANDOM:
            self.restore_metadata(load_weights(self, path, key_map=self.weights_key_map).metadata)

    @classmethod
    def shipped_weights(cls) -> Path | None:
        """Return the weight file that comes with this repository, None where the method has none."""
        return None

    def load_shipped_weights(self) -> Path:
        """Load the weights that come with this repository, for users who named none."""
        path = self.shipped_weights()
        if path is None:
            raise ValueError(
                f"{type(self).__name__} has no trained weights here: name a checkpoint with --ckpt_path or a file "
                f"with --model.weights"
            )
        self.restore_metadata(load_weights(self, path, key_map=self.weights_key_map).metadata)
        return path

    def restore_metadata(self, metadata: Mapping[str, Any]) -> None:
        """Take what a weight file says beside its tensors, such as thresholds; nothing by default."""

    def accumulation_obstacle(self) -> str | None:
        """Return why k accumulated batches would not equal one k times as large; None where they do.

        They do where the loss is a mean over samples, each with draws of its own. A batch norm always sees one batch.
        """
        return None

    def configure_callbacks(self) -> list[Callback]:
        """Average the weights while fitting where ``ema_decay`` asks for it."""
        decay = self.hparams.get("ema_decay") or 0.0
        # Outside of fit there is nothing to average: the checkpoint's state_dict already holds the average.
        fitting = self._trainer is not None and self.trainer.state.fn == "fit"
        if fitting:
            # The first of all hooks: Lightning's own refusal for manual optimisation, which names no reason, is next.
            self._check_accumulation()
        return [EMAWeightAveraging(decay=decay)] if decay > 0 and fitting else []

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """Return the optimiser, with a schedule that steps once per optimiser step."""
        h: Any = self.hparams
        return self.scheduled(make_optimizer(self, h.optimizer, h.lr, h.weight_decay))

    def scheduled(self, optimizer: Optimizer) -> OptimizerLRSchedulerConfig:
        """Return an optimiser with the schedule of the hyper-parameters, as Lightning takes them."""
        h: Any = self.hparams
        total = int(self.trainer.estimated_stepping_batches) if h.schedule != "constant" else 0
        floor = h.min_lr / h.lr

        def factor(step: int) -> float:
            return schedule_factor(step, total, h.schedule, h.warmup_steps, floor)

        return {
            "optimizer": optimizer,
            "lr_scheduler": {"scheduler": LambdaLR(optimizer, factor), "interval": "step"},
        }

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Remember how long the loaded weights were trained; Lightning restores its counters for fit alone."""
        with usable("epoch and global_step of the checkpoint"):
            self.loaded_progress = (int(checkpoint.get("epoch", 0)), int(checkpoint.get("global_step", 0)))

    def on_train_epoch_start(self) -> None:
        """Check what a `GradientAccumulationScheduler` has set for this epoch."""
        self._check_accumulation()

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        """Seed torch for this batch, so that a resumed run draws what an unbroken one draws."""
        # Dropout and drop-path draw from the global generators, losses by `sample_draws`. The generators' states are
        # not in a checkpoint, and saving them would keep rank 0's only; a seed made of (seed, epoch, batch, rank) needs
        # no saving.
        seed = int(os.environ.get("PL_GLOBAL_SEED", "0"))
        entropy = [seed, self.current_epoch, batch_idx, self.global_rank]
        torch.manual_seed(int(np.random.SeedSequence(entropy).generate_state(1, np.uint64)[0] >> 1))

    def on_before_zero_grad(self, optimizer: Optimizer) -> None:
        """Begin to count anew."""
        self._batches_summed = 0

    def on_after_backward(self) -> None:
        """Count the batches whose gradients are summed."""
        self._batches_summed += 1

    def on_before_optimizer_step(self, optimizer: Optimizer) -> None:
        """Make the gradient the mean over the batches that were summed."""
        summed, window = self._batches_summed, self.trainer.accumulate_grad_batches
        # Lightning has divided by the window. At the end of an epoch, or resumed within a window, fewer were summed.
        if self.automatic_optimization and 0 < summed < window:
            for group in optimizer.param_groups:
                for parameter in group["params"]:
                    if parameter.grad is not None:
                        parameter.grad.mul_(window / summed)

    def sample_draws(self, index: Tensor, streams: int = 1) -> SampleDraws:
        """Return the draws of samples in the running epoch: the same in whatever batch and process they are.

        Args:
            index: Stable positions of the samples in their data set (B,).
            streams: How many draws each sample needs: those of all samples follow once for each, (streams · B).
        """
        seed = int(os.environ.get("PL_GLOBAL_SEED", "0"))
        keys = [SampleDraws.of_samples(seed, self.current_epoch, index, stream).keys for stream in range(streams)]
        return SampleDraws(torch.cat(keys))

    def _check_accumulation(self) -> None:
        """Refuse to accumulate what would not equal a larger batch."""
        batches = self.trainer.accumulate_grad_batches
        if batches == 1:
            return
        obstacle = self.accumulation_obstacle()
        if obstacle is not None:
            raise ValueError(
                f"trainer.accumulate_grad_batches {batches} is not one batch {batches} times as large for "
                f"{type(self).__name__}: {obstacle}"
            )
        norms = [name for name, part in self.named_modules() if isinstance(part, _BatchNorm) and part.training]
        if norms:
            rank_zero_warn(f"accumulated batches are seen one by one by {len(norms)} batch norms, first {norms[0]}")

    def sum_over_ranks(self, values: Tensor) -> Tensor:
        """Return the sum of ``values`` over all processes, with gradients to each process's own part."""
        if self._trainer is None or self.trainer.world_size == 1:
            return values
        gathered = self.all_gather(values, sync_grads=True)
        assert isinstance(gathered, Tensor)
        return gathered.sum(dim=0)


def make_optimizer(
    module: torch.nn.Module, name: Literal["adam", "adamw", "sgd"], lr: float, weight_decay: float
) -> Optimizer:
    """Return the named optimiser; AdamW does not decay one-dimensional parameters (norms and biases)."""
    parameters = [p for p in module.parameters() if p.requires_grad]
    if name == "adam":
        return Adam(parameters, lr=lr, weight_decay=weight_decay)
    if name == "sgd":
        return SGD(parameters, lr=lr, weight_decay=weight_decay, momentum=0.9, nesterov=True)
    if name == "adamw":
        groups = [
            {"params": [p for p in parameters if p.ndim > 1], "weight_decay": weight_decay},
            {"params": [p for p in parameters if p.ndim <= 1], "weight_decay": 0.0},
        ]
        return AdamW(groups, lr=lr)
    raise ValueError(f"`optimizer` must be adam, adamw or sgd, got {name!r}")


def schedule_factor(step: int, total: int, schedule: Schedule, warmup: int, floor: float) -> float:
    """Return the learning rate at ``step`` as a fraction of ``lr``.

    Args:
        step: Optimiser steps already taken.
        total: Optimiser steps of the whole run.
        schedule: ``constant``; ``cosine`` falls to the floor over the steps after the warm-up; ``one_cycle`` rises
            over the warm-up, or over 30 % of the steps where no warm-up is given, and then falls like cosine.
        warmup: Steps of linear rise from ``lr / (warmup + 1)``.
        floor: ``min_lr / lr``.
    """
    if schedule == "one_cycle" and warmup == 0:
        warmup = math.ceil(0.3 * total)
    if step < warmup:
        return (step + 1) / (warmup + 1)
    if schedule == "constant":
        return 1.0
    progress = min(1.0, (step - warmup) / max(1, total - warmup))
    return floor + (1.0 - floor) * 0.5 * (1.0 + math.cos(math.pi * progress))
