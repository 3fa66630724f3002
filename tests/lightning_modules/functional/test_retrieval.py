"""Search and figures of merit against brute force, on random and on adversarial inputs."""

from itertools import product

import numpy as np
import pytest

from lightning_modules.functional.retrieval import (
    Candidates,
    Codec,
    RankedPairs,
    ScoreNormalisation,
    best_pairs,
    fit_projection,
    micro_average_precision,
    nearest_references,
    recall_at_precision,
    true_ranks,
    unit_length,
)


def descriptors(count: int, size: int, seed: int, coarse: bool = False) -> np.ndarray:
    drawn = np.random.default_rng(seed).standard_normal((count, size)).astype(np.float32)
    # Whole numbers make exact ties.
    return np.rint(drawn).astype(np.float32) if coarse else drawn


def all_scores(queries: np.ndarray, references: np.ndarray, metric: str) -> np.ndarray:
    queries, references = queries.astype(np.float64), references.astype(np.float64)
    if metric == "inner_product":
        return queries @ references.T
    return -np.square(queries[:, None] - references).sum(axis=-1)


@pytest.mark.parametrize("metric", ["inner_product", "l2"])
@pytest.mark.parametrize("coarse", [False, True])
@pytest.mark.parametrize("block", [7, 1000])
def test_nearest_references_are_those_of_brute_force(metric: str, coarse: bool, block: int) -> None:
    queries, references = descriptors(11, 5, 0, coarse), descriptors(60, 5, 1, coarse)
    found = nearest_references(queries, references, 9, metric, block=block)
    wanted = np.sort(all_scores(queries, references, metric), axis=1)[:, ::-1][:, :9]
    np.testing.assert_allclose(found.score.reshape(11, 9), wanted, rtol=1e-5, atol=1e-5)
    scores = all_scores(queries, references, metric)[found.query, found.reference]
    np.testing.assert_allclose(found.score, scores, rtol=1e-5, atol=1e-5)
    assert len(set(zip(found.query.tolist(), found.reference.tolist(), strict=True))) == 99


def test_fewer_references_than_asked_for_are_all_returned() -> None:
    assert len(nearest_references(descriptors(3, 4, 0), descriptors(2, 4, 1), 10)) == 6
    assert len(nearest_references(descriptors(3, 4, 0), descriptors(0, 4, 1), 10)) == 0


@pytest.mark.parametrize("metric", ["inner_product", "l2"])
@pytest.mark.parametrize("coarse", [False, True])
@pytest.mark.parametrize("block", [5, 1000])
@pytest.mark.parametrize("count", [0, 1, 40, 660, 9999])
def test_best_pairs_are_those_of_brute_force(metric: str, coarse: bool, block: int, count: int) -> None:
    queries, references = descriptors(11, 5, 0, coarse), descriptors(60, 5, 1, coarse)
    found = best_pairs(queries, references, count, metric, block=block)
    scores = all_scores(queries, references, metric)
    wanted = np.sort(scores, axis=None)[::-1][:count]
    np.testing.assert_allclose(np.sort(found.score)[::-1], wanted, rtol=1e-5, atol=1e-5)
    assert len(np.unique(found.query * 60 + found.reference)) == min(count, 660)
    if coarse:  # exact ties at the end: the same pairs whatever the blocks
        again = best_pairs(queries, references, count, metric, block=3)
        assert set(zip(found.query, found.reference, strict=True)) == set(
            zip(again.query, again.reference, strict=True)
        )


def brute_average_precision(candidates: Candidates, truth: set[tuple[int, int]]) -> float:
    """The mean over true pairs of the precision where each is found, at the worst order of equal scores."""
    rows = list(zip(candidates.score, candidates.query, candidates.reference, strict=True))
    total = 0.0
    for score, query, reference in rows:
        if (query, reference) in truth:
            above = [(q, r) for s, q, r in rows if s > score]
            tied = [(q, r) for s, q, r in rows if s == score]
            right = sorted(pair for pair in tied if pair in truth)
            place = right.index((query, reference)) + 1
            hits = sum(pair in truth for pair in above) + place
            total += hits / (len(above) + len(tied) - len(right) + place)
    return total / max(1, len(truth))


