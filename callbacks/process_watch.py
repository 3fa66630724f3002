"""A run of several processes ends when one of them is lost or hangs, and says which one and how to go on."""

import contextlib
import faulthandler
import multiprocessing
import os
import signal
import socket
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

from lightning import Callback, LightningModule, Trainer
from lightning.pytorch.strategies.launchers import _SubprocessScriptLauncher
from torch import distributed

from callbacks.checkpoint_files import newest_checkpoint
from callbacks.process_words import LOST, Action, Word, explain_worker, is_from_collective, judge
from callbacks.run_folder import RunFolderLogger
from callbacks.run_safety import GracefulStop

PERIOD = 1.0  # seconds between two rounds
# Rank 0 finds out who is silent; the others wait this much longer for it to say so.
PATIENCE = 10.0
# An end that takes longer than this, on a file system that hangs for one, is cut short.
END_SECONDS = 300.0


class MissingError(RuntimeError):
    """A process did not come, or its connection broke, after so many seconds."""

    def __init__(self, rank: int, seconds: float) -> None:
        super().__init__(f"rank {rank} did not come in {seconds:.0f} s")
        self.rank = rank
        self.seconds = seconds


class ProcessWatch(Callback):
    """Ends all processes of a run, each with a line and exit code 75, when one of them is lost.

    Beside the network a thread of each process meets the others every second, in a process group of its own. So a
    process that is killed or frozen is found by its name and soon, however long the others may rightly wait for each
    other: the timeout of Lightning's process group knows no difference between a search of an hour and a dead
    process, says no rank, and under NCCL ends by an abort. A process of which only the network hangs still meets the
    others; then that timeout comes first, and every process that was waited for leaves its stack.

    An error in one process ends the others too, by its line and exit code.

    Args:
        silence: Seconds after which a process that does not answer counts as lost; 0 to watch nothing. A process that
            was suspended for longer is lost as well.
        worker_timeout: Seconds that a process waits for a batch from its data workers; 0 to wait for ever.
    """

    def __init__(self, silence: float = 120.0, worker_timeout: float = 1800.0) -> None:
        for name, value in (("silence", silence), ("worker_timeout", worker_timeout)):
            if value < 0:
                raise ValueError(f"process_watch.{name} must be 0 or more, got {value:g}")
        self.silence = silence
        self.worker_timeout = worker_timeout
        self._word = Word(rank=0, host=socket.gethostname(), pid=os.getpid())
        self._since = time.monotonic()
        self._group: Any = None
        self._thread: threading.Thread | None = None
        self._ending = threading.Lock()
        self._launched: list[subprocess.Popen[Any]] = []
        self._stopped: Word | None = None
        self._trainer: Trainer | None = None
        self._folder = Path()

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Begin to watch, once the processes have found each other."""
        datamodule = getattr(trainer, "datamodule", None)
        if datamodule is not None:
            datamodule.worker_timeout = self.worker_timeout
        if not self.silence or trainer.world_size == 1 or not distributed.is_initialized():
            return
        self._trainer = trainer
        # Talks to all ranks: never behind a condition.
        self._folder = Path(trainer.log_dir or trainer.default_root_dir)
        self._launched = _take_children(trainer)
        rank = trainer.global_rank
        self._word, self._stopped = replace(self._word, rank=rank, end="", code=0, told=""), None
        self._at("setting up")
        patience = self.silence if rank == 0 else self.silence + PATIENCE
        self._group = distributed.new_group(backend="gloo", timeout=timedelta(seconds=patience))
        self._thread = threading.Thread(target=self._watch, name="process-watch", daemon=True)
        self._thread.start()

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Note the place."""
        self._at(f"training step {trainer.global_step}")

    def on_validation_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        """Note the place."""
        self._at(f"validation batch {batch_idx}")

    def on_test_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        """Note the place."""
        self._at(f"test batch {batch_idx}")

    def on_predict_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        """Note the place."""
        self._at(f"prediction batch {batch_idx}")

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Note the place."""
        self._at("the end of validation")

    def on_test_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Note the place."""
        self._at("the end of the test")

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Note the place."""
        self._at("writing a checkpoint")

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Wait until all are done, for as long as they live: shares of prediction may differ by hours."""
        if self._thread is not None:
            self._at("done")
            self._word = replace(self._word, end="done")
            self._thread.join()
            self._thread = None

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Tell the others why this process ends, and wait until they have heard it."""
        if explain_worker(exception):
            _end_workers()
        thread, self._thread = self._thread, None
        if thread is None:
            return
        self._word = _last_word(self._word, exception)
        thread.join()
        if self._word.end == "failed":
            for child in self._launched:
                _see_off(child)
        if self._stopped is not None and self._word.end == "cut off":
            self._end(f"rank {self._word.rank} ends, as rank {self._stopped.rank} was stopped", self._stopped.code)

    def _at(self, place: str) -> None:
        self._word, self._since = replace(self._word, place=place), time.monotonic()

    def _watch(self) -> None:
        words: list[Word] = []
        while True:
            try:
                words = self._meet()
            except MissingError as missing:
                self._miss(words, missing)
                return
            action = judge(words, self._word.rank)
            if action.kind == "end":
                self._end(action.line, action.code, stack=action.stack, advice=action.advice)
            if action.kind == "stop":
                self._stop_too(action)
            if action.kind in ("rest", "stop"):
                time.sleep(PERIOD / 2)  # the connections stay open until the others have heard this round too
                return
            time.sleep(PERIOD)

    def _meet(self) -> list[Word]:
        """Give the word to rank 0 and get those of all.

        One by one: a collective, even the monitored barrier, does not always say who is missing.
        """
        word, size = replace(self._word, seconds=round(time.monotonic() - self._since, 1)), distributed.get_world_size()
        if word.rank > 0:
            self._talk(distributed.send_object_list, [word], 0)
            words: list[Word] = self._talk(distributed.recv_object_list, [None] * size, 0)
            return words
        words = [word, *(self._talk(distributed.recv_object_list, [None], other)[0] for other in range(1, size))]
        for other in range(1, size):
            self._talk(distributed.send_object_list, words, other)
        return words

    def _talk(self, act: Callable[..., Any], objects: list[Any], other: int) -> list[Any]:
        started = time.monotonic()
        try:
            act(objects, other, group=self._group)
        except RuntimeError as error:
            raise MissingError(other, time.monotonic() - started) from error
        return objects

    def _miss(self, words: Sequence[Word], missing: MissingError) -> None:
        """End the run as someone did not come; this one's own error, and one that was stopped, were told already."""
        self._stopped = next((word for word in words if word.end == "stopped"), None)
        if self._stopped is not None or self._word.end == "failed":
            return
        rank = self._word.rank
        if rank == 0:
            self._end(self._tell_lost(missing, words), LOST, advice=True)
            return
        first = words[0] if words else None
        hangs = time.monotonic() - self._since > self.silence
        line = f"rank {rank} ends: rank 0{_place(first)} is gone or does not answer, if it did not say why itself"
        here = first is not None and first.host == self._word.host
        self._end(line, LOST, stack=hangs, advice=True, parent=first.pid if first and here else 0)

    def _tell_lost(self, missing: MissingError, words: Sequence[Word]) -> str:
        rank, waited = missing.rank, missing.seconds
        where = f"rank {rank}{_place(words[rank] if words else None)}"
        child = self._launched[rank - 1] if rank <= len(self._launched) else None
        code = None
        if child is not None:
            with contextlib.suppress(subprocess.TimeoutExpired):
                code = child.wait(2)
        if code is not None and code > 0:
            return f"{where} ended with exit code {code}"
        if code is not None:
            killed = f"{where} was ended by {signal.Signals(-code).name}"
            return f"{killed}, most often for want of memory" if code == -signal.SIGKILL else killed
        if waited < 0.9 * self.silence:
            return f"{where} ended without a word of ours, as one that aborts or is killed for want of memory"
        return f"{where} has not answered for {waited:.0f} s: it hangs, or its machine or network is gone"

    def _stop_too(self, action: Action) -> None:
        """Stop as another process was stopped: gently where there is something to keep."""
        trainer = self._trainer
        assert trainer is not None
        callbacks: list[Callback] = trainer.callbacks  # type: ignore[attr-defined]
        graceful = next((each for each in callbacks if isinstance(each, GracefulStop)), None)
        self._stopped = action.who
        if trainer.state.fn in ("validate", "test"):
            self._end(action.line, action.code)
        # In training all processes have agreed to stop already.
        if trainer.state.fn != "predict" or graceful is None or graceful.received is not None:
            return
        if action.code <= 128:  # by no signal: `sys.exit`
            self._end(action.line, action.code)
        os.kill(os.getpid(), action.code - 128)

    def _end(self, line: str, code: int, *, stack: bool = False, advice: bool = False, parent: int = 0) -> None:
        """End this process here and now: its network may wait in a collective that nothing can interrupt."""
        with self._ending:
            faulthandler.dump_traceback_later(END_SECONDS, exit=True, file=2)
            if stack:
                frame = sys._current_frames()[threading.main_thread().ident or 0]
                print(f"rank {self._word.rank} was here:", *traceback.format_stack(frame), sep="\n", file=sys.stderr)
            print(f"sealmark: error: {line}", file=sys.stderr, flush=True)
            if advice:
                print(self._advice(), file=sys.stderr, flush=True)
            for child in self._launched:
                _see_off(child)
            if parent and parent == os.getppid():
                # Rank 0 started this process and is frozen: nobody else would ever end it.
                time.sleep(2)
                if parent == os.getppid():
                    os.kill(parent, signal.SIGKILL)
            with contextlib.suppress(Exception):
                sys.stdout.flush()
            for worker in multiprocessing.active_children():
                worker.kill()
            os._exit(code)

    def _advice(self) -> str:
        trainer = self._trainer
        assert trainer is not None
        if trainer.state.fn == "predict":
            return f"the same command with --predictions.output_dir {self._folder / 'predictions'} goes on"
        if trainer.state.fn != "fit":
            return "start the same command again"
        logger = next(iter(trainer.loggers), None)
        if isinstance(logger, RunFolderLogger) and logger.has_name:
            return "the same command goes on where --ckpt_path last is part of it"
        checkpoint = newest_checkpoint(self._folder / "checkpoints")
        if checkpoint is None:
            return "there is no checkpoint yet: start the same command again"
        return f"go on with:\n  sealmark fit --config {self._folder / 'config.yaml'} --ckpt_path {checkpoint}"


