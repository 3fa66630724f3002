"""From a network to masks and records: images of any size, tiles, test-time augmentation, clean-up of the mask."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from lightning_modules.functional import morphology, regions
from lightning_modules.functional.passes import equal_together, side_by_side
from lightning_modules.functional.pixels import to_picture, to_unit
from lightning_modules.functional.tiling import tile_grid

Forward = Callable[[Tensor], Tensor]
"""Maps images (B, 3, H, W) to mark probabilities (B, 1, H, W)."""

_MIN_SIDE = 32  # a network of five halvings has something to look at from here on; smaller images are padded
_TINT = (255, 0, 64)  # rare in photographs and on marks
_TTA_SCALES = (0.75, 1.25)


@dataclass(frozen=True)
class InferenceSettings:
    """How an image becomes a probability map and the map becomes a mask."""

    tile: int = 512
    """Side of a tile; images with no side above it take one pass at their own size."""
    overlap: float = 0.25
    """Least share of a tile that it has in common with its neighbour."""
    whole_image: bool | Literal["auto"] = "auto"
    """Also look at the whole image at reduced scale, for marks larger than a tile; auto: when tiles are needed."""
    whole_size: int = 512
    """Longest side of the reduced image."""
    fusion: Literal["max", "mean"] = "mean"
    """How the tiles' and the whole image's probabilities become one."""
    tta: Literal["none", "flips", "flips_scales"] = "none"
    """Test-time augmentation: the mean of 4 flips, or of these and 2 other scales."""
    low_threshold: float | None = None
    """Hysteresis: regions above this count where they hold a pixel above the threshold."""
    min_area: float = 0.0
    """Smaller regions are dropped; pixels, or below 1 a fraction of the image."""
    fill_holes: float = 0.0
    """Enclosed holes up to this area are filled; pixels, or below 1 a fraction of the image."""
    dilation: int = 0
    """Steps by which the mask grows (MorphoMod's ablations use 3)."""
    dilation_shape: Literal["cross", "square"] = "cross"
    """Neighbours taken in by a step: 4 (MorphoMod) or 8."""
    tile_batch: int = 4
    """Tiles or small images in one pass of the network; bounds the memory."""
    max_boxes: int = 200
    """Boxes listed in a record, the largest first."""

    def __post_init__(self) -> None:
        for name in ("tile", "whole_size"):
            if getattr(self, name) < _MIN_SIDE:
                raise ValueError(f"`{name}` must be at least {_MIN_SIDE}, got {getattr(self, name)}")
        if not 0 <= self.overlap <= 0.9:
            raise ValueError(f"`overlap` must be in [0, 0.9], got {self.overlap}")
        if self.tile_batch < 1:
            raise ValueError(f"`tile_batch` must be at least 1, got {self.tile_batch}")
        for name in ("min_area", "fill_holes", "dilation", "max_boxes"):
            if getattr(self, name) < 0:
                raise ValueError(f"`{name}` must not be negative, got {getattr(self, name)}")
        if self.low_threshold is not None and not 0 <= self.low_threshold <= 1:
            raise ValueError(f"`low_threshold` must be in [0, 1] or null, got {self.low_threshold}")


@torch.inference_mode()
def probability_map(forward: Forward, image: Tensor, settings: InferenceSettings) -> Tensor:
    """Return the mark probability of each pixel, (H, W) float32 on the CPU, of one image (3, H, W) of any size.

    The image is uint8 or in [0, 1]. The tiles go where it is: move it to the network's device first, or use
    `predict_batch`.
    """
    return _maps(forward, image, settings, image.device)[0]


def segment(
    probability: Tensor | NDArray[np.float32], threshold: float, settings: InferenceSettings
) -> NDArray[np.bool_]:
    """Return the (H, W) mask: above the threshold (with hysteresis), small regions out, holes filled, dilated."""
    values = _as_array(probability)
    low = settings.low_threshold
    if low is None or low >= threshold:
        mask: NDArray[np.bool_] = values > threshold
    else:
        mask = regions.hysteresis(values, low, threshold)
    if not mask.any():
        return mask
    mask = regions.drop_small_regions(mask, _area(settings.min_area, values.size))
    mask = regions.fill_small_holes(mask, _area(settings.fill_holes, values.size))
    return _dilated(mask, settings.dilation, settings.dilation_shape)


def describe(
    probability: Tensor | NDArray[np.float32],
    mask: NDArray[np.bool_],
    *,
    threshold: float,
    spread: Tensor | NDArray[np.float32] | None = None,
    max_boxes: int = 200,
) -> dict[str, Any]:
    """Return a JSON-able record of one image.

    `score` is the mean probability of the likeliest 0.1 % of pixels (16 at least), so that one odd pixel does not
    decide. `uncertainty` is the mean over the mask (the image, where the mask is empty) of `spread`, the standard
    deviation under test-time augmentation, or of the binary entropy in bits where there is no spread.
    """
    values = _as_array(probability)
    found = bool(mask.any())
    boxes, count = _boxes(values, mask, max_boxes) if found else ([], 0)
    return {
        "watermarked": found,
        "score": round(_top_mean(values), 5),
        "area_fraction": round(float(mask.mean()), 6),
        "uncertainty": round(_uncertainty(values, mask if found else None, spread), 5),
        "threshold": round(float(threshold), 5),
        "width": int(values.shape[1]),
        "height": int(values.shape[0]),
        "box_count": count,
        "boxes": boxes,
    }


@torch.inference_mode()
def predict_batch(
    forward: Forward,
    batch: Mapping[str, Any],
    settings: InferenceSettings,
    threshold: float,
    device: torch.device | str,
) -> dict[str, Any]:
    """Return the records and the mask and overlay images of a batch of images of any sizes.

    Args:
        forward: the network with its activation, (B, 3, H, W) to probabilities (B, 1, H, W).
        batch: `image` (a list of (3, H, W) tensors, uint8 or float in [0, 1]), `path`, `index`.
        settings: tiling, augmentation and clean-up.
        threshold: pixels above it are mark.
        device: where `forward` runs.
    """
    images: list[Tensor] = list(batch["image"])

    def finish(index: int, probability: Tensor, spread: Tensor | None) -> tuple[dict[str, Any], dict[str, Any]]:
        values = probability.numpy()
        if not math.isfinite(values.sum(dtype=np.float64)):
            raise ValueError(
                f"{batch['path'][index]}: the network's answer is no number: its training diverged or its file is "
                "damaged, use another checkpoint"
            )
        mask = segment(values, threshold, settings)
        record = {"path": str(batch["path"][index]), "index": int(batch["index"][index])}
        record |= describe(values, mask, threshold=threshold, spread=spread, max_boxes=settings.max_boxes)
        return record, {"mask": mask.view(np.uint8) * np.uint8(255), "overlay": overlay(images[index], mask)}

    finished = _for_each_map(forward, images, settings, torch.device(device), finish)
    return {"records": [record for record, _ in finished], "images": [pictures for _, pictures in finished]}


def overlay(image: Tensor, mask: NDArray[np.bool_]) -> NDArray[np.uint8]:
    """Return the (H, W, 3) uint8 picture of an image (3, H, W) with the mask tinted and outlined."""
    picture = to_picture(image)
    region = mask.view(np.uint8)
    if not mask.any():
        return picture
    # In the box of the mask only: most marks are small, and this runs beside the network.
    x, y, width, height = cv2.boundingRect(region)
    window = slice(y, y + height), slice(x, x + width)
    part, region = np.ascontiguousarray(picture[window]), np.ascontiguousarray(region[window])
    tint = np.empty_like(part)
    tint[:] = _TINT
    np.copyto(part, cv2.addWeighted(part, 0.5, tint, 0.5, 0), where=region[..., None] > 0)
    core = cv2.erode(region, np.ones((3, 3), np.uint8))
    np.copyto(part, tint, where=(region > core)[..., None])
    picture[window] = part
    return picture


def _for_each_map(
    forward: Forward,
    images: list[Tensor],
    settings: InferenceSettings,
    device: torch.device,
    finish: Callable[[int, Tensor, Tensor | None], Any],
) -> list[Any]:
    """Return what `finish` makes of each image's position, probability and spread; equal small ones share a pass."""
    finished: list[Any] = [None] * len(images)

    def run(part: list[int]) -> None:
        with torch.inference_mode():  # is a thread's own
            maps = _pass(forward, [images[index] for index in part], settings, device)
            for index, result in zip(part, maps, strict=True):
                finished[index] = finish(index, *result)

    small = {index: tuple(image.shape) for index, image in enumerate(images) if _one_pass(image, settings)}
    for index in range(len(images)):
        if index not in small:
            run([index])  # one by one: several at a time would multiply the memory
    side_by_side(run, equal_together(small, settings.tile_batch), device)
    return finished


def _pass(
    forward: Forward, images: list[Tensor], settings: InferenceSettings, device: torch.device
) -> list[tuple[Tensor, Tensor | None]]:
    """Return probability and spread of one image, or of several small ones of one size."""
    if not _one_pass(images[0], settings):
        return [_maps(forward, images[0], settings, device)]
    mean, spread = _augmented(forward, to_unit(torch.stack(images).to(device)), settings.tta)
    return [(mean[row].cpu(), None if spread is None else spread[row].cpu()) for row in range(len(images))]


def _one_pass(image: Tensor, settings: InferenceSettings) -> bool:
    return max(image.shape[-2:]) <= settings.tile and settings.whole_image is not True


def _maps(
    forward: Forward, image: Tensor, settings: InferenceSettings, device: torch.device
) -> tuple[Tensor, Tensor | None]:
    """Return the (H, W) probability and its spread (None without augmentation), float32 on the CPU."""
    if image.ndim != 3 or image.shape[0] != 3 or 0 in image.shape:
        raise ValueError(f"`image` must be (3, H, W) and not empty, got {tuple(image.shape)}")
    if _one_pass(image, settings):
        mean, spread = _augmented(forward, to_unit(image[None].to(device)), settings.tta)
        return mean[0].cpu(), None if spread is None else spread[0].cpu()
    maps = _tiled(forward, image, settings, device)
    if settings.whole_image is False:
        return maps
    whole = _whole(forward, image, settings, device)
    return _fuse(maps, whole, settings.fusion)


def _tiled(
    forward: Forward, image: Tensor, settings: InferenceSettings, device: torch.device
) -> tuple[Tensor, Tensor | None]:
    height, width = image.shape[-2:]
    tiles = tile_grid(height, width, settings.tile, settings.overlap)
    total = torch.zeros(height, width)
    total_spread = None if settings.tta == "none" else torch.zeros(height, width)
    for start in range(0, len(tiles), settings.tile_batch):
        part = tiles[start : start + settings.tile_batch]
        crops = to_unit(torch.stack([image[:, *tile.window] for tile in part]).to(device))
        mean, spread = _augmented(forward, crops, settings.tta)
        mean = mean.cpu()
        for row, tile in enumerate(part):
            total[tile.window] += mean[row] * tile.weight
            if total_spread is not None and spread is not None:
                total_spread[tile.window] += spread[row].cpu() * tile.weight
    return total, total_spread


def _whole(
    forward: Forward, image: Tensor, settings: InferenceSettings, device: torch.device
) -> tuple[Tensor, Tensor | None]:
    height, width = image.shape[-2:]
    scale = min(1.0, settings.whole_size / max(height, width))
    size = max(1, round(height * scale)), max(1, round(width * scale))
    reduced = _resize(to_unit(image[None]), size).to(device)
    mean, spread = _augmented(forward, reduced, settings.tta)
    full = _resize(mean[None].cpu(), (height, width))[0, 0]
    return full, None if spread is None else _resize(spread[None].cpu(), (height, width))[0, 0]


def _fuse(
    tiles: tuple[Tensor, Tensor | None], whole: tuple[Tensor, Tensor | None], fusion: Literal["max", "mean"]
) -> tuple[Tensor, Tensor | None]:
    """Fuse in place of the tiles' maps; the spread follows the view that decides, or is the mean of both."""
    (probability, spread), (other, other_spread) = tiles, whole
    if fusion == "mean":
        if spread is not None and other_spread is not None:
            spread.add_(other_spread).mul_(0.5)
        return probability.add_(other).mul_(0.5), spread
    if spread is not None and other_spread is not None:
        spread = torch.where(other > probability, other_spread, spread)
    return torch.maximum(probability, other, out=probability), spread


def _augmented(forward: Forward, images: Tensor, tta: str) -> tuple[Tensor, Tensor | None]:
    """Return mean and standard deviation (B, H, W) of the probability over the views of a batch."""
    if tta == "none":
        return _call(forward, images), None
    views = [_flipped(forward, images, axes) for axes in ((), (-1,), (-2,), (-2, -1))]
    if tta == "flips_scales":
        views += [_scaled(forward, images, scale) for scale in _TTA_SCALES]
    stacked = torch.stack(views)
    return stacked.mean(0), stacked.std(0, unbiased=False)


def _flipped(forward: Forward, images: Tensor, axes: tuple[int, ...]) -> Tensor:
    return _call(forward, images.flip(axes)).flip(axes) if axes else _call(forward, images)


def _scaled(forward: Forward, images: Tensor, scale: float) -> Tensor:
    height, width = images.shape[-2:]
    size = max(1, round(height * scale)), max(1, round(width * scale))
    return _resize(_call(forward, _resize(images, size))[:, None], (height, width))[:, 0]


def _call(forward: Forward, images: Tensor) -> Tensor:
    """Return (B, H, W) float32 probabilities; very small images are padded by their border and cropped back."""
    height, width = images.shape[-2:]
    pad = max(0, _MIN_SIDE - height), max(0, _MIN_SIDE - width)
    if any(pad):
        images = F.pad(images, (0, pad[1], 0, pad[0]), mode="replicate")
    probability = forward(images).float()
    if probability.ndim == 4:
        probability = probability[:, 0]
    return probability[:, :height, :width]


def _resize(images: Tensor, size: tuple[int, int]) -> Tensor:
    if tuple(images.shape[-2:]) == size:
        return images
    return F.interpolate(images, size=size, mode="bilinear", align_corners=False, antialias=True)


def _as_array(values: Tensor | NDArray[np.float32]) -> NDArray[np.float32]:
    array = values.detach().cpu().numpy() if isinstance(values, Tensor) else values
    return np.ascontiguousarray(array, dtype=np.float32)


def _dilated(mask: NDArray[np.bool_], iterations: int, shape: Literal["cross", "square"]) -> NDArray[np.bool_]:
    if iterations == 0:
        return mask
    grown = torch.from_numpy(mask.view(np.uint8))[None, None]
    if shape == "cross":
        grown = morphology.dilate_cross(grown, iterations)
    else:
        grown = morphology.dilate_square(grown, 2 * iterations + 1)
    array: NDArray[np.uint8] = grown[0, 0].numpy()
    return array.view(np.bool_)


def _area(value: float, pixels: int) -> int:
    return math.ceil(value * pixels) if 0 < value < 1 else math.ceil(value)


def _top_mean(values: NDArray[np.float32]) -> float:
    count = min(values.size, max(16, values.size // 1000))
    flat = values.reshape(-1)
    return float(np.partition(flat, flat.size - count)[flat.size - count :].mean(dtype=np.float64))


def _uncertainty(
    values: NDArray[np.float32], mask: NDArray[np.bool_] | None, spread: Tensor | NDArray[np.float32] | None
) -> float:
    if spread is not None:
        chosen = _as_array(spread)
        return float((chosen if mask is None else chosen[mask]).mean(dtype=np.float64))
    p = (values.reshape(-1) if mask is None else values[mask]).clip(1e-7, 1 - 1e-7)
    return float(-(p * np.log2(p) + (1 - p) * np.log2(1 - p)).mean(dtype=np.float64))


def _boxes(values: NDArray[np.float32], mask: NDArray[np.bool_], limit: int) -> tuple[list[dict[str, Any]], int]:
    """Return the largest regions as boxes [x0, y0, x1, y1) with area and mean probability, and how many there are."""
    count, labels, stats = regions.label_regions(mask)
    sums = np.bincount(labels[mask], weights=values[mask], minlength=count + 1)
    largest = 1 + np.argsort(-stats[1:, cv2.CC_STAT_AREA], kind="stable")[:limit]
    boxes = []
    for label in largest:
        x, y, width, height, area = (int(v) for v in stats[label])
        score = round(float(sums[label]) / area, 5)
        boxes.append({"box": [x, y, x + width, y + height], "area": area, "score": score})
    return boxes, count
