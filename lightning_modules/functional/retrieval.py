"""Retrieval: candidates by exact search in blocks, what is done to descriptors before it, and figures of merit."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]
Integers = NDArray[np.int64]
Metric = Literal["l2", "inner_product"]


@dataclass(frozen=True)
class Candidates:
    """Pairs that may be copies, in no order that means anything."""

    query: Integers
    reference: Integers
    score: Floats
    """The higher the likelier: the inner product, or minus the squared distance."""

    def __len__(self) -> int:
        return len(self.score)


# --- search ----------------------------------------------------------------------------------------------------------


def nearest_references(
    queries: Floats,
    references: Floats,
    k: int,
    metric: Metric = "inner_product",
    block: int = 65536,
    bias: Floats | None = None,
) -> Candidates:
    """Return the k best references of each query, exactly; fewer where there are fewer.

    Args:
        queries: (Q, D).
        references: (R, D); may be a memory map, read a block at a time.
        k: References a query.
        metric: What is searched by.
        block: References at a time.
        bias: What is taken from all scores of each query, (Q,).
    """
    k = min(k, len(references))
    best: Floats = np.empty((len(queries), 0), np.float32)
    found: Integers = np.empty((len(queries), 0), np.int64)
    for start in range(0, len(references) if k and len(queries) else 0, block):
        scores, positions = _search(queries, references[start : start + block], k, metric)
        best = np.concatenate([best, scores], axis=1)
        found = np.concatenate([found, positions + start], axis=1)
        # Stable: of equal scores the earlier reference stays, however the references fall into blocks.
        order = np.argsort(-best, axis=1, kind="stable")[:, :k]
        best, found = np.take_along_axis(best, order, axis=1), np.take_along_axis(found, order, axis=1)
    query = np.repeat(np.arange(len(queries)), best.shape[1])
    return Candidates(query, found.ravel(), (best if bias is None else best - bias[:, None]).ravel())


def _search(queries: Floats, references: Floats, k: int, metric: Metric) -> tuple[Floats, Integers]:
    import faiss  # seconds to import, and needed nowhere else

    kind = faiss.METRIC_INNER_PRODUCT if metric == "inner_product" else faiss.METRIC_L2
    asked, held = np.ascontiguousarray(queries, np.float32), np.ascontiguousarray(references, np.float32)
    scores, positions = faiss.knn(asked, held, min(k, len(held)), metric=kind)
    return (scores if metric == "inner_product" else -scores), positions


def best_pairs(
    queries: Floats,
    references: Floats,
    count: int,
    metric: Metric = "inner_product",
    block: int = 4096,
    bias: Floats | None = None,
) -> Candidates:
    """Return the `count` best pairs over all queries, exactly; equal scores at the end prefer earlier pairs.

    Args:
        queries: (Q, D).
        references: (R, D); may be a memory map.
        count: Pairs to keep.
        metric: What is searched by.
        block: Queries and references at a time; no more scores than its square exist at once, beside the pairs.
        bias: What is taken from all scores of each query, (Q,).
    """
    parts: list[Candidates] = []
    waiting, floor = 0, -np.inf
    for row in range(0, len(queries) if count > 0 else 0, block):
        some_queries = np.asarray(queries[row : row + block], np.float32)
        for column in range(0, len(references), block):
            scores = _all_scores(some_queries, np.asarray(references[column : column + block], np.float32), metric)
            if bias is not None:
                scores = scores - bias[row : row + block, None]
            if scores.size > count:
                floor = max(floor, float(np.partition(scores, -count, axis=None)[-count]))
            at_query, at_reference = np.nonzero(scores >= floor)
            parts.append(Candidates(at_query + row, at_reference + column, scores[at_query, at_reference]))
            waiting += len(at_query)
            if waiting > 2 * count:  # seldom, so that choosing costs little beside scoring
                parts = [_best(join_candidates(parts), count)]
                waiting, floor = count, max(floor, float(parts[0].score.min()))
    return _best(join_candidates(parts), count)


def join_candidates(parts: Sequence[Candidates]) -> Candidates:
    """Return the candidates of all parts."""
    return Candidates(
        np.concatenate([np.empty(0, np.int64), *(part.query for part in parts)]),
        np.concatenate([np.empty(0, np.int64), *(part.reference for part in parts)]),
        np.concatenate([np.empty(0, np.float32), *(part.score for part in parts)]),
    )


def _all_scores(queries: Floats, references: Floats, metric: Metric) -> Floats:
    products: Floats = queries @ references.T
    if metric == "inner_product":
        return products
    squares = np.square(queries).sum(axis=1)[:, None] + np.square(references).sum(axis=1)
    distances: Floats = np.maximum(squares - 2 * products, 0)
    return -distances


def _best(pairs: Candidates, count: int) -> Candidates:
    if len(pairs) <= count:
        return pairs
    floor = np.partition(pairs.score, -count)[-count]
    above, tied = np.flatnonzero(pairs.score > floor), np.flatnonzero(pairs.score == floor)
    first = np.lexsort((pairs.reference[tied], pairs.query[tied]))[: count - len(above)]
    chosen = np.concatenate([above, tied[first]])
    return Candidates(pairs.query[chosen], pairs.reference[chosen], pairs.score[chosen])


# --- what is done to descriptors -------------------------------------------------------------------------------------


@dataclass(frozen=True)
class ScoreNormalisation:
    """Takes from a query's scores what it scores against pictures that it cannot be a copy of.

    score(q, r) = q·r - weight × the mean of the query's inner products with its background neighbours `first` to
    `last`, counted from 0. Written ``1.0[0,2]``.
    """

    weight: float = 1.0
    first: int = 0
    last: int = 2

    @classmethod
    def parse(cls, text: str) -> ScoreNormalisation:
        """Read ``weight[first,last]`` or ``weight[rank]``."""
        match = re.fullmatch(r"\s*(\d*\.?\d+)\[(\d+)(?:,(\d+))?\]\s*", text)
        if match is None:
            raise ValueError(f"score normalisation {text!r} is not of the form weight[first,last], such as 1.0[0,2]")
        first = int(match[2])
        last = int(match[3]) if match[3] else first
        if last < first:
            raise ValueError(f"score normalisation {text!r} ends before it begins")
        return cls(float(match[1]), first, last)

    def __str__(self) -> str:
        return f"{self.weight:.2f}[{self.first},{self.last}]"

    def bias(self, queries: Floats, background: Floats) -> Floats:
        """Return what is taken from each query's scores, (Q,)."""
        if len(background) <= self.last:
            raise ValueError(
                f"score normalisation {self} needs {self.last + 1} background descriptors, got {len(background)}"
            )
        scores = nearest_references(queries, background, self.last + 1).score.reshape(len(queries), -1)
        mean: Floats = scores[:, self.first : self.last + 1].mean(axis=1)
        return np.float32(self.weight) * mean

    def apply(self, queries: Floats, references: Floats, background: Floats) -> tuple[Floats, Floats]:
        """Return queries and references with one number more, whose inner products are the normalised scores."""
        biased = np.concatenate([queries, -self.bias(queries, background)[:, None]], axis=1)
        ones = np.ones((len(references), 1), np.float32)
        return biased.astype(np.float32), np.concatenate([references, ones], axis=1)


