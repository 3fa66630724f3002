"""From a score to the precision that was measured at it, and to a verdict."""

from __future__ import annotations

import csv
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lightning_modules.functional.plain_json import parse_json, quoted
from lightning_modules.functional.retrieval import Candidates, Integers, RankedPairs

MIN_PAIRS = 20
"""A precision is that of at least so many pairs."""
PUBLISHED_SCORE, PUBLISHED_PRECISION = 0.75, 0.9
PUBLISHED_MODELS = ("sscd_disc_blur", "sscd_disc_advanced", "sscd_disc_mixup", "sscd_disc_large")


@dataclass(frozen=True)
class PrecisionCurve:
    """The precision that was measured at scores, never rising where the score falls."""

    score: NDArray[np.float64]
    """Ascending."""
    precision: NDArray[np.float64]

    @classmethod
    def fit(cls, candidates: Candidates, truth: Integers) -> PrecisionCurve:
        """Measure the share of true pairs among all candidates at or above each score.

        Of the precisions at a score and above, the lowest counts. Those of fewer than `MIN_PAIRS` pairs do not.
        """
        ranked = RankedPairs.of(candidates, truth)
        if len(ranked.score) < MIN_PAIRS:
            raise ValueError(f"a calibration needs at least {MIN_PAIRS} candidate pairs, got {len(ranked.score)}")
        # Pairs of equal score count together: a threshold cannot part them.
        ends = np.flatnonzero(np.append(np.diff(ranked.score) < 0, True))
        ends = ends[ends >= MIN_PAIRS - 1]
        lowest = np.minimum.accumulate(ranked.precision[ends])
        score, precision = ranked.score[ends][::-1].astype(np.float64), lowest[::-1]
        steps = np.flatnonzero(np.append(True, np.diff(precision) > 0))
        return cls(score[steps], precision[steps])

    def at(self, score: float) -> float | None:
        """Return the precision at a score; None below all that were measured."""
        place = int(np.searchsorted(self.score, score, side="right")) - 1
        return float(self.precision[place]) if place >= 0 else None

    def threshold(self, precision: float) -> float | None:
        """Return the lowest score of at least this precision; None if there is none."""
        enough = np.flatnonzero(self.precision >= precision)
        return float(self.score[enough[0]]) if len(enough) else None


@dataclass(frozen=True)
class Judge:
    """Says what a score means."""

    curve: PrecisionCurve | None
    published: bool
    """Whether the model is one whose authors tell of a threshold."""
    wanted: float
    """Precision from which on a pair is called a copy."""

    def __call__(self, score: float) -> dict[str, Any]:
        """Return the verdict on a score, the precision it is based on, and where that is from."""
        if self.curve is not None:
            precision = self.curve.at(score)
            copy = precision is not None and precision >= self.wanted
            return {"verdict": "copy" if copy else "no copy", "precision": precision, "precision_from": "calibration"}
        if self.published and self.wanted <= PUBLISHED_PRECISION:
            copy = score >= PUBLISHED_SCORE
            return {
                "verdict": "copy" if copy else "no copy",
                "precision": PUBLISHED_PRECISION if copy else None,
                "precision_from": "the authors' statement, not measured here",
            }
        return {"verdict": None, "precision": None, "precision_from": None}

    @property
    def told(self) -> str:
        """What verdicts rest on, in a sentence."""
        if self.curve is not None:
            threshold = self.curve.threshold(self.wanted)
            if threshold is None:
                return f"no score was measured to have a precision of {self.wanted:g}: nothing is called a copy"
            return f"a copy is a score of {threshold:.4f} and more, where {self.wanted:g} was measured by calibration"
        if self.published and self.wanted <= PUBLISHED_PRECISION:
            return (
                f"not calibrated: a copy is a score of {PUBLISHED_SCORE} and more, of which the authors of the model "
                f"state a precision of about {PUBLISHED_PRECISION:g} on their data"
            )
        return "not calibrated: no verdicts; `sealmark index calibrate` measures what a score means"


def is_published(model: dict[str, Any]) -> bool:
    """Tell by the name of its file whether a model is one of the published ones for DISC."""
    names = (Path(str(model.get(key) or "")).name for key in ("weights", "ckpt_path"))
    return any(name.split(".")[0] in PUBLISHED_MODELS for name in names)


def read_pairs(path: Path) -> Iterator[tuple[str, str]]:
    """Yield query and reference of each line of a CSV or JSON Lines file; lines without a reference are left out."""
    if not path.is_file():
        raise FileNotFoundError(f"no file of pairs at {path}")
    with path.open(newline="", encoding="utf-8") as file:
        rows: Iterator[Any] = map(_json_pair, file) if path.suffix == ".jsonl" else csv.reader(file)
        for number, row in enumerate(_explained(rows, path), start=1):
            header = number == 1 and row and row[0] in ("query", "query_id")
            if not row or header or (len(row) == 2 and not row[1]):
                continue
            if len(row) != 2 or not all(isinstance(value, str) for value in row):
                raise ValueError(f"{path}, line {number}, is no pair of a query and a reference")
            yield row[0], row[1]


def _json_pair(line: str) -> list[Any]:
    try:
        pair = parse_json(line, "a pair")
        return [pair["query"], pair["reference"]]
    except (ValueError, KeyError, TypeError):
        return [line] if line.strip() else []


def _explained(rows: Iterator[Any], path: Path) -> Iterator[Any]:
    try:
        yield from rows
    except (csv.Error, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is no CSV or JSON Lines in UTF-8 ({quoted(str(error))})") from None
