"""Checkpoints on disk: written whole or not at all, kept when the disk is full, and found again after a crash."""

import errno
import math
import os
import sys
import time
import zipfile
from collections.abc import Container, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from lightning import Callback, LightningModule, Trainer
from lightning.fabric.plugins.io.torch_io import TorchCheckpointIO
from lightning.pytorch.callbacks import ModelCheckpoint

from callbacks.prediction_files import TEMPORARY_SUFFIX
from lightning_modules.functional.plain_pickles import load_plain, plain_items

SUFFIX = ".ckpt"
SAVED = "saved_ns"  # when a checkpoint was saved: a copied file has another time
NO_SPACE = (errno.ENOSPC, errno.EDQUOT)
# What a checkpoint of Lightning holds beside the weights; one of `save_weights_only` lacks them.
_STATE_OF_RUN = ("state_dict", "loops", "optimizer_states", "lr_schedulers")


@dataclass
class Unwritten:
    """A checkpoint for which there was no space: what to tell, and what its save would have removed."""

    told: str
    held: list[str] = field(default_factory=list)


class AtomicCheckpointIO(TorchCheckpointIO):
    """Writes a checkpoint beside its place and renames it; a full disk leaves the last good one and training goes on.

    Lightning's own holds the whole file in memory first, then moves it from the folder for temporary files: that may be
    another file system, where the move is a copy that a kill cuts in half, and nothing is synced, so that a power cut
    may leave zeros. Remote paths go Lightning's way; sharded checkpoints never come here.

    Training goes on because only rank 0 writes: an error there would leave the others waiting for it, and space is
    often made while a run lasts. What a checkpoint replaces is kept until that very one is written or given up, and a
    run must end with `failure` while one is missing.
    """

    def __init__(self) -> None:
        self.last_good = ""
        self.unwritten: dict[str, Unwritten] = {}  # by path
        self._failed = ""  # the last save's path, where it did not succeed
        self._swept: set[Path] = set()

    @property
    def failure(self) -> str:
        """Why a checkpoint is missing, and what to do."""
        return next((each.told for each in reversed(self.unwritten.values())), "")

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any | None = None) -> None:
        """Write the file; where there is no space, say so in a line."""
        if storage_options is not None or "://" in str(path):
            super().save_checkpoint(checkpoint, path, storage_options)
            return
        target = Path(path)
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            self._sweep(target.parent)
            write_checkpoint({**checkpoint, SAVED: time.time_ns()}, target)
        except OSError as error:
            if error.errno not in NO_SPACE:
                raise
            self._note_failure(target, checkpoint)
            return
        self._failed, self.last_good = "", str(target)
        for each in self.unwritten.values():
            each.held = [old for old in each.held if old != str(target)]
        self.settle(str(target))

    def load_checkpoint(
        self, path: str | Path, map_location: Any = None, weights_only: bool | None = None
    ) -> dict[str, Any]:
        """Read a file as data: `load_plain` refuses in one line what torch would look at longer than it should."""
        if weights_only is False or "://" in str(path) or not Path(path).exists():
            loaded: dict[str, Any] = super().load_checkpoint(path, map_location, weights_only)
            return loaded
        if Path(path).is_file() and not Path(path).stat().st_size:
            raise ValueError(f"{path} is empty: copy or download it again")
        if Path(path).suffix == ".safetensors":
            raise ValueError(f"{path} holds weights only: give it as --model.weights instead of --ckpt_path")
        content = load_plain(Path(path))
        if not isinstance(content, dict):
            raise ValueError(f"{path} holds a {type(content).__name__}: expected a checkpoint")
        return plain_items(content)

    def remove_checkpoint(self, path: str | Path) -> None:
        """Remove a checkpoint; one whose successor could not be written stays."""
        if self._failed and str(path) != self._failed:
            self.unwritten[self._failed].held.append(str(path))
            return
        super().remove_checkpoint(path)
        self.settle(str(path))

    def settle(self, path: str, keep: Container[str] = ()) -> None:
        """Wait no longer for a checkpoint: remove what was held for it, but what is to be kept."""
        left = self.unwritten.pop(path, None)
        if left is None:
            return
        if path == self._failed:
            self._failed = ""
        for old in left.held:
            if old not in keep:
                super().remove_checkpoint(old)
                self.settle(old, keep)

    def _sweep(self, folder: Path) -> None:
        """Remove what a killed run left half-written, once a folder: a run has its folder for itself."""
        if folder not in self._swept:
            self._swept.add(folder)
            for partial in folder.glob(f"*{SUFFIX}{TEMPORARY_SUFFIX}"):
                partial.unlink(missing_ok=True)

    def _note_failure(self, target: Path, checkpoint: dict[str, Any]) -> None:
        last_good = self.last_good or newest_checkpoint(target.parent)
        told = f"no space left to write {target}: " + (
            f"free some, then go on with --ckpt_path {last_good}" if last_good else "free some and start again"
        )
        held = self.unwritten.pop(str(target), Unwritten("")).held
        self.unwritten[str(target)], self._failed = Unwritten(told, held), str(target)
        kept = f"{last_good} stays" if last_good else "there is none yet"
        print(
            f"warning: step {checkpoint.get('global_step')}: no space left for the checkpoint {target}; "
            f"{kept}, training goes on: free some before the next one",
            file=sys.stderr,
        )


