"""Time and memory of a step of SSCD's loss at the paper's batch, descriptors given.

    python -m experiments.benchmarks.copy_loss [--photos 4096] [--dims 512] [--blocks 256 1024 8192] [--json FILE]

Two views of each photo, forward and backward, float32. Each block size runs in a process of its own, whose peak of
resident memory is given less what it held before the step. A block of all rows is the plain matrix.
"""

import argparse
import json
import resource
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import torch
from torch.nn import functional as F

from lightning_modules.sscd.losses import copy_loss

Row = dict[str, float | int]


def measure(photos: int, dims: int, block: int) -> Row:
    """Return seconds and added peak memory of one step in this process."""
    generator = torch.Generator().manual_seed(0)
    rows = F.normalize(torch.randn(2 * photos, dims, generator=generator), dim=1).requires_grad_()
    sources = torch.arange(photos).repeat(2)[:, None]
    before = _peak_gb()
    start = time.perf_counter()
    torch.autograd.backward(copy_loss(rows, rows, sources, sources, block=block).total)
    seconds = time.perf_counter() - start
    return {
        "photos": photos,
        "dims": dims,
        "block": block,
        "seconds": round(seconds, 2),
        "added_gb": round(_peak_gb() - before, 2),
        "threads": torch.get_num_threads(),
    }


def main(arguments: Sequence[str] | None = None) -> None:
    """Prints a row a block size and writes them as JSON if asked."""
    parser = argparse.ArgumentParser(prog="python -m experiments.benchmarks.copy_loss", description=__doc__)
    parser.add_argument("--photos", type=int, default=4096, help="photos of the batch; there are two views of each")
    parser.add_argument("--dims", type=int, default=512, help="numbers a descriptor")
    parser.add_argument("--blocks", type=int, nargs="+", default=[256, 1024, 8192], help="rows at a time")
    parser.add_argument("--json", type=Path, help="file for the rows")
    parser.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.child:
        print(json.dumps(measure(options.photos, options.dims, options.blocks[0])))
        return
    rows = [_in_fresh_process(options.photos, options.dims, block) for block in options.blocks]
    for row in rows:
        print("  ".join(f"{name} {value}" for name, value in row.items()))
    if options.json is not None:
        options.json.write_text(json.dumps(rows, indent=2) + "\n")


def _in_fresh_process(photos: int, dims: int, block: int) -> Row:
    words = ["--child", "--photos", str(photos), "--dims", str(dims), "--blocks", str(block)]
    command = [sys.executable, "-m", "experiments.benchmarks.copy_loss", *words]
    done = subprocess.run(command, check=True, capture_output=True, text=True)  # noqa: S603 (our own module)
    row: Row = json.loads(done.stdout.splitlines()[-1])
    return row


def _peak_gb() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20  # Linux counts in KiB


if __name__ == "__main__":
    main()
