"""From whole documents to documents whose seals look real: crop, forge, paste back; labels stay as they are."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from lightning_modules.functional.pixels import to_picture
from lightning_modules.functional.regions import label_regions

from .forger_network import allowed_around

Forge = Callable[[Tensor, Tensor, list[int]], Tensor]
"""Maps crops (N, 3, S, S) in [0, 1], their ink (N, 1, S, S) bool and a seed for each to crops made real."""

_SEEDS_A_DOCUMENT = 1000
_FEWEST_INK = 16  # pixels; less than that is a speck, not a seal
_REACH = 0.03  # of the shorter side: strokes of one seal lie closer together than that


@dataclass(frozen=True)
class RealiseSettings:
    """How a document's seals are cut out and put back."""

    size: int | None = 128
    """Side of the crops that the forger sees; null leaves them at the document's own scale."""
    margin: float = 0.15
    """Room around a seal's box on each side, as a share of its longer side."""
    paste: Literal["residual", "pixels"] = "residual"
    """``residual`` adds the change, which keeps the document's own detail where crops are reduced; ``pixels`` takes
    the crop as it is."""
    batch: int = 8
    """Crops in one pass."""

    def __post_init__(self) -> None:
        if self.size is not None and self.size < 16:
            raise ValueError(f"model.realise.size must be at least 16 or null, got {self.size}")
        if self.margin < 0:
            raise ValueError(f"model.realise.margin must not be negative, got {self.margin}")
        if self.batch < 1:
            raise ValueError(f"model.realise.batch must be at least 1, got {self.batch}")


@dataclass(frozen=True)
class Window:
    """A square of a document, which may reach over its borders."""

    left: int
    top: int
    side: int

    def inside(self, height: int, width: int) -> tuple[slice, slice]:
        """Return rows and columns of the document that lie in the window."""
        rows = slice(max(0, self.top), min(height, self.top + self.side))
        return rows, slice(max(0, self.left), min(width, self.left + self.side))

    def within(self, height: int, width: int) -> tuple[slice, slice]:
        """Return rows and columns of the window that lie in the document."""
        rows, columns = self.inside(height, width)
        return (
            slice(rows.start - self.top, rows.stop - self.top),
            slice(columns.start - self.left, columns.stop - self.left),
        )


@dataclass(frozen=True)
class SealCrop:
    """A seal cut out of a document."""

    document: int
    """Position of the document in its batch."""
    window: Window
    image: Tensor
    """(3, S, S) in [0, 1]."""
    ink: Tensor
    """Bool (1, S, S)."""
    allowed: Tensor
    """Where the document may change for this seal, bool (H, W)."""
    seed: int


def window_around(box: Sequence[float], margin: float) -> Window:
    """Return the square around a box (x0, y0, x1, y1) with room on each side."""
    x0, y0, x1, y1 = box
    side = max(1, math.ceil(max(x1 - x0, y1 - y0) * (1 + 2 * margin)))
    return Window(round((x0 + x1 - side) / 2), round((y0 + y1 - side) / 2), side)


def cut(image: Tensor, window: Window, size: int | None) -> Tensor:
    """Return a window of (C, H, W) float as (C, S, S), its border repeated beyond the document's."""
    height, width = image.shape[-2:]
    rows, columns = window.inside(height, width)
    top, left = rows.start - window.top, columns.start - window.left
    bottom, right = window.side - top - (rows.stop - rows.start), window.side - left - (columns.stop - columns.start)
    crop = F.pad(image[None, :, rows, columns], (left, right, top, bottom), mode="replicate")
    if size is not None and size != window.side:
        crop = F.interpolate(crop, size=(size, size), mode="bilinear", antialias=True)
    return crop[0].clamp(0, 1)


