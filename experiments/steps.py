"""Commands of `sealmark` as steps of a quickstart: printed, then run in this process; and what they found."""

import csv
import shlex
import sys
from argparse import ArgumentParser, RawDescriptionHelpFormatter
from collections.abc import Callable, Mapping
from pathlib import Path

from experiments.cli import answer
from experiments.trainer_cli import SealmarkCLI, run

Results = Mapping[tuple[str, str], tuple[float, float, float]]


def run_step(*words: str) -> SealmarkCLI:
    """Print a command as a user would type it and run it."""
    print(f"\n$ sealmark {shlex.join(words)}", flush=True)
    sys.argv[1:] = words
    return run()


def log_dir(cli: SealmarkCLI) -> Path:
    """Return the folder of a finished run."""
    assert cli.trainer.log_dir is not None
    return Path(cli.trainer.log_dir)


def read_results(folder: Path) -> Results:
    """Return value, lower and upper end of each metric and group that a run of `sealmark test` left."""
    with (folder / "results.csv").open(encoding="utf-8") as file:
        return {
            (row["metric"], row["group"]): (float(row["value"]), float(row["low"]), float(row["high"]))
            for row in csv.DictReader(file)
        }


def shown(figure: tuple[float, float, float] | None) -> str:
    """Return a figure with its interval, as a cell of a table."""
    return "not measured" if figure is None else f"{figure[0]:.3f} ({figure[1]:.3f} to {figure[2]:.3f})"


def run_without_options(program: Callable[[], int | None], about: str | None) -> int:
    """Run a program that takes no options, or tell what it does; return its exit code."""
    ArgumentParser(description=about, formatter_class=RawDescriptionHelpFormatter).parse_args()
    return answer(program)
