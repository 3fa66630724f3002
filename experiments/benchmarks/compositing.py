"""Speed of making watermarked samples: the default engine against the published step-by-step procedure.

    python -m experiments.benchmarks.compositing [--photos DIR --logos DIR] [--json FILE]

Both sides start from image files and end at a square sample with its mask, and take turns on the same photos in one
process on one thread; the row gives medians of processor time a sample. Without folders the photos are drawn scenes of
500x375 (Flickr8k's size) and the logos drawn marks of 963, 480, 256 and 128 pixels.
"""

import argparse
import json
import platform
import random
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import cv2
import numpy as np
import PIL
import torch
from numpy.typing import NDArray
from PIL import Image

from datamodules.base import SampleKey
from datamodules.images.photos import Photos
from datamodules.images.procedural import draw_scene
from datamodules.images.sources import FileSource, open_images
from datamodules.transforms.letterbox import letterbox
from datamodules.transforms.mark_bank import MarkBank, load_logos
from datamodules.transforms.marks import draw_mark
from datamodules.transforms.watermark_engine import CompositingSettings
from datamodules.watermark_compositing import CompositedMarks

SIZE = 512
NEEDED_RATIO = 4.0
PHOTO_HW = (375, 500)
LOGO_SIZES = (963, 480, 256, 128)

Floats = NDArray[np.float32]
Side = Callable[[int], object]
Row = dict[str, float | int | str]


def reference_sample(
    photo_path: str | Path, logo_paths: Sequence[str | Path], rng: random.Random, size: int = SIZE
) -> tuple[Floats, Floats]:
    """One sample by the published procedure, every step of it: a letterboxed image and its mask.

    The photo is composited at its own size; each paste opens its logo again, rotates and resizes it at full
    resolution, and blends in NumPy. Equal draws give `ReferenceCompositor`'s pixels.

    Args:
        photo_path: Image file.
        logo_paths: PNG files with transparency.
        rng: Source of every draw.
        size: Side of the square.
    """
    with Image.open(photo_path) as photo:
        image = np.array(photo.convert("RGB")).astype(np.float32) / np.float32(255)
    mask = np.zeros(image.shape[:2], np.float32)
    for _ in range(rng.randint(1, 5)):
        with Image.open(rng.choice(logo_paths)) as logo:
            _reference_paste(image, mask, logo.convert("RGBA"), rng)
    image = (image * 255).astype(np.uint8).astype(np.float32) / np.float32(255)
    return letterbox(image, mask, size)


def _reference_paste(image: Floats, mask: Floats, logo: Image.Image, rng: random.Random) -> None:
    height, width = mask.shape
    if rng.random() < 0.5:
        logo = logo.rotate(rng.uniform(0, 360), resample=Image.Resampling.BICUBIC, expand=True)
    diagonals = (np.sqrt(width**2 + height**2), np.sqrt(logo.width**2 + logo.height**2))
    scale = rng.uniform(0.05 * diagonals[0] / diagonals[1], 0.70 * diagonals[0] / diagonals[1])
    opacity = rng.uniform(0.3, 1.0)
    new_w, new_h = max(1, int(logo.width * scale)), max(1, int(logo.height * scale))
    x = rng.randint(-new_w + 10, max(-new_w + 10, width - 10))
    y = rng.randint(-new_h + 10, max(-new_h + 10, height - 10))
    mark = np.array(logo.resize((new_w, new_h), Image.Resampling.LANCZOS)).astype(np.float32) / np.float32(255)
    mark[..., 3] *= opacity
    left, top, right, bottom = max(x, 0), max(y, 0), min(x + new_w, width), min(y + new_h, height)
    if left >= right or top >= bottom:
        return
    mark = mark[top - y : bottom - y, left - x : right - x]
    mode = rng.choices(("normal", "multiply", "overlay"))[0]
    window = slice(top, bottom), slice(left, right)
    image[window] = _reference_blend(image[window], mark[..., :3], mark[..., 3:], mode)
    mask[window] = np.maximum(mask[window], mark[..., 3] > 0)


def _reference_blend(backdrop: Floats, source: Floats, alpha: Floats, mode: str) -> Floats:
    alpha = np.clip(alpha, 0, 1)
    if mode == "multiply":
        source = backdrop * source
    elif mode == "overlay":
        source = np.where(backdrop < 0.5, 2 * backdrop * source, 1 - 2 * (1 - backdrop) * (1 - source))
    blended: Floats = np.clip(backdrop * (1 - alpha) + source * alpha, 0, 1)
    return blended


def reference_side(photo_paths: Sequence[str], logo_paths: Sequence[str]) -> Side:
    """The baseline: turn to sample."""
    return lambda turn: reference_sample(photo_paths[turn % len(photo_paths)], logo_paths, random.Random(turn))


