"""Callbacks that runs in other processes carry in tests; found through PYTHONPATH."""

import os
import signal
import time
from pathlib import Path

from lightning import Callback


class KillAt(Callback):
    """Ends the process as a power cut would, after the batch of a step and before its checkpoint."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_train_batch_start(self, trainer, *_) -> None:
        if trainer.global_step == self.step:
            os.kill(os.getpid(), signal.SIGKILL)


class KillOnce(KillAt):
    """Ends the last rank so at its first start, and lets it be at the next ones."""

    def on_train_batch_start(self, trainer, *others) -> None:
        if (
            trainer.global_rank == trainer.world_size - 1
            and trainer.global_step == self.step
            and not Path("killed").exists()
        ):
            Path("killed").touch()
            super().on_train_batch_start(trainer, *others)


class TellStep(Callback):
    """Says by a file that training runs, and goes slowly, so that a signal meets it."""

    def on_train_batch_end(self, *_) -> None:
        Path("training").touch()
        time.sleep(0.2)
