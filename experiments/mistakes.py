"""What a user can do about errors that come from deep inside Lightning or torch."""

import pickle
from pathlib import Path

from lightning.fabric.utilities.exceptions import MisconfigurationException

from lightning_modules.weights import read_weights

# What Lightning and torch raise for mistakes of users; each may also be an error of ours, which stays what it is.
EXPLAINED = (MisconfigurationException, pickle.UnpicklingError, RuntimeError, EOFError, KeyError)
UNREADABLE = ("PytorchStreamReader", "TorchScript archive")
# Of Lightning, for files without its own entries and for those of `save_weights_only`.
WEIGHTS_ONLY = ("pytorch-lightning_version", "contains only the model")


def refuse_url(checkpoint: str | Path | None) -> None:
    """Refuse a checkpoint that Lightning would fetch from elsewhere."""
    if "://" in str(checkpoint):
        raise ValueError(f"ckpt_path '{checkpoint}' is not on this machine: download it first and name the file")


def explain(error: Exception, checkpoint: str | Path | None) -> Exception:
    """Say what a user can do about a setting or file that cannot be used; other errors stay what they are.

    Args:
        error: What was raised.
        checkpoint: The checkpoint of the run, if it has one.
    """
    told = str(error)
    if isinstance(error, MisconfigurationException):
        return ValueError(_explain_setting(told))
    if "SaveConfigCallback expected" in told:
        return ValueError("another run's config.yaml lies in the run's folder: give the run a logger or its own folder")
    return _explain_checkpoint(error, told, checkpoint) if checkpoint else error


def _explain_setting(told: str) -> str:
    if "gpu backend" in told or "Accelerator` can not run" in told:
        return f"trainer.accelerator: {told} On a machine without it add --config configs/env/cpu.yaml"
    return f"the settings do not go together: {told}"


def _explain_checkpoint(error: Exception, told: str, checkpoint: str | Path) -> Exception:
    if "loading state_dict" in told:
        reasons = [line.strip() for line in told.splitlines()[1:]]
        return ValueError(
            f"checkpoint '{checkpoint}' does not fit the model of this config ({len(reasons)} keys, first: "
            f"{reasons[0]}): use the config.yaml of the run that made it"
        )
    unreadable = isinstance(error, pickle.UnpicklingError | EOFError) or any(text in told for text in UNREADABLE)
    if not unreadable and not (isinstance(error, KeyError) and any(text in told for text in WEIGHTS_ONLY)):
        return error
    # Names the damage, or the code that the file would have run.
    read_weights(checkpoint)
    if isinstance(error, EOFError):
        # The file is whole: something else ended early.
        return error
    return ValueError(
        f"checkpoint '{checkpoint}' holds weights only, not the state of a run: "
        f"give it as --model.weights instead of --ckpt_path"
    )
