"""Speed of decoding big JPEGs for a small target, and memory of a listing of a million paths.

    python -m experiments.benchmarks.decoding [--json FILE]

Decoding: ours (`read_resized`) and Pillow's open, convert, resize (BILINEAR, which averages areas too) alternate on
the same files in one process on one thread; the row gives medians of processor time. Listing: a process of its own
reports how much its resident memory grew, at its end and at its worst.
"""

import argparse
import json
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from datamodules.images.decoding import read_resized
from datamodules.images.listing import ImageListing
from experiments.benchmarks.photos import write_photos

SIZE_HW = (2000, 3000)
TARGET_SIZE = 512
MILLION = 1_000_000

Row = dict[str, float | int | str]


def measure_decoding(files: int = 12, repeats: int = 5) -> Row:
    """Medians in milliseconds a file of both sides, and how often ours fits into Pillow's."""
    cv2.setNumThreads(0)
    times: dict[str, list[float]] = {"ours": [], "pillow": []}
    sides: dict[str, Callable[[str], object]] = {"ours": _read_ours, "pillow": _read_pillow}
    with tempfile.TemporaryDirectory() as folder:
        paths = write_photos(Path(folder), files, SIZE_HW)
        for side in sides.values():
            side(paths[0])
        for _ in range(repeats):
            for path in paths:
                for name, side in sides.items():
                    times[name].append(_seconds(side, path))
    ours, pillow = (statistics.median(times[name]) * 1e3 for name in ("ours", "pillow"))
    return {
        "what": f"{files} JPEGs of {SIZE_HW[1]}x{SIZE_HW[0]} to {TARGET_SIZE} px, {repeats} repeats",
        "ours_ms": round(ours, 2),
        "pillow_ms": round(pillow, 2),
        "ratio": round(pillow / ours, 2),
        "needed_ratio": 2.0,
    }


def measure_listing(count: int = MILLION) -> Row:
    """Growth in MB of a fresh process's resident memory by a listing of `count` paths."""
    command = [sys.executable, "-m", "experiments.benchmarks.decoding", "--listing-child", str(count)]
    done = subprocess.run(command, check=True, capture_output=True, text=True)  # noqa: S603 (our own module)
    row: Row = json.loads(done.stdout)
    return {"what": f"listing of {count} paths", **row, "allowed_mb": 200.0}


def main(arguments: Sequence[str] | None = None) -> None:
    """Prints both rows and writes them as JSON if asked."""
    parser = argparse.ArgumentParser(prog="python -m experiments.benchmarks.decoding", description=__doc__)
    parser.add_argument("--json", type=Path, help="file for the rows")
    parser.add_argument("--repeats", type=int, default=5, help="rounds over the files")
    parser.add_argument("--listing-child", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.listing_child is not None:
        print(json.dumps(_listing_growth(options.listing_child)))
        return
    rows = {"decoding": measure_decoding(repeats=options.repeats), "listing": measure_listing()}
    for row in rows.values():
        print("  ".join(f"{name} {value}" if name != "what" else f"{value}:" for name, value in row.items()))
    if options.json is not None:
        versions = {"python": platform.python_version(), "opencv": cv2.__version__, "numpy": np.__version__}
        report = {**rows, "machine": platform.platform(), "versions": versions}
        options.json.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")


def _read_ours(path: str) -> NDArray[np.uint8]:
    return read_resized(path, TARGET_SIZE)


def _read_pillow(path: str) -> NDArray[np.uint8]:
    with Image.open(path) as file:
        image = file.convert("RGB")
    scale = TARGET_SIZE / min(image.size)
    size_wh = (round(image.width * scale), round(image.height * scale))
    return np.asarray(image.resize(size_wh, Image.Resampling.BILINEAR))


def _seconds(side: Callable[[str], object], path: str) -> float:
    start = time.process_time()
    side(path)
    return time.process_time() - start


def _listing_growth(count: int) -> Row:
    before = _resident_mb("VmRSS")
    listing = ImageListing.from_paths(
        f"/data/photographs/part_{index // 1000:04}/image_{index:08}.jpg" for index in range(count)
    )
    sizes = {"grown_mb": _resident_mb("VmRSS") - before, "peak_mb": _resident_mb("VmHWM") - before}
    return {**{name: round(value, 1) for name, value in sizes.items()}, "bytes_per_path": listing.nbytes // count}


def _resident_mb(field: str) -> float:
    """Linux alone tells a process's resident memory in a file."""
    for line in Path("/proc/self/status").read_text(encoding="ascii").splitlines():
        if line.startswith(field):
            return int(line.split()[1]) / 1024
    raise OSError(f"/proc/self/status lacks {field}; run this benchmark on Linux")


if __name__ == "__main__":
    main()