def sealmark_side(photo_paths: Sequence[str], logo_paths: Sequence[str], *, drawn: bool) -> Side:
    """Our engine as training runs it: turn to sample.

    Args:
        photo_paths: Image files.
        logo_paths: Logo files, decoded once.
        drawn: Whether all default families take part, text and logos drawn for each sample among them; else only
            logo files as in the baseline, at its sizes, opacities and blend modes.
    """
    source = open_images(list(photo_paths))
    assert isinstance(source, FileSource)
    settings = CompositingSettings() if drawn else _like_the_reference()
    marks = MarkBank(load_logos(logo_paths)[0], drawn_fraction=0.5 if drawn else 0)
    photos = Photos(source, range(len(source)))
    dataset = CompositedMarks(photos, marks, settings, SIZE, len(source), seed=0, split="train")
    return lambda turn: dataset[SampleKey(turn // len(source), turn % len(source))]


def _like_the_reference() -> CompositingSettings:
    return CompositingSettings(
        clean_fraction=0,
        sign_fraction=0,
        families={"logo": 1},
        modes={"normal": 1, "multiply": 1, "overlay": 1},
        extent=(0.05, 0.7),
        degraded_fraction=0,
    )


def measure(photo_paths: Sequence[str], logo_paths: Sequence[str], samples: int = 100) -> list[Row]:
    """One row for each of our two settings: medians of both sides in milliseconds a sample, and their ratio.

    Args:
        photo_paths: Image files.
        logo_paths: Logo files with transparency.
        samples: How many each side makes.
    """
    sides = {
        "reference": reference_side(photo_paths, logo_paths),
        "logo files": sealmark_side(photo_paths, logo_paths, drawn=False),
        "all families": sealmark_side(photo_paths, logo_paths, drawn=True),
    }
    times: dict[str, list[float]] = {name: [] for name in sides}
    for side in sides.values():
        side(0)
    for turn in range(samples):
        for name, side in sides.items():
            times[name].append(_seconds(side, turn))
    medians = {name: statistics.median(values) * 1e3 for name, values in times.items()}
    return [
        {
            "what": f"{samples} samples at {SIZE} px, {name}",
            "ours_ms": round(medians[name], 2),
            "reference_ms": round(medians["reference"], 2),
            "ratio": round(medians["reference"] / medians[name], 2),
            "needed_ratio": NEEDED_RATIO,
        }
        for name in ("logo files", "all families")
    ]


def main(arguments: Sequence[str] | None = None) -> None:
    """Prints the rows and writes them as JSON if asked."""
    parser = argparse.ArgumentParser(prog="python -m experiments.benchmarks.compositing", description=__doc__)
    parser.add_argument("--photos", type=Path, help="folder of photos")
    parser.add_argument("--logos", type=Path, help="folder of PNG logos")
    parser.add_argument("--samples", type=int, default=100, help="samples of each side")
    parser.add_argument("--json", type=Path, help="file for the rows")
    options = parser.parse_args(arguments)
    cv2.setNumThreads(0)
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        photos = _paths(options.photos) if options.photos else draw_photos(Path(folder), 16)
        logos = _paths(options.logos) if options.logos else draw_logos(Path(folder))
        rows = measure(photos, logos, options.samples)
    for row in rows:
        print("  ".join(f"{name} {value}" if name != "what" else f"{value}:" for name, value in row.items()))
    if options.json is not None:
        versions = {"python": platform.python_version(), "pillow": PIL.__version__, "opencv": cv2.__version__}
        report = {"compositing": rows, "machine": platform.platform(), "versions": versions}
        options.json.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")


def draw_photos(folder: Path, count: int) -> list[str]:
    """Writes drawn scenes as JPEG files and returns their paths."""
    paths = [str(folder / f"photo{number:02}.jpg") for number in range(count)]
    for number, path in enumerate(paths):
        Image.fromarray(draw_scene(np.random.default_rng(number), PHOTO_HW)).save(path, quality=92)
    return paths


def draw_logos(folder: Path) -> list[str]:
    """Writes drawn marks as PNG files and returns their paths."""
    paths = [str(folder / f"logo{size}.png") for size in LOGO_SIZES]
    for path, size in zip(paths, LOGO_SIZES, strict=True):
        Image.fromarray(draw_mark(np.random.default_rng(size), size, "logo")).save(path)
    return paths


def _paths(folder: Path) -> list[str]:
    source = open_images(folder)
    return [source.path(index) for index in range(len(source))]


def _seconds(side: Side, turn: int) -> float:
    start = time.process_time()
    side(turn)
    return time.process_time() - start


if __name__ == "__main__":
    main()