def write_checkpoint(checkpoint: dict[str, Any], target: Path) -> None:
    """Write a file that is there entirely, also after a power cut, or not at all.

    Raises:
        OSError: also where torch reports a failed write as a RuntimeError.
    """
    partial = target.with_name(target.name + TEMPORARY_SUFFIX)
    try:
        # torch writes tensor by tensor into an open file: no second copy of the checkpoint in memory.
        with partial.open("wb") as file:
            torch.save(checkpoint, file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, target)
    except BaseException as error:
        partial.unlink(missing_ok=True)
        cause = _cause_of(error)
        if cause is None or cause is error:
            raise
        raise OSError(cause.errno, cause.strerror, str(target)) from error
    _sync_folder(target.parent)


@dataclass(frozen=True)
class Choice:
    """The checkpoint to go on from, and the newer ones that were passed over with the reason."""

    path: Path | None
    passed_over: tuple[tuple[Path, str], ...] = ()


def choose_checkpoint(folders: Iterable[Path]) -> Choice:
    """Choose the whole checkpoint with the state of a run that was saved last, whatever its name."""
    passed_over: list[tuple[Path, str]] = []
    for path in _newest_first(folders):
        reason = _obstacle(path)
        if not reason:
            return Choice(path, tuple(passed_over))
        passed_over.append((path, reason))
    return Choice(None, tuple(passed_over))


def newest_checkpoint(folder: Path) -> Path | None:
    """Return the newest whole checkpoint of a folder that a run can go on from."""
    return choose_checkpoint([folder]).path


def is_whole(path: Path) -> bool:
    """Return whether a file is a checkpoint without damage: all its parts are there and have their checksums."""
    try:
        with zipfile.ZipFile(path) as archive:
            # torch compresses nothing; so this reads no more than the file holds.
            stored = all(entry.compress_type == zipfile.ZIP_STORED for entry in archive.infolist())
            return stored and bool(archive.infolist()) and archive.testzip() is None
    except Exception:  # a folder, no file, or bytes that drive zipfile into errors of many types
        return False


def batches_done(path: Path) -> int:
    """Return the number of the last training batch that a checkpoint holds, by which metrics are logged."""
    loops = load_plain(path, mapped=True)["loops"]
    return int(loops["fit_loop"]["epoch_loop.state_dict"]["_batches_that_stepped"])


def missing_state(path: Path) -> str:
    """Return what a whole checkpoint lacks for training to go on from it; an empty text where that is nothing."""
    content = load_plain(path, mapped=True)
    missing = [key for key in _STATE_OF_RUN if not isinstance(content, dict) or key not in content]
    if not missing and not content["optimizer_states"]:
        missing = ["optimizer_states"]  # `validate` saves an empty list, of which Lightning would make a fresh start
    return ", ".join(missing)


