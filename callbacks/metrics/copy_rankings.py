"""Candidates of copy detection under each codec and score normalisation."""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from lightning_modules.functional.retrieval import (
    Candidates,
    Codec,
    Floats,
    Integers,
    Metric,
    ScoreNormalisation,
    best_pairs,
    nearest_references,
)

NO_CODEC, NO_NORM = "Flat", "None"
_ROWS_AT_A_TIME = 16384
_ROUNDING = 1e-5  # squared lengths that differ less are those of unit vectors in float32


@dataclass(frozen=True)
class SearchSettings:
    """How descriptors are compared.

    Attributes:
        codecs: Names such as ``PCAW512,L2norm,Flat``; None takes the reference's default, of which those that learn
            need a background.
        score_norm: ``weight[first,last]``; None for none. Scores without it are reported too.
        k: Candidates a query.
        global_candidates: Whether the best k x queries pairs are kept over all, instead of k for each query.
    """

    codecs: tuple[str, ...] | None = None
    score_norm: str | None = None
    k: int = 10
    global_candidates: bool = False

    def learns(self) -> str | None:
        """Return what of this needs a background, if anything does."""
        if self.score_norm is not None:
            return f"score normalisation {self.score_norm}"
        return next((f"codec {codec}" for codec in self.codecs or () if "PCA" in codec), None)


@dataclass(frozen=True)
class Ranking:
    """Candidates found under one codec and score normalisation; queries and references by position."""

    codec: str
    score_norm: str
    metric: Metric
    candidates: Candidates

    @property
    def label(self) -> str:
        """What sets it apart: empty where descriptors were compared as they are."""
        parts = [self.codec if self.codec != NO_CODEC else "", f"SN {self.score_norm}" if self.normalised else ""]
        return " ".join(part for part in parts if part)

    @property
    def slug(self) -> str:
        """A name for files."""
        return re.sub(r"[^A-Za-z0-9.]+", "_", f"{self.codec}_{self.score_norm}").strip("_")

    @property
    def normalised(self) -> bool:
        """Whether scores are normalised."""
        return self.score_norm != NO_NORM


def rank_copies(
    queries: Floats, references: Floats, background: Floats, settings: SearchSettings, folder: Path | None = None
) -> list[Ranking]:
    """Return the rankings of all codecs, first without, then with score normalisation.

    A codec that cannot be learnt, or gives values that are not finite, is left out with a warning.

    Args:
        queries: (Q, D).
        references: (R, D); may be a memory map.
        background: (B, D); may be a memory map, or empty where nothing is learnt.
        settings: How descriptors are compared.
        folder: Where encoded descriptors are kept meanwhile; in memory where not given.
    """
    codecs = settings.codecs
    if codecs is None:
        codecs = default_codecs(queries, references, len(background) > 0)
    rankings: list[Ranking] = []
    for name in codecs:
        try:
            rankings += _of_codec(name, (queries, references, background), settings, folder)
        except ValueError as error:
            warnings.warn(f"codec {name} is left out: {error}", stacklevel=2)
    return sorted(rankings, key=lambda ranking: ranking.normalised)  # stable: codecs keep their order


def default_codecs(queries: Floats, references: Floats, has_background: bool) -> tuple[str, ...]:
    """Return the reference's codecs for descriptors of length one, or of any length; some learn from a background."""
    norms = np.linalg.norm(np.concatenate([queries[:_ROWS_AT_A_TIME], references[:_ROWS_AT_A_TIME]]), axis=1)
    whitened, scaled = f"PCAW{queries.shape[1]},L2norm,Flat", f"L2norm,PCAW{queries.shape[1]},Flat"
    if not len(norms) or np.abs(norms - 1).mean() < 0.01:
        return (NO_CODEC, whitened) if has_background else (NO_CODEC,)
    return (NO_CODEC, "L2norm,Flat", whitened, scaled) if has_background else (NO_CODEC, "L2norm,Flat")


def _of_codec(
    name: str, matrices: tuple[Floats, Floats, Floats], settings: SearchSettings, folder: Path | None
) -> list[Ranking]:
    codec = Codec.fit(name, matrices[2])
    queries, references, background = (
        _encoded(codec, rows, folder / f"encoded{part}.f32" if folder else None) for part, rows in enumerate(matrices)
    )
    if settings.score_norm is None:
        return [Ranking(name, NO_NORM, "l2", _candidates(queries, references, "l2", settings, None))]
    normalisation = ScoreNormalisation.parse(settings.score_norm)
    bias = normalisation.bias(queries, background)
    normalised = _candidates(queries, references, "inner_product", settings, bias)
    if not settings.global_candidates and _of_one_length(references):
        # The nearest of such references have the largest inner products, which no bias reorders: one search for both.
        plain = Candidates(normalised.query, normalised.reference, _closeness(queries, references, normalised))
    else:
        plain = _candidates(queries, references, "l2", settings, None)
    return [Ranking(name, NO_NORM, "l2", plain), Ranking(name, str(normalisation), "inner_product", normalised)]


def _of_one_length(rows: Floats) -> bool:
    squares = np.concatenate([np.empty(0), *(np.square(block).sum(axis=1) for block in _blocks(rows))])
    return bool(np.ptp(squares) <= _ROUNDING * squares.max()) if len(squares) else True


def _closeness(queries: Floats, references: Floats, pairs: Candidates) -> Floats:
    """Minus the squared distance of each pair."""
    score: Floats = np.empty(len(pairs), np.float32)
    for start in range(0, len(pairs), _ROWS_AT_A_TIME):
        some = slice(start, start + _ROWS_AT_A_TIME)
        apart = queries[pairs.query[some]] - references[pairs.reference[some]]
        score[some] = -np.einsum("nd,nd->n", apart, apart)
    return score


def _candidates(
    queries: Floats, references: Floats, metric: Metric, settings: SearchSettings, bias: Floats | None
) -> Candidates:
    if settings.global_candidates:
        return best_pairs(queries, references, settings.k * len(queries), metric, bias=bias)
    return nearest_references(queries, references, settings.k, metric, bias=bias)


def _encoded(codec: Codec, rows: Floats, path: Path | None) -> Floats:
    """Rows after a codec, a block at a time, mapped from a file where one is named."""
    encoded = None if codec.steps else rows
    start = 0
    for block in map(codec, _blocks(rows)):
        if not np.isfinite(block).all():
            raise ValueError("it gives values that are not finite")
        if codec.steps:
            encoded = _room((len(rows), block.shape[1]), path) if encoded is None else encoded
            encoded[start : start + len(block)] = block
        start += len(block)
    return codec(rows) if encoded is None else encoded


def _blocks(rows: Floats) -> Iterator[Floats]:
    return (np.asarray(rows[start : start + _ROWS_AT_A_TIME]) for start in range(0, len(rows), _ROWS_AT_A_TIME))


def _room(shape: tuple[int, int], path: Path | None) -> Floats:
    return np.empty(shape, np.float32) if path is None else np.memmap(path, np.float32, "w+", shape=shape)


def at_indices(candidates: Candidates, queries: Integers, references: Integers) -> Candidates:
    """Return candidates by index in the data set instead of position among queries and references."""
    return Candidates(queries[candidates.query], references[candidates.reference], candidates.score)
