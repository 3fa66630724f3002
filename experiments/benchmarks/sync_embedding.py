"""Time and memory of marking one image of 12 megapixels with SyncSeal's network of published size.

    python -m experiments.benchmarks.sync_embedding [--json FILE]

Each side runs in fresh processes: ours, with the attenuation in strips and the blending in place, and the plain
formula. Memory is the peak of the process's resident memory, the libraries and the image itself included; beside it
stands what the process held before it marked.
"""

import argparse
import json
import platform
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import Tensor

from lightning_modules.syncseal.network import SyncNetwork, resized

SIZE_HW = (3000, 4000)
ALLOWED_GB = 1.5
_SEED_HW = (96, 128)

Row = dict[str, float | int | str]


def embed_plainly(network: SyncNetwork, image: Tensor) -> Tensor:
    """Return the marked image by the formula as it is written, each step a new tensor."""
    assert network.attenuation is not None
    small = resized(image, (network.size, network.size))
    pattern = resized(network.pattern(small), image.shape[-2:])
    marked: Tensor = network.scaling_i * image + network.scaling_w * (network.attenuation(image) * pattern)
    return (marked.clamp(0, 1) * 255).round() / 255


SIDES: dict[str, Callable[[SyncNetwork, Tensor], Tensor]] = {
    "ours": lambda network, image: network.embed(image).marked,
    "plain": embed_plainly,
}


def make_image(size_hw: tuple[int, int]) -> Tensor:
    """Return a smooth drawn image (1, 3, H, W) in [0, 1]; what is in it changes neither time nor memory."""
    small = torch.rand(1, 3, *_SEED_HW, generator=torch.Generator().manual_seed(0))
    return torch.nn.functional.interpolate(small, size=size_hw, mode="bilinear")


@torch.inference_mode()
def mark_once(side: str, size_hw: tuple[int, int], **options: int | Sequence[int]) -> Row:
    """Mark one image in this process; return seconds and resident memory before and at its peak, in GB."""
    torch.manual_seed(0)
    network = SyncNetwork(**options).eval()  # type: ignore[arg-type]
    SIDES[side](network, make_image(_SEED_HW))  # what is made at the first call only
    image = make_image(size_hw)
    before = _peak_gb()
    start = time.perf_counter()
    marked = SIDES[side](network, image)
    seconds = time.perf_counter() - start
    assert marked.shape == image.shape
    return {"seconds": seconds, "before_gb": before, "peak_gb": _peak_gb(), "threads": torch.get_num_threads()}


def measure(side: str, turns: Sequence[Row]) -> Row:
    """Sum up the turns of a side: the median time, the largest memory."""
    return {
        "what": f"{side}: one image of {SIZE_HW[1]}x{SIZE_HW[0]}, {turns[0]['threads']} threads, {len(turns)} turns",
        "seconds": round(statistics.median(float(turn["seconds"]) for turn in turns), 2),
        "before_gb": round(max(float(turn["before_gb"]) for turn in turns), 2),
        "peak_gb": round(max(float(turn["peak_gb"]) for turn in turns), 2),
        "allowed_gb": ALLOWED_GB,
    }


def main(arguments: Sequence[str] | None = None) -> None:
    """Prints the rows and writes them as JSON if asked."""
    parser = argparse.ArgumentParser(prog="python -m experiments.benchmarks.sync_embedding", description=__doc__)
    parser.add_argument("--json", type=Path, help="file for the rows")
    parser.add_argument("--repeats", type=int, default=3, help="processes of each side")
    parser.add_argument("--child", choices=list(SIDES), help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.child is not None:
        print(json.dumps(mark_once(options.child, SIZE_HW)))
        return
    # In turns, so that what else the machine does meets both sides.
    turns: dict[str, list[Row]] = {side: [] for side in SIDES}
    for _ in range(options.repeats):
        for side in SIDES:
            turns[side].append(_in_fresh_process(side))
    rows = {side: measure(side, turns[side]) for side in SIDES}
    for row in rows.values():
        print("  ".join(f"{name} {value}" if name != "what" else f"{value}:" for name, value in row.items()))
    if options.json is not None:
        report = {"python": platform.python_version(), "torch": torch.__version__, **rows}
        options.json.write_text(json.dumps(report, indent=2) + "\n")


def _in_fresh_process(side: str) -> Row:
    command = [sys.executable, "-m", "experiments.benchmarks.sync_embedding", "--child", side]
    done = subprocess.run(command, check=True, capture_output=True, text=True)  # noqa: S603 (our own module)
    row: Row = json.loads(done.stdout.splitlines()[-1])
    return row


def _peak_gb() -> float:
    # Linux counts in KiB.
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


if __name__ == "__main__":
    main()
