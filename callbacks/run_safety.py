"""What keeps a run's work: stopping at a step's end with a checkpoint, and a list of files left out."""

import json
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from lightning import Callback, LightningModule, Trainer
from lightning.fabric.utilities.rank_zero import _get_rank

from callbacks.prediction_files import cut_torn_line, read_records
from callbacks.prediction_writers import PredictionWriter
from callbacks.run_folder import RunFolderLogger

# SIGUSR1 is what clusters send some minutes before a job's time is over.
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)


def heed_early_signal() -> None:
    """End by SIGUSR1 before a stage begins, with the exit code that it has later: a job script starts such a run again.

    Under SLURM Lightning would take the signal and save from inside its handler: in the middle of a step, into the
    folder of all runs, while another rank may wait in a collective. It leaves alone a handler that is there already.
    """
    signal.signal(signal.SIGUSR1, _end)


def _end(number: int, frame: FrameType | None) -> None:
    raise SystemExit(128 + number)


class GracefulStop(Callback):
    """Ends a run on Ctrl-C, SIGTERM or SIGUSR1 with a line that says how to go on.

    Training ends after the running step with a checkpoint, since one written in the middle of a step would not resume
    exactly; prediction ends after the running batch, since its files are whole then. There the signal is only noted,
    and a second one acts at once. Validation and test have nothing to keep and end at once.
    """

    def __init__(self) -> None:
        self.received: int | None = None
        self._previous: dict[int, Any] = {}
        self._advice = ""

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Take the signals over, after Lightning has set its own handlers."""
        # The checkpoint must hold all of a step, so this comes last: behind the average of the weights, for one. A new
        # list, since Lightning is walking through the old one.
        callbacks: list[Callback] = trainer.callbacks  # type: ignore[attr-defined]
        trainer.callbacks = [*(callback for callback in callbacks if callback is not self), self]  # type: ignore[attr-defined]
        self._take_signals(self._note)

    def on_predict_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Take the signals over for prediction."""
        self._advice = _advice_for_prediction(trainer)
        self._take_signals(self._note_in_prediction)

    def on_test_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Take the signals over for a test."""
        self._advice = "the same command tests again"
        self._take_signals(self._leave)

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Take the signals over for a validation that is not part of training."""
        if trainer.state.fn == "validate":
            self._advice = "the same command validates again"
            self._take_signals(self._leave)

    def on_predict_batch_start(self, trainer: Trainer, pl_module: LightningModule, *args: Any) -> None:
        """Leave between two batches if told to."""
        if self.received is not None:
            raise SystemExit(128 + self.received)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Save and leave if any rank was told to."""
        if (batch_idx + 1) % trainer.accumulate_grad_batches and not trainer.is_last_batch:
            return  # a checkpoint does not hold the gradients of half a step
        received = self.received or 0
        if trainer.world_size > 1:
            # By number: every rank must end with the same exit code, also one that the signal has not reached yet.
            number = torch.tensor(received, device=trainer.strategy.root_device)
            received = int(trainer.strategy.reduce(number, reduce_op="max"))
        if received:
            self._save_and_leave(trainer, received)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Give the signals back."""
        self._restore()

    def on_predict_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Give the signals back."""
        self._restore()

    def on_test_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Give the signals back."""
        self._restore()

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Give the signals back, unless training goes on."""
        if trainer.state.fn == "validate":
            self._restore()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Give the signals back when a run ends by an error."""
        self._restore()

    def _take_signals(self, handler: Callable[[int, FrameType | None], None]) -> None:
        self.received = None
        self._previous = {number: signal.signal(number, handler) for number in SIGNALS}

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.received = number
        self._restore()
        _tell("stopping after this step with a checkpoint (again to stop at once)")

    def _note_in_prediction(self, number: int, frame: FrameType | None) -> None:
        self.received = number
        for other in SIGNALS:
            signal.signal(other, self._leave)
        _tell(f"stopping after this batch (again to stop at once); {self._advice}")

    def _leave(self, number: int, frame: FrameType | None) -> None:
        self._restore()
        _tell(f"stopped; {self._advice}")
        raise SystemExit(128 + number)

    def _restore(self) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)
        self._previous = {}

    def _save_and_leave(self, trainer: Trainer, received: int) -> None:
        folder = Path(trainer.log_dir or trainer.default_root_dir)
        path = folder / "checkpoints" / f"interrupted-step{trainer.global_step}.ckpt"
        # Before the checkpoint, after which all ranks have met: from the first one that leaves on, any may be killed.
        for logger in trainer.loggers:
            logger.save()
        trainer.save_checkpoint(path)
        if trainer.is_global_zero:
            print(_advice_for_training(trainer, folder, path), file=sys.stderr)
        self._restore()
        raise SystemExit(128 + received)


