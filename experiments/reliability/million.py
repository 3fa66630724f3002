"""A million small generated images through predict, killed twice on the way: all once, none twice, in flat memory.

python -m experiments.reliability.million --output runs/million
"""

import argparse
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import numpy as np
import psutil

from callbacks.prediction_files import read_records
from experiments.cli import answer
from experiments.reliability.process_tree import Reading, trend_of, watch
from experiments.reliability.soak import lines_done, start

COUNT = 1_000_000
KILLED_AT = (0.3, 0.7)  # of the images
WARM_UP = 0.2  # of a life's readings
MOST_GROWTH_MIB = 20.0  # in what is left of a life


def main(words: Sequence[str] | None = None) -> int:
    """Predict, kill, go on, and check what is there."""
    parser = argparse.ArgumentParser(prog="python -m experiments.reliability.million", description=__doc__)
    parser.add_argument("--count", type=int, default=COUNT)
    parser.add_argument("--size", type=int, default=16, help="side of the images")
    parser.add_argument("--every", type=float, default=10.0, help="seconds between two readings")
    parser.add_argument("--output", type=Path, required=True)
    asked = parser.parse_args(words)
    folder: Path = asked.output / "predictions"
    if folder.exists():
        parser.error(f"{folder} holds an earlier run: name another --output")
    asked.output.mkdir(parents=True, exist_ok=True)
    command = [
        *("predict", "--data.paths", f"procedural://{asked.count}?size={asked.size}"),
        *("--data.batch_size", "256", "--predictions.save_images", "false", "--predictions.output_dir", str(folder)),
    ]
    wrong = 0
    for number, share in enumerate((*KILLED_AT, None)):
        run = start(command, asked.output / "told.txt")
        limit = asked.count if share is None else int(share * asked.count)
        readings = watch(
            psutil.Process(run.pid),
            partial(lines_done, folder),
            asked.output / f"readings_{number}.csv",
            asked.every,
            _reached(limit, to_the_end=share is None),
        )
        code = _end(run, kill=share is not None)
        kept = readings[int(WARM_UP * len(readings)) :]
        trend = trend_of([each.seconds for each in kept], [each.memory_mib for each in kept])
        is_flat = trend.end - trend.start < MOST_GROWTH_MIB
        wrong += not is_flat or code != (0 if share is None else -signal.SIGKILL)
        print(
            f"life {number + 1}: ended with {code} at {lines_done(folder)} images after {readings[-1].seconds:.0f} s; "
            f"memory {trend.start:.0f} to {trend.end:.0f} MiB, most {trend.most:.0f}, "
            f"{trend.slope_per_hour:+.1f} MiB an hour: {'flat' if is_flat else 'NOT flat'}",
            flush=True,
        )
    return max(check(folder, asked.count), int(wrong > 0))


def _reached(limit: int, to_the_end: bool) -> Callable[[Reading], bool]:
    return lambda reading: not to_the_end and reading.done >= limit


def _end(run: "subprocess.Popen[bytes]", kill: bool) -> int:
    if kill:
        family = [psutil.Process(run.pid), *psutil.Process(run.pid).children(recursive=True)]
        for process in family:
            os.kill(process.pid, signal.SIGKILL)
    return run.wait()


def check(folder: Path, count: int) -> int:
    """Tell whether each image is there exactly once; 1 where not."""
    seen = np.zeros(count, np.uint16)
    for path in folder.glob("predictions.rank*.jsonl"):
        for record in read_records(path):
            seen[record["index"]] += 1
    told = {"images": int(count), "missing": int((seen == 0).sum()), "twice": int((seen > 1).sum())}
    print(json.dumps(told))
    return 0 if not told["missing"] and not told["twice"] else 1


if __name__ == "__main__":
    sys.exit(answer(main))
