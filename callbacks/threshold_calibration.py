"""Which threshold is best on the validation data."""

from collections.abc import Mapping
from typing import Any, ClassVar, Literal, cast

import numpy as np
import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_warn
from numpy.typing import NDArray
from torch import Tensor

from callbacks.calibration import CalibrationCallback
from callbacks.evaluation import log_everywhere
from callbacks.metrics.sample_table import SampleTable, Table

Objective = Literal["iou_dataset", "iou_image", "f1_image"]


class ThresholdCalibration(CalibrationCallback):
    """Sets the module's `threshold` after each validation to the best multiple of 1 / bins.

    Exact: counts come from histograms whose bins end at the candidates. The threshold is the same on 1 and N processes.
    Costs 16 · bins bytes an image.

    Args:
        objective: What is maximised. `f1_dataset` has the same best threshold as `iou_dataset`.
        max_false_area: Largest mean share of false pixels on clean images that is allowed.
        bins: Number of candidates, a power of two (then float32 comparisons are exact).
    """

    required_outputs: ClassVar[tuple[str, ...]] = ("index", "probability", "mask", "ignore")

    def __init__(
        self, objective: Objective = "iou_dataset", max_false_area: float | None = None, bins: int = 512
    ) -> None:
        if bins < 2 or bins & (bins - 1):
            raise ValueError(f"`bins` of ThresholdCalibration must be a power of two, got {bins}")
        if objective not in ("iou_dataset", "iou_image", "f1_image"):
            raise ValueError(
                f"`objective` of ThresholdCalibration must be iou_dataset, iou_image or f1_image, got {objective!r}"
            )
        self.objective = objective
        self.max_false_area = max_false_area
        self.bins = bins

    def new_table(self, pl_module: LightningModule) -> SampleTable:
        """Return a table of the pixels above each candidate."""
        return SampleTable(("positive", "negative", "clean"), {"tp": self.bins, "fp": self.bins})

    def rows(self, outputs: Mapping[str, Any], batch: Any) -> dict[str, Any]:
        """Count the pixels above each candidate."""
        probability, mask = outputs["probability"].detach().float(), outputs["mask"] > 0.5
        valid = ~outputs["ignore"].bool()
        return {
            "tp": count_above(probability, mask & valid, self.bins),
            "fp": count_above(probability, ~mask & valid, self.bins),
            "positive": (mask & valid).flatten(1).sum(1),
            "negative": (~mask & valid).flatten(1).sum(1),
            "clean": ~mask.flatten(1).any(1),
        }

    def calibrate(self, trainer: Trainer, pl_module: LightningModule, table: Table) -> None:
        """Set `threshold`; log it and the objective there."""
        if not (table["positive"] > 0).any():
            rank_zero_warn("ThresholdCalibration saw no marked validation image: the threshold stays as it is")
            return
        scores = objective_curve(table, self.objective)
        best = best_candidate(scores, self._allowed(table))
        cast(Any, pl_module).threshold = best / self.bins  # nn.Module is typed to hold tensors and modules only
        values = {"val/threshold": best / self.bins, f"val/{self.objective}_calibrated": float(scores[best])}
        log_everywhere(pl_module, values, len(table["index"]))

    def _allowed(self, table: Table) -> NDArray[np.bool_]:
        """Candidates that keep the false area small; where none does, the one with the smallest."""
        if self.max_false_area is None:
            return np.ones(self.bins, dtype=np.bool_)
        clean = (table["clean"] > 0) & (table["negative"] > 0)
        if not clean.any():
            rank_zero_warn("ThresholdCalibration has `max_false_area` but saw no clean validation image")
            return np.ones(self.bins, dtype=np.bool_)
        false_area = (table["fp"][clean] / table["negative"][clean, None]).mean(axis=0)
        return np.asarray(false_area <= max(self.max_false_area, false_area.min()))


def count_above(probability: Tensor, pixels: Tensor, bins: int) -> Tensor:
    """Per image, how many of the pixels have `probability > k / bins`, for k = 0 … bins - 1.

    Args:
        probability: (B, …) in [0, 1].
        pixels: Which pixels to count, (B, …) bool.
        bins: Number of candidates.

    Returns:
        Counts, (B, bins) int64.
    """
    batch = len(probability)
    # p > k / bins exactly if ceil(p · bins) > k.
    level = torch.ceil(probability.flatten(1) * bins).long().clamp(0, bins)
    flat = level + torch.arange(batch, device=level.device)[:, None] * (bins + 1)
    counts = torch.bincount(flat[pixels.flatten(1)], minlength=batch * (bins + 1)).reshape(batch, bins + 1)
    return counts.flip(1).cumsum(1).flip(1)[:, 1:]


def objective_curve(table: Table, objective: Objective) -> NDArray[np.float64]:
    """The objective at each candidate; images with nothing to find and nothing found count 1."""
    tp, fp, positive = table["tp"], table["fp"], table["positive"][:, None]
    if objective == "iou_dataset":
        tp, fp, positive = (column.sum(axis=0, keepdims=True) for column in (tp, fp, positive))
    top, bottom = (2 * tp, tp + fp + positive) if objective == "f1_image" else (tp, fp + positive)
    scores: NDArray[np.float64] = np.where(bottom == 0, 1.0, top / np.maximum(bottom, 1.0)).mean(axis=0)
    return scores


def best_candidate(scores: NDArray[np.float64], allowed: NDArray[np.bool_]) -> int:
    """Position of the largest allowed score; of equal ones, the nearest to the middle."""
    best = np.flatnonzero(allowed & (scores == scores[allowed].max()))
    return int(best[np.abs(best - len(scores) / 2).argmin()])