@pytest.mark.parametrize("seed", range(30))
def test_average_precision_and_recall_are_those_of_brute_force(seed: int) -> None:
    rng = np.random.default_rng(seed)
    pairs = list(product(range(8), range(9)))
    chosen = rng.permutation(len(pairs))[: rng.integers(0, 60)]
    query, reference = (np.array([pairs[i][side] for i in chosen], np.int64) for side in (0, 1))
    # One to many different scores: from everything tied to nothing tied.
    score = rng.integers(0, rng.integers(1, 40), len(chosen)).astype(np.float32)
    # Some true pairs are found, some are not, some queries have none, some have several.
    truth = np.array([pairs[i] for i in rng.permutation(len(pairs))[: rng.integers(0, 12)]], np.int64).reshape(-1, 2)
    candidates = Candidates(query, reference, score)
    ranked = RankedPairs.of(candidates, truth)
    known = set(map(tuple, truth.tolist()))
    assert micro_average_precision(ranked) == pytest.approx(brute_average_precision(candidates, known))
    correct = np.array([(q, r) in known for q, r in zip(query, reference, strict=True)], bool)
    recall = [
        correct[score >= level].sum() / max(1, len(truth))
        for level in np.unique(score)
        if correct[score >= level].mean() >= 0.5
    ]
    # Between two different scores any cut is allowed, also inside ties, where wrong pairs come first.
    assert recall_at_precision(ranked, 0.5)[0] >= max(recall, default=0.0) - 1e-12
    for (q, r), rank in zip(truth.tolist(), true_ranks(candidates, truth), strict=True):
        own = score[query == q]
        here = score[(query == q) & (reference == r)]
        assert rank == ((own >= here[0]).sum() - 1 if len(here) else np.inf)


def test_order_of_candidates_does_not_matter() -> None:
    rng = np.random.default_rng(0)
    keys = rng.permutation(400)[:200]
    candidates = Candidates(keys // 20, keys % 20, rng.integers(0, 5, 200).astype(np.float32))
    truth = np.stack([np.arange(20), np.arange(20)], axis=1)
    shuffled = rng.permutation(200)
    other = Candidates(candidates.query[shuffled], candidates.reference[shuffled], candidates.score[shuffled])
    first, second = RankedPairs.of(candidates, truth), RankedPairs.of(other, truth)
    assert np.array_equal(first.correct, second.correct)
    assert recall_at_precision(first) == pytest.approx(recall_at_precision(second), nan_ok=True)


def test_a_pair_twice_is_an_error_among_candidates_and_counts_once_in_the_truth() -> None:
    twice = np.array([0, 0])
    with pytest.raises(ValueError, match="twice"):
        RankedPairs.of(Candidates(twice, twice, np.zeros(2, np.float32)), np.array([[0, 0]]))
    once = Candidates(np.array([0]), np.array([0]), np.ones(1, np.float32))
    assert micro_average_precision(RankedPairs.of(once, np.array([[0, 0], [0, 0]]))) == 1


def test_whitened_background_is_white() -> None:
    mixed = descriptors(500, 6, 0) @ descriptors(6, 6, 1) + 3
    projection = fit_projection(mixed, 4, whiten=True)
    white = projection(mixed)
    np.testing.assert_allclose(white.T @ white, np.eye(4), atol=1e-4)
    np.testing.assert_allclose(white.mean(axis=0), 0, atol=1e-5)


def test_codec_steps_follow_their_names() -> None:
    background = descriptors(100, 8, 0)
    encoded = Codec.fit("PCAW5,L2norm,Flat", background)(descriptors(7, 8, 1))
    assert encoded.shape == (7, 5)
    assert encoded.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(encoded, axis=1), 1, rtol=1e-6)
    assert np.array_equal(Codec.fit("Flat", background)(background), background)
    for wrong in ("PCAW5,L2norm", "PQ8,Flat", "PCAW9,Flat"):
        with pytest.raises(ValueError, match=r"PCAW5,L2norm|PQ8|9 axes"):
            Codec.fit(wrong, background)
    with pytest.raises(ValueError, match="fills fewer"):
        fit_projection(np.ones((10, 4), np.float32), 2, whiten=True)


