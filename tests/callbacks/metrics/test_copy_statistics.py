"""Figures under bootstrap weights against the same figures of lists in which queries really stand several times."""

import numpy as np
import pytest

from callbacks.metrics.bootstrap import value_of
from callbacks.metrics.copy_statistics import copy_statistics, copydays_statistics, threshold_at_precision
from lightning_modules.functional.retrieval import (
    Candidates,
    RankedPairs,
    micro_average_precision,
    recall_at_precision,
    trapezoidal_average_precision,
    true_ranks,
)

QUERIES = np.arange(100, 112)


def drawn(seed):
    """Candidates with one to many different scores and truth that may be empty, missing or several to a query."""
    rng = np.random.default_rng(seed)
    cells = rng.permutation(12 * 9)[: rng.integers(0, 90)]
    score = rng.integers(0, rng.integers(1, 40), len(cells)).astype(np.float32)
    truth = rng.permutation(12 * 9)[: rng.integers(0, 14)]
    pairs = np.stack([truth // 9 + 100, truth % 9], axis=1)
    return rng, Candidates(cells // 9 + 100, cells % 9, score), pairs


def repeated(candidates, truth, weight):
    """The same with query i standing weight[i] times, under names of its own."""
    parts, pairs = [], []
    for copy in range(int(weight.max(initial=0))):
        again = weight > copy
        own, wanted = again[candidates.query - 100], again[truth[:, 0] - 100]
        shift = 1000 * copy
        parts.append((candidates.query[own] + shift, candidates.reference[own], candidates.score[own]))
        pairs.append(truth[wanted] + [shift, 0])
    query, reference, score = (np.concatenate(column) for column in zip(*parts, strict=True))
    return Candidates(query, reference, score), np.concatenate(pairs)


@pytest.mark.parametrize("seed", range(40))
def test_weights_are_repetitions(seed):
    rng, candidates, truth = drawn(seed)
    statistics = copy_statistics(candidates, truth, QUERIES)
    weights = np.concatenate([np.ones((1, 12)), rng.integers(0, 4, (6, 12))])
    weights[1, 0] = 3  # never all zero
    found = {name: statistic(weights.astype(np.float64)) for name, statistic in statistics.items()}
    for row, weight in enumerate(weights):
        listed, wanted = repeated(candidates, truth, weight)
        if not len(wanted):
            assert all(np.isnan(values[row]) for values in found.values())
            continue
        ranked, ranks = RankedPairs.of(listed, wanted), true_ranks(listed, wanted)
        assert found["uAP"][row] == pytest.approx(micro_average_precision(ranked))
        assert found["recall_at_p90"][row] == pytest.approx(recall_at_precision(ranked)[0])
        assert found["accuracy_at_1"][row] == pytest.approx((ranks < 1).mean())
        assert found["recall_at_10"][row] == pytest.approx((ranks < 10).mean())
        assert found["mrr"][row] == pytest.approx((1 / (ranks + 1)).mean())


def test_a_group_sees_its_own_queries_alone():
    _, candidates, truth = drawn(3)
    own = candidates.query < 106
    alone = Candidates(candidates.query[own], candidates.reference[own], candidates.score[own])
    group = copy_statistics(candidates, truth, QUERIES[:6])
    other = copy_statistics(alone, truth[truth[:, 0] < 106], QUERIES[:6])
    assert {name: value_of(s, 6) for name, s in group.items()} == {name: value_of(s, 6) for name, s in other.items()}
    assert threshold_at_precision(candidates, truth, QUERIES) == pytest.approx(
        recall_at_precision(RankedPairs.of(candidates, truth))[1], nan_ok=True
    )


@pytest.mark.parametrize("seed", range(30))
def test_copydays_precision_is_the_trapezoids_of_each_query(seed):
    rng, candidates, truth = drawn(seed)
    truth = np.concatenate([truth, np.array([[100, 3]])])
    known = set(map(tuple, truth.tolist()))
    groups = {"strong": QUERIES[:5], "crops/10": QUERIES[5:]}
    expected = {}
    for query in np.unique(truth[:, 0]):
        rows = [(-s, (query, r) in known, r) for q, r, s in zip(*vars(candidates).values(), strict=True) if q == query]
        ranks = [rank for rank, (_, correct, _) in enumerate(sorted(rows)) if correct]  # wrong first among equals
        expected[query] = trapezoidal_average_precision(np.array(ranks, np.int64), sum(q == query for q, _ in known))
    statistics = copydays_statistics(candidates, truth, QUERIES, groups)
    for name, members in groups.items():
        wanted = [expected[query] for query in members if query in expected]
        found = value_of(statistics[f"mAP/{name}"], 12)
        assert found == pytest.approx(np.mean(wanted) if wanted else np.nan, nan_ok=True)
    assert value_of(statistics["strong_mAP"], 12) == value_of(statistics["mAP/strong"], 12)
    # All queries in one list; what recall is a share of is the number of queries.
    weights = np.concatenate([np.ones((1, 12)), rng.integers(0, 4, (4, 12))])
    for row, weight in enumerate(weights):
        if not weight.any():
            continue
        ranked = RankedPairs.of(*repeated(candidates, truth, weight))
        wanted = trapezoidal_average_precision(np.flatnonzero(ranked.correct), int(weight.sum()))
        assert statistics["overall_uAP"](weights.astype(float))[row] == pytest.approx(wanted)
