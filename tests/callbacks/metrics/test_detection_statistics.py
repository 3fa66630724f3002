import numpy as np
import pytest

from callbacks.metrics.bootstrap import bootstrap_intervals, value_of
from callbacks.metrics.detection_statistics import (
    CurveSlot,
    ScoredGroup,
    auroc_statistic,
    detection_statistics,
    even_odds_error,
    separation_statistic,
)


def draw(n=90):
    rng = np.random.default_rng(0)
    labels = rng.random(n) < 0.3
    return np.round(rng.normal(labels * 1.5, 1), 1), labels, rng.random(n) < 0.8


def test_resampling_is_repeating_pictures_whatever_was_asked_before():
    scores, labels, where = draw()
    slot = CurveSlot()
    groups = [ScoredGroup(scores, labels, which, slot) for which in (where, np.ones(90, dtype=bool))]
    statistics = [detection_statistics(group) for group in groups]
    rng = np.random.default_rng(1)
    blocks = [rng.integers(0, 3, (4, 90)).astype(float) for _ in range(2)]
    for weights in blocks:
        for group, figures in zip(groups, statistics, strict=True):
            for name, statistic in figures.items():
                for row, found in zip(weights, statistic(weights), strict=True):
                    times = (row * group.where).astype(int)
                    again = np.repeat(scores, times), np.repeat(labels, times)
                    alone = ScoredGroup(*again, np.ones(times.sum(), dtype=bool))
                    wanted = value_of(detection_statistics(alone)[name], times.sum())
                    assert found == pytest.approx(wanted, abs=1e-12), name


def test_groups_do_not_keep_curves_of_resamples():
    scores, labels, where = draw()
    slot = CurveSlot()
    weights = np.ones((3, 90))
    one, other = (ScoredGroup(scores, labels, which, slot) for which in (where, ~where))
    assert slot.curve(one, weights) is slot.curve(one, weights)
    kept = slot.curve(one, weights)
    slot.curve(other, weights)
    assert slot.curve(one, weights) is not kept
    assert slot.curve(one, weights.copy()) is not slot.curve(one, weights)


def test_a_group_of_one_class_has_no_figures():
    scores, labels, _ = draw()
    assert detection_statistics(ScoredGroup(scores, labels, labels)) == {}
    assert detection_statistics(ScoredGroup(scores, labels, np.zeros(90, dtype=bool))) == {}


def test_intervals_hold_the_value():
    scores, labels, where = draw()
    statistics = detection_statistics(ScoredGroup(scores, labels, where))
    intervals = bootstrap_intervals(statistics, 90, 200)
    for name in ("auroc", "ap", "accuracy", "mcc"):
        low, high = intervals[name]
        assert low < value_of(statistics[name], 90) < high
        assert statistics[name].n == where.sum()


def test_separation_has_no_direction():
    scores, labels, where = draw()
    up, down = ScoredGroup(scores, labels, where), ScoredGroup(-scores, labels, where)
    assert value_of(auroc_statistic(down), 90) == pytest.approx(1 - value_of(auroc_statistic(up), 90))
    assert value_of(separation_statistic(down), 90) == pytest.approx(value_of(auroc_statistic(up), 90))


def test_the_error_at_even_odds_does_not_know_how_many_real_pictures_there_are():
    rng = np.random.default_rng(2)
    stated, labels = rng.random(60), rng.random(60) < 0.5
    few = even_odds_error(stated, labels, np.ones((1, 60)))
    many = even_odds_error(stated, labels, np.where(labels, 1.0, 7.0)[None])
    np.testing.assert_allclose(few, many, atol=1e-12)
