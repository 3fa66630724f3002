"""From images of any size to records: crops, scores, p-values, verdict, the map of the likeliest generator."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lightning_modules.functional.detection_calibration import Calibration, sigmoid
from lightning_modules.functional.passes import equal_together, side_by_side
from lightning_modules.functional.pixels import to_picture, to_unit

from .explanation import Box, draw_crops, draw_map, find_peaks, jpeg_grid_warning, mean_map, summary

if TYPE_CHECKING:
    from .bank import DetectorBank
    from .module import MaskSimModule

JPEG_BLOCK = 8


@dataclass(frozen=True)
class DetectionSettings:
    """Where an image is looked at, and what is written about it."""

    crops: Literal["centre", "five", "grid"] = "centre"
    """One window as in calibration; that and the corners; or windows side by side all over the image."""
    max_crops: int = 16
    """Of a grid; where there are more, an even choice of them."""
    maps: bool = True
    """Whether pictures are drawn: the similarity map of the likeliest generator and, where several, the crops."""
    dilation: int = 5
    """Bins a side by which bright bins grow in the picture, so that single ones are seen; 1 for none."""
    peaks: int = 5
    """Peaks listed at most."""
    batch: int = 4
    """Crops of an image in one pass of the network; bounds the memory."""

    def __post_init__(self) -> None:
        if self.crops not in ("centre", "five", "grid"):
            raise ValueError(f"`crops` must be centre, five or grid, got {self.crops!r}")
        for name in ("max_crops", "dilation", "batch"):
            if getattr(self, name) < 1:
                raise ValueError(f"`{name}` must be at least 1, got {getattr(self, name)}")
        if self.peaks < 0:
            raise ValueError(f"`peaks` must not be negative, got {self.peaks}")


@dataclass(frozen=True)
class _Scores:
    """What the network says of one image."""

    boxes: list[Box]
    logits: NDArray[np.float64]
    """One row a crop, one column a generator."""
    head: int
    """The likeliest generator's."""
    similarity: NDArray[np.float64] | None
    """Its mean map (h, w) over the crops."""


def predict_batch(module: MaskSimModule, batch: Mapping[str, Any], settings: DetectionSettings) -> dict[str, Any]:
    """Return records and pictures of a batch of uint8 images (3, H, W) of any sizes; the batch may be empty."""
    bank, images = module.scorer(), batch["image"]
    finished: list[tuple[dict[str, Any], dict[str, NDArray[np.uint8]]]] = [({}, {})] * len(images)

    def run(part: list[int]) -> None:
        with torch.inference_mode():  # is a thread's own
            for position in part:
                scores = _score(bank, images[position], module.calibration, settings, module.device)
                about = {"path": str(batch["path"][position]), "index": int(batch["index"][position])}
                finished[position] = _report(about, images[position], scores, bank, module.calibration, settings)

    crops = [len(_boxes_of(image, bank.img_size, settings)) for image in images]
    side_by_side(run, equal_together({i: (count,) for i, count in enumerate(crops)}, 1), module.device)
    return {"records": [record for record, _ in finished], "images": [pictures for _, pictures in finished]}


def crop_boxes(height: int, width: int, side: int, settings: DetectionSettings) -> list[Box]:
    """Return the windows to look at, the centre first, in steps of 8 pixels: the grid of a JPEG keeps its phase.

    A window reaches beyond an image that is smaller.
    """
    top, left = centre_start(height, side), centre_start(width, side)
    if settings.crops == "centre":
        places = [(top, left)]
    elif settings.crops == "five":
        rows, columns = (0, _last_start(height, side)), (0, _last_start(width, side))
        places = [(top, left), *((row, column) for row in rows for column in columns)]
    else:
        places = [(row, column) for row in _grid_starts(height, side) for column in _grid_starts(width, side)]
        if len(places) > settings.max_crops:
            chosen = np.linspace(0, len(places) - 1, settings.max_crops).round().astype(int)
            places = [places[position] for position in chosen]
    return [(column, row, column + side, row + side) for row, column in dict.fromkeys(places)]