@dataclass(frozen=True)
class Projection:
    """Subtracts a mean and multiplies by a matrix."""

    mean: Floats
    matrix: Floats
    """(D, n)."""

    def __call__(self, descriptors: Floats) -> Floats:
        """Return (N, n)."""
        centred = np.asarray(descriptors, np.float32) - self.mean
        projected: Floats = np.matmul(centred, self.matrix, dtype=np.float32)
        return projected


@dataclass(frozen=True)
class Codec:
    """A chain of steps, None standing for scaling to length one."""

    name: str
    steps: tuple[Projection | None, ...] = ()

    @classmethod
    def fit(cls, name: str, background: Floats) -> Codec:
        """Learn the steps of a name such as ``PCAW512,L2norm,Flat`` from background descriptors.

        ``PCAn`` centres and turns to the n leading axes, ``PCAWn`` also scales each axis by the inverse root of its
        scatter, ``L2norm`` scales to length one, ``Flat`` ends the name and does nothing.
        """
        *parts, end = name.split(",")
        if end != "Flat":
            raise ValueError(f"codec {name!r} must end in Flat: others lose exactness")
        codec = cls(name)
        for part in parts:
            match = re.fullmatch(r"PCA(W?)(\d+)", part)
            if match is None and part != "L2norm":
                raise ValueError(f"codec {name!r} has a step {part!r}: known are PCAn, PCAWn and L2norm")
            step = None if match is None else fit_projection(codec(background), int(match[2]), bool(match[1]))
            codec = cls(name, (*codec.steps, step))
        return codec

    def __call__(self, descriptors: Floats) -> Floats:
        """Return the descriptors after all steps."""
        for step in self.steps:
            descriptors = unit_length(descriptors) if step is None else step(descriptors)
        return descriptors


