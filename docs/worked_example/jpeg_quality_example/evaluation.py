"""How far is the estimated JPEG quality off, over all and in bands of the true quality?"""

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from lightning.pytorch import LightningModule
from torch import Tensor

from callbacks.evaluation import EvaluationCallback
from callbacks.metrics.bootstrap import Statistic, mean_of
from callbacks.metrics.sample_table import Table

BANDS = ((0, 50), (50, 80), (80, 101))


class QualityEstimation(EvaluationCallback):
    """Reports the absolute error and the bias of the estimate, in points of quality."""

    required_outputs: ClassVar[tuple[str, ...]] = ("quality", "true_quality")

    @property
    def columns(self) -> tuple[str, ...]:
        """The error, with and without its sign, and what it was made on."""
        return ("error", "absolute_error", "true_quality")

    def rows(
        self, pl_module: LightningModule, outputs: Mapping[str, Any], batch: Any
    ) -> dict[str, Tensor | Sequence[str]]:
        """The columns of each image."""
        error = outputs["quality"] - outputs["true_quality"]
        return {"error": error, "absolute_error": error.abs(), "true_quality": outputs["true_quality"]}

    def summarise(self, table: Table) -> dict[str, Statistic]:
        """The error over all images, the share within 5 points, and the error of each band."""
        error, quality = table["absolute_error"], table["true_quality"]
        statistics: dict[str, Statistic] = {
            "absolute_error_points": mean_of(error),
            "bias_points": mean_of(table["error"]),
            "within_5_points": mean_of((error <= 5).astype(float)),
        }
        for low, high in BANDS:
            in_band = (quality >= low) & (quality < high)
            if in_band.any():
                statistics[f"absolute_error_points/quality_{low}-{high - 1}"] = mean_of(error, in_band)
        return statistics
