"""What a user can do about errors that come from deep inside Lightning or torch."""

import pickle
import re
from pathlib import Path

from lightning.fabric.utilities.exceptions import MisconfigurationException

from callbacks.process_words import explain_worker, is_from_collective
from lightning_modules.functional.plain_json import quoted
from lightning_modules.weights import read_weights

# What Lightning and torch raise for mistakes of users; each may also be an error of ours, which stays what it is.
EXPLAINED = (
    *(MisconfigurationException, pickle.UnpicklingError, RuntimeError, EOFError, KeyError),
    *(TypeError, AttributeError, IndexError, ArithmeticError),
)
MOST_REASONS = 3  # of why a checkpoint does not fit
RESTORING = "checkpoint_connector"  # Lightning's module that hands a checkpoint to the parts of a run
UNREADABLE = ("PytorchStreamReader", "TorchScript archive")
# Of Lightning, for files without its own entries and for those of `save_weights_only`.
WEIGHTS_ONLY = ("pytorch-lightning_version", "contains only the model")


def refuse_url(checkpoint: str | Path | None) -> None:
    """Refuse a checkpoint that Lightning would fetch from elsewhere."""
    if "://" in str(checkpoint):
        raise ValueError(f"ckpt_path '{checkpoint}' is not on this machine: download it first and name the file")


def refuse_remote_folder(name: str, folder: str | Path | None) -> None:
    """Refuse an address as a folder to write to: it would become a local folder with that name."""
    if "://" in str(folder):
        raise ValueError(f"{name} '{folder}' is not on a disk of this machine: name a folder, and copy it there later")


def explain(error: Exception, checkpoint: str | Path | None) -> Exception:
    """Say what a user can do about a setting or file that cannot be used; other errors stay what they are.

    Args:
        error: What was raised.
        checkpoint: The checkpoint of the run, if it has one.
    """
    told = str(error)
    if isinstance(error, MisconfigurationException):
        return ValueError(_explain_setting(told))
    if "Aborting to avoid overwriting results of a previous run" in told:
        return ValueError("another run's config.yaml lies in the run's folder: give the run a logger or its own folder")
    if worker := explain_worker(error):
        return worker
    if is_from_collective(error):
        # Before the processes watch each other, or where they do not.
        return ValueError(f"another process of the run ended or did not come in time, see what it said: {told}")
    return _explain_checkpoint(error, told, checkpoint) if checkpoint else error


def _explain_setting(told: str) -> str:
    if "gpu backend" in told or "Accelerator` can not run" in told:
        return f"trainer.accelerator: {told} On a machine without it add --config configs/env/cpu.yaml"
    return f"the settings do not go together: {told}"


def _explain_checkpoint(error: Exception, told: str, checkpoint: str | Path) -> Exception:
    if "loading state_dict" in told:
        reasons = "; ".join(_gist(line.strip()) for line in told.splitlines()[1 : 1 + MOST_REASONS])
        return ValueError(
            f"checkpoint '{checkpoint}' does not fit the model of this config ({reasons}): use the config.yaml of the "
            "run that made it"
        )
    unreadable = isinstance(error, pickle.UnpicklingError | EOFError) or any(text in told for text in UNREADABLE)
    if not unreadable and not (isinstance(error, KeyError) and any(text in told for text in WEIGHTS_ONLY)):
        return _unusable(error, told, checkpoint) if _is_restoring(error) else error
    # Names the damage, or the code that the file would have run.
    read_weights(checkpoint)
    if isinstance(error, EOFError):
        # The file is whole: something else ended early.
        return error
    return ValueError(
        f"checkpoint '{checkpoint}' holds weights only, not the state of a run: "
        f"give it as --model.weights instead of --ckpt_path"
    )


def _gist(reason: str) -> str:
    """Shorten one of torch's reasons, which can list a thousand keys."""
    kind, _, listed = reason.partition(" key(s) in state_dict: ")
    keys = re.findall(r'"([^"]+)"', listed)
    return f"{len(keys)} {kind.lower()}, first {keys[0]}" if keys else reason.rstrip(". ")[:300]


def _is_restoring(error: Exception) -> bool:
    """Return whether an error is from the inside of Lightning's reading of a checkpoint."""
    trace = error.__traceback__
    while trace is not None:
        if RESTORING in trace.tb_frame.f_code.co_filename:
            return True
        trace = trace.tb_next
    return False


def _unusable(error: Exception, told: str, checkpoint: str | Path) -> Exception:
    return ValueError(
        f"checkpoint '{checkpoint}' cannot be taken up ({type(error).__name__}: {quoted(' '.join(told.split()))}): "
        f"name one that a run of this config wrote"
    )
