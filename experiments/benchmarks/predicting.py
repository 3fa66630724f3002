"""Speed of predicting a folder against the bare network, and memory of predicting one image of 12 megapixels.

    python -m experiments.benchmarks.predicting [--json FILE]

Speed, of masks and of descriptors: what `sealmark predict` runs (workers that decode, the loop, records, files) and
then the network alone on the same images, decoded beforehand, in a fresh process each turn, as the command's is; the
row gives medians of the wall-clock rate, that of predict after its first batch, that of the network when warm.
Memory: a process of its own predicts one image with tiles and the whole-image pass, and reports the peak of its
resident memory and of its largest worker's.
"""

import argparse
import gc
import json
import logging
import platform
import resource
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from lightning import Callback, LightningModule, Trainer
from torch import Tensor

from callbacks.prediction_writers import PredictionWriter
from datamodules.image_files import ImageFilesDataModule
from datamodules.images.decoding import read_image
from datamodules.images.procedural import draw_scene
from experiments.export import find_shipped_weights, load_module
from lightning_modules.base import ProvenanceModule
from lightning_modules.functional.pixels import to_unit
from lightning_modules.functional.resizing import resize
from lightning_modules.sscd.module import SSCDModule
from lightning_modules.watermark_segmentation.module import WatermarkSegmentationModule

SIZES_HW = ((375, 500), (512, 512), (320, 480), (512, 384), (256, 256), (480, 360), (341, 512), (200, 300))
LARGE_HW = (3000, 4000)
ALLOWED_GB = 3.0

Row = dict[str, float | int | str]


class Stopwatch(Callback):
    """Notes when the first batch is done and when everything is on disk."""

    def __init__(self) -> None:
        self.first = 0.0
        self.seconds = 0.0

    def on_predict_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int, *rest: Any
    ) -> None:
        """Start with the first batch's end: what lies before is start-up."""
        if batch_idx == 0:
            self.first = time.perf_counter()

    def on_predict_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Stop; the writer, which comes first in the list, has waited for its threads."""
        self.seconds = time.perf_counter() - self.first


def small_network() -> WatermarkSegmentationModule:
    """Return the shipped network, or one like it with random weights where none is shipped: as fast."""
    try:
        module = load_module(find_shipped_weights())
        assert isinstance(module, WatermarkSegmentationModule)
        return module
    except FileNotFoundError:
        torch.manual_seed(0)
        options: dict[str, Any] = {"encoder": "tu-resnet10t", "encoder_depth": 4, "decoder_channels": [64, 48, 24, 12]}
        # Random weights answer about one half everywhere; speckles all over would be nobody's prediction.
        return WatermarkSegmentationModule(**options, threshold=0.9).eval()


def describing_network() -> SSCDModule:
    """Return SSCD's default network with random weights: as fast as with trained ones."""
    torch.manual_seed(0)
    return SSCDModule(weights="random").eval()


@dataclass(frozen=True)
class Method:
    """What is predicted, and its network alone."""

    make: Callable[[], ProvenanceModule]
    prepare: Callable[[Tensor], Tensor]
    """From a decoded image (3, H, W) uint8 to what the network takes; not timed."""
    answer: Callable[[Any, Tensor], Tensor]
    needed_ratio: float
    batch_size: int = 8
    """Of the recipe to predict with."""


METHODS = {
    "marks": Method(small_network, to_unit, lambda module, image: module.probability(image), 0.9),
    "descriptors": Method(
        describing_network,
        lambda image: to_unit(resize(image, "short_288")),
        lambda module, image: module(image),
        0.95,
        batch_size=16,
    ),
}


def predict(module: ProvenanceModule, folder: Path, output: Path, batch_size: int = 8) -> float:
    """Predict a folder as the command does and return the seconds from the first batch's end on."""
    stopwatch = Stopwatch()
    trainer = Trainer(
        accelerator="auto",
        devices=1,
        logger=False,
        callbacks=[PredictionWriter(str(output)), stopwatch],
        enable_progress_bar=False,
        enable_checkpointing=False,
        enable_model_summary=False,
        default_root_dir=str(output),
    )
    data = ImageFilesDataModule(batch_size=batch_size, paths=str(folder))
    gc.freeze()  # as the command does
    trainer.predict(module, datamodule=data)
    return stopwatch.seconds


def run_bare(method: Method, module: ProvenanceModule, images: Sequence[Tensor]) -> float:
    """Return the seconds of the network alone, image after image."""
    start = time.perf_counter()
    with torch.inference_mode():
        for image in images:
            method.answer(module, image[None]).cpu()
    return time.perf_counter() - start