class WrittenBest(Callback):
    """Takes a best checkpoint that could not be written out of the ranking: the ones before it are the best there are.

    `ModelCheckpoint` ranks it before it is saved, and would pass over worse ones that could be saved.
    """

    def __init__(self, files: AtomicCheckpointIO) -> None:
        self._files = files
        self._known: dict[int, dict[str, float]] = {}
        self._missing: dict[int, set[str]] = {}  # on rank 0, until the next one of the same ranking is written

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Look before the next batch, and so before the next save."""
        self._look(trainer)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Look before anybody asks for the best checkpoint."""
        self._look(trainer)

    def _look(self, trainer: Trainer) -> None:
        for number, saver in enumerate(trainer.checkpoint_callbacks):
            if not isinstance(saver, ModelCheckpoint) or "://" in str(saver.dirpath):
                continue
            ranking = {path: float(score) for path, score in saver.best_k_models.items()}
            before = self._known.get(number, {})
            if ranking != before:  # the same on all ranks; only rank 0 knows what was written
                found = self._written(number, saver, before, ranking) if trainer.is_global_zero else ranking
                found = trainer.strategy.broadcast(found)
                if found != ranking:
                    _rank(saver, found)
                self._known[number] = found

    def _written(
        self, number: int, saver: ModelCheckpoint, before: dict[str, float], ranking: dict[str, float]
    ) -> dict[str, float]:
        missing = self._missing.setdefault(number, set())
        lost = {path for path in ranking if path in self._files.unwritten or not os.path.exists(path)}
        if missing and ranking.keys() - before.keys() - lost:  # a later one takes the place of those
            for path in missing:
                self._files.settle(path, keep=ranking)
            missing.clear()
        if not lost:
            return ranking
        there = {path: score for path, score in before.items() if os.path.exists(path)}
        there |= {path: score for path, score in ranking.items() if path not in lost}
        most = len(there) if saver.save_top_k == -1 else saver.save_top_k
        best = dict(sorted(there.items(), key=lambda item: item[1], reverse=saver.mode == "max")[:most])
        for path in lost & self._files.unwritten.keys():
            self._files.unwritten[path].held = [old for old in self._files.unwritten[path].held if old not in best]
            missing.add(path)
        return best


def _rank(saver: ModelCheckpoint, ranking: dict[str, float]) -> None:
    """Make a ranking, best first, that of `ModelCheckpoint`."""
    saver.best_k_models = {path: torch.tensor(score) for path, score in ranking.items()}
    first, last = (next(iter(ranking), ""), next(reversed(ranking), ""))
    saver.best_model_path, saver.best_model_score = first, saver.best_k_models.get(first)
    is_full = len(ranking) == saver.save_top_k
    saver.kth_best_model_path = last if is_full else ""
    worst = torch.tensor(math.inf if saver.mode == "min" else -math.inf)
    saver.kth_value = saver.best_k_models[last] if is_full else worst


class SameCheckpoint(Callback):
    """Refuses to start where the processes of a run have chosen different checkpoints.

    Each chooses by itself, before they can talk; a shared file system may show them different files.
    """

    def __init__(self, path: str | None) -> None:
        self.path = path

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Compare with rank 0's choice; all processes end or none."""
        if trainer.world_size == 1:
            return
        first = trainer.strategy.broadcast(self.path)
        if not trainer.strategy.reduce_boolean_decision(self.path == first):
            raise ValueError(
                f"--ckpt_path last: rank {trainer.global_rank} found {self.path or 'nothing'} and rank 0 "
                f"{first or 'nothing'}: start again once all machines see the same files, or name one file"
            )


def _newest_first(folders: Iterable[Path]) -> Iterator[Path]:
    found = []
    for path in {path for folder in folders for path in folder.glob(f"*{SUFFIX}")}:
        try:
            found.append((_saved(path), path))
        except OSError:  # a link to nothing, or removed just now
            continue
    return (path for _, path in sorted(found, reverse=True))


def _saved(path: Path) -> int:
    """Return when a checkpoint was saved; of one that does not tell, when its file was written."""
    written = path.stat().st_mtime_ns
    try:
        return int(load_plain(path, mapped=True)[SAVED])
    except (OSError, ValueError, KeyError, TypeError, IndexError, OverflowError):
        return written


def _obstacle(path: Path) -> str:
    """Return why a run cannot go on from a file; an empty text where it can."""
    if path.is_dir():
        return "a folder"
    if not is_whole(path):
        return "not whole"
    try:
        lacks = missing_state(path)
    except ValueError:
        # Whole, but holds more than data: to fall back behind it in silence would lose work; loading it says why.
        return ""
    return f"without {lacks}" if lacks else ""


def _cause_of(error: BaseException | None) -> OSError | None:
    """Return the OSError behind an error: torch raises a RuntimeError of its own on top."""
    while error is not None and not isinstance(error, OSError):
        error = error.__cause__ or error.__context__
    return error


def _sync_folder(folder: Path) -> None:
    """Make a rename last; file systems that cannot are left alone."""
    try:
        descriptor = os.open(folder, os.O_RDONLY)
    except OSError:
        return
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):
            raise
    finally:
        os.close(descriptor)
