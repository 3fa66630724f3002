"""`sealmark prepare`: data preparation, one typed function a job."""

import csv
import sys
from pathlib import Path
from typing import Literal

import numpy as np
from PIL import Image

from datamodules.images.errors import UnreadableImageError
from datamodules.images.randomness import sample_rng
from datamodules.images.sources import open_images
from experiments.one_line import check_at_least
from experiments.prepare_masksim import masksim
from experiments.prepare_sa1b import sa1b
from experiments.prepare_seals import seals
from experiments.prepare_spectra import spectra


def manifest(images: str, output: Path) -> None:
    """Decode every image of a folder once and write a manifest of the good ones, with their sizes.

    The unreadable ones are named on the terminal. Training from the manifest then meets no surprise.

    Args:
        images: Folder, manifest or file.
        output: The CSV file to write: path, width, height.
    """
    if output.is_dir():
        raise IsADirectoryError(f"{output} is a folder: name the CSV file to write")
    source, bad = open_images(images), 0
    output.parent.mkdir(parents=True, exist_ok=True)
    temporary = output.with_name(output.name + ".partial")
    with temporary.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(("path", "width", "height"))
        for index in range(len(source)):
            try:
                height, width = source.read(index).shape[:2]
            except UnreadableImageError as error:
                bad += 1
                print(f"left out: {error.path}: {error.reason}", file=sys.stderr)
                continue
            writer.writerow((Path(source.path(index)).resolve(), width, height))
    temporary.replace(output)
    print(f"{output}: {len(source) - bad} images, {bad} left out")


def drawn(output: Path, count: int = 100, size: int = 512, what: Literal["scenes", "logos", "text"] = "scenes") -> None:
    """Write drawn pictures as PNG files, to look at or to try folder recipes with.

    Args:
        output: Folder, made if needed; picture N is the same in every run.
        count: How many.
        size: Side of a scene, longer side of a mark.
        what: Scenes that stand in for photographs, or marks with alpha.
    """
    from datamodules.images.procedural import draw_scene
    from datamodules.transforms.marks import draw_mark

    check_at_least(1, count=count, size=size)
    output.mkdir(parents=True, exist_ok=True)
    for index in range(count):
        rng = sample_rng(0, 0, index)
        pixels: np.ndarray[tuple[int, ...], np.dtype[np.uint8]]
        if what == "scenes":
            pixels = draw_scene(rng, (size, size))
        else:
            pixels = draw_mark(rng, size, "logo" if what == "logos" else "text")
        Image.fromarray(pixels).save(output / f"{what}_{index:06d}.png")
    print(f"{output}: {count} {what}")


PREPARATIONS = {
    "manifest": manifest,
    "drawn": drawn,
    "masksim": masksim,
    "sa1b": sa1b,
    "seals": seals,
    "spectra": spectra,
}
