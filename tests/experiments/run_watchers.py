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


class TellStep(Callback):
    """Says by a file that training runs, and goes slowly, so that a signal meets it."""

    def on_train_batch_end(self, *_) -> None:
        Path("training").touch()
        time.sleep(0.2)
