"""What an index learns from descriptors before it takes them, and how well it then finds them."""

from __future__ import annotations

from typing import Any, cast

import numpy as np

from callbacks.descriptor_files import Rows
from experiments.copy_index.manifest import Kind
from experiments.copy_index.searching import CopyIndex
from experiments.copy_index.segments import BLOCK
from lightning_modules.functional.retrieval import Floats, Integers, nearest_references, unit_length

FLAT_ROWS = 200_000
LIST_ROWS = 4_000_000
SAMPLED_BYTES = 512 << 20
QUERIES = 200
COSINE = 0.75
"""Of a test query to the row it was made of: where the authors of SSCD draw the line of a copy."""
_MIN_PQ_ROWS = 256  # as many as codes of a byte
_ROWS_OF_LIST = 50  # faiss asks for 39 at least
_NUMBERS_OF_BYTE = 8


def choose_kind(rows: int) -> Kind:
    """Return what serves this many descriptors best: exact, in lists, or in lists and compressed."""
    if rows <= FLAT_ROWS:
        return "flat"
    return "ivf" if rows <= LIST_ROWS else "ivf_pq"


def list_count(rows: int) -> int:
    """Return how many inverted lists there are for this many rows: a power of two near twice the root."""
    return 2 ** round(np.log2(max(1.0, 2 * rows**0.5))) if rows >= _ROWS_OF_LIST else 1


def learn(kind: Kind, rows: Rows) -> Any:
    """Return an empty faiss index of inner products that has learnt from a sample of the rows."""
    import faiss

    count, dims = rows.shape
    lists = list_count(count)
    quantizer = faiss.IndexFlatIP(dims)
    index: Any
    if kind == "ivf":
        index = faiss.IndexIVFFlat(quantizer, dims, lists, faiss.METRIC_INNER_PRODUCT)
    else:
        if count < _MIN_PQ_ROWS:
            raise ValueError(f"--kind ivf_pq learns from at least {_MIN_PQ_ROWS} descriptors, got {count}: take flat")
        index = faiss.IndexIVFPQ(quantizer, dims, lists, code_bytes(dims), 8, faiss.METRIC_INNER_PRODUCT)
    wanted = min(count, max(_ROWS_OF_LIST * lists, 64 * _MIN_PQ_ROWS), SAMPLED_BYTES // (4 * dims))
    index.train(rows[_sample(count, wanted)])
    return index


def code_bytes(dims: int) -> int:
    """Return the bytes of a compressed descriptor: one for eight numbers, or the next fewer that divides."""
    return next(parts for parts in range(max(1, dims // _NUMBERS_OF_BYTE), 0, -1) if dims % parts == 0)


def make_queries(rows: Rows) -> tuple[Floats, Integers]:
    """Return descriptors at a fixed cosine to rows of the index, (Q, D), and the ids of those rows."""
    ids = _sample(len(rows), QUERIES)
    own = unit_length(rows[ids])
    noise = np.random.default_rng(1).normal(size=own.shape).astype(np.float32)
    across = unit_length(noise - (noise * own).sum(axis=1, keepdims=True) * own)
    return np.float32(COSINE) * own + np.float32((1 - COSINE**2) ** 0.5) * across, ids


def exact_answers(queries: Floats, rows: Rows) -> Integers:
    """Return the row nearest to each query, by search of all."""
    return nearest_references(queries, cast("Floats", rows), 1, block=BLOCK).reference


def recall(index: CopyIndex, queries: Floats, exact: Integers) -> dict[int, float]:
    """Return the share of queries whose exactly nearest row is the index's first answer, and among its first ten."""
    _, found = index.search(queries, 10)
    return {k: float((found[:, :k] == exact[:, None]).any(axis=1).mean()) for k in (1, 10)}


def _sample(count: int, wanted: int) -> Integers:
    if wanted >= count:
        return np.arange(count)
    return np.sort(np.random.default_rng(0).choice(count, wanted, replace=False, shuffle=False))
