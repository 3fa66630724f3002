"""Speed of reading a photo and making two views of it for copy detection.

    python -m experiments.benchmarks.views [--json FILE]

Ours (`read_image` and two `make_view`) and the plain way alternate on the same JPEGs of 1024x768 in one process on one
thread. The plain way decodes once with Pillow, then takes every step of a view in the reference's order on the
full-size image with Pillow and torchvision. Each photo meets other draws in each repeat, the two sides meet the same
ones: a plan is drawn by the side that is timed, from equal generators. The row gives means of processor time, because
a median would leave out the rare steps that cost most.
"""

import argparse
import io
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
import torchvision.transforms.functional as tv
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFilter, ImageFont

from datamodules.images.decoding import read_image
from datamodules.images.randomness import sample_rng
from datamodules.transforms.copy_overlays import EmojiOverlay, TextOverlay
from datamodules.transforms.copy_views import ViewPlan, ViewSettings, draw_plan, make_view
from experiments.benchmarks.photos import write_photos

SIZE_HW = (768, 1024)
VIEWS = 2

Pixels = NDArray[np.uint8]
Row = dict[str, float | int | str]


def measure_views(files: int = 10, repeats: int = 40, pipeline: str = "advanced") -> Row:
    """Views a second and core of both sides, decoding included, and their ratio."""
    cv2.setNumThreads(0)
    torch.set_num_threads(1)
    settings = ViewSettings(pipeline)  # type: ignore[arg-type]
    sides: dict[str, Callable[[str, ViewSettings, int], object]] = {"ours": views_ours, "plain": views_plain}
    times: dict[str, list[float]] = {name: [] for name in sides}
    with tempfile.TemporaryDirectory() as folder:
        paths = write_photos(Path(folder), files, SIZE_HW, grain=4.5)
        _warm_up(paths[0], settings)
        for repeat in range(repeats):
            for number, path in enumerate(paths):
                for name, side in sides.items():
                    times[name].append(_seconds(side, path, settings, repeat * files + number))
    ours, plain = (VIEWS / statistics.fmean(times[name]) for name in ("ours", "plain"))
    return {
        "what": f"{VIEWS} `{pipeline}` views of a JPEG of {SIZE_HW[1]}x{SIZE_HW[0]}, {files} files, {repeats} repeats",
        "ours_views_per_second": round(ours, 1),
        "plain_views_per_second": round(plain, 1),
        "ratio": round(ours / plain, 2),
        "needed_ratio": 2.0,
    }


def main(arguments: Sequence[str] | None = None) -> None:
    """Prints a row for each pipeline and writes them as JSON if asked."""
    parser = argparse.ArgumentParser(prog="python -m experiments.benchmarks.views", description=__doc__)
    parser.add_argument("--json", type=Path, help="file for the rows")
    parser.add_argument("--repeats", type=int, default=40, help="rounds over the files")
    options = parser.parse_args(arguments)
    rows = {name: measure_views(repeats=options.repeats, pipeline=name) for name in ("advanced", "blur")}
    for row in rows.values():
        print("  ".join(f"{name} {value}" if name != "what" else f"{value}:" for name, value in row.items()))
    if options.json is not None:
        versions = {"pillow": PIL.__version__, "opencv": cv2.__version__, "torch": torch.__version__}
        report = {**rows, "machine": platform.platform(), "versions": versions}
        options.json.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")


def views_ours(path: str, settings: ViewSettings, draw: int) -> list[Pixels]:
    """Our views of a file."""
    photo = read_image(path)
    return [make_view(photo, settings, sample_rng(0, 0, draw, stream)) for stream in range(VIEWS)]


def views_plain(path: str, settings: ViewSettings, draw: int) -> list[Pixels]:
    """The same views, step by step on the full-size picture."""
    with Image.open(path) as file:
        photo = file.convert("RGB")
    size_hw = (photo.height, photo.width)
    plans = (draw_plan(size_hw, settings, sample_rng(0, 0, draw, stream)) for stream in range(VIEWS))
    return [np.asarray(plain_view(photo, plan, settings)) for plan in plans]


