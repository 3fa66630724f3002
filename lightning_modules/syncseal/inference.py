"""Predict: mark pictures of any size, or say how pictures were moved and straighten them."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from lightning_modules.functional.geometry import (
    apply_homography,
    frame_corners_px,
    homography_from_quads,
    invert_homography,
    unwarp,
)
from lightning_modules.functional.image_quality import psnr
from lightning_modules.functional.passes import equal_together
from lightning_modules.functional.pixels import to_picture, to_unit
from lightning_modules.functional.sync_reliability import Reliability

from .evaluation import MarkingNetwork
from .refinement import Detection

Pixels = NDArray[np.uint8]
_COLOURS = {"reliable": (40, 170, 70), "unreliable": (235, 150, 20), "absent": (210, 40, 40), None: (30, 110, 230)}
_DIFFERENCE_GAIN = 20
_OVERLAY_SIDE = 640  # of the longer side of the picture inside its margins


@dataclass(frozen=True)
class SyncSettings:
    """What predict does with pictures."""

    mode: Literal["rectify", "detect", "embed"] = "rectify"
    """`embed` marks; `detect` writes records and overlays; `rectify` writes straightened pictures too."""
    original_size: tuple[int, int] | None = None
    """Height and width of the originals; null takes each picture's own. The mark does not tell them."""
    overlay: bool = True
    """Draw where the frame of the original lies around each picture."""
    difference: bool = False
    """Also write how marked pictures differ from their originals, 20 times as strong around grey."""
    absent: Literal["rectify", "leave"] = "leave"
    """Pictures in which no mark is: straighten them none the less, or leave them as they are."""
    batch: int = 8
    """Pictures of one size in one pass."""

    def __post_init__(self) -> None:
        if self.batch < 1:
            raise ValueError(f"`batch` must be at least 1, got {self.batch}")
        if self.original_size is not None and min(self.original_size) < 2:
            raise ValueError(f"`original_size` must be height and width of 2 and more, got {self.original_size}")


class SyncPredictor(Protocol):
    """What predict asks of the module."""

    network: MarkingNetwork
    reliability: Reliability | None

    @property
    def device(self) -> torch.device:
        """Where the networks are."""
        ...

    def detect(self, images: Tensor) -> Detection:
        """Find corners."""
        ...


@torch.inference_mode()
def predict_batch(module: SyncPredictor, batch: Mapping[str, Any], settings: SyncSettings) -> dict[str, Any]:
    """Return ``records`` and ``images`` of a batch of images (3, H, W) of any sizes, uint8 or in [0, 1].

    A record of a moved picture has `corners_px`, where its corners TL, TR, BR, BL were in the original; `homography`,
    which takes its pixels to the original's; `presence` and `spread`; `reliability` (null where none was calibrated);
    and whether it was straightened. One of a marked picture has `psnr_db`.
    """
    images: list[Tensor] = list(batch["image"])
    answers: list[tuple[dict[str, Any], dict[str, Pixels]]] = [({}, {})] * len(images)
    sizes = {position: tuple(image.shape[-2:]) for position, image in enumerate(images)}
    work = _embedded if settings.mode == "embed" else _straightened
    for part in equal_together(sizes, settings.batch):
        together = torch.stack([to_unit(images[position].to(module.device)) for position in part])
        for position, answer in zip(part, work(module, together, settings), strict=True):
            answers[position] = answer
    records = [
        {"path": str(path), "index": int(index), "width": size[1], "height": size[0], **answer[0]}
        for path, index, size, answer in zip(batch["path"], batch["index"], sizes.values(), answers, strict=True)
    ]
    return {"records": records, "images": [pictures for _, pictures in answers]}


