"""Speed of SyncSeal's attacks: geometry and values of a whole batch against the published procedure, image by image.

    python -m experiments.benchmarks.augmentation [--device cuda] [--threads N] [--json FILE]

Where other work shares the machine, OpenMP's threads wait by spinning and cost either side many times its own work:
trust `--threads 1` there, and the ratio of processor time.

Both sides take turns on the same 32 drawn scenes of 256 px, which need gradients as in training. The baseline does for
each image what the published training does: two changes of values by torchvision and Pillow (on the CPU, whatever the
device), a perspective by torchvision of the image and of its mask, and a concatenation at the end. Its quads are drawn
before its clock starts. Rows give medians, with and without the backward pass.
"""

from __future__ import annotations

import argparse
import io
import json
import platform
import random
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import cv2
import numpy as np
import PIL
import torch
from PIL import Image
from torch import Tensor
from torchvision.transforms import InterpolationMode
from torchvision.transforms.v2 import functional as tv

from datamodules.images.procedural import draw_scene
from lightning_modules.functional.geometry import frame_corners_px
from lightning_modules.functional.sample_draws import SampleDraws
from lightning_modules.syncseal.augmentation.attack import attack
from lightning_modules.syncseal.augmentation.geometric import draw_geometry
from lightning_modules.syncseal.augmentation.settings import GeometricSettings, ValueSettings

NEEDED_RATIO = 5.0
BATCH, SIZE = 32, 256

Side = Callable[[Tensor], Tensor]
Row = dict[str, float | int | str]


def reference_side(turn: int) -> Side:
    """The published procedure: from a batch to attacked images."""
    draws, rng = SampleDraws.of_samples(0, turn, torch.arange(BATCH)), random.Random(turn)
    quads = draw_geometry(BATCH, SIZE, SIZE, GeometricSettings(), draws)[0].tolist()
    frame = frame_corners_px(SIZE, SIZE).tolist()

    def attacked(images: Tensor) -> Tensor:
        masks = torch.ones_like(images[:, :1])
        results = []
        for row, quad in enumerate(quads):
            image, mask = images[row : row + 1], masks[row : row + 1]
            for _ in range(2):
                image = _reference_change(image, rng)
            results.append(tv.perspective(image, quad, frame, InterpolationMode.BILINEAR))
            tv.perspective(mask, quad, frame, InterpolationMode.NEAREST)
        return torch.cat(results)

    return attacked


def _reference_change(image: Tensor, rng: random.Random) -> Tensor:
    kind = rng.choice(("jpeg", "blur", "brightness", "contrast", "saturation"))
    if kind == "jpeg":
        return _reference_jpeg(image, rng.randint(30, 80))
    if kind == "blur":
        blurred: Tensor = tv.gaussian_blur(image, [rng.randint(3, 17) // 2 * 2 + 1] * 2)
        return blurred
    adjust: Callable[[Tensor, float], Tensor] = getattr(tv, f"adjust_{kind}")
    return adjust(image, rng.uniform(0.3, 2.2))


def _reference_jpeg(image: Tensor, quality: int) -> Tensor:
    clamped = image.clamp(0, 1)
    levels = (clamped[0].detach() * 255).round().byte().permute(1, 2, 0).cpu().numpy()
    file = io.BytesIO()
    Image.fromarray(levels).save(file, "JPEG", quality=quality)
    decoded = torch.from_numpy(np.array(Image.open(file))).permute(2, 0, 1)[None].float() / 255
    return clamped + (decoded.to(image.device) - clamped).detach()


def sealmark_side(turn: int) -> Side:
    """Ours as training runs it, draws and all."""

    def attacked(images: Tensor) -> Tensor:
        draws = SampleDraws.of_samples(0, turn, torch.arange(BATCH))
        return attack(images, GeometricSettings(), ValueSettings(), draws).images

    return attacked


def measure(device: torch.device, turns: int) -> list[Row]:
    """Rows of wall and processor milliseconds an image, the baseline's over ours.

    Args:
        device: Where the images are.
        turns: How often each side goes, each time with other draws.
    """
    scenes = np.stack([draw_scene(np.random.default_rng(number), (SIZE, SIZE)) for number in range(BATCH)])
    planes = np.ascontiguousarray(scenes.transpose(0, 3, 1, 2))  # as a loader gives them
    images = (torch.from_numpy(planes).float() / 255).to(device).requires_grad_()
    return [_row(images, turns, backward) for backward in (False, True)]


def _row(images: Tensor, turns: int, backward: bool) -> Row:
    makers = {"reference": reference_side, "ours": sealmark_side}
    wall: dict[str, list[float]] = {name: [] for name in makers}
    processor: dict[str, list[float]] = {name: [] for name in makers}
    for turn in range(-1, turns):
        for name, maker in makers.items():
            seconds = _seconds(maker(turn + 1), images, backward)
            if turn >= 0:
                wall[name].append(seconds[0])
                processor[name].append(seconds[1])
    medians = {name: statistics.median(values) * 1e3 / BATCH for name, values in wall.items()}
    busy = {name: statistics.median(values) * 1e3 / BATCH for name, values in processor.items()}
    return {
        "what": f"{turns} batches of {BATCH} at {SIZE} px, forward{' and backward' if backward else ''}",
        "ours_ms": round(medians["ours"], 3),
        "reference_ms": round(medians["reference"], 3),
        "ratio": round(medians["reference"] / medians["ours"], 2),
        "needed_ratio": NEEDED_RATIO,
        "ours_cpu_ms": round(busy["ours"], 3),
        "reference_cpu_ms": round(busy["reference"], 3),
        "cpu_ratio": round(busy["reference"] / busy["ours"], 2),
    }


def _seconds(side: Side, images: Tensor, backward: bool) -> tuple[float, float]:
    """Wall and processor seconds of one batch."""
    images.grad = None
    _finish(images.device)
    wall, busy = time.perf_counter(), time.process_time()
    attacked = side(images)
    if backward:
        attacked.sum().backward()  # type: ignore[no-untyped-call]
    _finish(images.device)
    return time.perf_counter() - wall, time.process_time() - busy


def _finish(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def main(arguments: Sequence[str] | None = None) -> None:
    """Prints the rows and writes them as JSON if asked."""
    parser = argparse.ArgumentParser(prog="python -m experiments.benchmarks.augmentation", description=__doc__)
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads(), help="threads of torch")
    parser.add_argument("--turns", type=int, default=15, help="batches of each side")
    parser.add_argument("--json", type=Path, help="file for the rows")
    options = parser.parse_args(arguments)
    torch.set_num_threads(options.threads)
    cv2.setNumThreads(0)
    rows = measure(torch.device(options.device), options.turns)
    for row in rows:
        print("  ".join(f"{name} {value}" if name != "what" else f"{value}:" for name, value in row.items()))
    if options.json is not None:
        versions = {"python": platform.python_version(), "torch": torch.__version__, "pillow": PIL.__version__}
        report = {"augmentation": rows, "threads": options.threads, "device": options.device, "versions": versions}
        report["machine"] = platform.platform()
        options.json.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
