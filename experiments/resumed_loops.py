"""Training loops that go on from a checkpoint with what was still to do when it was saved."""

from typing import Any

from lightning import Trainer
from lightning.fabric.utilities.apply_func import convert_tensors_to_scalars
from lightning.pytorch.loops.fit_loop import _FitLoop
from lightning.pytorch.loops.training_epoch_loop import RestartStage, _TrainingEpochLoop


class FinishingEpochLoop(_TrainingEpochLoop):
    """Does what follows a step where the checkpoint was saved right after it.

    `ModelCheckpoint` and our stop by a signal save at the end of `on_train_batch_end`. The step's row in the logs, a
    validation that is due and the end of an epoch come after that. Lightning 2.6 takes them for done: no validation and
    so no calibration and no best checkpoint, no row, no hooks of the epoch's end, another number of epochs.
    """

    def __init__(self, trainer: Trainer, min_steps: int | None, max_steps: int) -> None:
        super().__init__(trainer, min_steps, max_steps)
        self.step_to_finish = False
        self._row: dict[str, Any] = {}

    def find_step_to_finish(self) -> None:
        """Count the last step as completed if what follows it is all that it lacks."""
        self.update_restart_stage()
        self.step_to_finish = self.restarted_on_train_batch_end
        if self.step_to_finish:
            self.batch_progress.increment_completed()
            self._restart_stage = RestartStage.RESTARTED_ON_LAST

    @property
    def done(self) -> bool:
        """Whether the epoch has nothing left to do."""
        return not self.step_to_finish and super().done

    def advance(self, data_fetcher: Any) -> None:
        """Train a batch, unless the last one is still to be finished: then what comes after does that."""
        if not self.step_to_finish:
            super().advance(data_fetcher)
            return
        self.step_to_finish = False
        # Its counters are of the validation before.
        self.val_loop.restarting = False
        if self._row:
            self.trainer._logger_connector.log_metrics(self._row)

    def on_save_checkpoint(self) -> dict[str, Any]:
        """Keep the row that is logged after this."""
        state: dict[str, Any] = super().on_save_checkpoint()
        progress = self.batch_progress.current.state_dict()
        if progress["completed"] < progress["processed"]:
            state["row"] = self._row_of_step()
        return state

    def on_load_checkpoint(self, state_dict: dict[str, Any]) -> None:
        """Take the row back."""
        super().on_load_checkpoint(state_dict)
        self._row = state_dict.get("row", {})

    def _row_of_step(self) -> dict[str, Any]:
        # The condition of `update_train_step_metrics`.
        connector = self.trainer._logger_connector
        accumulating = self._should_accumulate() and self.trainer.lightning_module.automatic_optimization
        logged = connector.should_update_logs and not accumulating
        return dict(convert_tensors_to_scalars(connector.metrics["log"])) if logged else {}


class FinishingFitLoop(_FitLoop):
    """Goes on with `FinishingEpochLoop`, also where the last step of all is still to be finished."""

    epoch_loop: FinishingEpochLoop

    def __init__(self, trainer: Trainer) -> None:
        old = trainer.fit_loop
        super().__init__(trainer, old.min_epochs, old.max_epochs)
        self.epoch_loop = FinishingEpochLoop(trainer, old.epoch_loop.min_steps, old.epoch_loop.max_steps)

    @property
    def done(self) -> bool:
        """Whether training has nothing left to do."""
        return not self.epoch_loop.step_to_finish and super().done

    def run(self) -> None:
        """Train to the end."""
        if self.restarting and self._epoch_is_over():
            # With `max_steps` Lightning takes it for the middle of one, and the epoch and two steps are counted twice.
            self._restarting = self.epoch_loop.restarting = False
        elif self.restarting:
            self.epoch_loop.find_step_to_finish()
        super().run()

    def _epoch_is_over(self) -> bool:
        """Whether the checkpoint was saved at the end of an epoch."""
        counts = self.epoch_progress.total.state_dict()
        return bool(counts["ready"] == counts["processed"] == counts["completed"] + 1)
