"""Figures of copy detection with bootstrap over queries: a query drawn twice brings its candidates twice."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from callbacks.metrics.bootstrap import Floats, Statistic, mean_of, ratio_of_sums
from lightning_modules.functional.retrieval import (
    Candidates,
    Metric,
    RankedPairs,
    is_true,
    query_average_precision,
    recall_at_precision,
    true_ranks,
)

Indices = NDArray[np.int64]
PRECISION = 0.9
METRIC_NAMES: Mapping[Metric, str] = {"l2": "minus_squared_l2", "inner_product": "inner_product"}


@dataclass(frozen=True)
class PooledPairs:
    """Candidates of all queries from the best to the worst true one, with what each query should have given."""

    query: Indices
    """Position of each candidate's query among the samples."""
    correct: NDArray[np.bool_]
    expected: Floats
    """True pairs of each sample, found or not; what recall is a share of."""

    @classmethod
    def of(
        cls, candidates: Candidates, truth: Indices, queries: Indices, expected: Floats | None = None
    ) -> PooledPairs:
        """Rank candidates; inside equal scores wrong pairs come first.

        Args:
            candidates: By index in the data set.
            truth: Pairs of indices (T, 2).
            queries: Indices of the queries, ascending.
            expected: What recall is a share of, for each query; its true pairs where not given.
        """
        if expected is None:
            expected = np.bincount(np.searchsorted(queries, truth[:, 0]), minlength=len(queries)).astype(np.float64)
        correct = is_true(candidates, truth)
        order = np.lexsort((correct, -candidates.score))
        hits = np.flatnonzero(correct[order])
        # Behind the last hit recall cannot grow.
        order = order[: hits[-1] + 1] if len(hits) else order[:0]
        return cls(np.searchsorted(queries, candidates.query[order]), correct[order], expected)


@dataclass(frozen=True)
class PooledPrecision:
    """A figure of the precision-recall curve over all queries.

    "area" is micro average precision, "trapezoids" Copydays' variant of it, "recall" that at 90 % precision.
    """

    pairs: PooledPairs
    figure: Literal["area", "trapezoids", "recall"]

    @property
    def n(self) -> int:
        """Queries that have something to be found, and those that can only be mistaken for copies."""
        return len(self.pairs.expected)

    def __call__(self, weights: Floats) -> Floats:
        """One value a row of weights (R, N); NaN where nothing is to be found."""
        return np.array([self._of(row.astype(np.int64)) for row in weights])

    def _of(self, weight: Indices) -> float:
        expected = float(weight @ self.pairs.expected)
        if expected == 0:
            return float("nan")
        times = weight[self.pairs.query]
        at = np.flatnonzero(self.pairs.correct)
        seen, hits = np.cumsum(times)[at], np.cumsum(times[at])
        times = times[at]
        if self.figure == "recall":
            enough = (hits / np.maximum(seen, 1) >= PRECISION) & (times > 0)
            return float(hits[enough].max(initial=0)) / expected
        total = 0.0
        # The copies of a candidate come one after the other.
        for copy in range(int(times.max(initial=0))):
            drawn = times > copy
            hit, rank = (hits - times + copy)[drawn], (seen - times + copy)[drawn]
            after = (hit + 1) / (rank + 1)
            if self.figure == "trapezoids":
                before = np.where(rank > 0, hit / np.maximum(rank, 1), 1.0)
                after = (before + after) / 2
            total += float(after.sum())
        return total / expected


def copy_statistics(candidates: Candidates, truth: Indices, queries: Indices) -> dict[str, Statistic]:
    """Return the figures of DISC over these queries.

    Args:
        candidates: Pairs of indices; those of other queries are left out.
        truth: True pairs of indices (T, 2); those of other queries are left out.
        queries: Indices of the queries, ascending.
    """
    candidates, truth = _of_queries(candidates, queries), truth[np.isin(truth[:, 0], queries)]
    pooled = PooledPairs.of(candidates, truth, queries)
    ranks, place = true_ranks(candidates, truth), np.searchsorted(queries, truth[:, 0])

    def sums(values: NDArray[np.float64]) -> Floats:
        return np.bincount(place, values, len(queries)).astype(np.float64)

    has_copies = pooled.expected > 0

    def mean_over_pairs(values: NDArray[np.float64]) -> Statistic:
        return ratio_of_sums(sums(values), pooled.expected, has_copies)

    return {
        "uAP": PooledPrecision(pooled, "area"),
        "accuracy_at_1": mean_over_pairs((ranks < 1).astype(np.float64)),
        "recall_at_10": mean_over_pairs((ranks < 10).astype(np.float64)),
        "mrr": mean_over_pairs(1 / (ranks + 1)),
        "recall_at_p90": PooledPrecision(pooled, "recall"),
    }


def threshold_at_precision(candidates: Candidates, truth: Indices, queries: Indices) -> float:
    """Return the score where precision is 90 % at the largest recall; NaN if there is none."""
    ranked = RankedPairs.of(_of_queries(candidates, queries), truth[np.isin(truth[:, 0], queries)])
    return recall_at_precision(ranked, PRECISION)[1]


def copydays_statistics(
    candidates: Candidates, truth: Indices, queries: Indices, groups: Mapping[str, Indices]
) -> dict[str, Statistic]:
    """Return Copydays' figures: ``mAP`` of each block, that of the strong one and the pooled one by name."""
    with_copies, precision = query_average_precision(candidates, truth)
    values = np.full(len(queries), np.nan)
    values[np.searchsorted(queries, with_copies)] = precision
    # The reference takes one copy for each query.
    pooled = PooledPairs.of(candidates, truth, queries, expected=np.ones(len(queries)))
    blocks = {name: mean_of(values, np.isin(queries, members)) for name, members in groups.items()}
    statistics: dict[str, Statistic] = {"strong_mAP": blocks["strong"]} if "strong" in blocks else {}
    statistics["overall_uAP"] = PooledPrecision(pooled, "trapezoids")
    return statistics | {f"mAP/{name}": block for name, block in blocks.items()}


def _of_queries(candidates: Candidates, queries: Indices) -> Candidates:
    own = np.isin(candidates.query, queries)
    return Candidates(candidates.query[own], candidates.reference[own], candidates.score[own])