def cut_seals(
    image: Tensor, ink: Tensor, boxes: Sequence[Sequence[float]], settings: RealiseSettings, dilation: int, seed: int
) -> list[SealCrop]:
    """Return the seals of a document, each with pixels of its own: where seals overlap, the first has them.

    Args:
        image: uint8 (3, H, W).
        ink: Bool (H, W).
        boxes: Of the seals, (x0, y0, x1, y1).
        settings: How to cut.
        dilation: By how many pixels of a crop the allowed mask is larger than the ink.
        seed: Of the document.
    """
    height, width = ink.shape
    unit, free = image.float() / 255, torch.ones_like(ink)
    crops = []
    for number, box in enumerate(boxes):
        window = window_around(box, settings.margin)
        rows, columns = window.inside(height, width)
        own = torch.zeros_like(ink)
        left, top, right, bottom = math.floor(box[0]), math.floor(box[1]), math.ceil(box[2]), math.ceil(box[3])
        part = (slice(max(0, top), max(0, bottom)), slice(max(0, left), max(0, right)))
        own[part] = (ink & free)[part]
        if rows.start >= rows.stop or columns.start >= columns.stop or not own.any():
            continue
        grown = math.ceil(dilation * window.side / (settings.size or window.side))
        allowed = torch.zeros_like(ink)
        allowed[rows, columns] = allowed_around(own[None, None, rows, columns], grown)[0, 0]
        allowed &= free
        crops.append(
            SealCrop(
                document=0,
                window=window,
                image=cut(unit, window, settings.size),
                ink=cut(own[None].float(), window, settings.size) > 0.5,
                allowed=allowed,
                seed=seed * _SEEDS_A_DOCUMENT + number,
            )
        )
        free = free & ~allowed
    return crops


def paste_back(image: Tensor, crop: SealCrop, forged: Tensor, paste: Literal["residual", "pixels"]) -> Tensor:
    """Return a document uint8 (3, H, W) with a forged crop (3, S, S) put in; equal bit for bit where not allowed."""
    height, width = image.shape[-2:]
    rows, columns = crop.window.inside(height, width)
    content = (forged - crop.image if paste == "residual" else forged)[None]
    side = crop.window.side
    if content.shape[-1] != side:
        content = F.interpolate(content, size=(side, side), mode="bilinear", antialias=True)
    inner_rows, inner_columns = crop.window.within(height, width)
    patch = content[0][:, inner_rows, inner_columns].float()
    old = image[:, rows, columns]
    value = old.float() + 255 * patch if paste == "residual" else 255 * patch
    new = value.clamp(0, 255).round().to(torch.uint8)
    result = image.clone()
    result[:, rows, columns] = torch.where(crop.allowed[rows, columns], new, old)
    return result


def realise(
    forge: Forge,
    documents: Sequence[tuple[Tensor, Tensor, Sequence[Sequence[float]], int]],
    settings: RealiseSettings,
    dilation: int,
) -> list[tuple[Tensor, Tensor]]:
    """Return each document with its seals made real, uint8 (3, H, W), and where it was allowed to change, bool (H, W).

    Args:
        forge: Makes crops real.
        documents: Images uint8 (3, H, W), their ink bool (H, W), the seals' boxes, and a seed.
        settings: How to cut and paste.
        dilation: By how many pixels of a crop the allowed mask is larger than the ink.
    """
    results = [(image, torch.zeros_like(ink)) for image, ink, _, _ in documents]
    crops = [
        SealCrop(number, crop.window, crop.image, crop.ink, crop.allowed, crop.seed)
        for number, (image, ink, boxes, seed) in enumerate(documents)
        for crop in cut_seals(image, ink, boxes, settings, dilation, seed)
    ]
    for part in _alike(crops, settings.batch):
        forged = forge(
            torch.stack([crop.image for crop in part]),
            torch.stack([crop.ink for crop in part]),
            [crop.seed for crop in part],
        )
        for crop, made in zip(part, forged, strict=True):
            image, changed = results[crop.document]
            results[crop.document] = paste_back(image, crop, made, settings.paste), changed | crop.allowed
    return results