def centre_start(length: int, side: int) -> int:
    """Return where the centred window starts, in steps of 8, as in evaluation data; 0 where the image is smaller."""
    return max(0, length // 2 - side // 2) // JPEG_BLOCK * JPEG_BLOCK


def take_window(image: Tensor, box: Box) -> Tensor:
    """Return a window of an image (3, H, W); where it reaches beyond, the image goes on mirrored, as the data do it."""
    left, top, right, bottom = box
    height, width = image.shape[-2:]
    if right <= width and bottom <= height:
        return image[:, top:bottom, left:right]
    rows, columns = mirrored_positions(top, bottom, height), mirrored_positions(left, right, width)
    return image.index_select(1, rows.to(image.device)).index_select(2, columns.to(image.device))


def mirrored_positions(start: int, stop: int, length: int) -> Tensor:
    """Return the positions from start to stop, those outside mirrored with the edge repeated, as often as needed."""
    folded = torch.arange(start, stop).remainder(2 * length)
    return torch.minimum(folded, 2 * length - 1 - folded)


def merged_p_value(p_values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the p-values (G,) of an image from those of its crops (K, G).

    Crops of an image depend on each other in unknown ways. Twice the mean of p-values is itself a valid p-value
    whatever the dependence (Rüschendorf 1982; Vovk and Wang 2020); a table of single crops says nothing of mean logits.
    """
    merged: NDArray[np.float64] = p_values[0] if len(p_values) == 1 else np.minimum(1.0, 2 * p_values.mean(axis=0))
    return merged


def likeliest_head(logits: NDArray[np.float64], calibration: Calibration | None) -> int:
    """Return the head with the least p-value, of several the one with the highest mean logit, of logits (K, G).

    Raw logits of two heads cannot be compared, so without a calibration it is a guess.
    """
    mean = logits.mean(axis=0)
    if calibration is None:
        return int(mean.argmax())
    return int(np.lexsort((-mean, merged_p_value(calibration.p_values(logits))))[0])


def _score(
    bank: DetectorBank,
    image: Tensor,
    calibration: Calibration | None,
    settings: DetectionSettings,
    device: torch.device,
) -> _Scores:
    boxes = _boxes_of(image, bank.img_size, settings)
    logits, spectra = [], []
    for start in range(0, len(boxes), settings.batch):
        windows = torch.stack([take_window(image, box) for box in boxes[start : start + settings.batch]])
        spectrum = bank.log_spectrum(to_unit(windows.to(device)))
        logits.append(bank.score(spectrum).double().cpu())
        if settings.maps or settings.peaks:
            spectra.append(spectrum)
    found = torch.cat(logits).numpy()
    head = likeliest_head(found, calibration)
    if not spectra:
        return _Scores(boxes, found, head, None)
    maps = torch.stack([bank.spectrum_map(spectrum, head).double().sum(0) for spectrum in spectra])
    return _Scores(boxes, found, head, mean_map((maps.sum(0) / len(boxes)).cpu().numpy()))


def _report(
    about: dict[str, Any],
    image: Tensor,
    scores: _Scores,
    bank: DetectorBank,
    calibration: Calibration | None,
    settings: DetectionSettings,
) -> tuple[dict[str, Any], dict[str, NDArray[np.uint8]]]:
    """Return the record of an image and its pictures by name."""
    height, width = image.shape[-2:]
    likeliest = bank.generators[scores.head]
    peaks = find_peaks(scores.similarity, settings.peaks) if scores.similarity is not None and settings.peaks else []
    record = about | {"width": width, "height": height, "crops": _crop_records(scores, bank.generators)}
    record |= _judged(scores, bank.generators, calibration)
    record |= {
        "peaks": [peak.record() for peak in peaks],
        "jpeg_grid_warning": jpeg_grid_warning(peaks),
        "notes": _notes(height, width, bank.img_size, len(scores.boxes), calibration),
    }
    if not settings.maps or scores.similarity is None:
        return record, {}
    told = record["generators"][likeliest]
    figures = {name: told[name] for name in ("logit", "probability", "p_value") if told[name] is not None}
    title = f"Similarity to {likeliest}"
    pictures = {"map": draw_map(scores.similarity, title, summary(peaks, figures), peaks, settings.dilation)}
    if len(scores.boxes) > 1:
        column = scores.logits[:, scores.head]
        caption = f"{likeliest}: logit of each crop, mean {column.mean():+.1f}"
        pictures["crops"] = draw_crops(to_picture(image), scores.boxes, list(column), caption)
    return record, pictures


def _judged(scores: _Scores, generators: Sequence[str], calibration: Calibration | None) -> dict[str, Any]:
    """Return the scores of each generator and of any, and the verdict."""
    mean = scores.logits.mean(axis=0)
    p_values: list[float | None] = [None] * len(generators)
    any_p, verdict = None, "not calibrated"
    if calibration is not None:
        p_values = [float(p) for p in merged_p_value(calibration.p_values(scores.logits))]
        any_p = float(merged_p_value(calibration.any_p_value(scores.logits)[:, None])[0])
        verdict = calibration.verdict(any_p)
    chances = sigmoid(mean) if calibration is None else calibration.probability(mean)
    rows = {
        name: {"logit": round(float(logit), 5), "probability": round(float(chance), 6), "p_value": p_value}
        for name, logit, chance, p_value in zip(generators, mean, chances, p_values, strict=True)
    }
    likeliest = generators[scores.head]
    summed_up = {"generator": likeliest, "score": rows[likeliest]["probability"], "p_value": any_p}
    return {"generators": rows, "any": summed_up, "verdict": verdict}


def _crop_records(scores: _Scores, generators: Sequence[str]) -> list[dict[str, Any]]:
    return [
        {"box": list(box), "logits": {name: round(float(v), 5) for name, v in zip(generators, row, strict=True)}}
        for box, row in zip(scores.boxes, scores.logits, strict=True)
    ]


def _notes(height: int, width: int, side: int, crops: int, calibration: Calibration | None) -> list[str]:
    notes = []
    if min(height, width) < side:
        notes.append(f"smaller than the window of {side} px: continued by its mirror image")
    if calibration is None:
        notes.append("not calibrated: no p-values; see configs/masksim/calibrate.yaml")
    elif crops > 1:
        notes.append("p-values are twice the mean of the crops' p-values")
    return notes


def _boxes_of(image: Tensor, side: int, settings: DetectionSettings) -> list[Box]:
    return crop_boxes(image.shape[-2], image.shape[-1], side, settings)


def _grid_starts(length: int, side: int) -> list[int]:
    """Return starts of windows side by side, in the middle of the length, in steps of 8."""
    if length < 2 * side:
        return [centre_start(length, side)]
    count = length // side
    pitch = (side + JPEG_BLOCK - 1) // JPEG_BLOCK * JPEG_BLOCK
    while (count - 1) * pitch + side > length:
        count -= 1
    first = (length - (count - 1) * pitch - side) // 2 // JPEG_BLOCK * JPEG_BLOCK
    return [first + pitch * number for number in range(count)]


def _last_start(length: int, side: int) -> int:
    return max(0, length - side) // JPEG_BLOCK * JPEG_BLOCK
