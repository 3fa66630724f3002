"""`python -m experiments.masksim.cross_validation`: figures on a set that is too small to be split once.

    python -m experiments.masksim.cross_validation --manifest pictures.csv --recipe RECIPE --output DIR

Spectra of all pictures are made once, by the recipe's `model`, as augmented views for training and as frozen views
for scoring. Then, fold after fold, heads are trained on the pictures of some folds, calibrated on the real ones of
others and score the fold that is left. Each picture is scored once, by heads that have not seen it. Beside them stand
the packaging audit of the same pictures and the false alarms at nominal rates.
"""

import argparse
import csv
import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from numpy.typing import NDArray

from callbacks.metrics.bootstrap import Floats, Statistic, bootstrap_intervals, value_of
from callbacks.metrics.detection_statistics import CurveSlot, ScoredGroup, auroc_statistic
from callbacks.metrics.packaging import packaging_statistics
from datamodules.images.manifests import read_manifest
from datamodules.spectra_cache import ABOUT_FILE, COLUMNS, INDEX_FILE, SPECTRA_FILE, SpectraArray, read_index
from datamodules.spectra_sets import REAL
from experiments.cache_spectra import write_spectra
from experiments.cli import answer
from experiments.export import load_module
from experiments.steps import Results, log_dir, run_step, shown
from lightning_modules.functional.detection import binomial_interval
from lightning_modules.functional.detection_calibration import NOMINAL_RATES, Calibration
from lightning_modules.masksim.module import MaskSimModule

Lines = list[dict[str, str]]


@dataclass(frozen=True)
class Scored:
    """What the heads say of pictures that they have not seen."""

    lines: Lines
    """A picture each: its line in the cache's index."""
    logits: Mapping[str, Floats]
    """Logits (N, G) by view."""
    any_p: Mapping[str, Floats]
    """p-values of "any generator" (N,) by view."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run all folds and print the table."""
    parser = argparse.ArgumentParser(prog="python -m experiments.masksim.cross_validation", description=__doc__)
    parser.add_argument("--manifest", type=Path, required=True, help="CSV or JSON Lines: path, generator ('' is real)")
    parser.add_argument("--recipe", type=Path, required=True, help="YAML whose model and data settings are used")
    parser.add_argument("--output", type=Path, required=True, help="folder for the cache, the folds and the table")
    parser.add_argument("--folds", type=int, default=6)
    parser.add_argument("--calibration-folds", type=int, default=2, help="whose real pictures calibrate")
    parser.add_argument("--views", type=int, default=4, help="augmented views of each training picture")
    parser.add_argument("--epochs", type=int, default=30)
    options = parser.parse_args(arguments)
    if options.folds < options.calibration_folds + 2:
        parser.error("--folds must leave one to score and one to train beside those of --calibration-folds")
    recipe = yaml.safe_load(options.recipe.read_text(encoding="utf-8"))
    cache = options.output / "spectra"
    if not cache.exists():
        write_spectra(_write_recipe(options.manifest, recipe, options.output), cache, views=options.views)
    parts = []
    for fold in range(options.folds):
        folder = write_fold(cache, options.output / f"fold_{fold}", fold, options.folds, options.calibration_folds)
        config = _write_fit(recipe, folder, options.epochs)
        checkpoint = log_dir(run_step("fit", "--config", str(config))) / "checkpoints" / "last.ckpt"
        parts.append(score_fold(folder, checkpoint))
    table = as_table(*figures(parts, list(recipe["model"]["init_args"]["generators"])))
    (options.output / "cross_validation.md").write_text(table, encoding="utf-8")
    print(f"\n{table}\ntable: {options.output / 'cross_validation.md'}")
    return 0