def plain_view(photo: Image.Image, plan: ViewPlan, settings: ViewSettings) -> Image.Image:
    """A plan done by Pillow and torchvision in the reference's order."""
    picture = tv.hflip(photo) if plan.flip else photo
    if plan.turn:
        picture = picture.rotate(plan.turn, Image.Resampling.BILINEAR)
    if plan.text:
        picture = _write_plainly(picture, plan.text)
    if plan.emoji:
        picture = _paste_plainly(picture, plan.emoji)
    if plan.angle is not None:
        picture = picture.rotate(plan.angle, Image.Resampling.BILINEAR)
    view: Image.Image = tv.resized_crop(picture, *plan.box, [settings.size, settings.size])
    changes = {"brightness": tv.adjust_brightness, "contrast": tv.adjust_contrast}
    changes |= {"saturation": tv.adjust_saturation, "hue": tv.adjust_hue}
    for name, factor in plan.jitter:
        view = changes[name](view, factor)
    if plan.grey:
        view = tv.to_grayscale(view, 3)
    if plan.blur is not None:
        view = view.filter(ImageFilter.GaussianBlur(plan.blur))
    return view if plan.quality is None else _compress_plainly(view, plan.quality)


def _write_plainly(picture: Image.Image, overlay: TextOverlay) -> Image.Image:
    font = ImageFont.truetype(overlay.font, int(min(picture.size) * overlay.size))
    fitting = 0
    for length in range(1, 100):
        left, _, right, bottom = font.getbbox(overlay.characters[:length])
        if right - left > picture.width or bottom > picture.height:
            break
        fitting = length
    if fitting == 0:
        return picture
    text = overlay.characters[: 1 + int(overlay.length * fitting)]
    left, _, right, bottom = font.getbbox(text)
    layer = Image.new("RGBA", picture.size)
    place = (overlay.x * (picture.width - (right - left)), overlay.y * (picture.height - bottom))
    ink = (*overlay.color, int(255 * overlay.opacity + 0.5))
    ImageDraw.Draw(layer).text(place, text, fill=ink, font=font)
    return Image.alpha_composite(picture.convert("RGBA"), layer).convert("RGB")


def _paste_plainly(picture: Image.Image, overlay: EmojiOverlay) -> Image.Image:
    with Image.open(overlay.path) as file:
        emoji = file.convert("RGBA")
    factor = min(picture.width / emoji.width, picture.height / emoji.height) * overlay.size
    emoji = emoji.resize((int(emoji.width * factor), int(emoji.height * factor)), Image.Resampling.BILINEAR)
    mask = emoji.getchannel("A").point(lambda alpha: int(alpha * overlay.opacity))
    place = (int(overlay.x * (picture.width - emoji.width)), int(overlay.y * (picture.height - emoji.height)))
    result = picture.copy()
    result.paste(emoji, place, mask)
    return result


def _compress_plainly(picture: Image.Image, quality: int) -> Image.Image:
    buffer = io.BytesIO()
    picture.save(buffer, "JPEG", quality=quality)
    return Image.open(buffer).convert("RGB")


def _warm_up(path: str, settings: ViewSettings) -> None:
    """Fill the caches of assets as the first minute of a training does; the plain side opens fonts and emoji anew."""
    photo = read_image(path)[:64, :64]
    for draw in range(10_000):
        make_view(photo, settings, sample_rng(1, 0, draw))
    views_plain(path, settings, 0)


def _seconds(side: Callable[[str, ViewSettings, int], object], path: str, settings: ViewSettings, draw: int) -> float:
    start = time.process_time()
    side(path, settings, draw)
    return time.process_time() - start


if __name__ == "__main__":
    main()