def test_normalised_scores_are_the_inner_products_less_the_bias() -> None:
    queries, references, background = (unit_length(descriptors(n, 6, n)) for n in (9, 30, 50))
    normalisation = ScoreNormalisation.parse("0.5[1,3]")
    wide_queries, wide_references = normalisation.apply(queries, references, background)
    nearest = np.sort(queries @ background.T, axis=1)[:, ::-1][:, 1:4].mean(axis=1)
    wanted = queries @ references.T - 0.5 * nearest[:, None]
    np.testing.assert_allclose(wide_queries @ wide_references.T, wanted, atol=1e-6)
    for wrong in ("1.0", "x[0,2]", "1.0[3,1]", "-1[0]"):
        with pytest.raises(ValueError, match="score normalisation"):
            ScoreNormalisation.parse(wrong)
    with pytest.raises(ValueError, match="needs 4 background descriptors, got 2"):
        normalisation.apply(queries, references, background[:2])


def test_zeros_stay_zeros() -> None:
    assert np.array_equal(unit_length(np.zeros((2, 3), np.float32)), np.zeros((2, 3)))


@pytest.mark.parametrize("metric", ["inner_product", "l2"])
def test_a_bias_is_taken_from_all_scores_of_its_query(metric: str) -> None:
    queries, references = descriptors(11, 5, 0), descriptors(60, 5, 1)
    bias = descriptors(11, 1, 2)[:, 0] * 3
    scores = all_scores(queries, references, metric) - bias[:, None]
    near = nearest_references(queries, references, 4, metric, block=13, bias=bias)
    np.testing.assert_allclose(near.score, scores[near.query, near.reference], rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(near.score.reshape(11, 4), np.sort(scores, axis=1)[:, :-5:-1], rtol=1e-5, atol=1e-5)
    best = best_pairs(queries, references, 50, metric, block=7, bias=bias)
    wanted = np.sort(scores, axis=None)[-50:]
    np.testing.assert_allclose(np.sort(best.score), wanted, rtol=1e-5, atol=1e-5)


def test_without_queries_references_or_truth_nothing_is_found() -> None:
    none, some = descriptors(0, 4, 0), descriptors(5, 4, 1)
    for queries, references in ((none, some), (some, none), (none, none)):
        found = nearest_references(queries, references, 3), best_pairs(queries, references, 3)
        assert [len(candidates) for candidates in found] == [0, 0]
    empty = np.empty((0, 2), np.int64)
    truth = np.array([[0, 1]])
    assert true_ranks(found[0], truth).tolist() == [np.inf]
    found = nearest_references(some, some, 2)
    assert len(true_ranks(found, empty)) == 0
    assert micro_average_precision(RankedPairs.of(found, empty)) == 0
    assert recall_at_precision(RankedPairs.of(found, empty))[0] == 0


@pytest.mark.parametrize("seed", range(20))
def test_ranks_count_all_that_score_as_high(seed: int) -> None:
    rng = np.random.default_rng(seed)
    cells = rng.permutation(6 * 50)[: rng.integers(1, 300)]
    score = rng.integers(0, rng.integers(1, 30), len(cells)).astype(np.float32) - 9
    candidates = Candidates(cells // 50, cells % 50, score)
    # Also of queries and references that no candidate has.
    truth = np.stack([rng.integers(0, 9, 40), rng.integers(0, 70, 40)], axis=1)
    for (query, reference), rank in zip(truth.tolist(), true_ranks(candidates, truth), strict=True):
        own = score[cells // 50 == query]
        here = score[cells == query * 50 + reference] if reference < 50 else []
        assert rank == ((own >= here[0]).sum() - 1 if len(here) else np.inf)


@pytest.mark.parametrize("block", [2, 5, 100])
def test_of_equal_pairs_the_earlier_ones_are_kept(block: int) -> None:
    found = best_pairs(np.ones((4, 3), np.float32), np.ones((6, 3), np.float32), 9, block=block)
    assert (
        sorted(zip(found.query.tolist(), found.reference.tolist(), strict=True))
        == list(product(range(4), range(6)))[:9]
    )
