"""What false-positive rates the detector's scores stand for, from real pictures nothing was trained on."""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, cast

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_warn
from rich.console import Console
from rich.table import Table as RichTable

from callbacks.calibration import CalibrationCallback
from callbacks.detection import NATIVE, batch_views, head_names
from callbacks.metrics.calibration_report import CalibrationLine, as_csv, as_markdown, calibration_lines
from callbacks.metrics.sample_table import SampleTable, Table
from callbacks.metrics.whole_files import write_whole
from lightning_modules.functional.detection_calibration import Calibration

CHECKPOINT = "calibrated.ckpt"


class DetectionCalibration(CalibrationCallback):
    """Sets the module's `calibration` from the validation pictures; in `validate` also saves a calibrated checkpoint.

    Real pictures give p-values and thresholds, generated ones the temperature of their own head. All processes make
    the same calibration. `validate` writes ``calibration.csv``, ``calibration.md`` and ``calibrated.ckpt``, which is
    for test, predict and export: it holds no state of an optimiser.

    Args:
        generated_limit: Largest p-value of the verdict "generated".
        unsure_limit: Largest p-value of the verdict "unsure".
        during_fit: Whether each validation of a training calibrates too, so that its checkpoints hold a calibration.
            Pictures that choose the best epoch make rates a little too small.
        output_dir: Folder for the files; the run's log folder where not given.
    """

    required_outputs: ClassVar[tuple[str, ...]] = ("index", "logit", "label", "generator")

    def __init__(
        self,
        generated_limit: float = 0.01,
        unsure_limit: float = 0.05,
        during_fit: bool = False,
        output_dir: str | None = None,
    ) -> None:
        if not 0 < generated_limit <= unsure_limit < 1:
            raise ValueError(
                "limits of DetectionCalibration must be 0 < generated_limit <= unsure_limit < 1, got "
                f"{generated_limit} and {unsure_limit}"
            )
        self.limits = (generated_limit, unsure_limit)
        self.during_fit = during_fit
        self.output_dir = output_dir
        self.lines: list[CalibrationLine] = []

    def new_table(self, pl_module: LightningModule) -> SampleTable:
        """Return a table of a logit for each head."""
        heads = head_names(pl_module, self)
        return SampleTable(("label",), {"logit": len(heads)}, ("generator", "source"))

    def rows(self, outputs: Mapping[str, Any], batch: Any) -> dict[str, Any]:
        """Return the logits of the native view."""
        views = batch_views(batch)
        native = views.index(NATIVE) if NATIVE in views else 0
        return {
            "logit": outputs["logit"][:, native].detach(),
            "label": outputs["label"],
            "generator": outputs["generator"],
            "source": batch.get("source", [""] * len(outputs["index"])),
        }

    def calibrate(self, trainer: Trainer, pl_module: LightningModule, table: Table) -> None:
        """Set `calibration` and, in `validate`, report it."""
        real = table["label"] < 0.5
        if trainer.state.fn == "fit" and not real.any():
            rank_zero_warn("DetectionCalibration saw no real validation picture: the calibration stays as it is")
            return
        logits = table["logit"].reshape(len(real), -1)  # a single head gives a flat column
        calibration = Calibration.fit(
            logits[real], head_names(pl_module, self), logits[~real], table["generator"][~real], self.limits
        )
        cast(Any, pl_module).calibration = calibration  # nn.Module is typed to hold tensors and modules only
        self.lines = calibration_lines(calibration, logits, real, table["generator"], table["source"])
        log_dir = trainer.log_dir  # talks to all ranks: never behind a rank test
        if trainer.state.fn == "validate" and trainer.is_global_zero:
            self._report(calibration, self.output_dir or log_dir)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """In `validate`, saves the calibrated checkpoint."""
        if trainer.state.fn != "validate" or not self.is_active(trainer):
            return
        folder = self.output_dir or trainer.log_dir
        if folder is None:  # fast_dev_run has no folder
            return
        path = Path(folder) / CHECKPOINT
        partial = path.with_name(f".{path.name}.part")
        trainer.save_checkpoint(partial, weights_only=False)  # all processes take part
        if trainer.is_global_zero:
            os.replace(partial, path)
            Console().print(f"calibrated checkpoint: {path}", soft_wrap=True, highlight=False)

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """In `validate`, keeps how long the weights were trained; Lightning's counters are at 0 there."""
        if trainer.state.fn == "validate":
            checkpoint["epoch"], checkpoint["global_step"] = getattr(pl_module, "loaded_progress", (0, 0))

    def is_active(self, trainer: Trainer) -> bool:
        """Return whether the validation that runs is used."""
        return super().is_active(trainer) and (trainer.state.fn == "validate" or self.during_fit)

    def _report(self, calibration: Calibration, folder: str | None) -> None:
        console = Console()
        console.print(terminal_table(self.lines, len(calibration)))
        for line in calibration.cautions():
            console.print(f"warning: {line}", soft_wrap=True, highlight=False)
        if folder is not None:
            texts = {"csv": as_csv(self.lines), "md": as_markdown(self.lines)}
            paths = [write_whole(Path(folder) / f"calibration.{suffix}", text) for suffix, text in texts.items()]
            console.print("calibration: " + " ".join(map(str, paths)), soft_wrap=True, highlight=False)


def terminal_table(lines: Sequence[CalibrationLine], pictures: int) -> RichTable:
    """Return a table for the terminal, narrow enough for 80 columns."""
    table = RichTable(title=f"calibration from {pictures} real pictures", title_justify="left")
    table.add_column("what", overflow="fold")
    for name in ("value", "95 % interval", "n"):
        table.add_column(name, justify="right", no_wrap=True)
    for line in lines:
        table.add_row(*line.cells())
    return table
