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
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor
from torch.optim import SGD, Adam, AdamW, Optimizer
from torch.optim.lr_scheduler import LambdaLR

from lightning_modules.weights import load_weights

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

    def configure_callbacks(self) -> list[Callback]:
        """Average the weights while fitting where ``ema_decay`` asks for it."""
        decay = self.hparams.get("ema_decay") or 0.0
        # Outside of fit there is nothing to average: the checkpoint's state_dict already holds the average.
        fitting = self._trainer is not None and self.trainer.state.fn == "fit"
        return [EMAWeightAveraging(decay=decay)] if decay > 0 and fitting else []

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """Return the optimiser, with a schedule that steps once per optimiser step."""
        h: Any = self.hparams
        optimizer = make_optimizer(self, h.optimizer, h.lr, h.weight_decay)
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
        self.loaded_progress = (int(checkpoint.get("epoch", 0)), int(checkpoint.get("global_step", 0)))

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        """Seed torch for this batch, so that a resumed run draws what an unbroken one draws."""
        # Dropout and drop-path draw from the global generators. Their states are not in a checkpoint, and saving
        # them would keep rank 0's only; a seed made of (seed, epoch, batch, rank) needs no saving.
        seed = int(os.environ.get("PL_GLOBAL_SEED", "0"))
        entropy = [seed, self.current_epoch, batch_idx, self.global_rank]
        torch.manual_seed(int(np.random.SeedSequence(entropy).generate_state(1, np.uint64)[0] >> 1))

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
