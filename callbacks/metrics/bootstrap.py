"""Statistics of a table of samples and their bootstrap intervals, over all resamples at once."""

import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import ArrayLike, NDArray

Floats = NDArray[np.float64]
_BLOCK_CELLS = 4_000_000  # 32 MB of weights at a time, so that 100 k samples do not need 800 MB


class Statistic(Protocol):
    """A number computed from samples that have weights."""

    @property
    def n(self) -> int:
        """How many samples the number rests on."""

    def __call__(self, weights: Floats) -> Floats:
        """One value a row of weights: weights is (R, N), how often each sample counts; the result is (R,)."""


@dataclass(frozen=True)
class Ratio:
    """Weighted sum over weighted sum; what most metrics are.

    Args:
        numerator: One value a sample.
        denominator: One value a sample.
        counted: Samples that take part.
        when_empty: Result where samples take part and the denominator is still 0.
    """

    numerator: Floats
    denominator: Floats
    counted: NDArray[np.bool_]
    when_empty: float = float("nan")

    @property
    def n(self) -> int:
        """How many samples take part."""
        return int(self.counted.sum())

    def __call__(self, weights: Floats) -> Floats:
        """The ratio for each row of weights; NaN where no sample takes part."""
        top = _weighted_sum(weights, np.where(self.counted, self.numerator, 0.0))
        bottom = _weighted_sum(weights, np.where(self.counted, self.denominator, 0.0))
        drawn = _weighted_sum(weights, self.counted.astype(np.float64))
        empty = np.where(drawn > 0, self.when_empty, np.nan)
        return np.where(bottom != 0, top / np.where(bottom != 0, bottom, 1.0), empty)


def ratio_of_sums(
    numerator: Floats, denominator: Floats, where: ArrayLike = True, when_empty: float = float("nan")
) -> Ratio:
    """Sum of one column over the sum of another, over the samples `where` names."""
    counted = np.broadcast_to(np.asarray(where, dtype=np.bool_), numerator.shape)
    return Ratio(numerator, denominator, counted, when_empty)


def mean_of(values: Floats, where: ArrayLike = True) -> Ratio:
    """Mean over the samples that `where` names and whose value is not NaN."""
    counted = np.asarray(where, dtype=np.bool_) & ~np.isnan(values)
    return Ratio(values, np.ones_like(values), counted)


def value_of(statistic: Statistic, samples: int) -> float:
    """The statistic with every sample counted once."""
    return float(statistic(np.ones((1, samples)))[0])


def bootstrap_intervals(
    statistics: Mapping[str, Statistic], samples: int, resamples: int = 1000, seed: int = 0, level: float = 0.95
) -> dict[str, tuple[float, float]]:
    """Percentile intervals over resampled data sets; all statistics see the same resamples.

    Args:
        statistics: What to give intervals for, by name.
        samples: Number of samples of the table.
        resamples: Number of bootstrap data sets.
        seed: Seed of the resampling.
        level: Probability between the two ends.
    """
    drawn = bootstrap_draws(statistics, samples, resamples, seed)
    return {name: interval_of(values, level) for name, values in drawn.items()}


def bootstrap_draws(
    statistics: Mapping[str, Statistic], samples: int, resamples: int = 1000, seed: int = 0
) -> dict[str, Floats]:
    """Each statistic on every resampled data set; equal numbers and seed give equal data sets, whatever the table."""
    if samples == 0 or resamples == 0:
        return {name: np.empty(0) for name in statistics}
    rng = np.random.default_rng(seed)
    draws: dict[str, list[Floats]] = {name: [] for name in statistics}
    block = max(1, _BLOCK_CELLS // samples)
    for start in range(0, resamples, block):
        weights = _resample_weights(rng, min(block, resamples - start), samples)
        for name, statistic in statistics.items():
            draws[name].append(statistic(weights))
    return {name: np.concatenate(values) for name, values in draws.items()}


def interval_of(draws: Floats, level: float = 0.95) -> tuple[float, float]:
    """Ends of the middle part of the draws that are numbers; NaN where there are none."""
    if not len(draws):
        return float("nan"), float("nan")
    tail = (1.0 - level) / 2.0
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "All-NaN", RuntimeWarning)  # no sample of the group: NaN is the answer
        low, high = np.nanquantile(draws, [tail, 1.0 - tail])
    return float(low), float(high)


def _resample_weights(rng: np.random.Generator, rows: int, samples: int) -> Floats:
    drawn = rng.integers(0, samples, size=(rows, samples)) + samples * np.arange(rows)[:, None]
    return np.bincount(drawn.ravel(), minlength=rows * samples).reshape(rows, samples).astype(np.float64)


def _weighted_sum(weights: Floats, values: Floats) -> Floats:
    # einsum without optimize never calls BLAS, whose result depends on the number of threads.
    total: Floats = np.einsum("rn,n->r", weights, values, optimize=False)
    return total