def fit_projection(background: Floats, dims: int, whiten: bool) -> Projection:
    """Learn the leading axes of background descriptors.

    Signs of axes are arbitrary, made so that each axis's largest entry is positive. Whitening divides by the root of
    the scatter (not of the variance, as faiss does), which a later scaling to length one cancels.
    """
    count, size = background.shape
    if count < dims or size < dims:
        raise ValueError(f"{dims} axes cannot be learnt from {count} descriptors of {size} numbers")
    mean = background.mean(axis=0, dtype=np.float64)
    scatter = np.zeros((size, size))
    for start in range(0, count, 65536):
        centred = background[start : start + 65536].astype(np.float64) - mean
        scatter += centred.T @ centred
    values, axes = np.linalg.eigh(scatter)
    values, axes = values[::-1][:dims], axes[:, ::-1][:, :dims]
    axes = axes * np.sign(axes[np.abs(axes).argmax(axis=0), np.arange(dims)])
    if whiten:
        if values[-1] <= 1e-12 * values[0]:
            raise ValueError(f"the background fills fewer than {dims} dimensions: whiten fewer axes")
        axes = axes / np.sqrt(values)
    return Projection(mean.astype(np.float32), np.ascontiguousarray(axes, np.float32))


def unit_length(descriptors: Floats) -> Floats:
    """Return rows of length one; rows of zeros stay."""
    norms = np.sqrt(np.square(descriptors, dtype=np.float32).sum(axis=1, keepdims=True))
    scaled: Floats = np.divide(descriptors, np.where(norms > 0, norms, 1), dtype=np.float32)
    return scaled


# --- figures of merit ------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class RankedPairs:
    """Candidate pairs from the best score to the worst, with what is known of them.

    Among equal scores wrong pairs come first: a figure never gains from an order that nobody knows.
    """

    score: Floats
    correct: NDArray[np.bool_]
    expected: int
    """True pairs, found or not."""

    @classmethod
    def of(cls, candidates: Candidates, truth: Integers) -> RankedPairs:
        """Rank candidates against true pairs (T, 2); a pair given twice is an error."""
        keys, true_keys = _pair_keys(candidates, truth)
        if len(np.unique(keys)) < len(keys):
            raise ValueError("the candidates hold a pair twice")
        correct = np.isin(keys, true_keys)
        order = np.lexsort((correct, -candidates.score))
        return cls(candidates.score[order], correct[order], len(np.unique(true_keys)))

    @property
    def precision(self) -> NDArray[np.float64]:
        """Share of true pairs among the first i."""
        return np.cumsum(self.correct) / np.arange(1, len(self.correct) + 1)

    @property
    def recall(self) -> NDArray[np.float64]:
        """Share of the true pairs that are among the first i."""
        return np.cumsum(self.correct) / max(1, self.expected)