def write_fold(cache: Path, folder: Path, fold: int, folds: int, calibrating: int) -> Path:
    """Write a cache of the same spectra in which one fold is tested, the next ones calibrate and the others train."""
    rows = read_index(cache)
    place = folds_of(rows["test"], folds)
    kept: Lines = []
    for line in rows["train"] + rows["test"]:
        turn = (place[line["path"]] - fold) % folds
        role = "test" if turn == 0 else "val" if turn <= calibrating else "train"
        # Training takes augmented views, the other two take frozen ones.
        if (role == "train") == (line["split"] == "train"):
            kept.append(line | {"split": role})
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / INDEX_FILE).open("w", newline="", encoding="utf-8", errors="surrogateescape") as file:
        writer = csv.DictWriter(file, list(kept[0]))
        writer.writeheader()
        writer.writerows(kept)
    for name in (SPECTRA_FILE, ABOUT_FILE):
        (folder / name).unlink(missing_ok=True)
        (folder / name).symlink_to((cache / name).resolve())
    return folder


def folds_of(lines: Lines, folds: int) -> dict[str, int]:
    """Return the fold of each picture by path; folds hold equal shares of each generator, dealt by name."""
    places: dict[str, int] = {}
    for generator in sorted({line["generator"] for line in lines}):
        paths = {line["path"] for line in lines if line["generator"] == generator}
        for number, path in enumerate(sorted(paths, key=lambda path: (_digest(path), path))):
            places[path] = number % folds
    return places


def score_fold(folder: Path, checkpoint: Path) -> Scored:
    """Score the tested fold of a cache by a checkpoint, calibrated on the real pictures of the calibrating ones."""
    module = load_module(checkpoint)
    assert isinstance(module, MaskSimModule)
    rows, array = read_index(folder), SpectraArray(folder / SPECTRA_FILE)
    views = list(dict.fromkeys(line["view"] for line in rows["test"]))

    def logits(split: str, view: str) -> tuple[Lines, Floats]:
        lines = [line for line in rows[split] if line["view"] == view]
        bank = module.scorer()
        with torch.inference_mode():
            found = [bank.score(array.read(int(line["row"])).float()[None, None])[0] for line in lines]
        return lines, torch.stack(found).double().numpy()

    pictures: Lines = []
    by_view, p_values = {}, {}
    for view in views:
        pictures, by_view[view] = logits("test", view)
        calibrating, known = logits("val", view)
        real = np.array([line["generator"] == REAL for line in calibrating])
        p_values[view] = Calibration.fit(known[real], module.hparams["generators"]).any_p_value(by_view[view])
    return Scored(pictures, by_view, p_values)


def figures(parts: Sequence[Scored], generators: Sequence[str]) -> tuple[Results, list[str]]:
    """Return AUROCs with intervals over pictures by name and view, and lines on false alarms."""
    lines = [line for part in parts for line in part.lines]
    generator = np.array([line["generator"] for line in lines])
    real, everything, slot = generator == REAL, np.ones(len(lines), dtype=np.bool_), CurveSlot()
    statistics: dict[str, Statistic] = {}
    alarms = []
    for view in parts[0].logits:
        pooled = np.concatenate([part.logits[view] for part in parts])
        for head, name in enumerate(generators):
            group = ScoredGroup(pooled[:, head], generator == name, real | (generator == name), slot)
            statistics[f"{name}/{view}"] = auroc_statistic(group)
        p_values = np.concatenate([part.any_p[view] for part in parts])
        alarms += [_alarm_line(view, nominal, p_values <= nominal, real) for nominal in NOMINAL_RATES]
    facts = {name: np.array([_number(line[name]) for line in lines]) for name in lines[0] if name not in COLUMNS}
    formats = np.array([line["format"] for line in lines])
    for name, statistic in packaging_statistics(facts, formats, ~real).items():
        fact, _, view = name.partition("/")[2].partition("@")
        statistics[f"packaging: {fact}/{view or 'native'}"] = statistic
    intervals = bootstrap_intervals(statistics, len(everything))
    values = {name: (value_of(statistic, len(everything)), *intervals[name]) for name, statistic in statistics.items()}
    return {(name.rpartition("/")[0], name.rpartition("/")[2]): figure for name, figure in values.items()}, alarms


