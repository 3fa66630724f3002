"""Speed of making a training sample for MaskSim from a large photo.

    python -m experiments.benchmarks.spectrum_data [--json FILE]

Ours (`training_crop`) and the published procedure, step by step (`spectrum_reference`), take turns on the same real
JPEGs of 3000x2000 in one process on one thread, from file to YCbCr float32 of 512x512. Alike are the share of photos
that are shrunk, the sizes they are shrunk to (a shorter side of 1 to 1.5 windows), the share of JPEG (95 %) and its
qualities (65 to 100, 4:2:0), and the truncation of colours. Not alike is how: ours decodes at a reduced size where the
photo is shrunk to that or below, resizes only the part that is seen, with anti-aliasing, and takes OpenCV's codecs; the
published one decodes by Pillow and resizes the whole photo in float64 without anti-aliasing. Ours converts colours in
torch; in training that is done on the device, here it is counted. Means of processor time, because samples differ.
"""

import argparse
import json
import platform
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import cv2
import numpy as np
import PIL
import torch
from torch import Tensor

from datamodules.images.randomness import sample_rng
from datamodules.images.sources import FileSource, open_images
from datamodules.spectra_samples import Pictures, channels_first, training_crop
from datamodules.spectra_sets import REAL, PictureSet
from datamodules.transforms.spectrum_crops import CropSettings
from datamodules.transforms.spectrum_reference import ReferenceSettings, process, read_plain, rgb_to_ycbcr_truncated
from experiments.benchmarks.photos import write_photos
from lightning_modules.functional.color import rgb_to_ycbcr_studio

WINDOW = 512
NEEDED_RATIO = 3.0

Row = dict[str, float | int | str]


def measure(shrunk: float, files: int = 6, repeats: int = 6) -> Row:
    """Means in milliseconds a sample of both sides, and how often ours fits into the published one.

    Args:
        shrunk: Share of the photos that are shrunk: 1, 0.5 as published, or 0.
        files: How many photos.
        repeats: Rounds over them, each with other draws.
    """
    cv2.setNumThreads(0)
    torch.set_num_threads(1)
    times: dict[str, list[float]] = {"ours": [], "published": []}
    with tempfile.TemporaryDirectory() as folder:
        paths = write_photos(Path(folder), files, (2000, 3000))
        source = open_images(folder)
        assert isinstance(source, FileSource)
        pictures = Pictures([PictureSet(source, range(files), REAL, REAL)])
        settings = same_policy(shrunk)
        sides: dict[str, Callable[[int, int], object]] = {
            "ours": lambda number, draw: ours(pictures, number, settings, draw),
            "published": lambda number, draw: published(paths[number], shrunk, draw),
        }
        for side in sides.values():
            side(0, 0)
        for draw in range(files * repeats):
            for name, side in sides.items():
                times[name].append(_seconds(side, draw % files, draw))
    mine, theirs = (statistics.fmean(times[name]) * 1e3 for name in ("ours", "published"))
    return {
        "what": f"{files} real JPEGs of 3000x2000, {shrunk:.0%} shrunk, {repeats} repeats",
        "ours_ms": round(mine, 2),
        "published_ms": round(theirs, 2),
        "ratio": round(theirs / mine, 2),
        "needed_ratio": NEEDED_RATIO if shrunk == 1 else 0.0,
    }


def same_policy(shrunk: float) -> CropSettings:
    """Return our settings for what the published procedure does to real pictures."""
    return CropSettings(
        resize_probability=0,
        fit_probability=shrunk,
        jpeg_probability=0.95,
        jpeg_quality=(65, 100),
        full_chroma=0,
        webp_probability=0,
    )


def ours(pictures: Pictures, number: int, settings: CropSettings, draw: int) -> Tensor:
    """Our sample of a photo."""
    crop = training_crop(pictures, number, WINDOW, settings, sample_rng(0, 0, draw))
    return rgb_to_ycbcr_studio(channels_first(crop), truncate=True)


def published(path: str, shrunk: float, draw: int) -> Tensor:
    """The published sample of a photo; of its draws, those are taken that shrink as often as asked."""
    photo = read_plain(path)
    assert photo is not None
    made = process(photo, 0, ReferenceSettings(WINDOW), _draws(shrunk, draw))
    assert made is not None
    return channels_first(rgb_to_ycbcr_truncated(made[0])).float() / 255


def _draws(shrunk: float, draw: int) -> np.random.RandomState:
    """Return the next state whose first draw, below 0.5 for shrinking, is the wanted one."""
    wanted = {0.0: (False,), 1.0: (True,)}.get(shrunk, (False, True))
    seed = 1000 * draw
    while (np.random.RandomState(seed).rand() < 0.5) not in wanted:
        seed += 1
    return np.random.RandomState(seed)


def _seconds(side: Callable[[int, int], object], number: int, draw: int) -> float:
    start = time.process_time()
    side(number, draw)
    return time.process_time() - start


def main(arguments: Sequence[str] | None = None) -> None:
    """Prints a row for each share and writes them as JSON if asked."""
    parser = argparse.ArgumentParser(prog="python -m experiments.benchmarks.spectrum_data", description=__doc__)
    parser.add_argument("--json", type=Path, help="file for the rows")
    parser.add_argument("--repeats", type=int, default=6, help="rounds over the files")
    options = parser.parse_args(arguments)
    rows = {f"shrunk_{share}": measure(share, repeats=options.repeats) for share in (1.0, 0.5, 0.0)}
    for row in rows.values():
        print("  ".join(f"{name} {value}" if name != "what" else f"{value}:" for name, value in row.items()))
    if options.json is not None:
        versions = {"pillow": PIL.__version__, "opencv": cv2.__version__, "numpy": np.__version__}
        report = {**rows, "machine": platform.platform(), "versions": versions}
        options.json.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
