"""Results of an evaluation as CSV, JSON and Markdown, with what is needed to make them again."""

import csv
import dataclasses
import io
import json
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from rich.table import Table as RichTable


@dataclass(frozen=True)
class Result:
    """One metric of one group of samples with its interval.

    Args:
        metric: Name of the metric.
        group: Name of the group of samples; empty for all.
        value: The metric over the samples, each counted once.
        low: Lower end of the 95 % interval.
        high: Upper end of the 95 % interval.
        n: Number of samples the value rests on.
        draws: The metric on each resampled data set; none where it is not resampled.
    """

    metric: str
    group: str
    value: float
    low: float
    high: float
    n: int
    draws: NDArray[np.float64] | None = field(default=None, repr=False, compare=False)

    @property
    def row(self) -> dict[str, str | float | int]:
        """What a line of a file says of it."""
        return {name: getattr(self, name) for name in COLUMNS[:6]}


@dataclass(frozen=True)
class Provenance:
    """Where results come from.

    Args:
        stage: Stage that was evaluated, "val" or "test".
        seed: Seed of the run; None when it was not set.
        config_sha256: Hash of the resolved configuration.
        checkpoint: Checkpoint that was evaluated; empty for the weights in memory.
        epoch: Epoch of the weights.
        step: Optimiser step of the weights.
        resamples: Number of bootstrap data sets behind the intervals.
        bootstrap_seed: Seed of the resampling.
        settings: What else the numbers depend on, such as the threshold.
    """

    stage: str
    seed: int | None
    config_sha256: str
    checkpoint: str
    epoch: int
    step: int
    resamples: int
    bootstrap_seed: int
    settings: Mapping[str, float | str] = field(default_factory=dict)


TERMINAL_ROWS = 60
COLUMNS = ("metric", "group", "value", "low", "high", "n", "stage", "seed", "config_sha256", "checkpoint")


def rows_of(results: Sequence[Result], provenance: Provenance) -> list[list[object]]:
    """Rows under `COLUMNS`, each complete in itself."""
    tail = (provenance.stage, provenance.seed, provenance.config_sha256, provenance.checkpoint)
    return [[*result.row.values(), *tail] for result in results]


def save_results(results: Sequence[Result], provenance: Provenance, folder: Path, stem: str = "results") -> list[Path]:
    """Writes `stem`.csv, .json, .md and .npz into the folder, each whole or not at all, and returns their paths.

    The last holds every metric on every resampled data set, by which `sealmark compare` pairs two runs.
    """
    contents = {
        "csv": _as_csv(results, provenance).encode(),
        "json": _as_json(results, provenance).encode(),
        "md": as_markdown(results, provenance).encode(),
        "npz": _draws_of(results),
    }
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for suffix, content in contents.items():
        path = folder / f"{stem}.{suffix}"
        partial = path.with_name(f".{path.name}.{os.getpid()}.part")
        try:
            partial.write_bytes(content)
            partial.replace(path)
        finally:
            partial.unlink(missing_ok=True)
        paths.append(path)
    return paths


def as_markdown(results: Sequence[Result], provenance: Provenance) -> str:
    """A Markdown table under one line of provenance."""
    lines = [
        _caption(provenance),
        "",
        "| metric | group | value | 95 % interval | n |",
        "|---|---|---:|---:|---:|",
    ]
    for result in results:
        interval = f"{_number(result.low)} – {_number(result.high)}"
        lines.append(
            f"| {result.metric} | {result.group or 'all'} | {_number(result.value)} | {interval} | {result.n} |"
        )
    return "\n".join(lines) + "\n"


def as_terminal_table(results: Sequence[Result], provenance: Provenance) -> RichTable:
    """A table for the terminal, narrow enough for 80 columns; of very many results those of all samples come first."""
    chosen = sorted(range(len(results)), key=lambda place: results[place].group != "")[:TERMINAL_ROWS]
    left_out = len(results) - len(chosen)
    caption = _caption(provenance) + (f"; {left_out} more results are in the files" if left_out else "")
    table = RichTable(title=f"{provenance.stage} results", caption=caption, title_justify="left")
    table.add_column("metric", overflow="fold")
    for name in ("value", "95 % interval", "n"):
        table.add_column(name, justify="right", no_wrap=True)
    for result in (results[place] for place in sorted(chosen)):
        name = f"{result.metric}/{result.group}" if result.group else result.metric
        interval = f"{_number(result.low)} – {_number(result.high)}"
        table.add_row(name, _number(result.value), interval, str(result.n))
    return table


def _as_csv(results: Sequence[Result], provenance: Provenance) -> str:
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow(COLUMNS)
    writer.writerows(rows_of(results, provenance))
    return stream.getvalue()


def _as_json(results: Sequence[Result], provenance: Provenance) -> str:
    rows = [
        {key: None if isinstance(value, float) and math.isnan(value) else value for key, value in row.items()}
        for row in (result.row for result in results)
    ]
    document = {"provenance": dataclasses.asdict(provenance), "results": rows}
    return json.dumps(document, indent=1, allow_nan=False) + "\n"


def _draws_of(results: Sequence[Result]) -> bytes:
    drawn = {f"{r.metric}/{r.group}".rstrip("/"): r.draws for r in results if r.draws is not None and len(r.draws)}
    stream = io.BytesIO()
    draws = np.stack(list(drawn.values())) if drawn else np.empty((0, 0))
    np.savez_compressed(stream, names=np.array(list(drawn), dtype=np.str_), draws=draws.astype(np.float32))
    return stream.getvalue()


def _caption(provenance: Provenance) -> str:
    parts = [
        f"stage {provenance.stage}",
        f"step {provenance.step}",
        f"seed {provenance.seed if provenance.seed is not None else 'not set'}",
        f"config {provenance.config_sha256[:12]}",
        f"checkpoint {provenance.checkpoint or 'none (weights in memory)'}",
        f"bootstrap {provenance.resamples} resamples, seed {provenance.bootstrap_seed}",
        *(f"{name} {value}" for name, value in provenance.settings.items()),
    ]
    return "; ".join(parts)


def _number(value: float) -> str:
    return "–" if math.isnan(value) else f"{value:.4f}"
