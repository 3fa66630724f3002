"""`python -m experiments.sscd.quickstart`: train descriptors on drawn pictures, find edited copies, compare.

Every step is a command of `sealmark`, printed before it runs, so that a newcomer can go on from any of them.
"""

import sys
import time
from pathlib import Path

from experiments.compare import RunResults, as_markdown, differences
from experiments.steps import Results, log_dir, read_results, run_step, run_without_options, shown

CONFIG = Path("configs/sscd/quickstart.yaml")
BASELINES = Path("configs/sscd/baselines")
METRICS = ("uAP", "accuracy_at_1", "recall_at_p90", "mrr")
GROUPS = ("untouched", "mild", "strong")


def main() -> int:
    """Run the steps and print where the table is."""
    started = time.monotonic()
    folder = log_dir(run_step("fit", "--config", str(CONFIG)))
    config, checkpoint = folder / "config.yaml", folder / "checkpoints" / "last.ckpt"
    contenders = {
        "trained just now, from scratch": ("--ckpt_path", str(checkpoint)),
        "the same network, untrained": ("--config", str(BASELINES / "random.yaml")),
        "perceptual hash (PDQ-style, 256 bits)": ("--config", str(BASELINES / "hash.yaml")),
    }
    folders = {name: log_dir(run_step("test", "--config", str(config), *words)) for name, words in contenders.items()}
    table = folder / "quickstart.md"
    results = {name: read_results(tested) for name, tested in folders.items()}
    table.write_text(f"{as_table(results)}\n{leads(list(folders.values()))}", encoding="utf-8")
    print(f"\n{table.read_text()}\nedited copies of unseen pictures; {time.monotonic() - started:.0f} s in all")
    print(f"table: {table}")
    return 0


def as_table(results: dict[str, Results]) -> str:
    """Return a Markdown table: a contender a row, figures with their 95 % intervals."""
    columns = [(metric, "") for metric in METRICS] + [("uAP", group) for group in GROUPS]
    titles = [f"{metric} {group}".strip() for metric, group in columns]
    lines = [f"| descriptors | {' | '.join(titles)} |", "|---" * (len(titles) + 1) + "|"]
    for name, values in results.items():
        cells = [shown(values.get(column)) for column in columns]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def leads(folders: list[Path]) -> str:
    """Return a Markdown table of the first contender's lead in micro average precision, on the same resampled queries.

    Queries that are hard for one are hard for all, so these intervals tell more than whether the own ones overlap.
    """
    first, *others = (RunResults.read(folder, "results") for folder in folders)
    rows = [row for other in others for row in differences(first, other) if row.name == "uAP"]
    return as_markdown(rows) + "\n"


if __name__ == "__main__":
    sys.exit(run_without_options(main, __doc__))
