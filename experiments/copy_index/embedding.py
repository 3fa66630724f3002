"""Descriptors of images that nobody has predicted yet."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch

from datamodules.images.errors import UnreadableImageError
from datamodules.images.sources import open_images
from experiments.export import load_module
from lightning_modules.base import ProvenanceModule
from lightning_modules.functional.retrieval import Floats
from lightning_modules.weights import read_metadata

SSCD = "lightning_modules.sscd.module.SSCDModule"
_BATCH_PIXELS = 16 << 20


def load_describer(
    path: Path, fingerprint: str | None, class_path: str | None = None, hparams: dict[str, Any] | None = None
) -> ProvenanceModule:
    """Return the module of a weight file, which must be the one that an index was made with.

    Args:
        path: Checkpoint or weights.
        fingerprint: What the index knows of its module.
        class_path: For files that do not name their module; SSCD by default.
        hparams: Hyper-parameters that the file lacks.
    """
    metadata = read_metadata(path)
    named = metadata.get("class_path") or (metadata.get("hyper_parameters") or {}).get("_class_path")
    module = load_module(path, class_path or (None if named else SSCD), hparams)
    own = getattr(module, "prediction_fingerprint", None)
    if own is None:
        raise ValueError(f"{type(module).__name__} makes no descriptors: name a checkpoint of SSCD")
    if fingerprint is not None and str(own()) != fingerprint:
        raise ValueError(
            f"{path} is not the model that the index was made with, or its settings differ: give the same file, and "
            "settings of predict such as resize as --hparams"
        )
    return module


def embed_images(module: ProvenanceModule, images: Sequence[str]) -> Iterator[tuple[list[str], Floats]]:
    """Yield paths and descriptors (n, D) of images, a batch at a time; unreadable ones are named on the terminal."""
    source, bad = open_images(images), 0
    batch: list[tuple[int, torch.Tensor]] = []
    pixels = 0
    for index in range(len(source)):
        try:
            image = torch.from_numpy(source.read(index)).permute(2, 0, 1)
        except UnreadableImageError as error:
            bad += 1
            print(f"left out: {error.path}: {error.reason}", file=sys.stderr)
            continue
        batch.append((index, image))
        pixels += image[0].numel()
        if pixels >= _BATCH_PIXELS:
            yield _embed(module, batch, [source.path(each) for each, _ in batch])
            batch, pixels = [], 0
    if batch:
        yield _embed(module, batch, [source.path(each) for each, _ in batch])
    if bad == len(source):
        raise ValueError(f"none of the {bad} images could be read")


def _embed(
    module: ProvenanceModule, batch: Sequence[tuple[int, torch.Tensor]], paths: list[str]
) -> tuple[list[str], Floats]:
    fields = {"image": [image for _, image in batch], "index": torch.tensor([index for index, _ in batch])}
    with torch.inference_mode():
        answer: Any = module.predict_step(fields | {"path": paths}, 0)
    descriptors: Floats = answer["descriptors"].float().cpu().numpy()
    return paths, descriptors
