"""The reference's four tables: which detector finds which generator, in its own figures and conventions."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from lightning_modules.functional.detection import (
    Bools,
    Floats,
    Ranking,
    accuracy,
    confusion_at,
    matthews,
    reference_accuracy,
)
from lightning_modules.functional.detection_calibration import sigmoid

FIGURES = ("auroc", "acc", "mcc", "mcc_best")
AVERAGE = "AVG"
REFERENCE, NOMINAL = 0.5, 0.05


@dataclass(frozen=True)
class TableRow:
    """One line of a table, in percent.

    Args:
        table: Name of the table.
        generator: What the generated pictures come from; "AVG" for the mean of the lines above.
        figures: Values of `FIGURES`.
        real: Number of real pictures.
        generated: Number of generated pictures.
    """

    table: str
    generator: str
    figures: tuple[float, ...]
    real: int
    generated: int


def reference_tables(
    logits: Floats, generators: NDArray[np.str_], labels: Bools, heads: Sequence[str], any_p: Floats | None = None
) -> list[TableRow]:
    """Return the lines of all tables; a table has a line for each generator that the pictures hold.

    ``specific`` takes the head of the generator itself, ``generic`` the maximum of raw probabilities over all heads,
    ``generalized`` that over all heads but the generator's own, ``head <name>`` one head for all. With p-values
    ``generic calibrated`` ranks by that of "any" and decides at p <= 0.05.

    Args:
        logits: Of all pictures, (N, G).
        generators: Generator of each picture, (N,).
        labels: Whether it is generated, (N,).
        heads: Names of the heads.
        any_p: P-value of "any generator", (N,).
    """
    probability = sigmoid(logits)
    present = _present(generators, labels, heads)

    def lines(table: str, columns: dict[str, Floats], threshold: float = REFERENCE) -> Iterator[TableRow]:
        rows = [
            _row(table, name, scores, labels, ~labels | (generators == name), threshold)
            for name, scores in columns.items()
        ]
        yield from rows
        if rows:
            mean = np.mean([row.figures for row in rows], axis=0)
            generated = sum(row.generated for row in rows)
            yield TableRow(table, AVERAGE, tuple(mean.tolist()), int((~labels).sum()), generated)

    specific = {name: probability[:, heads.index(name)] for name in present if name in heads}
    others = {name: [g for g, head in enumerate(heads) if head != name] for name in present}
    generalized = {name: probability[:, columns].max(axis=1) for name, columns in others.items() if columns}
    tables = [
        *lines("specific", specific),
        *lines("generic", dict.fromkeys(present, probability.max(axis=1))),
        *lines("generalized", generalized),
    ]
    if any_p is not None:
        tables += lines("generic calibrated", dict.fromkeys(present, -any_p), threshold=-NOMINAL)
    for g, head in enumerate(heads):
        tables += lines(f"head {head}", dict.fromkeys(present, probability[:, g]))
    return tables


def as_csv(views: dict[str, list[TableRow]]) -> str:
    """Return the tables of all views, one line each."""
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow(["view", "table", "generator", *FIGURES, "real", "generated"])
    for view, rows in views.items():
        writer.writerows([view, r.table, r.generator, *r.figures, r.real, r.generated] for r in rows)
    return stream.getvalue()


def as_markdown(views: dict[str, list[TableRow]]) -> str:
    """Return the tables of all views, each below its name."""
    lines = [
        "Values in percent. A probability of exactly 0.5 is wrong for `acc` and real for `mcc`, as in the reference."
    ]
    for view, rows in views.items():
        for table in dict.fromkeys(row.table for row in rows):
            lines += ["", f"## {table}, {view}", "", f"| generator | {' | '.join(FIGURES)} | real | generated |"]
            lines.append("|---|" + "---:|" * (len(FIGURES) + 2))
            for row in (row for row in rows if row.table == table):
                numbers = " | ".join(f"{value:.2f}" for value in row.figures)
                lines.append(f"| {row.generator} | {numbers} | {row.real} | {row.generated} |")
    return "\n".join(lines) + "\n"


def _present(generators: NDArray[np.str_], labels: Bools, heads: Sequence[str]) -> list[str]:
    """Generators in the data: those with heads in the order of these, then the others by name."""
    found = set(generators[labels].tolist())
    return [*(head for head in heads if head in found), *sorted(found - set(heads))]


def _row(table: str, name: str, scores: Floats, labels: Bools, where: Bools, threshold: float) -> TableRow:
    """As the reference where the threshold is its 0.5; scores of minus p are decided at p <= 0.05."""
    scores, truth = scores[where], labels[where]
    curve = Ranking.of(scores, truth).curve()
    counts = confusion_at(scores, truth, threshold, strict=threshold == REFERENCE)
    right = reference_accuracy(scores, truth) if threshold == REFERENCE else accuracy(counts)
    figures = (curve.auroc(), right, matthews(counts), curve.best_mcc())
    percent = tuple(100 * float(figure[0]) for figure in figures)
    return TableRow(table, name, percent, int((~truth).sum()), int(truth.sum()))
