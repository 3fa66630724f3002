"""Which corners may be relied on, from validation pictures that nothing was trained on."""

from typing import Any, ClassVar, cast

import numpy as np
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_warn

from callbacks.evaluation import check_outputs, log_everywhere
from callbacks.metrics.sample_table import SampleTable
from callbacks.synchronization import transforms_of
from lightning_modules.functional.sync_reliability import STATES, Reliability

_MARKED = ("presence", "spread", "error")
_UNMARKED = ("presence_unmarked", "spread_unmarked")


class SynchronizationCalibration(Callback):
    """Sets the module's `reliability` after each validation; checkpoints saved from then on hold it.

    All processes make the same one. Pictures count once for each transform. With pictures that also chose the best
    epoch, rates come out a little too small.

    Args:
        false_positive_rate: Largest share of unmarked pictures taken for marked, and of wrong corners among those
            called reliable.
        tolerance: A mean corner error above this share of the longer side is wrong; 0.02 is 5 px of 256.
    """

    required_outputs: ClassVar[tuple[str, ...]] = (
        "index",
        "error_share",
        "presence",
        "spread",
        "presence_unmarked",
        "spread_unmarked",
    )

    def __init__(self, false_positive_rate: float = 0.01, tolerance: float = 0.02) -> None:
        if not 0 < false_positive_rate < 1:
            raise ValueError(
                "`false_positive_rate` of SynchronizationCalibration must be between 0 and 1, "
                f"got {false_positive_rate}"
            )
        if tolerance <= 0:
            raise ValueError(f"`tolerance` of SynchronizationCalibration must be above 0, got {tolerance}")
        self.rate = false_positive_rate
        self.tolerance = tolerance
        self._samples: SampleTable | None = None

    def on_validation_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Forgets the pictures of the epoch before."""
        width = len(transforms_of(pl_module, self))
        self._samples = SampleTable((), dict.fromkeys((*_MARKED, *_UNMARKED), width))

    def on_validation_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Adds what was found in marked and unmarked pictures."""
        if trainer.sanity_checking or (outputs is None and not len(batch["index"])):
            return
        check_outputs(self, self.required_outputs, outputs, pl_module, "validation_step")
        assert self._samples is not None
        if len(outputs["index"]):
            rows = {name: outputs[name] for name in (*_MARKED[:2], *_UNMARKED)}
            self._samples.update(outputs["index"], rows | {"error": outputs["error_share"]})

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Sets `reliability`; logs how many pictures are in each state and how many reliable ones are wrong."""
        if trainer.sanity_checking:
            return
        assert self._samples is not None
        table = self._samples.compute()
        self._samples.reset()
        values = {name: table[name].ravel() for name in (*_MARKED, *_UNMARKED)}
        score, looks = getattr(pl_module, "reliability_score", "presence"), getattr(pl_module, "looks", (0, 1))
        sign, source = (1, "presence") if score == "presence" else (-1, "spread")
        if not np.isfinite(values["spread"]).any():
            rank_zero_warn("SynchronizationCalibration needs a second look: set model.refinements to 1 or more")
            return
        reliability = Reliability.fit(
            sign * values[f"{source}_unmarked"],
            sign * values[source],
            values["spread"],
            values["error"],
            rate=self.rate,
            tolerance=self.tolerance,
            score=score,
            looks=looks,
        )
        cast(Any, pl_module).reliability = reliability  # nn.Module is typed to hold tensors and modules only
        log_everywhere(pl_module, self._shares(reliability, values), len(table["index"]))

    def _shares(self, reliability: Reliability, values: dict[str, Any]) -> dict[str, float]:
        states = np.array(reliability.states(values["presence"], values["spread"]))
        shares = {f"val/{state}": float((states == state).mean()) for state in STATES}
        unmarked = np.array(reliability.states(values["presence_unmarked"], values["spread_unmarked"]))
        wrong = values["error"][states == "reliable"] > self.tolerance
        shares["val/unmarked_taken_for_marked"] = float((unmarked != "absent").mean())
        return shares | {"val/wrong_among_reliable": float(wrong.mean()) if len(wrong) else float("nan")}