def _tell(line: str) -> None:
    if not _get_rank():
        print(f"\n{line}", file=sys.stderr)


def _advice_for_training(trainer: Trainer, folder: Path, saved: Path) -> str:
    """Say how to go on; an older checkpoint of this kind is removed, which would else be left by every restart."""
    place = f"stopped at epoch {trainer.current_epoch}, step {trainer.global_step}"
    failure = getattr(trainer.strategy.checkpoint_io, "failure", "")
    if failure:
        return f"{place} without a checkpoint: {failure}"
    for path in saved.parent.glob("interrupted-step*.ckpt"):
        if path != saved:
            path.unlink()
    first = next(iter(trainer.loggers), None)
    if isinstance(first, RunFolderLogger) and first.has_name:
        return f"{place}; the same command goes on where --ckpt_path last is part of it (checkpoint {saved})"
    return f"{place}; go on with:\n  sealmark fit --config {folder / 'config.yaml'} --ckpt_path {saved}"


def _advice_for_prediction(trainer: Trainer) -> str:
    log_dir = trainer.log_dir or trainer.default_root_dir  # talks to all ranks: never behind a condition
    callbacks: list[Callback] = trainer.callbacks  # type: ignore[attr-defined]
    writer = next((callback for callback in callbacks if isinstance(callback, PredictionWriter)), None)
    if writer is None:
        return "the same command predicts again"
    if writer.output_dir:
        return "the same command goes on where it stopped"
    # A new start would take a folder of its own.
    return f"the same command with --predictions.output_dir {Path(log_dir) / 'predictions'} goes on where it stopped"


class SkippedFiles(Callback):
    """Counts the unreadable files that were left out and lists each once in `skipped.jsonl` of the run's folder.

    Prediction keeps such a list of its own beside the predictions.
    """

    def __init__(self) -> None:
        self.seen: set[str] = set()
        self._listed_before = 0
        self._path = Path()

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Settle where the list goes while all ranks are here: asking for the folder talks to all of them."""
        name = "skipped.jsonl" if trainer.world_size == 1 else f"skipped.rank{trainer.global_rank}.jsonl"
        self._path = Path(trainer.log_dir or trainer.default_root_dir) / name
        if self._path.exists():  # of an earlier start of the same run
            cut_torn_line(self._path)
            self.seen.update(str(entry.get("path")) for entry in read_records(self._path))
        self._listed_before = len(self.seen)

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *args: Any) -> None:
        """List what training left out."""
        self._list(args[1])

    def on_validation_batch_end(self, trainer: Trainer, pl_module: LightningModule, *args: Any) -> None:
        """List what validation left out."""
        self._list(args[1])

    def on_test_batch_end(self, trainer: Trainer, pl_module: LightningModule, *args: Any) -> None:
        """List what the test left out."""
        self._list(args[1])

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Say how many files were left out."""
        fresh = len(self.seen) - self._listed_before
        if fresh:
            print(
                f"{fresh} unreadable files were left out, listed in {self._path}",
                file=sys.stderr,
            )

    def _list(self, batch: Any) -> None:
        skipped = batch.get("skipped", []) if isinstance(batch, dict) else []
        fresh = [entry for entry in skipped if entry["path"] not in self.seen]
        if not fresh:
            return
        self.seen.update(entry["path"] for entry in fresh)
        self._path.parent.mkdir(parents=True, exist_ok=True)
        with self._path.open("a", encoding="utf-8") as file:
            file.writelines(json.dumps(entry, ensure_ascii=False) + "\n" for entry in fresh)
