"""Any other watermark behind a synchronised picture: straighten, then decode; and what that is worth under attack."""

from __future__ import annotations

import math
import time
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from scipy import stats
from torch import Tensor
from torch.nn import functional as F

from lightning_modules.functional.geometry import Rectified, corner_error_px, unwarp

from .evaluation import (
    LADDERS,
    MOVE_STREAM,
    NOISE_STREAM,
    Ladder,
    Synchroniser,
    changed_by,
    moved_by,
    sample_draws,
    setup_labels,
)
from .inference import SyncPredictor

CHAIN_HEADER = (
    "index,geom_aug,geom_strength,val_aug,val_strength,bit_accuracy,log_pvalue,corner_error,"
    "wm_embed_time,sync_embed_time,sync_detect_time,unwrap_time,wm_detect_time"
)


class Watermark(Protocol):
    """A watermark with a message."""

    bits: int

    def embed(self, images: Tensor, messages: Tensor) -> Tensor:
        """Return images (B, 3, H, W) that carry messages (B, bits) of 0 and 1."""
        ...

    def decode(self, images: Tensor) -> Tensor:
        """Return a logit for each bit (B, bits): above 0 for a 1."""
        ...


class ScriptedWatermark:
    """A watermark from a TorchScript file with `embed(images, messages)` and `detect(images)`, both in [0, 1].

    `embed` gives images, or a mapping with `imgs_w`; `detect` gives logits, or a mapping with `preds`. One number
    before those of the bits is taken for the presence of a mark; numbers for each pixel are averaged.

    Args:
        path: The file. It is a program: name only files that you trust.
        bits: Length of its messages.
        size: Side of the pictures that its networks take, where they take one alone: the change is then resized.
        strength: Factor of the change.
    """

    def __init__(self, path: str | Path, bits: int, size: int | None = None, strength: float = 1.0) -> None:
        if not Path(path).is_file():
            raise FileNotFoundError(f"no such watermark: {path}; name its TorchScript file")
        self.bits, self.size, self.strength = bits, size, strength
        self.network: Any = torch.jit.load(str(path), map_location="cpu").eval()  # type: ignore[no-untyped-call]

    def embed(self, images: Tensor, messages: Tensor) -> Tensor:
        """Return marked images."""
        small = self._small(images)
        change = _tensor(self.network.embed(small, messages), "imgs_w") - small
        if change.shape[-2:] != images.shape[-2:]:
            change = F.interpolate(change, images.shape[-2:], mode="bilinear", antialias=True)
        return (images + self.strength * change).clamp(0, 1)

    def decode(self, images: Tensor) -> Tensor:
        """Return a logit for each bit."""
        logits = _tensor(self.network.detect(self._small(images)), "preds")
        logits = logits.flatten(2).mean(dim=2) if logits.ndim > 2 else logits
        if logits.shape[1] not in (self.bits, self.bits + 1):
            raise ValueError(f"the watermark gives {logits.shape[1]} numbers a picture, not {self.bits} bits: set bits")
        return logits[:, -self.bits :]

    def _small(self, images: Tensor) -> Tensor:
        if self.size is None:
            return images
        return F.interpolate(images, (self.size, self.size), mode="bilinear", antialias=True)


@torch.no_grad()
def rectify(images: Tensor, module: SyncPredictor, size_hw: tuple[int, int] | None = None) -> Rectified:
    """Return pictures straightened by the mark in them, for any decoder behind.

    Args:
        images: RGB in [0, 1] (B, 3, H, W).
        module: A `SyncSealModule`.
        size_hw: Height and width of the originals; the pictures' own where not given.
    """
    height, width = images.shape[-2:]
    quads = module.detect(images).quads_px
    target = size_hw or (height, width)
    scale = quads.new_tensor([(target[1] - 1) / (width - 1), (target[0] - 1) / (height - 1)])
    return unwarp(images, quads * scale, target)