def measure_speed(name: str, images: int = 128, repeats: int = 5) -> Row:
    """Medians in images a second of both sides, and their ratio."""
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary) / "photos"
        write_photos(folder, images)
        turns = [_in_fresh_process("--speed-child", folder, "--method", name) for _ in range(repeats)]
    median = {side: statistics.median(float(turn[side]) for turn in turns) for side in ("predict", "bare")}
    where = f"{turns[0]['device']}, {turns[0]['threads']} threads"
    return {
        "what": f"{name} of {images} photos up to 512 px, {where}, {repeats} turns",
        "predict_per_s": round(median["predict"], 2),
        "bare_per_s": round(median["bare"], 2),
        "ratio": round(statistics.median(float(turn["predict"]) / float(turn["bare"]) for turn in turns), 3),
        "needed_ratio": METHODS[name].needed_ratio,
    }


def measure_memory() -> Row:
    """Peak of resident memory in GB of a fresh process that predicts one large image, and of its worker."""
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary) / "photos"
        write_photos(folder, 1, (LARGE_HW,))
        row = _in_fresh_process("--memory-child", folder)
    return {"what": f"one photo of {LARGE_HW[1]}x{LARGE_HW[0]}", **row, "allowed_gb": ALLOWED_GB}


def write_photos(folder: Path, count: int, sizes_hw: Sequence[tuple[int, int]] = SIZES_HW) -> list[str]:
    """Write drawn scenes as JPEGs of these sizes in turn and return their paths in sorted order."""
    folder.mkdir(parents=True, exist_ok=True)
    for index in range(count):
        height, width = sizes_hw[index % len(sizes_hw)]
        scene = draw_scene(np.random.default_rng(index), (min(height, 512), min(width, 512)))
        scene = cv2.resize(scene, (width, height), interpolation=cv2.INTER_CUBIC)
        cv2.imwrite(str(folder / f"{index:04d}.jpg"), scene[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, 90])
    return sorted(str(path) for path in folder.iterdir())


def main(arguments: Sequence[str] | None = None) -> None:
    """Prints the rows and writes them as JSON if asked."""
    parser = argparse.ArgumentParser(prog="python -m experiments.benchmarks.predicting", description=__doc__)
    parser.add_argument("--json", type=Path, help="file for the rows")
    parser.add_argument("--images", type=int, default=128, help="photos in the folder")
    parser.add_argument("--repeats", type=int, default=5, help="turns of both sides")
    parser.add_argument("--method", nargs="+", choices=list(METHODS), default=list(METHODS), help="what to predict")
    parser.add_argument("--memory-child", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--speed-child", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    warnings.simplefilter("ignore")
    if options.memory_child is not None:
        print(json.dumps(_peak_memory(options.memory_child)))
        return
    if options.speed_child is not None:
        print(json.dumps(_rates(options.method[0], options.speed_child)))
        return
    rows = {name: measure_speed(name, options.images, options.repeats) for name in options.method}
    if "marks" in rows:
        rows["memory"] = measure_memory()
    for row in rows.values():
        print("  ".join(f"{name} {value}" if name != "what" else f"{value}:" for name, value in row.items()))
    if options.json is not None:
        report = {"python": platform.python_version(), "torch": torch.__version__, **rows}
        options.json.write_text(json.dumps(report, indent=2) + "\n")


def _in_fresh_process(option: str, folder: Path, *words: str) -> Row:
    command = [sys.executable, "-m", "experiments.benchmarks.predicting", option, str(folder), *words]
    done = subprocess.run(command, check=True, capture_output=True, text=True)  # noqa: S603 (our own module)
    row: Row = json.loads(done.stdout.splitlines()[-1])
    return row


def _rates(name: str, folder: Path) -> Row:
    method = METHODS[name]
    module = method.make()
    with tempfile.TemporaryDirectory() as output:
        seconds = predict(module, folder, Path(output), method.batch_size)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    paths = sorted(folder.iterdir())
    images = [torch.from_numpy(read_image(path)).permute(2, 0, 1) for path in paths]
    tensors = [method.prepare(image).to(device) for image in images]
    run_bare(method, module.to(device), tensors[: len(SIZES_HW)])  # kernels are made once for each size
    bare = run_bare(method, module, tensors)
    return {
        "predict": (len(paths) - method.batch_size) / seconds,
        "bare": len(paths) / bare,
        "device": device.type,
        "threads": torch.get_num_threads(),
    }


def _peak_memory(folder: Path) -> Row:
    with tempfile.TemporaryDirectory() as output:
        predict(small_network(), folder, Path(output))
    # Linux counts in KiB.
    main_gb, worker_gb = (
        resource.getrusage(who).ru_maxrss / 2**20 for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)
    )
    return {"peak_gb": round(main_gb, 2), "worker_gb": round(worker_gb, 2)}


if __name__ == "__main__":
    main()
