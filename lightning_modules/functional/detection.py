"""How well scores tell generated pictures from real ones: curves, figures at a threshold, reliability.

Everything takes weights (R, N), how often each sample counts, and gives R values: a bootstrap is a matrix of weights.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]
MCC_EPS = 1e-10
ECE_BINS = 15


class Confusion(NamedTuple):
    """Weighted numbers of samples by decision and truth, each (R,) or (R, K)."""

    tp: Floats
    fp: Floats
    fn: Floats
    tn: Floats


@dataclass(frozen=True)
class Ranking:
    """Samples from the highest score to the lowest; equal scores make one step.

    Args:
        order: Positions of the samples, highest score first, (N,).
        ends: Positions in ``order`` of the last sample of each distinct score, (K,).
        positive: Whether a sample of ``order`` is generated, (N,).
        thresholds: The distinct scores, descending, (K,).
    """

    order: NDArray[np.int64]
    ends: NDArray[np.int64]
    positive: Bools
    thresholds: Floats

    @classmethod
    def of(cls, scores: ArrayLike, labels: ArrayLike) -> Ranking:
        """Rank scores (N,); labels are true for generated samples."""
        values, truth = np.asarray(scores, dtype=np.float64), np.asarray(labels).astype(np.bool_)
        if np.isnan(values).any():
            raise ValueError(f"{int(np.isnan(values).sum())} of {len(values)} scores are not a number")
        order = np.argsort(-values, kind="stable")
        ranked = values[order]
        ends = np.flatnonzero(np.append(ranked[1:] != ranked[:-1], True)) if len(ranked) else np.zeros(0, np.int64)
        return cls(order, ends, truth[order], ranked[ends])

    def curve(self, weights: Floats | None = None) -> Curve:
        """Return true and false positives of "score >= threshold" at each distinct score.

        Args:
            weights: How often each sample counts, (R, N); once where not given.
        """
        weights = np.ones((1, len(self.order))) if weights is None else weights
        ranked = weights[:, self.order]
        hits = np.cumsum(np.where(self.positive, ranked, 0.0), axis=1)[:, self.ends]
        alarms = np.cumsum(np.where(self.positive, 0.0, ranked), axis=1)[:, self.ends]
        start = np.zeros((len(ranked), 1))
        return Curve(np.hstack([start, hits]), np.hstack([start, alarms]))


@dataclass(frozen=True)
class Curve:
    """Positives found and false alarms from "nothing is generated" to "everything is", weighted, (R, K + 1)."""

    tp: Floats
    fp: Floats

    @property
    def positives(self) -> Floats:
        """Weight of the generated samples, (R,)."""
        return self.tp[:, -1]

    @property
    def negatives(self) -> Floats:
        """Weight of the real samples, (R,)."""
        return self.fp[:, -1]

    def auroc(self) -> Floats:
        """Return the chance that a generated sample scores above a real one, ties counting one half; (R,)."""
        area = (np.diff(self.fp, axis=1) * (self.tp[:, 1:] + self.tp[:, :-1]) / 2).sum(axis=1)
        return _divided(area, self.positives * self.negatives)

    def average_precision(self) -> Floats:
        """Return the mean precision over the recall gained step by step, (R,)."""
        return _divided((np.diff(self.tp, axis=1) * self._precision()[:, 1:]).sum(axis=1), self.positives)

    def pr_auc(self) -> Floats:
        """Return the area below the trapezoids of precision over recall, from precision 1 at recall 0; (R,)."""
        precision = self._precision()
        area = (np.diff(self.tp, axis=1) * (precision[:, 1:] + precision[:, :-1]) / 2).sum(axis=1)
        return _divided(area, self.positives)

    def recall_at_fpr(self, target: float) -> Floats:
        """Return the recall of the last point whose false-positive rate is at most ``target``, (R,)."""
        rate = _divided(self.fp, self.negatives[:, None])
        recall = _divided(np.where(rate <= target, self.tp, 0.0).max(axis=1), self.positives)
        return np.where(self.negatives > 0, recall, np.nan)

    def best_mcc(self) -> Floats:
        """Return the largest Matthews correlation over all thresholds, (R,)."""
        return np.asarray(matthews(self.confusion()).max(axis=1))

    def best_accuracy(self) -> Floats:
        """Return the largest accuracy over all thresholds, (R,)."""
        return np.asarray(accuracy(self.confusion()).max(axis=1))

    def confusion(self) -> Confusion:
        """Return the counts at each point of the curve, (R, K + 1)."""
        return Confusion(self.tp, self.fp, self.positives[:, None] - self.tp, self.negatives[:, None] - self.fp)

    def _precision(self) -> Floats:
        found = self.tp + self.fp
        # Before the first sample precision is 1 by convention; so it is where resampling left nothing so far.
        return np.where(found > 0, self.tp / np.where(found > 0, found, 1.0), 1.0)


def confusion_at(
    scores: ArrayLike, labels: ArrayLike, threshold: float, weights: Floats | None = None, strict: bool = False
) -> Confusion:
    """Return the counts of the decision "generated where score >= threshold", (R,) each.

    Args:
        scores: (N,).
        labels: True for generated samples, (N,).
        threshold: Where the decision changes.
        weights: How often each sample counts, (R, N).
        strict: A score that equals the threshold is real.
    """
    values, truth = np.asarray(scores, dtype=np.float64), np.asarray(labels).astype(np.bool_)
    weights = np.ones((1, len(values))) if weights is None else weights
    above = values > threshold if strict else values >= threshold

    def count(which: Bools) -> Floats:
        return weighted_sum(weights, which.astype(np.float64))

    return Confusion(count(above & truth), count(above & ~truth), count(~above & truth), count(~above & ~truth))


def accuracy(counts: Confusion) -> Floats:
    """Return the share of right decisions."""
    return _divided(counts.tp + counts.tn, counts.tp + counts.fp + counts.fn + counts.tn)


def reference_accuracy(
    scores: ArrayLike, labels: ArrayLike, threshold: float = 0.5, weights: Floats | None = None
) -> Floats:
    """Return the accuracy in which a score that equals the threshold is wrong whatever the truth, (R,).

    The reference's Matthews correlation counts such a score as real: `confusion_at` with ``strict``.
    """
    values, truth = np.asarray(scores, dtype=np.float64), np.asarray(labels).astype(np.bool_)
    weights = np.ones((1, len(values))) if weights is None else weights
    right = np.where(truth, values > threshold, values < threshold)
    return _divided(weighted_sum(weights, right.astype(np.float64)), weights.sum(axis=1))


def balanced_accuracy(counts: Confusion) -> Floats:
    """Return the mean of the shares of generated and of real samples that are recognised."""
    return (_divided(counts.tp, counts.tp + counts.fn) + _divided(counts.tn, counts.tn + counts.fp)) / 2


def matthews(counts: Confusion) -> Floats:
    """Return Matthews' correlation of decision and truth, with 1e-10 added to the denominator."""
    tp, fp, fn, tn = counts
    bottom = np.sqrt((tp + fp) * (tp + fn) * (tn + fp) * (tn + fn))
    return np.asarray((tp * tn - fp * fn) / (bottom + MCC_EPS), dtype=np.float64)


