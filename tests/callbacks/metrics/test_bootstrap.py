import numpy as np
import pytest
import scipy.stats

from callbacks.metrics import bootstrap
from callbacks.metrics.bootstrap import bootstrap_intervals, mean_of, ratio_of_sums, value_of

RNG = np.random.default_rng(3)
VALUES = RNG.gamma(2.0, size=80)
WEIGHTS = RNG.uniform(1, 5, size=80)


def test_values_equal_numpy():
    where = VALUES > 1
    holes = np.where(VALUES > 3, np.nan, VALUES)
    assert value_of(mean_of(VALUES), 80) == pytest.approx(VALUES.mean(), rel=1e-14)
    assert value_of(mean_of(holes, where), 80) == pytest.approx(np.nanmean(holes[where]), rel=1e-14)
    assert mean_of(holes, where).n == np.sum(where & (VALUES <= 3))
    expected = (VALUES[where] * WEIGHTS[where]).sum() / WEIGHTS[where].sum()
    assert value_of(ratio_of_sums(VALUES * WEIGHTS, WEIGHTS, where), 80) == pytest.approx(expected, rel=1e-14)


def test_a_statistic_on_counts_equals_the_statistic_on_the_repeated_samples():
    counts = RNG.integers(0, 4, size=(5, 80)).astype(float)
    got = ratio_of_sums(VALUES * WEIGHTS, WEIGHTS, VALUES > 1)(counts)
    for row, value in zip(counts.astype(int), got, strict=True):
        x, w = np.repeat(VALUES, row), np.repeat(WEIGHTS, row)
        assert value == pytest.approx((x * w)[x > 1].sum() / w[x > 1].sum(), rel=1e-12)


def test_empty_denominators():
    zeros, none = np.zeros(4), np.zeros(4, dtype=bool)
    assert value_of(ratio_of_sums(zeros, zeros, when_empty=1.0), 4) == 1.0
    assert np.isnan(value_of(ratio_of_sums(zeros, zeros), 4))
    assert np.isnan(value_of(ratio_of_sums(zeros, zeros, none, when_empty=1.0), 4))


@pytest.mark.parametrize("kind", ["mean", "ratio"])
def test_intervals_agree_with_scipy(kind):
    def ratio(x, w, axis):
        return (x * w).sum(axis) / w.sum(axis)

    statistic = mean_of(VALUES) if kind == "mean" else ratio_of_sums(VALUES * WEIGHTS, WEIGHTS)
    data, function = ((VALUES,), np.mean) if kind == "mean" else ((VALUES, WEIGHTS), ratio)
    theirs = scipy.stats.bootstrap(
        data, function, paired=True, vectorized=True, n_resamples=4000, method="percentile", rng=1
    ).confidence_interval
    low, high = bootstrap_intervals({"x": statistic}, 80, resamples=4000)["x"]
    tolerance = 0.06 * (theirs.high - theirs.low)
    assert low == pytest.approx(theirs.low, abs=tolerance)
    assert high == pytest.approx(theirs.high, abs=tolerance)


def test_intervals_cover_the_truth_as_often_as_they_say():
    rng = np.random.default_rng(0)
    hits = 0
    for seed in range(300):
        low, high = bootstrap_intervals({"x": mean_of(rng.normal(size=50))}, 50, resamples=200, seed=seed)["x"]
        hits += low <= 0 <= high
    assert 0.89 <= hits / 300 <= 0.98  # 0.95 less the known shortfall of small samples, ± 3 standard errors


def test_intervals_depend_on_the_seed_and_not_on_the_blocks(monkeypatch):
    first = bootstrap_intervals({"x": mean_of(VALUES)}, 80, resamples=101, seed=1)
    monkeypatch.setattr(bootstrap, "_BLOCK_CELLS", 80 * 7)
    assert bootstrap_intervals({"x": mean_of(VALUES)}, 80, resamples=101, seed=1) == first
    assert bootstrap_intervals({"x": mean_of(VALUES)}, 80, resamples=101, seed=2) != first


def test_a_group_of_one_sample_has_an_interval_of_one_point():
    where = np.arange(80) == 5
    low, high = bootstrap_intervals({"x": mean_of(VALUES, where)}, 80, resamples=200)["x"]
    assert low == high == VALUES[5]


def test_no_samples_give_nan():
    assert np.isnan(bootstrap_intervals({"x": mean_of(np.empty(0))}, 0)["x"]).all()
    none = mean_of(VALUES, np.zeros(80, dtype=bool))
    assert np.isnan(bootstrap_intervals({"x": none}, 80, resamples=10)["x"]).all()
