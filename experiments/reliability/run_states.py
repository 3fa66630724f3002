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

# They name the run's own folder; what they say beside that is in results.json and in checkpoints.
OWN_FILES = ("config.yaml", "hparams.yaml", "metrics.csv", "results.csv", "results.md")


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
    """Return all that a checkpoint holds, without the name of the run's folder in paths."""
    return _without_name(torch.load(path, weights_only=True), folder.name)


def _without_name(value: Any, name: str) -> Any:
    if isinstance(value, str):
        # After a damaged file ModelCheckpoint counts versions up, since a file of that name is there.
        return re.sub(r"-v\d+(?=\.ckpt$)", "", value.replace(f"/{name}/", "/"))
    if isinstance(value, dict):
        return {_without_name(key, name): _without_name(entry, name) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(_without_name(entry, name) for entry in value)
    return value


def compare_runs(whole: Path, killed: Path) -> list[str]:
    """Return where two runs' folders differ: the last checkpoints, the metrics, and every other file."""
    found = []
    for path in last_checkpoints(whole):
        other = _newest_version(killed / "checkpoints", path.stem)
        if other is None:
            found.append(f"checkpoints/{path.name}: lacking")
            continue
        found += differences(checkpoint_content(path, whole), checkpoint_content(other, killed), path.name)
    found += differences(read_rows(whole / "metrics.csv"), read_rows(killed / "metrics.csv"), "metrics.csv")
    return found + differences(_other_files(whole), _other_files(killed), "files")


def last_checkpoints(folder: Path) -> list[Path]:
    """Return the checkpoints of the last step."""
    paths = list((folder / "checkpoints").glob("*.ckpt"))
    steps = {path: int(torch.load(path, weights_only=True)["global_step"]) for path in paths}
    return sorted(path for path, step in steps.items() if step == max(steps.values()))


def _newest_version(folder: Path, stem: str) -> Path | None:
    found = [path for path in folder.glob("*.ckpt") if re.fullmatch(re.escape(stem) + r"(-v\d+)?", path.stem)]
    return max(found, key=lambda path: path.stat().st_mtime_ns, default=None)


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
