"""The reference's calibration files and its verdicts, exact.

A head's table pools the scores of all its files. Of N real scores n are below a new one: its calibrated score is n / N
and its false-positive rate 1 - n / N, which is 0 above all of them. `Calibration` is what we use instead.
"""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from lightning_modules.functional.plain_json import quoted

Floats = NDArray[np.float64]
WORDS = ("VERY LIKELY", "LIKELY", "POSSIBLE", "no evidence")
RATES = (0.01, 0.05, 0.1)
MAXIMUM_FILE = "all_to_max.csv"


@dataclass(frozen=True, eq=False)
class ReferenceTables:
    """Scores of real pictures for each head, and those of the maximum over heads.

    Args:
        tables: Raw probabilities by head, each ascending.
        maximum: Values of the maximum, ascending.
        maximum_of: What ``maximum`` holds: maxima of "raw" probabilities (the file's older version) or of
            "calibrated" scores.
    """

    tables: Mapping[str, Floats]
    maximum: Floats
    maximum_of: Literal["raw", "calibrated"]

    @classmethod
    def read(
        cls, folder: str | Path, generators: Sequence[str], maximum_of: Literal["raw", "calibrated"] | None = None
    ) -> ReferenceTables:
        """Read ``*_to_<generator>.csv`` for each head, and ``all_to_max.csv``.

        Args:
            folder: Where the files are.
            generators: Names of the heads.
            maximum_of: What ``all_to_max.csv`` holds. Where not given: raw probabilities if those of the heads are
                listed in it too, as in the file's older version.
        """
        root = Path(folder)
        tables = {}
        for name in generators:
            files = sorted(root.glob(f"*_to_{name}.csv"))
            if not files:
                raise FileNotFoundError(f"{root} has no calibration file *_to_{name}.csv: name the folder they are in")
            tables[name] = np.sort(np.concatenate([read_scores(path)[1] for path in files]))
        header, maximum = read_scores(root / MAXIMUM_FILE)
        return cls(tables, np.sort(maximum), maximum_of or ("raw" if len(header) > 3 else "calibrated"))

    def false_positive_rates(self, scores: Mapping[str, ArrayLike]) -> dict[str, Floats]:
        """Return 1 - n / N of each head's raw probabilities."""
        return {name: 1 - self.calibrated(name, values) for name, values in scores.items()}

    def calibrated(self, generator: str, scores: ArrayLike) -> Floats:
        """Return the share of real scores that are below, of any shape."""
        return _share_below(self.tables[generator], scores)

    def generic_rate(self, scores: Mapping[str, ArrayLike], as_published: bool = False) -> Floats:
        """Return the false-positive rate of the maximum over heads.

        Args:
            scores: Raw probabilities by head.
            as_published: Take the maximum of calibrated scores even if the file holds maxima of raw ones, which is
                what the reference did; rates are wrong then.
        """
        of_calibrated = as_published or self.maximum_of == "calibrated"
        values = [
            self.calibrated(name, s) if of_calibrated else np.asarray(s, np.float64) for name, s in scores.items()
        ]
        return 1 - _share_below(self.maximum, np.max(values, axis=0))

    def thresholds(self, rates: Sequence[float] = RATES) -> dict[str, Floats]:
        """Return the raw probabilities at false-positive rates, by linear quantiles; the maximum is "max"."""
        levels = [1 - rate for rate in rates]
        return {name: np.quantile(table, levels) for name, table in {**self.tables, "max": self.maximum}.items()}


def verdict_codes(rates: ArrayLike) -> NDArray[np.int64]:
    """Return positions in `WORDS` of false-positive rates of any shape."""
    return np.searchsorted(RATES, np.asarray(rates, dtype=np.float64), side="right").astype(np.int64)


def read_scores(path: Path) -> tuple[list[str], Floats]:
    """Return the header of a calibration file and its column ``score``."""
    if not path.is_file():
        raise FileNotFoundError(f"no calibration file {path}")
    with path.open(newline="", encoding="utf-8") as stream:
        reader = csv.reader(stream)
        try:
            header = next(reader, [])
            if "score" not in header or "image_filename" not in header:
                told = quoted(",".join(header))
                raise ValueError(f"{path}: its first line must name image_filename and score, got {told!r}")
            column = header.index("score")
            values = [_number(row, column, path, line) for line, row in enumerate(reader, start=2) if row]
        except (csv.Error, UnicodeDecodeError) as error:
            raise ValueError(f"{path}, line {reader.line_num}: {error}; save it as CSV in UTF-8") from error
    if not values:
        raise ValueError(f"{path} has no scores below its first line")
    return header, np.array(values, dtype=np.float64)


def _number(row: Sequence[str], column: int, path: Path, line: int) -> float:
    text = row[column] if column < len(row) else ""
    try:
        value = float(text)
    except ValueError:
        value = float("nan")
    if not 0 <= value <= 1:
        raise ValueError(f"{path}, line {line}: score must be a probability, got {quoted(text)!r}")
    return value


def _share_below(table: Floats, scores: ArrayLike) -> Floats:
    return np.searchsorted(table, np.asarray(scores, dtype=np.float64), side="left") / len(table)
