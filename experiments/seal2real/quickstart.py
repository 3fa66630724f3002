"""`python -m experiments.seal2real.quickstart`: a small diffusion model, two prompts, a forger, and seals made real.

Drawn documents with flat ink stand for synthetic seals, others with ink model and capture for photos of real ones.
Every step is a command of `sealmark`, printed before it runs, so that a newcomer can go on from any of them.
"""

import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from callbacks.figures import panel
from callbacks.prediction_files import read_records
from datamodules.seal_predictions import PREDICT_FROM
from datamodules.seal_sources import split_seed
from datamodules.transforms.documents.samples import DocumentSettings, Domain, draw_document
from datamodules.transforms.documents.views import Square, around, seen
from experiments.steps import Results, log_dir, read_results, run_step, run_without_options, shown
from experiments.trainer_cli import SealmarkCLI

RECIPES = Path("configs/seal2real")
DOCUMENTS = 4  # that the picture shows a seal of
TITLES = ("drawn", "realised", "change (x4)", "the same, degraded")
SIDE, GAIN = 192, 4
DRAWN_AS: tuple[Domain, Domain] = ("clean", "degraded")
DOMAINS = (
    ("domain_auc/synthetic", "judge's AUC, drawn against real"),
    ("domain_auc/realised", "judge's AUC, realised against real"),
    ("domain_auc_drop", "lower by"),
    ("domain_auc/realised_old_judge", "realised, by the judge of drawn"),
    ("ink_iou/realised", "ink IoU with the labels, realised"),
    ("ink_iou/input", "ink IoU with the labels, drawn"),
    ("changed_outside_px", "pixels changed outside, a picture"),
    ("change_levels/allowed", "change inside, levels of 255"),
    ("prior_gap/realised", "denoising error less that of real ones, realised"),
    ("prior_gap/synthetic", "denoising error less that of real ones, drawn"),
)

Picture = NDArray[np.uint8]


def main() -> int:
    """Run the steps and print where the table and the picture are."""
    started = time.monotonic()
    model = log_dir(fit("tiny_backbone")) / "diffusion"
    learnt = fit("prompts", "--model.backbone", str(model))
    prompts = log_dir(learnt) / "prompts.safetensors"
    separated = test(learnt)
    trained = fit("forger", "--model.backbone", str(model), "--model.prompts", str(prompts))
    tested = test(trained)
    folder = log_dir(trained)
    predicted = run_step(
        *("predict", "--config", str(RECIPES / "realise.yaml"), "--model.weights", str(last_of(trained))),
        *("--data.predict_samples", str(DOCUMENTS)),
    )
    table = folder / "quickstart.md"
    table.write_text(as_table(read_results(log_dir(separated)), read_results(log_dir(tested))), encoding="utf-8")
    picture = folder / "quickstart.png"
    settings = predicted.datamodule.settings
    Image.fromarray(draw_picture(log_dir(predicted), settings, predicted.datamodule.eval_seed)).save(picture)
    print(f"\n{table.read_text()}\nunseen documents; {time.monotonic() - started:.0f} s in all")
    print(f"picture: {picture}\ntable:   {table}\nset:     {log_dir(predicted) / 'realised'}")
    return 0


def fit(recipe: str, *words: str) -> SealmarkCLI:
    """Train by a recipe."""
    return run_step("fit", "--config", str(RECIPES / f"{recipe}.yaml"), *words)


def test(trained: SealmarkCLI) -> SealmarkCLI:
    """Test what a run has trained."""
    config = str(log_dir(trained) / "config.yaml")
    return run_step("test", "--config", config, "--ckpt_path", str(last_of(trained)))


def last_of(trained: SealmarkCLI) -> Path:
    """Return the last checkpoint of a run."""
    return log_dir(trained) / "checkpoints" / "last.ckpt"


def as_table(separated: Results, forged: Results) -> str:
    """Return a Markdown table: a figure a row, of stage 1 first.

    Args:
        separated: What testing the prompts gave.
        forged: What testing the forger gave.
    """
    rows = [("stage 1: AUROC of real against drawn by the prompts alone", separated.get(("auroc", "")))]
    rows += [(f"stage 2: {title}", forged.get(split_name(name))) for name, title in DOMAINS]
    lines = ["| figure | value (95 %) |", "|---|---|", *(f"| {title} | {shown(value)} |" for title, value in rows)]
    return "\n".join(lines) + "\n"


def split_name(name: str) -> tuple[str, str]:
    """Return metric and group of a figure's name."""
    metric, _, group = name.partition("/")
    return metric, group


def draw_picture(run: Path, settings: DocumentSettings, seed: int) -> Picture:
    """Return a row for the first seal of each document: drawn, realised, the change, and how the degraded domain is.

    Args:
        run: Folder of the run that realised.
        settings: What the documents were drawn by.
        seed: Of the frozen sets.
    """
    rows: list[Sequence[Picture]] = []
    for record in sorted(read_records(run / "predictions" / "predictions.rank0.jsonl"), key=lambda row: row["index"]):
        with Image.open(run / "realised" / "images" / f"{record['index']:06d}.png") as file:
            realised = np.asarray(file.convert("RGB"))
        number, kept = PREDICT_FROM + record["index"], split_seed(seed, "test")
        twins = [draw_document(kept, number, replace(settings, domain=domain)).image for domain in DRAWN_AS]
        square = within(around(record["boxes"][0], 0.1), settings.size)
        drawn, made, degraded = (np.asarray(seen(each, square, SIDE)) for each in (twins[0], realised, twins[1]))
        change = np.clip(128 + GAIN * (made.astype(np.int16) - drawn), 0, 255).astype(np.uint8)
        rows.append((drawn, made, change, degraded))
    return panel(rows, TITLES)


def within(square: Square, size: int) -> Square:
    """Return a square that is moved, and shrunk where it must be, into a picture of a given side."""
    side = min(square.side, size)
    left, top = (min(max(0, at), size - side) for at in (square.left, square.top))
    return Square(left, top, side)


if __name__ == "__main__":
    sys.exit(run_without_options(main, __doc__))
