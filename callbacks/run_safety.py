"""What keeps a run's work: stopping at a step's end with a checkpoint, and a list of files left out."""

import json
import os
import signal
import sys
from pathlib import Path
from types import FrameType
from typing import Any

from lightning import Callback, LightningModule, Trainer

SIGNALS = (signal.SIGINT, signal.SIGTERM)


class GracefulStop(Callback):
    """Ends training on Ctrl-C or SIGTERM after the running step, with a checkpoint and a line that says how to go on.

    A checkpoint written in the middle of a step would not resume exactly, so the signal is only noted. A second one
    acts at once.
    """

    def __init__(self) -> None:
        self.received: int | None = None
        self._previous: dict[int, Any] = {}

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Take the signals over, after Lightning has set its own handlers."""
        self.received = None
        self._previous = {number: signal.signal(number, self._note) for number in SIGNALS}

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Save and leave if any rank was told to."""
        stop = self.received is not None
        if trainer.world_size > 1:
            stop = trainer.strategy.reduce_boolean_decision(stop, all=False)
        if stop:
            self._save_and_leave(trainer)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Give the signals back."""
        self._restore()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Give the signals back when a run ends by an error."""
        self._restore()

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.received = number
        self._restore()
        if os.environ.get("LOCAL_RANK", "0") == "0":
            print("\nstopping after this step with a checkpoint (again to stop at once)", file=sys.stderr)

    def _restore(self) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)
        self._previous = {}

    def _save_and_leave(self, trainer: Trainer) -> None:
        folder = Path(trainer.log_dir or trainer.default_root_dir)
        path = folder / "checkpoints" / f"interrupted-step{trainer.global_step}.ckpt"
        trainer.save_checkpoint(path)
        if trainer.is_global_zero:
            print(
                f"stopped at epoch {trainer.current_epoch}, step {trainer.global_step}; go on with:\n"
                f"  sealmark fit --config {folder / 'config.yaml'} --ckpt_path {path}",
                file=sys.stderr,
            )
        self._restore()
        raise SystemExit(128 + (self.received or signal.SIGTERM))


class SkippedFiles(Callback):
    """Counts the unreadable files that were left out and lists each once in `skipped.jsonl` of the run's folder.

    Prediction keeps such a list of its own beside the predictions.
    """

    def __init__(self) -> None:
        self.seen: set[str] = set()

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *args: Any) -> None:
        """List what training left out."""
        self._list(trainer, args[1])

    def on_validation_batch_end(self, trainer: Trainer, pl_module: LightningModule, *args: Any) -> None:
        """List what validation left out."""
        self._list(trainer, args[1])

    def on_test_batch_end(self, trainer: Trainer, pl_module: LightningModule, *args: Any) -> None:
        """List what the test left out."""
        self._list(trainer, args[1])

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Say how many files were left out."""
        if self.seen:
            print(
                f"{len(self.seen)} unreadable files were left out, listed in {self._path(trainer)}",
                file=sys.stderr,
            )

    def _list(self, trainer: Trainer, batch: Any) -> None:
        skipped = batch.get("skipped", []) if isinstance(batch, dict) else []
        fresh = [entry for entry in skipped if entry["path"] not in self.seen]
        if not fresh:
            return
        self.seen.update(entry["path"] for entry in fresh)
        path = self._path(trainer)
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("a", encoding="utf-8") as file:
            file.writelines(json.dumps(entry, ensure_ascii=False) + "\n" for entry in fresh)

    @staticmethod
    def _path(trainer: Trainer) -> Path:
        name = "skipped.jsonl" if trainer.world_size == 1 else f"skipped.rank{trainer.global_rank}.jsonl"
        return Path(trainer.log_dir or trainer.default_root_dir) / name
