"""Taking a run up again: from which checkpoint, and whether its folder may be used."""

import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml
from lightning import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.cli import SaveConfigCallback
from lightning.pytorch.utilities import rank_zero_only

from callbacks.checkpoint_files import SUFFIX, SameCheckpoint, batches_done, choose_checkpoint, is_whole, missing_state
from callbacks.prediction_files import FolderLock
from callbacks.run_folder import RunFolderLogger
from experiments.tracking import purge_after

LAST = "last"
LOCK_SECONDS = 120  # a Linux NFS server keeps the locks of a machine that has died for 90 s
# Of `validate` and `test`, and of `predict`; `fit` has neither.
_SETTINGS_OF_COMMANDS = {"verbose", "return_predictions"}


class FollowLock(Callback):
    """Locks the run's folder for a rank other than 0, so that it shows where one outlives its run.

    Only once the processes have met: rank 0 has the folder then, and would take an earlier lock for another run's.
    """

    def __init__(self, folder: Path, lock: FolderLock) -> None:
        self.folder = folder
        self.lock = lock

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Lock."""
        self.lock.take(self.folder, trainer.global_rank)


def find_checkpoint(trainer: Trainer, named: str | None) -> str | None:
    """Return the checkpoint that `fit` goes on from, and say which; `last` is the newest whole one of this run.

    Lightning takes only files that are called last, also half-written ones.
    """
    if named != LAST:
        _check_state(named)
        return named
    folders = _checkpoint_folders(trainer)
    choice = choose_checkpoint(folders)
    path = None if choice.path is None else str(choice.path)
    trainer.callbacks.append(SameCheckpoint(path))  # type: ignore[attr-defined]
    for each, reason in choice.passed_over:
        _tell(f"passed over {each}: {reason}")
    if path:
        _tell(f"going on from {path}")
    elif folders:
        _tell(f"no checkpoint to go on from in {folders[0]}: beginning afresh")
    else:
        _tell("--ckpt_path last in a fresh run folder: beginning afresh; --run_name NAME names one to take up again")
    return path


def refuse_last(named: str | None) -> None:
    """Refuse `last` where nothing is gone on with: Lightning would go on with an untrained network."""
    if named == LAST:
        raise ValueError("--ckpt_path last is for fit: name the file, for example RUN/checkpoints/last.ckpt")


def take_folder(trainer: Trainer, config: Mapping[str, Any], checkpoint: str | None, lock: FolderLock) -> None:
    """Take the run's folder, where it has a name; a folder that is there already is taken up again or refused.

    The newer config.yaml replaces the one that is there, so that more steps, other machines or moved data are written
    down. Another model is refused where a checkpoint is gone on from: its optimiser would go on with the old settings
    without a word, and the result would be neither of the two runs.

    Args:
        trainer: Not yet started.
        config: The resolved config of the command.
        checkpoint: What the run goes on from.
        lock: Held as long as the run is at work.
    """
    logger = _named_logger(trainer)
    if logger is None:
        return
    folder, fitting = Path(logger.log_dir), not _SETTINGS_OF_COMMANDS & config.keys()
    if trainer.is_global_zero:
        _lock(folder, lock)
    else:
        trainer.callbacks.append(FollowLock(folder, lock))  # type: ignore[attr-defined]
    saved = folder / "config.yaml"
    found = config["ckpt_path"] == LAST if fitting else False
    inside = fitting and checkpoint is not None and (found or folder.resolve() in Path(checkpoint).resolve().parents)
    held = fitting and any((folder / "checkpoints").glob(f"*{SUFFIX}"))
    if held and not inside and config["ckpt_path"] != LAST:
        raise ValueError(
            f"{folder} holds checkpoints of an earlier start: add --ckpt_path last to go on from them, or choose "
            "another --run_name"
        )
    if saved.exists():
        _check_config(saved, config, same_model=inside or not fitting)
        for callback in trainer.callbacks:  # type: ignore[attr-defined]
            if isinstance(callback, SaveConfigCallback):
                callback.overwrite = True
    done = batches_done(Path(str(checkpoint))) if inside else -1
    logger.go_on_after(done)
    purge_after(trainer, done)


def first_difference(old: Any, new: Any, key: str = "") -> str:
    """Name the first setting that differs between two sections of configs; an empty text where none does.

    Settings that only one has are of another version of the program and left out.
    """
    if isinstance(old, Mapping) and isinstance(new, Mapping):
        found = (first_difference(old[name], new[name], f"{key}.{name}") for name in old if name in new)
        return next(filter(None, found), "")
    return "" if old == new else f"{key[1:]} was {old}, is {new}"


def _check_config(saved: Path, config: Mapping[str, Any], same_model: bool) -> None:
    try:
        old = yaml.safe_load(saved.read_text(encoding="utf-8"))
    except (UnicodeDecodeError, yaml.YAMLError):
        old = None  # torn by a kill or a full disk
    if not isinstance(old, dict):
        return
    if _SETTINGS_OF_COMMANDS & (old.keys() ^ config.keys()):
        raise ValueError(f"{saved} is of another command than this one: choose another --run_name")
    found = first_difference(old.get("model"), config.get("model"), ".model") if same_model else ""
    if found:
        raise ValueError(f"{saved.parent} was begun with another model ({found}): choose another --run_name")


def _check_state(named: str | None) -> None:
    """Refuse a checkpoint of `validate`, from which Lightning would begin afresh without a word."""
    if named and is_whole(Path(named)) and missing_state(Path(named)) == "optimizer_states":
        raise ValueError(
            f"checkpoint '{named}' has no state of an optimiser to go on from, as `validate` saves it: give it as "
            "--model.weights instead of --ckpt_path, or name one that fit saved"
        )


def _lock(folder: Path, lock: FolderLock) -> None:
    """Lock the run's folder for rank 0; the run before may need a while to end, or to be seen to have ended."""
    deadline = time.monotonic() + LOCK_SECONDS
    if lock.take(folder, 0):
        return
    _tell(f"another run is at work in {folder}: waiting for its end for {LOCK_SECONDS} s")
    while not lock.take(folder, 0):
        if time.monotonic() > deadline:
            raise ValueError(f"another run is at work in {folder}: wait for its end or choose another --run_name")
        time.sleep(1)


def _checkpoint_folders(trainer: Trainer) -> list[Path]:
    """Return where this run keeps checkpoints; none where its folder is fresh."""
    callbacks = trainer.checkpoint_callbacks
    named = {Path(each.dirpath) for each in callbacks if isinstance(each, ModelCheckpoint) and each.dirpath}
    logger = trainer.loggers[0] if trainer.loggers else None
    if not isinstance(logger, RunFolderLogger) or logger.has_name:
        named.add(Path(trainer.log_dir or trainer.default_root_dir) / "checkpoints")
    return sorted(named)


def _named_logger(trainer: Trainer) -> RunFolderLogger | None:
    logger = trainer.loggers[0] if trainer.loggers else None
    return logger if isinstance(logger, RunFolderLogger) and logger.has_name else None


@rank_zero_only
def _tell(line: str) -> None:
    print(line, file=sys.stderr)
