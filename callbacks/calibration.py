"""The base of callbacks that set something on a module from all samples of a validation."""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any, ClassVar

from lightning.pytorch import Callback, LightningModule, Trainer

from callbacks.evaluation import check_outputs
from callbacks.metrics.sample_table import SampleTable, Table


class CalibrationCallback(Callback, ABC):
    """Collects a table over each validation, on all processes, and hands it to `calibrate`.

    Repeats of the distributed sampler are dropped, so every process is handed the same table. What `calibrate` sets is
    in the checkpoints that are saved after the validation.
    """

    required_outputs: ClassVar[tuple[str, ...]]

    _samples: SampleTable | None = None

    @abstractmethod
    def new_table(self, pl_module: LightningModule) -> SampleTable:
        """Return an empty table with the columns of `rows`."""

    @abstractmethod
    def rows(self, outputs: Mapping[str, Any], batch: Any) -> dict[str, Any]:
        """Return the columns of a batch of at least one sample."""

    @abstractmethod
    def calibrate(self, trainer: Trainer, pl_module: LightningModule, table: Table) -> None:
        """Set what the table tells."""

    def is_active(self, trainer: Trainer) -> bool:
        """Return whether the validation that runs is used."""
        return not trainer.sanity_checking

    def on_validation_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Forget the samples of the epoch before."""
        self._samples = self.new_table(pl_module)

    def on_validation_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Add a batch to the table."""
        if not self.is_active(trainer) or (outputs is None and not len(batch["index"])):
            return
        if dataloader_idx > 0:
            raise ValueError(f"{type(self).__name__} takes one validation loader, but there are several")
        check_outputs(self, self.required_outputs, outputs, pl_module, "validation_step")
        assert self._samples is not None
        if len(outputs["index"]):
            self._samples.update(outputs["index"], self.rows(outputs, batch))

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Calibrate."""
        if not self.is_active(trainer):
            return
        assert self._samples is not None
        table = self._samples.compute()
        self._samples.reset()
        self.calibrate(trainer, pl_module, table)
