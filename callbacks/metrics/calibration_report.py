"""What a calibration found, line by line: thresholds, rates and their intervals, rates per set, temperatures."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Iterator, Sequence
from dataclasses import astuple, dataclass

import numpy as np
from numpy.typing import NDArray

from callbacks.metrics.detection_statistics import even_odds_error
from lightning_modules.functional.detection import Bools, Floats, binomial_interval
from lightning_modules.functional.detection_calibration import NOMINAL_RATES, Calibration, sigmoid

COLUMNS = ("figure", "group", "value", "low", "high", "n")
ANY = "any"


@dataclass(frozen=True)
class CalibrationLine:
    """One number.

    Args:
        figure: What it is.
        group: Head, ``any``, or ``any@`` and the name of a set of pictures.
        value: The number; infinite for a threshold that needs more pictures.
        low: Lower end of its 95 % interval; NaN where it has none.
        high: Upper end of that interval.
        n: How many pictures it rests on.
    """

    figure: str
    group: str
    value: float
    low: float
    high: float
    n: int

    def cells(self) -> tuple[str, str, str, str]:
        """Return name, value, interval and number as text."""
        interval = "–" if math.isnan(self.low) else f"{self.low:.4f} – {self.high:.4f}"
        return f"{self.figure}/{self.group}", f"{self.value:.4f}", interval, str(self.n)


def calibration_lines(
    calibration: Calibration, logits: Floats, real: Bools, generators: NDArray[np.str_], sources: NDArray[np.str_]
) -> list[CalibrationLine]:
    """Return all lines.

    Rates per set leave each picture out of its own table; a set far from nominal needs a calibration of its own.

    Args:
        calibration: The calibration.
        logits: Of the pictures it was made of, (N, G).
        real: Which of them are real, (N,).
        generators: What each comes from, (N,).
        sources: Name of each one's set, (N,).
    """
    lines = []
    for head, name in enumerate(calibration.generators):
        for nominal in NOMINAL_RATES:
            point = calibration.operating_point(head, nominal)
            percent = f"{100 * nominal:g}"
            nothing = float("nan")
            lines += [
                CalibrationLine(f"threshold_{percent}", name, point.threshold, nothing, nothing, len(calibration)),
                CalibrationLine(f"fpr_{percent}", name, point.measured, point.low, point.high, len(calibration)),
            ]
    lines += _rates_per_set(calibration, logits[real], sources[real])
    for head, name in enumerate(calibration.generators):
        if calibration.fitted[head]:
            lines += _temperature(calibration, head, logits[:, head], real, generators == name)
    return lines


def as_csv(lines: Sequence[CalibrationLine]) -> str:
    """Return the lines as CSV."""
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow(COLUMNS)
    writer.writerows(astuple(line) for line in lines)
    return stream.getvalue()


def as_markdown(lines: Sequence[CalibrationLine]) -> str:
    """Return the lines as a Markdown table."""
    rows = ["| what | value | 95 % interval | n |", "|---|---:|---:|---:|"]
    return "\n".join([*rows, *(f"| {' | '.join(line.cells())} |" for line in lines)]) + "\n"


def _rates_per_set(calibration: Calibration, logits: Floats, sources: NDArray[np.str_]) -> Iterator[CalibrationLine]:
    # The calibration keeps its rows in lexicographic order.
    p_values = calibration.left_out_p_values()[:, -1]
    names = sources[np.lexsort(logits.astype(np.float32).T[::-1])]
    groups = {ANY: np.ones(len(names), dtype=np.bool_)}
    if len(set(names.tolist())) > 1:
        groups |= {f"{ANY}@{name}": names == name for name in sorted(set(names.tolist()))}
    for group, members in groups.items():
        for nominal in NOMINAL_RATES:
            alarms, n = int((p_values[members] <= nominal).sum()), int(members.sum())
            yield CalibrationLine(f"fpr_{100 * nominal:g}", group, alarms / n, *binomial_interval(alarms, n), n)


def _temperature(
    calibration: Calibration, head: int, logits: Floats, real: Bools, own: Bools
) -> Iterator[CalibrationLine]:
    where = real | own
    fitted = calibration.scale[head] * logits + calibration.offset[head]
    weights = np.ones((1, int(where.sum())))
    figures = {
        "temperature": float(calibration.temperature[head]),
        "offset": float(calibration.offset[head]),
        "ece": float(even_odds_error(sigmoid(logits[where]), own[where], weights)[0]),
        "ece_fitted": float(even_odds_error(sigmoid(fitted[where]), own[where], weights)[0]),
    }
    for figure, value in figures.items():
        name = calibration.generators[head]
        yield CalibrationLine(figure, name, value, float("nan"), float("nan"), int(where.sum()))
