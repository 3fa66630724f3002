"""Predict folders of random descriptors."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from callbacks.descriptor_files import SIZE_KEY

DIMS = 16


def unit_rows(seed: int, count: int, dims: int = DIMS) -> Any:
    rows = np.random.default_rng(seed).normal(size=(count, dims)).astype(np.float32)
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def write_predictions(folder: Path, rows: Any, paths: Sequence[str], model: str = "a", weights: str = "") -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    lines = [json.dumps({"path": p, "index": i, SIZE_KEY: rows.shape[1]}) + "\n" for i, p in enumerate(paths)]
    (folder / "predictions.rank0.jsonl").write_text("".join(lines))
    rows.astype("<f4").tofile(folder / "descriptors.rank0.f32")
    about = {"fingerprint": model, "model": "some.Module", "ckpt_path": None, "weights": weights}
    (folder / "predictions.json").write_text(json.dumps(about))
    return folder


@pytest.fixture(name="write_predictions")
def _write_predictions() -> Callable[..., Path]:
    """Return the function that writes a predict folder."""
    return write_predictions


@pytest.fixture
def predicted(tmp_path: Path) -> Callable[..., Path]:
    """Return a function that writes a predict folder of `count` rows drawn by `seed`, paths `/<seed>/<i>.jpg`."""

    def make(seed: int, count: int, dims: int = DIMS, **about: str) -> Path:
        paths = [f"/{seed}/{i}.jpg" for i in range(count)]
        return write_predictions(tmp_path / f"predicted{seed}", unit_rows(seed, count, dims), paths, **about)

    return make
