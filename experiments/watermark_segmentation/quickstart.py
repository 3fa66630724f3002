"""`make quickstart`: train, test and predict on embedded data, then show a picture and a table.

Every step is a command of `sealmark`, printed before it runs, so that a newcomer can go on from any of them.
"""

import csv
import json
import sys
import time
from pathlib import Path

import numpy as np
from PIL import Image

from callbacks.figures import Picture, outline, panel, truth_picture
from datamodules.base import ProvenanceDataModule, SampleKey
from experiments.steps import log_dir, run_step, run_without_options
from lightning_modules.watermark_segmentation.module import WatermarkSegmentationModule

CONFIG = Path("configs/watermark_segmentation/quickstart.yaml")
SHOWN = 8
METRICS = ("iou_dataset", "iou_image_marked", "f1_dataset", "boundary_f", "false_area_clean")


def main() -> int:
    """Run the steps and print where the picture and the table are."""
    started = time.monotonic()
    trained = run_step("fit", "--config", str(CONFIG))
    folder = log_dir(trained)
    checkpoint = folder / "checkpoints" / "last.ckpt"
    tested = run_step("test", "--config", str(folder / "config.yaml"), "--ckpt_path", str(checkpoint))
    rows = {"trained just now, from scratch": _results(log_dir(tested))}
    shipped = WatermarkSegmentationModule.shipped_weights()
    if shipped is not None:
        compared = run_step("test", "--config", str(folder / "config.yaml"), "--model.weights", str(shipped))
        rows[f"shipped weights ({shipped.name})"] = _results(log_dir(compared))
    images = _write_demo(tested.datamodule, folder / "demo")
    predicted = run_step(
        *("predict", "--config", str(folder / "config.yaml"), "--ckpt_path", str(checkpoint)),
        *("--data.paths", str(images), "--predictions.output_dir", str(folder / "predictions")),
    )
    assert predicted.trainer.is_global_zero
    picture = _draw_picture(folder)
    table = _write_table(rows, folder / "quickstart.md")
    print(f"\n{table.read_text()}\nunseen marks on unseen scenes; {time.monotonic() - started:.0f} s in all")
    print(f"picture: {picture}\ntable:   {table}\nmasks:   {folder / 'predictions'}")
    return 0


def _results(folder: Path) -> dict[str, float]:
    with (folder / "results.csv").open(encoding="utf-8") as file:
        return {row["metric"]: float(row["value"]) for row in csv.DictReader(file) if not row["group"]}


def _write_demo(data: ProvenanceDataModule, folder: Path) -> Path:
    """Write pictures of the test split as files, with their truth beside the folder."""
    samples = data.build_dataset("test")
    (folder / "images").mkdir(parents=True)
    for index in range(SHOWN):
        sample = samples[SampleKey(0, index)]
        Image.fromarray(sample["image"].permute(1, 2, 0).numpy()).save(folder / "images" / f"{index:02d}.png")
        np.savez(folder / f"{index:02d}.npz", mask=sample["mask"][0].numpy() > 0, ignore=sample["ignore"][0].numpy())
    return folder / "images"


def _draw_picture(folder: Path) -> Path:
    """Put input, truth and prediction side by side."""
    rows: list[list[Picture]] = []
    with (folder / "predictions" / "predictions.rank0.jsonl").open(encoding="utf-8") as lines:
        records = [json.loads(line) for line in lines]
    for record in records:
        image = np.asarray(Image.open(record["path"]).convert("RGB"))
        truth = np.load(folder / "demo" / f"{Path(record['path']).stem}.npz")
        mask = np.asarray(Image.open(folder / "predictions" / record["images"]["mask"]).convert("L")) > 0
        seen = truth_picture(truth["mask"], truth["ignore"])
        rows.append([image, seen, truth_picture(mask, np.zeros_like(mask)), outline(image, mask, (255, 60, 60))])
    half = (len(rows) + 1) // 2
    titles = ["input", "truth", "prediction", "outlined"]
    pairs = [left + right for left, right in zip(rows[:half], rows[half:], strict=True)]
    path = folder / "quickstart.png"
    Image.fromarray(panel(pairs, titles * 2)).save(path)
    return path


def _write_table(rows: dict[str, dict[str, float]], path: Path) -> Path:
    lines = [f"| weights | {' | '.join(METRICS)} |", "|---" * (len(METRICS) + 1) + "|"]
    lines += [
        f"| {name} | {' | '.join(f'{_shown(values, metric)}' for metric in METRICS)} |" for name, values in rows.items()
    ]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def _shown(values: dict[str, float], metric: str) -> str:
    return f"{values[metric]:.4f}" if metric in values else "not measured"


if __name__ == "__main__":
    sys.exit(run_without_options(main, __doc__))
