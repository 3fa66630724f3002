"""Figures of a detector with bootstrap over pictures: curves are made once for all figures of a group."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
from numpy.typing import ArrayLike

from callbacks.metrics.bootstrap import Floats, Statistic
from lightning_modules.functional.detection import (
    Bools,
    Curve,
    Ranking,
    accuracy,
    balanced_accuracy,
    calibration_error,
    confusion_at,
    matthews,
)
from lightning_modules.functional.detection_calibration import sigmoid


@dataclass(eq=False)
class CurveSlot:
    """The last curve that was asked for; one for all groups, since a curve of resamples takes much memory."""

    _key: tuple[object, object] | None = None
    _curve: Curve | None = None

    def curve(self, group: ScoredGroup, weights: Floats) -> Curve:
        """Return the group's curve under weights of all samples (R, N)."""
        if self._curve is None or self._key is None or self._key[0] is not group or self._key[1] is not weights:
            self._curve = group.ranking.curve(weights[:, group.members])
            self._key = group, weights
        return self._curve


@dataclass(frozen=True, eq=False)
class ScoredGroup:
    """Real and generated pictures that figures are over.

    Args:
        scores: What ranks all pictures, higher for generated ones; a logit where a figure needs one, (N,).
        labels: Whether a picture is generated, (N,).
        where: Pictures that take part, (N,).
        slot: Where the last curve is kept.
    """

    scores: Floats
    labels: Bools
    where: Bools
    slot: CurveSlot = field(default_factory=CurveSlot)

    @cached_property
    def members(self) -> np.ndarray[tuple[int], np.dtype[np.int64]]:
        """Positions of the pictures that take part."""
        return np.flatnonzero(self.where)

    @cached_property
    def ranking(self) -> Ranking:
        """Their order."""
        return Ranking.of(self.scores[self.members], self.labels[self.members])

    @property
    def has_both(self) -> bool:
        """Whether there are real and generated ones."""
        truth = self.labels[self.members]
        return bool(truth.any() and not truth.all())


@dataclass(frozen=True, eq=False)
class CurveFigure:
    """A figure of the curve of a group."""

    group: ScoredGroup
    figure: Callable[[Curve], Floats]

    @property
    def n(self) -> int:
        """How many pictures it is over."""
        return len(self.group.members)

    def __call__(self, weights: Floats) -> Floats:
        """One value a row of weights (R, N)."""
        return self.figure(self.group.slot.curve(self.group, weights))


@dataclass(frozen=True, eq=False)
class DecisionFigure:
    """A figure of scores, labels and weights (R, M) of the members of a group."""

    group: ScoredGroup
    figure: Callable[[Floats, Bools, Floats], Floats]

    @property
    def n(self) -> int:
        """How many pictures it is over."""
        return len(self.group.members)

    def __call__(self, weights: Floats) -> Floats:
        """One value a row of weights (R, N)."""
        members = self.group.members
        return self.figure(self.group.scores[members], self.group.labels[members], weights[:, members])


def even_odds(labels: Bools, weights: Floats) -> Floats:
    """Return the weights (R, N) scaled so that generated and real pictures weigh the same."""
    scaled = np.zeros_like(weights)
    for which in (labels, ~labels):
        total = weights[:, which].sum(axis=1, keepdims=True)
        scaled[:, which] = weights[:, which] / np.where(total > 0, total, 1.0)
    return scaled


def even_odds_error(probability: ArrayLike, labels: Bools, weights: Floats) -> Floats:
    """Return the expected calibration error where generated and real pictures weigh the same, (R,)."""
    return calibration_error(probability, labels, even_odds(labels, weights))


_CURVES: Mapping[str, Callable[[Curve], Floats]] = {
    "auroc": Curve.auroc,
    "ap": Curve.average_precision,
    "pr_auc": Curve.pr_auc,
    "mcc_best": Curve.best_mcc,
    "tpr_at_1_fpr": lambda curve: curve.recall_at_fpr(0.01),
    "tpr_at_5_fpr": lambda curve: curve.recall_at_fpr(0.05),
    "tpr_at_10_fpr": lambda curve: curve.recall_at_fpr(0.10),
}
# A logit of 0 is a probability of 0.5.
_DECISIONS: Mapping[str, Callable[[Floats, Bools, Floats], Floats]] = {
    "accuracy": lambda logits, labels, weights: accuracy(confusion_at(logits, labels, 0.0, weights)),
    "balanced_accuracy": lambda logits, labels, weights: balanced_accuracy(confusion_at(logits, labels, 0.0, weights)),
    "mcc": lambda logits, labels, weights: matthews(confusion_at(logits, labels, 0.0, weights)),
    "ece": lambda logits, labels, weights: even_odds_error(sigmoid(logits), labels, weights),
}


def detection_statistics(group: ScoredGroup) -> dict[str, Statistic]:
    """Return all figures of the logits of a group, by name; none where it lacks real or generated pictures."""
    if not group.has_both:
        return {}
    return {
        **{name: CurveFigure(group, figure) for name, figure in _CURVES.items()},
        **{name: DecisionFigure(group, figure) for name, figure in _DECISIONS.items()},
    }


def auroc_statistic(group: ScoredGroup) -> Statistic:
    """Return the area below the ROC curve of a group."""
    return CurveFigure(group, Curve.auroc)


def separation_statistic(group: ScoredGroup) -> Statistic:
    """Return how well a score separates in whichever direction: the larger of AUROC and 1 - AUROC."""
    return CurveFigure(group, lambda curve: np.maximum(curve.auroc(), 1 - curve.auroc()))
