"""What two runs ended with, compared bit for bit."""

import csv
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import safe_open
from torch import Tensor

from callbacks.checkpoint_files import SAVED, is_whole

# They name the run's own folder; what they say beside that is in results.json and in checkpoints.
OWN_FILES = ("config.yaml", "hparams.yaml", "metrics.csv", "results.csv", "results.md")
# States of ModelCheckpoint. It writes last.ckpt right after another file of the same step, and is done with the step if
# that one is there: after a kill between the two, last.ckpt, and what is said of it, stay those of a step before;
# `--ckpt_path last` takes the newest file whatever its name. The latest score it saves, and does not take back.
# And when a file was saved.
OWN_STATES = ("last_model_path", "current_score", SAVED)
# After a damaged file ModelCheckpoint counts versions up, since a file of that name is there.
VERSION = r"-v\d+"


def differences(first: Any, second: Any, path: str = "") -> list[str]:
    """Return where two nested values differ; tensors and numbers bit for bit, NaN equal to NaN."""
    if type(first) is not type(second):
        return [f"{path}: {type(first).__name__} and {type(second).__name__}"]
    if isinstance(first, dict):
        lacking = [f"{path}/{key}: in one alone" for key in first.keys() ^ second.keys()]
        return lacking + [line for key in first if key in second for line in _inside(first, second, key, path)]
    if isinstance(first, list | tuple):
        if len(first) != len(second):
            return [f"{path}: {len(first)} and {len(second)} entries"]
        return [line for key in range(len(first)) for line in _inside(first, second, key, path)]
    if isinstance(first, Tensor):
        return [] if _same_bits(first, second) else [f"{path}: values of a tensor {tuple(first.shape)}"]
    return [] if first == second or repr(first) == repr(second) else [f"{path}: {first!r} and {second!r}"]


def _inside(first: Any, second: Any, key: Any, path: str) -> list[str]:
    return differences(first[key], second[key], f"{path}/{key}")


def _same_bits(first: Tensor, second: Tensor) -> bool:
    if first.dtype != second.dtype or first.shape != second.shape:
        return False
    return torch.equal(*(each.contiguous().flatten().view(torch.uint8) for each in (first, second)))


def checkpoint_content(path: Path, folder: Path) -> Any:
    """Return all that a checkpoint holds but `OWN_STATES`, without the name of the run's folder in paths."""
    return _without_name(torch.load(path, weights_only=True), folder.name)


def _without_name(value: Any, name: str) -> Any:
    if isinstance(value, str):
        return re.sub(rf"{VERSION}(?=\.ckpt$)", "", value.replace(f"/{name}/", "/"))
    if isinstance(value, dict):
        kept = {key: entry for key, entry in value.items() if key not in OWN_STATES}
        return {_without_name(key, name): _without_name(entry, name) for key, entry in kept.items()}
    if isinstance(value, list | tuple):
        return type(value)(_without_name(entry, name) for entry in value)
    return value


def compare_runs(whole: Path, killed: Path) -> list[str]:
    """Return where two runs' folders differ: the last checkpoints, the metrics, and every other file."""
    found = []
    theirs = last_checkpoints(killed)
    for name, path in last_checkpoints(whole).items():
        if name in theirs:
            first, second = checkpoint_content(path, whole), checkpoint_content(theirs[name], killed)
            found += differences(first, second, name)
        elif name != "last":
            found.append(f"{name}: not of the last step, or lacking")
    found += differences(read_rows(whole / "metrics.csv"), read_rows(killed / "metrics.csv"), "metrics.csv")
    return found + differences(_other_files(whole), _other_files(killed), "files")


def last_checkpoints(folder: Path) -> dict[str, Path]:
    """Return the whole checkpoints of the last step by their names without versions, of each name the newest."""
    paths = [path for path in (folder / "checkpoints").glob("*.ckpt") if is_whole(path)]
    paths.sort(key=lambda path: path.stat().st_mtime_ns)
    steps = {path: int(torch.load(path, weights_only=True)["global_step"]) for path in paths}
    return {re.sub(f"{VERSION}$", "", path.stem): path for path in paths if steps[path] == max(steps.values())}


def read_rows(path: Path) -> list[dict[str, str]]:
    """Return the filled cells of each row; the order of columns is that of the first log, which restarts change."""
    if not path.exists():
        return []
    with path.open(newline="") as file:
        return [{key: cell for key, cell in row.items() if cell} for row in csv.DictReader(file)]


def _other_files(folder: Path) -> dict[str, Any]:
    names = {str(path.relative_to(folder)): path for path in sorted(folder.rglob("*")) if path.is_file()}
    kept = {name: path for name, path in names.items() if not name.startswith("checkpoints/")}
    return {name: _content(path) for name, path in kept.items() if path.name not in OWN_FILES}


def _content(path: Path) -> Any:
    if path.name == "results.json":
        # Beside the results it says which checkpoint and config they are of.
        return json.loads(path.read_text())["results"]
    if path.suffix == ".safetensors":
        # Its header is in another order each time.
        with safe_open(path, "pt") as file:
            return dict(file.metadata() or {}), {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    if path.suffix == ".npz":
        # The archive itself holds the time of its writing.
        with np.load(path, allow_pickle=False) as arrays:
            return {name: arrays[name].tobytes() for name in arrays.files}
    return path.read_bytes()
