"""Speed of drawing labelled documents with seals, against the same procedure without anything kept.

    python -m experiments.benchmarks.seal_documents [--samples 100] [--json FILE]

Ours is `draw_document` at 512 pixels with all degradations on, as training runs it: pages, noise, tooth and letters are
kept after they were drawn once, and the device is asked twice only where a seal changes what it sees. The other side
does every step for every sample, as the lab's prototype did: it renders a page of the picture's size at twice the
resolution, draws and presses seals, makes full-frame Gaussian noise, and captures the whole picture with and without
them. It has neither geometry nor labels of text; letters and the noise of the seals' ink are kept on both sides. They
take turns in one process on one thread; figures are samples a second and core, from means of processor time.
Pages are drawn before the clock runs: their cost is shown in a row of its own.
"""

import argparse
import json
import platform
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import PIL

from datamodules.images.randomness import sample_rng
from datamodules.transforms.documents import capture, pages
from datamodules.transforms.documents.composing import draw_ink, inked
from datamodules.transforms.documents.plans import EM_SHARE
from datamodules.transforms.documents.samples import DocumentSettings, draw_document
from datamodules.transforms.seals.designs import draw_design
from datamodules.transforms.seals.ink import press
from datamodules.transforms.seals.stamps import draw_stamp

SIZE = 512
NEEDED_RATE = 30.0
SHEETS = 24

Row = dict[str, float | int | str]


def uncached_sample(seed: int, index: int, settings: DocumentSettings) -> object:
    """Draw a document as the prototype did: its own page and noise, the whole picture captured twice, four masks.

    Args:
        seed: Decides it, with the index.
        index: Of the document.
        settings: What it is drawn from.
    """
    rng, size = sample_rng(seed, 0, index, stream=999), settings.size
    toner = pages.draw_sheet(rng, size, size * EM_SHARE).toner[:size]
    page = cv2.cvtColor(toner, cv2.COLOR_GRAY2RGB)
    ink = np.zeros((size, size), np.float32)
    image = page.copy()
    for _ in range(1 + int(rng.random() < settings.more_share)):
        stamp = draw_stamp(draw_design(rng), size * rng.uniform(*settings.sides), float(rng.uniform(-180, 180)))
        density = press(stamp, settings.ink, rng).density
        height, width = density.shape
        top, left = int(rng.integers(size - height)), int(rng.integers(size - width))
        window = slice(top, top + height), slice(left, left + width)
        image[window] = inked(image[window], density, draw_ink(rng, stamp.color), (1.0, 1.0, 1.0))
        ink[window] = np.maximum(ink[window], density)
    device = capture.draw_capture(rng, "scan", (size, size), settings.tooth)
    tooth = cv2.GaussianBlur(rng.standard_normal((size, size), np.float32), (0, 0), 1.3)[..., None]
    noise = device.noise * rng.standard_normal(page.shape, np.float32)
    lit = [np.clip(picture * (1 + 0.01 * tooth) + noise, 0, 255).astype(np.uint8) for picture in (image, page)]
    captured = [capture.developed(picture, replace(device, noise=0.0)) for picture in lit]
    return captured, ink > 0.5, ink > 0.12, ink


def measure(samples: int = 100) -> list[Row]:
    """Rows of samples a second and core: all degradations on, the clean domain, and nothing kept.

    Args:
        samples: How many each side draws.
    """
    degraded = DocumentSettings(size=SIZE, sheets=SHEETS)
    clean = replace(degraded, domain="clean")
    sides: dict[str, Callable[[int], object]] = {
        "degraded": lambda turn: draw_document(0, turn, degraded),
        "clean": lambda turn: draw_document(0, turn, clean),
        "nothing kept": lambda turn: uncached_sample(0, turn, degraded),
    }
    warm = [_seconds(lambda turn: draw_document(0, turn, degraded), turn) for turn in range(3 * SHEETS)]
    times: dict[str, list[float]] = {name: [] for name in sides}
    for turn in range(samples):
        for name, side in sides.items():
            times[name].append(_seconds(side, turn))
    means = {name: statistics.fmean(values) for name, values in times.items()}
    rows: list[Row] = [
        {
            "what": f"{samples} samples at {SIZE} px, {name}",
            "ms": round(means[name] * 1e3, 2),
            "samples_per_second_and_core": round(1 / means[name], 1),
            "ratio_to_nothing_kept": round(means["nothing kept"] / means[name], 2),
        }
        for name in sides
    ]
    rows[0]["needed_rate"] = NEEDED_RATE
    pages_cost = sum(warm) - len(warm) * means["degraded"]
    return [*rows, {"what": f"drawing {SHEETS} pages and the noise once", "ms": round(pages_cost * 1e3, 1)}]


def _seconds(side: Callable[[int], object], turn: int) -> float:
    start = time.process_time()
    side(turn)
    return time.process_time() - start


def main(arguments: Sequence[str] | None = None) -> None:
    """Prints the rows and writes them as JSON if asked."""
    parser = argparse.ArgumentParser(prog="python -m experiments.benchmarks.seal_documents", description=__doc__)
    parser.add_argument("--samples", type=int, default=100, help="samples of each side")
    parser.add_argument("--json", type=Path, help="file for the rows")
    options = parser.parse_args(arguments)
    cv2.setNumThreads(0)
    rows = measure(options.samples)
    for row in rows:
        print("  ".join(f"{name} {value}" if name != "what" else f"{value}:" for name, value in row.items()))
    if options.json is not None:
        versions = {"python": platform.python_version(), "pillow": PIL.__version__, "opencv": cv2.__version__}
        report = {"seal_documents": rows, "machine": platform.platform(), "versions": versions}
        options.json.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
