"""Tells another process where a run is, so that it can be killed there."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from lightning import Callback, LightningModule, Trainer
from lightning.fabric.plugins import CheckpointIO

_pipe = -1


def tell_to(pipe: int) -> None:
    """Write the moments of this process to an open pipe from now on."""
    global _pipe
    _pipe = pipe


def tell(moment: str, detail: object = "") -> None:
    """Write a line: where the run is from now on."""
    if _pipe >= 0:
        # One write of less than PIPE_BUF bytes: a killed process leaves a whole line or none.
        os.write(_pipe, f"{moment} {detail}\n".encode())


def watch_writes(kind: type[CheckpointIO]) -> None:
    """Tell when a checkpoint begins to be written and when it is there."""
    save: Callable[..., None] = kind.save_checkpoint

    def save_and_tell(
        self: CheckpointIO, checkpoint: dict[str, Any], path: str | Path, *args: Any, **more: Any
    ) -> None:
        tell("writing", checkpoint["global_step"])
        save(self, checkpoint, path, *args, **more)
        tell("written", checkpoint["global_step"])

    kind.save_checkpoint = save_and_tell  # type: ignore[method-assign]


class TellMoments(Callback):
    """Tells which part of a training runs; keeps no state and draws nothing."""

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Tell from which step the run goes on."""
        tell("begun", trainer.global_step)

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Tell that a step begins."""
        tell("step", trainer.global_step)

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Tell that a validation begins."""
        tell("validation", trainer.global_step)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Tell that a validation is over."""
        tell("validated", trainer.global_step)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Tell that an epoch is over."""
        tell("epoch_end", trainer.global_step)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Tell that nothing is trained any more."""
        tell("end", trainer.global_step)