def is_true(candidates: Candidates, truth: Integers) -> NDArray[np.bool_]:
    """Return which candidates are among the true pairs (T, 2)."""
    return np.isin(*_pair_keys(candidates, truth))


def _pair_keys(candidates: Candidates, truth: Integers) -> tuple[Integers, Integers]:
    """Return one whole number for each pair of query and reference."""
    stride = 1 + max(int(candidates.reference.max(initial=0)), int(truth[:, 1].max(initial=0)))
    return candidates.query * stride + candidates.reference, truth[:, 0] * stride + truth[:, 1]


def micro_average_precision(ranked: RankedPairs) -> float:
    """Return the area under the precision-recall curve, without interpolation; 0 where nothing is true."""
    return float(ranked.precision[ranked.correct].sum() / max(1, ranked.expected))


def recall_at_precision(ranked: RankedPairs, precision: float = 0.9) -> tuple[float, float]:
    """Return the largest recall of at least this precision, and the score where it is; (0, nan) if there is none."""
    enough = np.flatnonzero(ranked.precision >= precision)
    recall = ranked.recall
    if not len(enough) or recall[enough].max() == 0:
        return 0.0, float("nan")
    best = enough[np.argmax(recall[enough])]
    return float(recall[best]), float(ranked.score[best])


def true_ranks(candidates: Candidates, truth: Integers) -> NDArray[np.float64]:
    """Return how many of its query's candidates come before each true pair, ties counted against it; inf if absent."""
    ranks = np.full(len(truth), np.inf)
    if not len(candidates) or not len(truth):
        return ranks
    pairs, wanted = _pair_keys(candidates, truth)
    order = np.argsort(pairs)
    place = np.minimum(np.searchsorted(pairs, wanted, sorter=order), len(pairs) - 1)
    found = np.flatnonzero(pairs[order[place]] == wanted)
    # Scores by their place among all different scores: query and score become one whole number.
    different, level = np.unique(candidates.score, return_inverse=True)
    own = candidates.query * len(different) + level
    at = own[order[place[found]]]
    own.sort()
    end = np.searchsorted(own, (truth[found, 0] + 1) * len(different))
    ranks[found] = end - np.searchsorted(own, at) - 1
    return ranks


def trapezoidal_average_precision(ranks: NDArray[np.int64], positives: int) -> float:
    """Return Copydays' average precision of hits at these ranks (from 0, ascending): the curve's trapezoids."""
    hits = np.arange(len(ranks))
    before = np.where(ranks > 0, hits / np.maximum(ranks, 1), 1.0)
    after = (hits + 1) / (ranks + 1)
    return float((before + after).sum() / 2 / max(1, positives))


def query_average_precision(candidates: Candidates, truth: Integers) -> tuple[Integers, NDArray[np.float64]]:
    """Return the queries that have true pairs, ascending, and Copydays' average precision of each.

    Among a query's equal scores wrong pairs come first.
    """
    queries, positives = np.unique(np.unique(truth, axis=0)[:, 0], return_counts=True)
    correct = is_true(candidates, truth)
    order = np.lexsort((correct, -candidates.score, candidates.query))
    query, correct = candidates.query[order], correct[order]
    start = np.searchsorted(query, query)
    rank = np.arange(len(query)) - start
    hits = np.cumsum(correct)
    # Hits of the same query before this one.
    before: Integers = hits - correct - (hits[start] - correct[start])
    share = np.where(rank > 0, before / np.maximum(rank, 1), 1.0) + (before + 1) / (rank + 1)
    at = np.searchsorted(queries, query[correct])
    return queries, np.bincount(at, share[correct], len(queries)) / 2 / positives