def as_table(results: Results, alarms: Sequence[str]) -> str:
    """Return a Markdown table: who is told from real a row, a view a column."""
    views = list(dict.fromkeys(view for _, view in results))
    lines = [f"| AUROC | {' | '.join(views)} |", "|---" * (len(views) + 1) + "|"]
    lines += [
        f"| {name} | {' | '.join(shown(results.get((name, view))) for view in views)} |"
        for name in dict.fromkeys(name for name, _ in results)
    ]
    return "\n".join([*lines, "", *alarms]) + "\n"


def _alarm_line(view: str, nominal: float, found: NDArray[np.bool_], real: NDArray[np.bool_]) -> str:
    alarms, trials = int(found[real].sum()), int(real.sum())
    low, high = binomial_interval(alarms, trials)
    detected, generated = int(found[~real].sum()), int((~real).sum())
    return (
        f"* {view}, nominal {nominal:.0%}: {alarms} of {trials} real pictures ({alarms / trials:.1%}, 95 % interval "
        f"{low:.1%} to {high:.1%}), {detected} of {generated} generated ones"
    )


def _write_recipe(manifest: Path, recipe: Mapping[str, Any], output: Path) -> Path:
    """Write a recipe for the cache, in which every picture is in two splits."""
    listing, columns = read_manifest(str(manifest), keep=("generator",))
    if "generator" not in columns:
        raise ValueError(f"{manifest} has no column 'generator': say who drew each picture")
    output.mkdir(parents=True, exist_ok=True)
    with (output / "twice.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(("path", "generator", "split"))
        for split in ("train", "val", "test"):
            # Frozen views of validation would be those of the test split again; one picture keeps it from being empty.
            for row in range(len(listing) if split != "val" else 1):
                writer.writerow((Path(listing[row]).absolute(), columns["generator"][row], split))
    dropped = ("root", "real", "generators", "test_real", "test_generators", "calibration")
    data = {key: value for key, value in recipe["data"].get("init_args", {}).items() if key not in dropped}
    data |= {"manifest": str(output / "twice.csv")}
    content = {"model": recipe["model"], "data": {"class_path": recipe["data"]["class_path"], "init_args": data}}
    path = output / "spectra.yaml"
    path.write_text(yaml.safe_dump(content), encoding="utf-8")
    return path


def _write_fit(recipe: Mapping[str, Any], folder: Path, epochs: int) -> Path:
    """Write the recipe of a fold: the heads of the given one, trained on the fold's spectra."""
    checkpoints = {"filename": "last", "save_last": True, "save_top_k": 0}
    content = {
        "trainer": {
            "accelerator": "cpu",
            "devices": 1,
            "max_epochs": epochs,
            "limit_val_batches": 0,
            "num_sanity_val_steps": 0,
            "log_every_n_steps": 5,
            "logger": [{"class_path": "callbacks.run_folder.RunFolderLogger", "init_args": {"name": folder.name}}],
            "callbacks": [{"class_path": "lightning.pytorch.callbacks.ModelCheckpoint", "init_args": checkpoints}],
        },
        "model": recipe["model"],
        "data": {
            "class_path": "datamodules.spectra_cache.SpectraCacheDataModule",
            "init_args": {"cache": str(folder), "batch_size": 16},
        },
    }
    path = folder / "fit.yaml"
    path.write_text(yaml.safe_dump(content), encoding="utf-8")
    return path


def _digest(path: str) -> str:
    return hashlib.sha256(Path(path).name.encode(errors="surrogatepass")).hexdigest()


def _number(text: str) -> float:
    return float(text) if text else float("nan")


if __name__ == "__main__":
    raise SystemExit(answer(main))
