"""`python -m experiments.seal2real.downstream`: what are realised seals worth as training data?

    python -m experiments.seal2real.downstream --output DIR --realised REALISED_SET

Three tasks are trained on the same documents in three looks: plain, clean flat ink; drawn and degraded, ink model and
capture; realised, the plain ones after a forger. All are tested on other documents of the degraded domain, which stands
in for photographs. The sets are written once; DIR/plain is the one to realise (configs/seal2real/realise.yaml). Without
`--realised` that column stays "not measured". Every step is a command of `sealmark`, printed before it runs.

Intervals are over the tested samples, not over trainings.
"""

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from experiments.cli import answer
from experiments.compare import RunResults, differences
from experiments.prepare_seals import seals
from experiments.steps import Results, log_dir, read_results, run_step, shown

PLAIN, DEGRADED, REALISED, TEST = "plain", "degraded", "realised", "test"
ARMS = (PLAIN, DEGRADED, REALISED)
TEST_SEED = 1000  # added to the seed of what is trained on


@dataclass(frozen=True)
class Task:
    """A task and the figure that stands for it."""

    name: str
    title: str
    metric: str
    steps: int


TASKS = (
    Task("segmentation", "seal segmentation, IoU", "iou_dataset", 400),
    Task("verification", "verification, AUROC", "auroc", 500),
    Task("reading", "text under seals, character error rate", "cer", 800),
)


@dataclass(frozen=True)
class RunFigures:
    """What one training gave."""

    results: Results
    folder: Path


def main(arguments: Sequence[str] | None = None) -> int:
    """Write the sets, train and test every task on every set, and print the table."""
    parser = argparse.ArgumentParser(prog="python -m experiments.seal2real.downstream", description=__doc__)
    parser.add_argument("--output", type=Path, required=True, help="folder for the sets and the table")
    parser.add_argument("--realised", type=Path, help="set that a forger made of OUTPUT/plain")
    parser.add_argument("--documents", type=int, default=300, help="documents to train on")
    parser.add_argument("--test-documents", type=int, default=150)
    parser.add_argument("--size", type=int, default=512, help="side of the documents in pixels")
    parser.add_argument("--tasks", nargs="+", choices=[task.name for task in TASKS], default=None)
    parser.add_argument("--effort", type=float, default=1.0, help="factor of the optimiser steps")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--sets-only", action="store_true", help="stop before training: realise OUTPUT/plain next")
    parser.add_argument("overrides", nargs="*", help="further flags of every command, after --")
    options = parser.parse_args(arguments)
    sets = write_sets(options.output, options.documents, options.test_documents, options.size, options.seed)
    if options.realised is not None:
        sets[REALISED] = options.realised
    if options.sets_only:
        return 0
    chosen = [task for task in TASKS if options.tasks is None or task.name in options.tasks]
    found = {
        (task.name, arm): train_and_test(task, sets[arm], sets[TEST], options.effort, options.seed, options.overrides)
        for task in chosen
        for arm in ARMS
        if arm in sets
    }
    table = as_table(chosen, found)
    path = options.output / "downstream.md"
    path.write_text(table, encoding="utf-8")
    print(f"\n{table}\ntable: {path}")
    return 0


def write_sets(output: Path, documents: int, tested: int, size: int, seed: int) -> dict[str, Path]:
    """Write what is trained on and tested on, and return where; what is there already is left as it is."""
    folders = {name: output / name for name in (PLAIN, DEGRADED, TEST)}
    seals(folders[PLAIN], documents, size, "clean", seed)
    seals(folders[DEGRADED], documents, size, "degraded", seed)
    seals(folders[TEST], tested, size, "degraded", seed + TEST_SEED)
    return folders


def train_and_test(
    task: Task, trained_on: Path, tested_on: Path, effort: float, seed: int, overrides: Sequence[str]
) -> RunFigures:
    """Train a task on a set by its recipe and test it on another set."""
    steps = str(max(1, round(effort * task.steps)))
    trained = run_step(
        *("fit", "--config", f"configs/seal2real/{task.name}.yaml", "--seed_everything", str(seed)),
        *("--data.train", str(trained_on), "--data.test", str(tested_on)),
        *("--trainer.max_steps", steps, "--trainer.val_check_interval", steps, *overrides),
    )
    folder = log_dir(trained)
    checkpoint = folder / "checkpoints" / "last.ckpt"
    tested = run_step("test", "--config", str(folder / "config.yaml"), "--ckpt_path", str(checkpoint))
    return RunFigures(read_results(log_dir(tested)), log_dir(tested))


def as_table(tasks: Sequence[Task], found: Mapping[tuple[str, str], RunFigures]) -> str:
    """Return Markdown: a task a row, training data the columns, and differences from plain on the same samples."""
    lines = [f"| trained on | {' | '.join(ARMS)} |", "|---" * (len(ARMS) + 1) + "|"]
    for task in tasks:
        cells = []
        for arm in ARMS:
            tested = found.get((task.name, arm))
            cells.append(shown(None if tested is None else tested.results.get((task.metric, ""))))
        lines.append(f"| {task.title} | {' | '.join(cells)} |")
    lines += ["", "| less plain, same samples | degraded | realised |", "|---|---|---|"]
    for task in tasks:
        cells = [difference_from_plain(task, found, arm) for arm in (DEGRADED, REALISED)]
        lines.append(f"| {task.title} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def difference_from_plain(task: Task, found: Mapping[tuple[str, str], RunFigures], arm: str) -> str:
    """Return the difference of a figure from that of plain data, with its interval, as a cell of a table."""
    if (task.name, arm) not in found or (task.name, PLAIN) not in found:
        return "not measured"
    runs = [RunResults.read(found[task.name, name].folder, "results") for name in (arm, PLAIN)]
    row = next(row for row in differences(*runs) if row.name == task.metric)
    return f"{row.value:+.3f} ({row.low:+.3f} to {row.high:+.3f})"


if __name__ == "__main__":
    raise SystemExit(answer(main))