def fingerprint(module: nn.Module, settings: SyncSettings) -> str:
    """Return a hash of all that decides a prediction, so that a folder never mixes those of two models."""
    network = getattr(module, "network", module)
    facts = (settings, getattr(module, "reliability", None), getattr(module, "looks", None))
    digest = hashlib.sha256(repr((*facts, getattr(network, "scaling_w", None))).encode())
    for key, value in module.state_dict().items():
        digest.update(key.encode())
        digest.update(value.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()


def overlay(image: Tensor, quad_px: Tensor, state: str | None, size_hw: tuple[int, int]) -> Pixels:
    """Return the picture inside wide margins, with the outline of the original's frame; a dot at its top left.

    Args:
        image: What is seen (3, H, W).
        quad_px: Where its corners were in the original (4, 2).
        state: Its reliability, which gives the colour; None where there is none.
        size_hw: Of the original.
    """
    height, width = image.shape[-2:]
    scale = min(1.0, _OVERLAY_SIDE / max(height, width))
    inner = (max(1, round(height * scale)), max(1, round(width * scale)))
    top, left = inner[0] // 2, inner[1] // 2
    canvas = np.full((inner[0] + 2 * top, inner[1] + 2 * left, 3), 235, np.uint8)
    picture = cv2.resize(to_picture(image), inner[::-1], interpolation=cv2.INTER_AREA)
    canvas[top : top + inner[0], left : left + inner[1]] = picture
    frame = frame_corners_px(height, width)
    to_seen = invert_homography(homography_from_quads(frame, quad_px.cpu().double()))
    outline = apply_homography(to_seen, frame_corners_px(*size_hw)).numpy() * scale + [left, top]
    if not np.isfinite(outline).all():
        return canvas
    points = np.clip(outline, -20_000, 20_000).round().astype(np.int32)
    thickness = max(2, max(canvas.shape) // 250)
    cv2.polylines(canvas, [points], True, _COLOURS.get(state, _COLOURS[None]), thickness, cv2.LINE_AA)
    cv2.circle(canvas, [int(value) for value in points[0]], 3 * thickness, _COLOURS.get(state, _COLOURS[None]), -1)
    return canvas


def _embedded(
    module: SyncPredictor, images: Tensor, settings: SyncSettings
) -> list[tuple[dict[str, Any], dict[str, Pixels]]]:
    marked = module.network.embed(images).marked
    answers = []
    for original, result in zip(images, marked, strict=True):
        ratio = float(psnr(result[None], original[None]))
        pictures = {"marked": to_picture(result)}
        if settings.difference:
            pictures["difference"] = to_picture((0.5 + _DIFFERENCE_GAIN * (result - original)).clamp(0, 1))
        answers.append(({"psnr_db": round(ratio, 3) if math.isfinite(ratio) else None}, pictures))
    return answers


def _straightened(
    module: SyncPredictor, images: Tensor, settings: SyncSettings
) -> list[tuple[dict[str, Any], dict[str, Pixels]]]:
    height, width = images.shape[-2:]
    size_hw = settings.original_size or (height, width)
    found = module.detect(images)
    states = states_of(module, found)
    quads = found.quads_px * found.quads_px.new_tensor(
        [(size_hw[1] - 1) / (width - 1), (size_hw[0] - 1) / (height - 1)]
    )
    straight = unwarp(images, quads, size_hw)
    homographies = homography_from_quads(frame_corners_px(height, width, quads.device).expand_as(quads), quads)
    answers = []
    for place, state in enumerate(states):
        left = settings.absent == "leave" and state == "absent"
        record = {
            "corners_px": _rounded(quads[place], 3),
            "homography": _rounded(homographies[place], 9),
            "original_width": size_hw[1],
            "original_height": size_hw[0],
            "presence": _number(found.presence[place]),
            "spread": _number(found.spread[place]),
            "reliability": state,
            "straightened": bool(straight.ok[place]) and not left,
        }
        pictures = {}
        if settings.mode == "rectify":
            pictures["rectified"] = to_picture(images[place] if left else straight.images[place])
        if settings.overlay:
            pictures["overlay"] = overlay(images[place], quads[place], state, size_hw)
        answers.append((record, pictures))
    return answers


def states_of(module: SyncPredictor, found: Detection) -> list[str | None]:
    """Return the reliability of each answer; None where the weights were never calibrated."""
    if module.reliability is None:
        return [None] * len(found.presence)
    return list(module.reliability.states(found.presence.cpu().numpy(), found.spread.cpu().numpy()))


def _rounded(values: Tensor, digits: int) -> list[list[float | None]]:
    rows = values.detach().cpu().double().tolist()
    return [[round(value, digits) if math.isfinite(value) else None for value in row] for row in rows]


def _number(value: Tensor) -> float | None:
    number = float(value)
    return round(number, 5) if math.isfinite(number) else None
