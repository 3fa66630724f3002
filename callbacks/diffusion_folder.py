"""A trained diffusion model as a folder that other programs load."""

from pathlib import Path
from typing import Any, cast

from lightning.pytorch import Callback, LightningModule, Trainer
from torch.distributed.fsdp import FSDPModule


class DiffusionFolder(Callback):
    """Writes the module's diffusion model in diffusers layout at the end of training.

    Args:
        path: The folder; ``diffusion`` in the run's folder where not given.
    """

    def __init__(self, path: str | None = None) -> None:
        self.path = path

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Refuse a module without a diffusion model, and a place that is taken by something else."""
        if not callable(getattr(pl_module, "save_model", None)):
            raise ValueError(f"DiffusionFolder writes a diffusion model, and {type(pl_module).__name__} trains none")
        folder = None if self.path is None else Path(self.path)
        if folder is not None and (folder.is_file() or _holds_other_things(folder)):
            raise ValueError(f"`path` of DiffusionFolder is {folder}, which holds something else: name a new folder")

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write the model."""
        # Both talk to all ranks: never behind a rank test.
        folder = trainer.log_dir or trainer.default_root_dir
        weights = trainer.strategy.lightning_module_state_dict()
        if not trainer.is_global_zero:
            return
        whole = pl_module
        if any(isinstance(part, FSDPModule) for part in pl_module.modules()):
            # The command keeps notes of its own (`_class_path`, `_instantiator`) among the arguments.
            arguments = {name: value for name, value in pl_module.hparams.items() if not name.startswith("_")}
            whole = type(pl_module)(**arguments)
            whole.load_state_dict(weights)
        cast(Any, whole).save_model(self.path or str(Path(folder) / "diffusion"))


def _holds_other_things(folder: Path) -> bool:
    return folder.is_dir() and any(folder.iterdir()) and not (folder / "model_index.json").is_file()
