"""The prompts that are being learned, as a file that can be used while training goes on."""

from pathlib import Path
from typing import Any, cast

from lightning.pytorch import Callback, LightningModule, Trainer


class PromptFile(Callback):
    """Writes the prompts of the module after each validation and at the end of training.

    Args:
        path: The safetensors file; ``prompts.safetensors`` in the run's folder where not given.
    """

    def __init__(self, path: str | None = None) -> None:
        if path is not None and Path(path).suffix != ".safetensors":
            raise ValueError(f"`path` of PromptFile must end in .safetensors, got {path}")
        self.path = path

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Refuse a module that learns no prompts."""
        if not callable(getattr(pl_module, "save_prompts", None)):
            raise ValueError(f"PromptFile writes learned prompts, and {type(pl_module).__name__} has none")

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write the prompts as they were validated."""
        if trainer.state.fn == "fit" and not trainer.sanity_checking:
            self._write(trainer, pl_module)

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write the last prompts."""
        self._write(trainer, pl_module)

    def _write(self, trainer: Trainer, pl_module: LightningModule) -> None:
        folder = trainer.log_dir or trainer.default_root_dir  # talks to all ranks: never behind a rank test
        if trainer.is_global_zero:
            cast(Any, pl_module).save_prompts(self.path or str(Path(folder) / "prompts.safetensors"))
