"""`sealmark compare`: are two runs' results different, with intervals of their differences."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from callbacks.metrics.bootstrap import interval_of
from lightning_modules.functional.plain_json import parse_json, quoted

PAIRED_BY = ("resamples", "bootstrap_seed")


@dataclass(frozen=True)
class Difference:
    """How far a metric of one run is above that of another."""

    name: str
    first: float
    second: float
    low: float
    high: float

    @property
    def value(self) -> float:
        """First less second."""
        return self.first - self.second


@dataclass(frozen=True)
class RunResults:
    """What an evaluation left in its folder."""

    folder: Path
    values: dict[str, float]
    samples: dict[str, int]
    draws: dict[str, NDArray[np.float32]]
    resampling: tuple[int, ...]

    @classmethod
    def read(cls, folder: Path, stem: str) -> RunResults:
        """Read `stem`.json and `stem`.npz."""
        for suffix in ("json", "npz"):
            if not (folder / f"{stem}.{suffix}").is_file():
                raise FileNotFoundError(f"no {stem}.{suffix} in {folder}: name the folder of a run of `sealmark test`")
        try:
            return cls._read(folder, stem)
        # Damaged archives bring forth errors of many types.
        except Exception as error:
            told = f"{type(error).__name__}: {quoted(str(error))}"
            raise ValueError(f"{folder}/{stem}.json or .npz is not what a test run writes ({told})") from error

    @classmethod
    def _read(cls, folder: Path, stem: str) -> RunResults:
        document = parse_json((folder / f"{stem}.json").read_bytes(), f"{stem}.json")
        named = {f"{row['metric']}/{row['group']}".rstrip("/"): row for row in document["results"]}
        with np.load(folder / f"{stem}.npz", allow_pickle=False) as stored:
            draws = dict(zip(stored["names"].tolist(), stored["draws"], strict=True))
        return cls(
            folder=folder,
            values={name: row["value"] for name, row in named.items() if row["value"] is not None},
            samples={name: row["n"] for name, row in named.items()},
            draws=draws,
            resampling=tuple(document["provenance"][key] for key in PAIRED_BY),
        )


def differences(first: RunResults, second: RunResults) -> list[Difference]:
    """Return the difference of each metric that both have, on the same resampled data sets.

    Sharing the samples, two runs are lucky and unlucky together: the interval of their difference is narrower than
    their own two make believe.
    """
    if first.resampling != second.resampling:
        raise ValueError(
            f"{first.folder} and {second.folder} were resampled differently ({', '.join(PAIRED_BY)} "
            f"{first.resampling} and {second.resampling}): test both with the same settings"
        )
    shared = [name for name in first.draws if name in second.draws and name in first.values and name in second.values]
    if not shared:
        raise ValueError(f"{first.folder} and {second.folder} have no metric in common that was resampled")
    other = next((name for name in shared if first.samples[name] != second.samples[name]), None)
    if other is not None:
        raise ValueError(
            f"{other} rests on {first.samples[other]} samples in {first.folder} and on {second.samples[other]} in "
            f"{second.folder}: test both on the same data"
        )
    return [
        Difference(
            name,
            first.values[name],
            second.values[name],
            *interval_of(first.draws[name].astype(np.float64) - second.draws[name].astype(np.float64)),
        )
        for name in shared
    ]


def compare(first: Path, second: Path, metrics: list[str] | None = None, stem: str = "results") -> None:
    """Print a table of two runs' metrics and their paired differences, first less second.

    Both must have been tested on the same data; the interval is over resampled samples, not over trainings.

    Args:
        first: Folder of a run of `sealmark test`.
        second: Folder of the run to compare with.
        metrics: Names such as `uAP` or `uAP/strong`; all that both have where not given.
        stem: Name of the results without its ending; `results_val` for `sealmark validate`.
    """
    found = differences(RunResults.read(first, stem), RunResults.read(second, stem))
    unknown = set(metrics or ()) - {difference.name for difference in found}
    if unknown:
        raise ValueError(f"no metric {', '.join(sorted(unknown))} in both runs: there are {_listed(found)}")
    print(as_markdown([row for row in found if metrics is None or row.name in metrics]))


def as_markdown(rows: list[Difference]) -> str:
    """Return a Markdown table."""
    lines = ["| metric | first | second | difference | 95 % interval |", "|---|---:|---:|---:|---:|"]
    for row in rows:
        interval = f"{row.low:+.4f} – {row.high:+.4f}"
        lines.append(f"| {row.name} | {row.first:.4f} | {row.second:.4f} | {row.value:+.4f} | {interval} |")
    return "\n".join(lines)


def _listed(rows: list[Difference]) -> str:
    names = [row.name for row in rows]
    return ", ".join(names[:8]) + (f" and {len(names) - 8} more" if len(names) > 8 else "")
