"""How well do the two learned prompts tell real pictures from synthetic ones, without any classifier."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from lightning.pytorch import LightningModule
from torch import Tensor

from callbacks.evaluation import EvaluationCallback
from callbacks.metrics.bootstrap import Floats, Statistic, mean_of
from callbacks.metrics.sample_table import Table
from lightning_modules.functional.detection import Curve, Ranking

_SIDES = ("real", "fake")


@dataclass(frozen=True, eq=False)
class PairedFigure:
    """A figure of the curve over the real and the synthetic scores of samples that hold one of each.

    Args:
        ranking: Of all real scores, then all synthetic ones.
        figure: What is made of the curve.
        n: Number of scores.
    """

    ranking: Ranking
    figure: Callable[[Curve], Floats]
    n: int

    def __call__(self, weights: Floats) -> Floats:
        """One value a row of weights (R, N): both scores of a sample count equally often."""
        return self.figure(self.ranking.curve(np.hstack([weights, weights])))


class PriorSeparationEvaluation(EvaluationCallback):
    """Reports zero-shot diffusion classification: a picture is taken for what its lower denoising error says.

    ``auroc`` over real and synthetic pictures, ``accuracy`` of the sign of the score (chance is 0.5), its parts
    ``accuracy/real`` and ``accuracy/fake``, and ``best_accuracy`` at the threshold that fits these very pictures best.
    ``error/real_under_fake`` is the mean denoising error of real pictures under the fake prompt, and so on;
    ``advantage_percent`` is by how much the own prompt explains a picture better than the other one.

    Args:
        stages: Stages that end with a table on the terminal and files; values are logged in every stage.
        output_dir: Folder for the files; the run's log folder where not given.
        resamples: Number of bootstrap data sets behind the 95 % intervals.
        bootstrap_seed: Seed of the resampling.
    """

    required_outputs: ClassVar[tuple[str, ...]] = ("score", "is_real", "errors")
    columns: ClassVar[tuple[str, ...]] = tuple(
        name for side in _SIDES for name in (f"score_{side}", f"{side}_under_real", f"{side}_under_fake")
    )

    def rows(
        self, pl_module: LightningModule, outputs: Mapping[str, Any], batch: Any
    ) -> dict[str, Tensor | Sequence[str]]:
        """Score and errors of both pictures of each sample."""
        is_real = outputs["is_real"].bool()
        found: dict[str, Tensor | Sequence[str]] = {}
        for side, where in zip(_SIDES, (is_real, ~is_real), strict=True):
            under_real, under_fake = outputs["errors"][where].unbind(1)
            found |= {
                f"score_{side}": outputs["score"][where],
                f"{side}_under_real": under_real,
                f"{side}_under_fake": under_fake,
            }
        return found

    def summarise(self, table: Table) -> dict[str, Statistic]:
        """AUROC, accuracies, errors and what the own prompt is worth."""
        real, fake = table["score_real"], table["score_fake"]
        scores, labels = np.concatenate([real, fake]), np.repeat([True, False], len(real))
        ranking = Ranking.of(scores, labels)
        own = table["real_under_real"] + table["fake_under_fake"]
        other = table["real_under_fake"] + table["fake_under_real"]
        statistics: dict[str, Statistic] = {
            "auroc": PairedFigure(ranking, Curve.auroc, len(scores)),
            "accuracy": mean_of(((real > 0).astype(float) + (fake <= 0)) / 2),
            "accuracy/real": mean_of((real > 0).astype(float)),
            "accuracy/fake": mean_of((fake <= 0).astype(float)),
            "best_accuracy": PairedFigure(ranking, best_accuracy, len(scores)),
            "advantage_percent": mean_of(100 * (other - own) / other),
        }
        for side in _SIDES:
            for prompt in _SIDES:
                statistics[f"error/{side}_under_{prompt}"] = mean_of(table[f"{side}_under_{prompt}"])
        return statistics


def best_accuracy(curve: Curve) -> Floats:
    """Return the largest accuracy over all thresholds, classes weighing the same, (R,)."""
    with np.errstate(invalid="ignore", divide="ignore"):
        hits, alarms = curve.tp / curve.tp[:, -1:], curve.fp / curve.fp[:, -1:]
    best: Floats = ((hits + 1 - alarms) / 2).max(axis=1)
    return best
