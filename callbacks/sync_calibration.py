"""Which corners may be relied on, from validation pictures that nothing was trained on."""

from collections.abc import Mapping
from typing import Any, ClassVar, cast

import numpy as np
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_warn

from callbacks.calibration import CalibrationCallback
from callbacks.evaluation import log_everywhere
from callbacks.metrics.sample_table import SampleTable, Table
from callbacks.synchronization import transforms_of
from lightning_modules.functional.sync_reliability import STATES, Reliability

_MARKED = ("presence", "spread", "error")
_UNMARKED = ("presence_unmarked", "spread_unmarked")


class SynchronizationCalibration(CalibrationCallback):
    """Sets the module's `reliability` after each validation; checkpoints saved from then on hold it.

    Pictures count once for each transform. With pictures that also chose the best
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

    def new_table(self, pl_module: LightningModule) -> SampleTable:
        """Return a table of a number for each transform."""
        width = len(transforms_of(pl_module, self))
        return SampleTable((), dict.fromkeys((*_MARKED, *_UNMARKED), width))

    def rows(self, outputs: Mapping[str, Any], batch: Any) -> dict[str, Any]:
        """Return what was found in marked and unmarked pictures."""
        return {name: outputs[name] for name in (*_MARKED[:2], *_UNMARKED)} | {"error": outputs["error_share"]}

    def calibrate(self, trainer: Trainer, pl_module: LightningModule, table: Table) -> None:
        """Set `reliability`; log how many pictures are in each state and how many reliable ones are wrong."""
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