def calibration_error(
    probability: ArrayLike, labels: ArrayLike, weights: Floats | None = None, bins: int = ECE_BINS
) -> Floats:
    """Return the expected calibration error: mean distance of stated and met probability over equal bins, (R,).

    Args:
        probability: In [0, 1], (N,).
        labels: True for generated samples, (N,).
        weights: How often each sample counts, (R, N).
        bins: Number of bins of equal width.
    """
    stated, truth = np.asarray(probability, dtype=np.float64), np.asarray(labels).astype(np.float64)
    weights = np.ones((1, len(stated))) if weights is None else weights
    place = np.clip(np.ceil(stated * bins).astype(np.int64) - 1, 0, bins - 1)
    gap = np.zeros(len(weights))
    for position in np.unique(place):
        gap += np.abs(weighted_sum(weights, np.where(place == position, stated - truth, 0.0)))
    return _divided(gap, weights.sum(axis=1))


def weighted_sum(weights: Floats, values: Floats) -> Floats:
    """Return the sum of values (N,) under each row of weights (R, N), whatever the number of threads."""
    # einsum without optimize never calls BLAS, whose result depends on the number of threads.
    total: Floats = np.einsum("rn,n->r", weights, values, optimize=False)
    return total


def binomial_interval(successes: int, trials: int, level: float = 0.95) -> tuple[float, float]:
    """Return the Clopper-Pearson interval of a rate; it holds the true one at least ``level`` of the time."""
    from scipy.stats import beta  # takes half a second to import

    if trials == 0:
        return float("nan"), float("nan")
    tail = (1 - level) / 2
    low = float(beta.ppf(tail, successes, trials - successes + 1)) if successes else 0.0
    high = float(beta.isf(tail, successes + 1, trials - successes)) if successes < trials else 1.0
    return low, high


def _divided(top: Floats, bottom: Floats) -> Floats:
    """NaN where there is nothing to divide by: no sample of that kind."""
    return np.where(bottom > 0, top / np.where(bottom > 0, bottom, 1.0), np.nan)
