"""The evaluation of one picture by set-ups against one set-up after the other, at the published sizes.

    python -m experiments.benchmarks.sync_setups [--moves N] [--json FILE]

Ours makes a move once for its 21 changes of values and looks at these in batches. The other side does for each set-up
what the specification of the published evaluation says, picture by picture: torchvision's `perspective`, its
`adjust_*` and `gaussian_blur`, Pillow's JPEG, one look, `perspective` back. Both have the same network with random
weights and are timed in the same process, in turns; on a shared machine the ratio of processor seconds is steadier.
"""

import argparse
import io
import json
import platform
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torchvision.transforms import functional as tv

from datamodules.images.procedural import draw_scene
from datamodules.images.randomness import sample_rng
from lightning_modules.functional.geometry import decode_corners, frame_corners_px
from lightning_modules.syncseal import evaluation
from lightning_modules.syncseal.augmentation.setups import named_quads
from lightning_modules.syncseal.evaluation import LADDERS, NetworkSynchroniser, evaluate_setups, sample_draws
from lightning_modules.syncseal.network import SyncNetwork
from lightning_modules.syncseal.refinement import detect_quads

NEEDED_RATIO = 4.0
SIDE = 512
Row = dict[str, float | int | str]
T = TypeVar("T")


def one_by_one(network: SyncNetwork, image: Tensor, moves: Sequence[tuple[str, tuple[str, ...]]]) -> list[float]:
    """Return the corner error of every set-up, each made and looked at alone."""
    height, width = image.shape[-2:]
    frame = [[round(x), round(y)] for x, y in frame_corners_px(height, width).tolist()]
    marked = network.embed(image).marked
    errors = []
    for number, (move, changes) in enumerate(moves):
        draws = evaluation.MOVE_STREAM + 10 * number
        for change in changes:
            true = named_quads(move, 1, height, width, sample_draws(torch.tensor([0]), draws))[0]
            attacked = changed(tv.perspective(marked, true.tolist(), frame), change)
            answer = network.detect(attacked)[:, 1:9]
            found = decode_corners(answer, height, width, network.size, compat=True)[0]
            tv.perspective(attacked, frame, [[int(x), int(y)] for x, y in found.tolist()])
            errors.append(float((found.double() - true).norm(dim=1).mean()))
    return errors


def changed(image: Tensor, change: str) -> Tensor:
    """Return a picture (1, 3, H, W) changed by torchvision or Pillow."""
    if change.startswith("("):
        quality, factor = change.rpartition("(")[2].rstrip(")").split("_")
        return changed(changed(image, f"JPEG_{quality}"), f"Brightness_{factor}")
    kind, _, strength = change.rpartition("_")
    if kind == "JPEG":
        return jpeg(image, int(strength))
    if kind == "GaussianBlur":
        blurred: Tensor = tv.gaussian_blur(image, [int(strength)] * 2)
        return blurred
    if kind == "Grayscale":
        grey: Tensor = tv.rgb_to_grayscale(image, 3)
        return grey
    adjust: dict[str, Callable[[Tensor, float], Tensor]] = {
        "Brightness": tv.adjust_brightness,
        "Contrast": tv.adjust_contrast,
        "Hue": tv.adjust_hue,
    }
    return adjust[kind](image, float(strength)) if kind in adjust else image


def jpeg(image: Tensor, quality: int) -> Tensor:
    """Return a picture (1, 3, H, W) as Pillow writes and reads it."""
    packed = io.BytesIO()
    pixels = (image[0].clamp(0, 1) * 255).round().byte().permute(1, 2, 0).cpu().numpy()
    Image.fromarray(pixels).save(packed, "JPEG", quality=quality)
    read = torch.from_numpy(np.array(Image.open(packed)))
    return (read.permute(2, 0, 1)[None].float() / 255).to(image)


@torch.no_grad()
def measure(moves: int = 21, repeats: int = 1, side: int = SIDE, network: SyncNetwork | None = None) -> Row:
    """Return medians of both sides and of the ratios of turns."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    torch.manual_seed(0)
    network = (network or SyncNetwork()).eval().to(device)
    scene = draw_scene(sample_rng(0, 0, 0), (side, side))
    image = torch.from_numpy(scene).permute(2, 0, 1)[None].float().div(255).to(device)
    synchroniser = NetworkSynchroniser(
        network, lambda images: detect_quads(network.detect, images, network.size), compat=True
    )
    ladder = LADDERS["published"]
    LADDERS["published"] = ladder[:moves]
    try:
        turns = []
        for _ in range(repeats):
            ours = _timed(lambda: evaluate_setups(synchroniser, image, torch.tensor([0]), "published", compat=True))
            other = _timed(lambda: one_by_one(network, image, LADDERS["published"]))
            turns.append((ours, other))
    finally:
        LADDERS["published"] = ladder
    apart = np.abs(np.array(turns[0][1][2]) - turns[0][0][2]["corner_error_px"][0].cpu().numpy())
    return {
        "what": f"{moves * 21} set-ups of a {side} px picture, {repeats} turns",
        "device": torch.cuda.get_device_name() if device.type == "cuda" else "cpu",
        "threads": torch.get_num_threads(),
        "ours_s": round(statistics.median(ours[0] for ours, _ in turns), 2),
        "one_by_one_s": round(statistics.median(other[0] for _, other in turns), 2),
        "ratio": round(statistics.median(other[0] / ours[0] for ours, other in turns), 2),
        "needed_ratio": NEEDED_RATIO,
        "cpu_ratio": round(statistics.median(other[1] / ours[1] for ours, other in turns), 2),
        # Blur, JPEG and warps differ in the last bits: what rounds otherwise moves by steps of the grid.
        "median_difference_px": round(float(np.median(apart)), 4),
    }


def main(arguments: Sequence[str] | None = None) -> None:
    """Prints the row and writes it as JSON if asked."""
    parser = argparse.ArgumentParser(prog="python -m experiments.benchmarks.sync_setups", description=__doc__)
    parser.add_argument("--json", type=Path, help="file for the row")
    parser.add_argument("--moves", type=int, default=21, help="how many of the 21 moves")
    parser.add_argument("--repeats", type=int, default=1, help="turns of both sides")
    options = parser.parse_args(arguments)
    row = measure(options.moves, options.repeats)
    print("  ".join(f"{name} {value}" if name != "what" else f"{value}:" for name, value in row.items()))
    if options.json is not None:
        report = {"python": platform.python_version(), "torch": torch.__version__, **row}
        options.json.write_text(json.dumps(report, indent=2) + "\n")


def _timed(work: Callable[[], T]) -> tuple[float, float, T]:
    start, start_cpu = time.perf_counter(), time.process_time()
    result = work()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - start, time.process_time() - start_cpu, result


if __name__ == "__main__":
    main()
