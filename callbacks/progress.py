"""Progress with rate and remaining time: a live bar in a terminal, a line now and then elsewhere."""

import sys
import time
from typing import Any

from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import ProgressBar, RichProgressBar


def progress_bar() -> ProgressBar:
    """Rich where there is a terminal, plain lines in a log file."""
    return RichProgressBar(leave=True) if sys.stderr.isatty() and sys.stdout.isatty() else PlainProgress()


class PlainProgress(ProgressBar):
    """Prints a line at most every `seconds`, and one at the end of each pass over a split."""

    def __init__(self, seconds: float = 15.0) -> None:
        super().__init__()
        self.seconds = seconds
        self._enabled = True
        self._started = self._printed = 0.0
        self._first = 0

    def disable(self) -> None:
        """Print nothing; Lightning calls it on ranks above zero."""
        self._enabled = False

    def enable(self) -> None:
        """Print again."""
        self._enabled = True

    def on_train_start(self, trainer: Trainer, *_: Any) -> None:
        """Start the clock; a resumed run counts from where it was."""
        self._begin(self._trained(trainer)[0])

    def on_validation_start(self, trainer: Trainer, *_: Any) -> None:
        """Start the clock of a validation that is not part of training."""
        if trainer.state.fn == "validate":
            self._begin(0)

    def on_test_start(self, trainer: Trainer, *_: Any) -> None:
        """Start the clock of a test."""
        self._begin(0)

    def on_predict_start(self, trainer: Trainer, *_: Any) -> None:
        """Start the clock of a prediction."""
        self._begin(0)

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *args: Any) -> None:
        """Tell how far training is, and what the module shows on the bar."""
        self._tell("train", *self._trained(trainer), self.get_metrics(trainer, pl_module))

    def on_validation_batch_end(self, trainer: Trainer, pl_module: LightningModule, *args: Any) -> None:
        """Tell how far a `validate` run is."""
        if trainer.state.fn == "validate":
            self._tell("validate", args[2] + 1, sum(trainer.num_val_batches), {})

    def on_test_batch_end(self, trainer: Trainer, pl_module: LightningModule, *args: Any) -> None:
        """Tell how far a test is."""
        self._tell("test", args[2] + 1, sum(trainer.num_test_batches), {})

    def on_predict_batch_end(self, trainer: Trainer, pl_module: LightningModule, *args: Any) -> None:
        """Tell how far a prediction is."""
        self._tell("predict", args[2] + 1, sum(trainer.num_predict_batches), {})

    @staticmethod
    def _trained(trainer: Trainer) -> tuple[int, float]:
        """Steps done and steps in all; batches of the epochs where no number of steps ends the run."""
        if trainer.max_steps > 0:
            return trainer.global_step, trainer.max_steps
        done = trainer.fit_loop.epoch_loop.total_batch_idx + 1
        endless = trainer.max_epochs == -1
        return done, float("inf") if endless else trainer.num_training_batches * (trainer.max_epochs or 1)

    def _begin(self, first: int) -> None:
        self._started = self._printed = time.monotonic()
        self._first = first

    def _tell(self, name: str, done: int, total: float, metrics: dict[str, Any]) -> None:
        now = time.monotonic()
        last = done >= total
        if not self._enabled or (now - self._printed < self.seconds and not last):
            return
        self._printed = now
        rate = (done - self._first) / max(now - self._started, 1e-9)
        left = "" if total == float("inf") else f"/{int(total)}, {(total - done) / max(rate, 1e-9):.0f} s left"
        shown = "".join(f", {key} {_short(value)}" for key, value in metrics.items() if key != "v_num")
        print(f"{name}: {done}{left}, {rate:.2f} it/s{shown}", flush=True)


def _short(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)