@torch.no_grad()
def evaluate_watermark(
    watermark: Watermark,
    images: Tensor,
    index: Sequence[int],
    synchroniser: Synchroniser | None = None,
    ladder: Ladder = "published",
    seed: int = 0,
) -> Iterator[str]:
    """Yield the rows under `CHAIN_HEADER`: how well a watermark is read after each attack.

    Pictures are marked by the watermark, then for synchronisation, attacked, straightened and read. Messages depend on
    the seed and the picture's index.

    Args:
        watermark: Whose message is read.
        images: RGB in [0, 1] (B, 3, H, W).
        index: Of each picture.
        synchroniser: What straightens; None reads the attacked pictures as they are, the control.
        ladder: Which attacks.
        seed: Of the messages.
    """
    rngs = [np.random.default_rng([seed, number]) for number in index]
    bits = np.stack([rng.integers(0, 2, watermark.bits) for rng in rngs])
    messages = torch.from_numpy(bits).to(images)
    carrying, seconds_mark = _timed(lambda: watermark.embed(images, messages))
    marked, seconds_sync = (carrying, 0.0) if synchroniser is None else _timed(lambda: synchroniser.embed(carrying))
    place = torch.tensor(list(index))
    labels = iter(setup_labels(ladder))
    for number, (move, changes) in enumerate(LADDERS[ladder]):
        moved, true = moved_by(move, marked, sample_draws(place, MOVE_STREAM + 10 * number))
        for turn, change in enumerate(changes):
            attacked = changed_by(change, moved, sample_draws(place, NOISE_STREAM + 10 * turn))
            label = ",".join(next(labels).split("|"))
            read = _straight_and_read(watermark, synchroniser, attacked, images, true)
            for row, (logits, error) in enumerate(zip(read.logits, read.errors, strict=True)):
                right = int(((logits > 0).cpu().numpy() == (bits[row] == 1)).sum())
                times = (seconds_mark, seconds_sync, *read.seconds)
                shares = ",".join(f"{value / len(images):.6f}" for value in times)
                figures = f"{right / watermark.bits:.4f},{log_pvalue(right, watermark.bits):.4f},{error:.4f}"
                yield f"{index[row]},{label},{figures},{shares}"


def write_chain(path: Path, rows: Iterable[str]) -> None:
    """Write the published table of a watermark's bits, whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.part")
    temporary.write_text("\n".join([CHAIN_HEADER, *rows]) + "\n", encoding="utf-8")
    temporary.replace(path)


def log_pvalue(right: int, bits: int) -> float:
    """Return the decimal logarithm of the chance that a fair coin gets as many bits right, or more."""
    return math.log10(float(stats.binom.sf(right - 1, bits, 0.5)) + 1e-300)


class _Read:
    """Logits, corner errors and seconds of one attack."""

    def __init__(self, logits: Tensor, errors: list[float], seconds: tuple[float, float, float]) -> None:
        self.logits, self.errors, self.seconds = logits, errors, seconds


def _straight_and_read(
    watermark: Watermark, synchroniser: Synchroniser | None, attacked: Tensor, images: Tensor, true: Tensor
) -> _Read:
    size_hw = (images.shape[-2], images.shape[-1])
    if synchroniser is None:
        logits, seconds = _timed(lambda: watermark.decode(attacked))
        return _Read(logits, [math.nan] * len(images), (0.0, 0.0, seconds))
    quads, seconds_detect = _timed(lambda: synchroniser.find(attacked, images))
    straight, seconds_unwarp = _timed(lambda: unwarp(attacked, quads, size_hw))
    logits, seconds = _timed(lambda: watermark.decode(straight.images))
    errors = corner_error_px(quads.double().cpu(), true.double().cpu()).tolist()
    return _Read(logits, errors, (seconds_detect, seconds_unwarp, seconds))


def _timed(work: Any) -> tuple[Any, float]:
    start = time.perf_counter()
    result = work()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return result, time.perf_counter() - start


def _tensor(answer: Any, key: str) -> Tensor:
    found: Tensor = answer[key] if isinstance(answer, dict) else answer
    return found
