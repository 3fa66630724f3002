"""`python -m experiments.masksim.quickstart`: learn toy generators' traces, calibrate, test, explain.

Every step is a command of `sealmark`, printed before it runs, so that a newcomer can go on from any of them.
"""

import json
import sys
import time
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from callbacks.detection_calibration import CHECKPOINT
from callbacks.figures import Picture
from datamodules.compressed_spectra import CompressedSpectraDataModule
from experiments.steps import Results, log_dir, read_results, run_step, run_without_options, shown

CONFIG = Path("configs/masksim/quickstart.yaml")
# Scenes of a seed that nothing else draws from.
CALIBRATION = "procedural://1000?seed=500&size=160"
DEMO_SIDE = 320
VIEWS = ("", "@levelled")


def main() -> int:
    """Run the steps and print where the table and the picture are."""
    started = time.monotonic()
    trained = run_step("fit", "--config", str(CONFIG))
    folder = log_dir(trained)
    last = folder / "checkpoints" / "last.ckpt"
    words = ("--config", str(folder / "config.yaml"))
    calibrated = run_step(
        *("validate", *words, "--ckpt_path", str(last)),
        *("--data.calibration", CALIBRATION, "--data.val_samples", "null"),
    )
    checkpoint = log_dir(calibrated) / CHECKPOINT
    tested = run_step("test", *words, "--ckpt_path", str(checkpoint))
    assert isinstance(tested.datamodule, CompressedSpectraDataModule)
    images = write_demo(tested.datamodule, folder / "demo")
    run_step(
        *("predict", *words, "--ckpt_path", str(checkpoint), "--data.paths", str(images)),
        *("--data.on_unreadable", "skip", "--model.crops", "five"),
        *("--predictions.output_dir", str(folder / "predictions")),
    )
    table = folder / "quickstart.md"
    generators = list(tested.datamodule.generators)
    table.write_text(as_table(read_results(log_dir(tested)), generators), encoding="utf-8")
    picture = draw_picture(folder / "predictions", folder / "quickstart.png")
    print(f"\n{table.read_text()}\nunseen scenes; {time.monotonic() - started:.0f} s in all")
    print(f"picture: {picture}\ntable:   {table}\nrecords: {folder / 'predictions'}")
    return 0


def as_table(results: Results, generators: list[str]) -> str:
    """Return a Markdown table: a generator a row, its AUROC native and levelled, its detection rate at 5 % alarms."""
    lines = ["| generator | AUROC, native | AUROC, levelled | detected at nominal 5 %, native |", "|---" * 4 + "|"]
    for name in generators:
        cells = [shown(results.get(("auroc", f"{name}{view}"))) for view in VIEWS]
        lines.append(f"| {name} | {' | '.join(cells)} | {shown(results.get(('tpr_at_nominal_5', name)))} |")
    alarms = [shown(results.get(("fpr_at_nominal_5", f"any{view}"))) for view in VIEWS]
    lines.append(f'\nFalse alarms of "any generator" at nominal 5 %: native {alarms[0]}, levelled {alarms[1]}.')
    return "\n".join(lines) + "\n"


def write_demo(data: CompressedSpectraDataModule, folder: Path) -> Path:
    """Write a scene of each origin, of mixed sizes and formats, and a broken file; return their folder."""
    images = folder / "images"
    images.mkdir(parents=True)
    for number, part in enumerate(data.picture_sets("test")):
        scene = part.source.read(int(part.positions[number]))
        scene = np.concatenate([scene, part.source.read(int(part.positions[number + 10]))], axis=number % 2)
        suffix = ("png", "jpg", "webp")[number % 3]
        Image.fromarray(scene).save(images / f"{number}_{part.generator}.{suffix}", quality=90)
    (images / "broken.jpg").write_bytes(b"no picture")
    return images


def draw_picture(predictions: Path, path: Path) -> Path:
    """Put each picture beside its similarity map, under its verdict."""
    with (predictions / "predictions.rank0.jsonl").open(encoding="utf-8") as lines:
        records = [json.loads(line) for line in lines]
    cells = [_cell(record, predictions) for record in records]
    half = (len(cells) + 1) // 2
    blank = np.full_like(cells[0], 255)
    columns = [cells[:half], [*cells[half:], *[blank] * (2 * half - len(cells))]]
    Image.fromarray(np.concatenate([np.concatenate(column) for column in columns], axis=1)).save(path)
    return path


def _cell(record: Mapping[str, object], predictions: Path) -> Picture:
    named = record["images"]
    assert isinstance(named, dict)
    drawn = np.asarray(Image.open(predictions / named["map"]).convert("RGB"))
    with Image.open(str(record["path"])) as file:
        shown = file.convert("RGB")
    shown.thumbnail((DEMO_SIDE, DEMO_SIDE))
    side = Image.new("RGB", (DEMO_SIDE + 20, drawn.shape[0]), "white")
    top = (side.height - shown.height) // 2
    side.paste(shown, (10, top))
    told = f"{Path(str(record['path'])).stem}: {record['verdict']}"
    ImageDraw.Draw(side).text((10, top - 24), told, "black", ImageFont.load_default(16))
    return np.concatenate([np.asarray(side), drawn], axis=1)


if __name__ == "__main__":
    sys.exit(run_without_options(main, __doc__))
