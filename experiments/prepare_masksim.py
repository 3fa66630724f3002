"""`sealmark prepare masksim`: the published test sets from RAISE and Synthbuster."""

import os
import sys
import zlib
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from PIL import Image
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from datamodules.images.decoding import read_image
from datamodules.images.errors import UnreadableImageError
from datamodules.images.listing import ImageListing
from datamodules.images.randomness import sample_rng
from datamodules.spectra_sets import TEST_FOLDERS
from datamodules.transforms.spectrum_reference import LEAST_QUALITY, TOP_QUALITY, central_offset, read_plain
from experiments.one_line import check_at_least

ENDINGS = {"jpeg": ".jpg", "webp": ".webp", "png": ".png"}
Codec = Literal["jpeg", "webp", "png"]


@dataclass(frozen=True)
class Job:
    """One picture to make.

    Args:
        source: Its file.
        target: What to write.
        window: Side of the central crop.
        codec: What to write it as.
        quality: Of the codec; None for PNG.
        whole: Whether a picture smaller than the window is left out, as RAISE's are.
    """

    source: str
    target: Path
    window: int
    codec: Codec
    quality: int | None
    whole: bool


def masksim(
    output: Path,
    raise_images: Path | None = None,
    synthbuster: Path | None = None,
    codec: Codec = "jpeg",
    quality: int | None = None,
    window: int = 512,
    seed: int = 0,
    workers: int | None = None,
) -> None:
    """Crop and compress the test sets of MaskSim: RAISE as real pictures, Synthbuster as generated ones.

    A second start goes on where the first stopped; a picture's quality depends on its name and the seed alone. Files
    that cannot be read are named on the terminal. Train and test on them with `--data.root OUTPUT`.

    Args:
        output: The root: pictures go to `processed_data/JPEG_Qrandom` below it, or the like.
        raise_images: Folder of RAISE.
        synthbuster: Folder of Synthbuster, with one folder a generator.
        codec: What the pictures are written as.
        quality: A fixed quality; None draws 65 to 100 for each picture.
        window: Side of the central crop.
        seed: Of the drawn qualities.
        workers: Processes; None takes all cores.
    """
    if raise_images is None and synthbuster is None:
        raise ValueError("nothing to prepare: name --raise_images, --synthbuster or both")
    if quality is not None and not 1 <= quality <= 100:
        raise ValueError(f"--quality must lie in 1 to 100, got {quality}")
    check_at_least(1, window=window, workers=workers)
    folder = output / "processed_data" / folder_name(codec, quality)
    jobs = list(find_jobs(raise_images, synthbuster, folder, codec, quality, window, seed))
    todo = [job for job in jobs if not job.target.is_file()]
    for parent in {job.target.parent for job in todo}:
        parent.mkdir(parents=True, exist_ok=True)
    problems = run_jobs(todo, workers or len(os.sched_getaffinity(0)))
    for problem in problems:
        print(f"left out: {problem}", file=sys.stderr)
    done = len(jobs) - len(todo)
    print(f"{folder}: {len(todo) - len(problems)} made, {done} there before, {len(problems)} left out")


def folder_name(codec: Codec, quality: int | None) -> str:
    """Return the name of the published folder for a compression."""
    return "uncompressed" if codec == "png" else f"{codec.upper()}_Q{'random' if quality is None else quality}"


def find_jobs(
    raise_images: Path | None,
    synthbuster: Path | None,
    folder: Path,
    codec: Codec,
    quality: int | None,
    window: int,
    seed: int,
) -> Iterator[Job]:
    """Yield what there is to make, whether it is there already or not."""
    parts = [] if raise_images is None else [(raise_images, folder / "raise", True)]
    if synthbuster is not None:
        found = [name for name in TEST_FOLDERS.values() if (synthbuster / name).is_dir()]
        if not found:
            raise FileNotFoundError(f"--synthbuster {synthbuster} has none of {', '.join(TEST_FOLDERS.values())}")
        parts += [(synthbuster / name, folder / "synthbuster" / name, False) for name in found]
    for source, target, whole in parts:
        for path in ImageListing.scan(source):
            # Flat, as published; folders within become part of the name.
            name = "_".join(Path(os.path.relpath(path, source)).with_suffix("").parts)
            drawn = None if codec == "png" else quality or quality_of(f"{target.name}/{name}", seed)
            yield Job(path, target / (name + ENDINGS[codec]), window, codec, drawn, whole)


def quality_of(name: str, seed: int) -> int:
    """Return the drawn quality of a picture."""
    rng = sample_rng(seed, 0, zlib.crc32(name.encode("utf-8", "surrogateescape")))
    return int(rng.integers(LEAST_QUALITY, TOP_QUALITY + 1))


def run_jobs(jobs: list[Job], workers: int) -> list[str]:
    """Make all pictures under a progress bar and return what could not be made, in their order."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns) as bar, ProcessPoolExecutor(workers) as pool:
        task = bar.add_task("preparing", total=len(jobs))
        problems = []
        for problem in pool.map(make, jobs, chunksize=4):
            bar.advance(task)
            if problem is not None:
                problems.append(problem)
    return problems


def make(job: Job) -> str | None:
    """Write one picture in one step; return why not, if it cannot be read or is too small."""
    try:
        image = _read(job.source)
    except UnreadableImageError as error:
        return f"{error.path}: {error.reason}"
    height, width = image.shape[:2]
    if job.whole and min(height, width) < job.window:
        return f"{job.source}: {width}x{height} is smaller than the window of {job.window}"
    top, left = central_offset(height, job.window), central_offset(width, job.window)
    crop = np.ascontiguousarray(image[top : top + job.window, left : left + job.window])
    options = {} if job.quality is None else {"quality": job.quality}
    # Hidden, so that a listing never takes an unfinished one.
    temporary = job.target.with_name(f".{job.target.name}.partial")
    Image.fromarray(crop).save(temporary, job.codec.upper(), **options)
    temporary.replace(job.target)
    return None


def _read(path: str) -> "np.ndarray[tuple[int, ...], np.dtype[np.uint8]]":
    """Return stored RGB, alpha dropped, as published; grey and deep pictures as `read_image` gives them."""
    try:
        plain = read_plain(path)
    except Exception:  # whose reason `read_image` tells in words
        plain = None
    return read_image(path) if plain is None else plain