@torch.inference_mode()
def realise_batch(
    forge: Forge, batch: Mapping[str, Any], settings: RealiseSettings, dilation: int, device: torch.device | str
) -> dict[str, Any]:
    """Return records and pictures of a batch of documents of any sizes.

    Args:
        forge: Makes crops real.
        batch: Lists: `image` (uint8 (3, H, W)), `ink` (bool or uint8, (1, H, W) or (H, W)), `path`, `index`, and
            `boxes` ((N, 4), x0 y0 x1 y1) where they are known; seals are found in the ink where they are not.
        settings: How to cut and paste.
        dilation: By how many pixels of a crop the allowed mask is larger than the ink.
        device: Where the forger is.
    """
    documents = []
    for position, pixels in enumerate(batch["image"]):
        ink = (batch["ink"][position] > 0).reshape(pixels.shape[-2:]).to(device)
        boxes = batch["boxes"][position].tolist() if "boxes" in batch else boxes_of_ink(ink.cpu().numpy())
        documents.append((pixels.to(device), ink, boxes, int(batch["index"][position])))
    records, pictures = [], []
    results = realise(forge, documents, settings, dilation)
    for path, (drawn, _, boxes, index), (made, allowed) in zip(batch["path"], documents, results, strict=True):
        records.append({"path": path, "index": index} | described(drawn, made, allowed, boxes))
        before, after = to_picture(drawn), to_picture(made)
        pictures.append({"realised": after, "pair": np.concatenate([before, after], axis=1)})
    return {"records": records, "images": pictures}


def described(drawn: Tensor, made: Tensor, allowed: Tensor, boxes: Sequence[Sequence[float]]) -> dict[str, Any]:
    """Return a JSON-able record of what was changed; `changed_outside` counts pixels and must be 0."""
    changed = (drawn != made).any(0)
    mean = (made.float() - drawn.float()).abs().mean(0)[allowed].mean() if bool(allowed.any()) else torch.zeros(())
    return {
        "width": drawn.shape[-1],
        "height": drawn.shape[-2],
        "seals": len(boxes),
        "boxes": [[round(float(value), 1) for value in box] for box in boxes],
        "allowed_fraction": round(float(allowed.float().mean()), 6),
        "mean_change_levels": round(float(mean), 3),
        "changed_outside": int((changed & ~allowed).sum()),
    }


def boxes_of_ink(ink: NDArray[np.bool_]) -> list[list[float]]:
    """Return boxes (x0, y0, x1, y1) of what ink (H, W) lies together, one inside another merged."""
    reach = max(3, 2 * round(_REACH * min(ink.shape)) + 1)
    near = cv2.dilate(ink.view(np.uint8), np.ones((reach, reach), np.uint8)) > 0
    count, labels, _ = label_regions(near)
    boxes = []
    for number in range(1, count + 1):
        rows, columns = np.nonzero((labels == number) & ink)
        if len(rows) >= _FEWEST_INK:
            box = [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]
            boxes.append([float(value) for value in box])
    boxes.sort(key=lambda box: (box[0] - box[2]) * (box[3] - box[1]))
    outer: list[list[float]] = []
    for box in boxes:
        if not any(_holds(other, box) for other in outer):
            outer.append(box)
    return outer


def _holds(outer: Sequence[float], inner: Sequence[float]) -> bool:
    return outer[0] <= inner[0] and outer[1] <= inner[1] and outer[2] >= inner[2] and outer[3] >= inner[3]


def _alike(crops: Sequence[SealCrop], most: int) -> list[list[SealCrop]]:
    """Return the crops in their order, in parts of one size and at most so many."""
    parts: list[list[SealCrop]] = []
    for crop in crops:
        last = parts[-1] if parts else None
        if last is not None and len(last) < most and last[0].image.shape == crop.image.shape:
            last.append(crop)
        else:
            parts.append([crop])
    return parts