def _take_children(trainer: Trainer) -> list[subprocess.Popen[Any]]:
    """Return the processes that Lightning started, and take them from its observer.

    Every five seconds that looks for one that ended, and then kills all by SIGKILL: before a word of why is said, and
    with an exit code that means a full memory.
    """
    launcher = trainer.strategy.launcher
    if not isinstance(launcher, _SubprocessScriptLauncher):
        return []
    observed = launcher.procs
    launcher.procs = list(observed)
    observed.clear()  # the observer ends, as it finds nobody left to observe
    return launcher.procs


def _see_off(child: subprocess.Popen[Any]) -> None:
    """Give a process a moment to end by itself, then kill it, which also ends a frozen one."""
    with contextlib.suppress(subprocess.TimeoutExpired):
        child.wait(3)
    child.kill()
    with contextlib.suppress(subprocess.TimeoutExpired):
        child.wait(3)


def _end_workers() -> None:
    """Kill the data workers: a frozen one would hold up the end of this process for ever."""
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # torch's handler raises an error of each that is killed
    for worker in multiprocessing.active_children():
        worker.kill()


def _last_word(word: Word, exception: BaseException) -> Word:
    if isinstance(exception, SystemExit | KeyboardInterrupt):
        code = exception.code if isinstance(exception, SystemExit) else 128 + signal.SIGINT
        return replace(word, end="stopped", code=code if isinstance(code, int) else 1)
    if is_from_collective(exception):
        return replace(word, end="cut off", code=LOST, told=_one_line(exception))
    explained = explain_worker(exception) or exception
    code = 2 if isinstance(explained, ValueError | OSError) else 1
    return replace(word, end="failed", code=code, told=_one_line(explained))


def _one_line(exception: BaseException) -> str:
    return " ".join(str(exception).split()) or type(exception).__name__


def _place(word: Word | None) -> str:
    return f" (process {word.pid} on {word.host}, last seen at {word.place})" if word is not None else ""
