"""An hour of training or prediction on generated data, watched from outside: do memory and open files stay flat?

python -m experiments.reliability.soak fit --minutes 60 --output runs/soak_fit
python -m experiments.reliability.soak predict --minutes 60 --output runs/soak_predict
"""

import argparse
import json
import re
import signal
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path

import psutil

from callbacks.prediction_files import count_lines
from experiments.cli import answer
from experiments.reliability.process_tree import Reading, Trend, trend_of, watch

SEGMENTATION = "configs/watermark_segmentation"
# Validation, calibration, pictures and a checkpoint every 200 steps: what can leak is done hundreds of times.
FIT = (
    *("fit", "--config", f"{SEGMENTATION}/quickstart.yaml", "--trainer.max_steps", "-1", "--trainer.max_epochs", "-1"),
    *("--trainer.val_check_interval", "200", "--model.schedule", "constant", "--data.train_samples", "2000"),
    *("--trainer.logger.save_dir",),
)
PREDICT = ("predict", "--data.paths", "procedural://100000000?size=64", "--predictions.output_dir")
WARM_UP_S = 600  # allocators and caches fill, and the first validation starts its workers
# Flat: over an hour the robust slope stays under these.
MEMORY_MIB_PER_HOUR = 20.0
FILES_PER_HOUR = 1.0


def main(words: Sequence[str] | None = None) -> int:
    """Run one of the commands for the minutes and tell how its memory and open files went."""
    parser = argparse.ArgumentParser(prog="python -m experiments.reliability.soak", description=__doc__)
    parser.add_argument("command", choices=("fit", "predict"))
    parser.add_argument("--minutes", type=float, default=60.0)
    parser.add_argument("--warm_up", type=float, default=WARM_UP_S, help="seconds that are left out of the trends")
    parser.add_argument("--every", type=float, default=10.0, help="seconds between two readings")
    parser.add_argument("--output", type=Path, required=True, help="folder for the run and the readings")
    asked = parser.parse_args(words)
    asked.output.mkdir(parents=True, exist_ok=True)
    told = asked.output / "told.txt"
    own = asked.output / "run"
    base, count = (FIT, partial(steps_done, told)) if asked.command == "fit" else (PREDICT, partial(lines_done, own))
    run = start([*base, str(own)], told)
    seconds = asked.minutes * 60
    readings = watch(
        psutil.Process(run.pid), count, asked.output / "readings.csv", asked.every, lambda now: now.seconds >= seconds
    )
    ended_by_itself = run.poll() is not None
    run.send_signal(signal.SIGTERM)
    code = run.wait()
    if ended_by_itself:
        print(f"the run ended by itself with {code}: see {told}", file=sys.stderr)
        return 1
    return report(readings, min(asked.warm_up, seconds / 3), asked.output)


def start(words: Sequence[str], told: Path) -> "subprocess.Popen[bytes]":
    """Start `sealmark` in a process of its own; what it prints goes to a file."""
    with told.open("ab") as file:
        command = [sys.executable, "-m", "experiments", *words]
        return subprocess.Popen(command, stdout=file, stderr=subprocess.STDOUT)  # noqa: S603 - our own words


def lines_done(folder: Path) -> int:
    """Return how many predictions are written."""
    return sum(count_lines(path) for path in folder.glob("predictions.rank*.jsonl"))


def steps_done(told: Path) -> int:
    """Return the last step that the progress bar told of."""
    found = re.findall(rb"train: (\d+)", told.read_bytes()[-4000:]) if told.exists() else []
    return int(found[-1]) if found else 0


def report(readings: Sequence[Reading], warm_up_s: float, folder: Path) -> int:
    """Print and write the trends after the warm-up; 1 where one of them is not flat."""
    after = [reading for reading in readings if reading.seconds >= warm_up_s]
    seconds = [reading.seconds for reading in after]
    names = ("memory_mib", "main_memory_mib", "open_files", "threads", "processes")
    trends = {name: trend_of(seconds, [getattr(reading, name) for reading in after]) for name in names}
    flat = is_flat(trends)
    about = {"seconds": after[-1].seconds, "done": after[-1].done, "warm_up_s": warm_up_s, "flat": flat}
    told = about | {name: asdict(trend) for name, trend in trends.items()}
    (folder / "report.json").write_text(json.dumps(told, indent=2) + "\n", encoding="utf-8")
    print(f"{after[-1].seconds:.0f} s, {after[-1].done} done; after {warm_up_s:.0f} s of warm-up:")
    for name, trend in trends.items():
        print(
            f"  {name:<16} {trend.start:9.1f} to {trend.end:9.1f}   between {trend.least:.1f} and {trend.most:.1f}, "
            f"{trend.slope_per_hour:+.2f} an hour"
        )
    print("flat" if flat else "NOT flat")
    return 0 if flat else 1


def is_flat(trends: dict[str, Trend]) -> bool:
    """Tell whether neither memory nor open files grow."""
    grown = trends["memory_mib"].slope_per_hour, trends["open_files"].slope_per_hour
    return grown[0] < MEMORY_MIB_PER_HOUR and grown[1] < FILES_PER_HOUR


if __name__ == "__main__":
    sys.exit(answer(main))
