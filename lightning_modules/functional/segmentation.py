"""How well a binary mask was found: counts of pixels, overlap in three conventions, and boundaries."""

import math
from typing import Literal, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

Convention = Literal["micro", "imagewise", "slbr"]

SLBR_IOU_EPS = 1e-5
SLBR_F1_EPS = 1e-6


class ConfusionCounts(NamedTuple):
    """Pixels of each image by prediction and truth, int64 (B,)."""

    tp: Tensor
    fp: Tensor
    fn: Tensor
    tn: Tensor


def confusion_counts(predicted: Tensor, mask: Tensor, ignore: Tensor | None = None) -> ConfusionCounts:
    """Count the pixels of each image that are in no ignore band.

    Args:
        predicted: Bool or in {0, 1}, (B, ...).
        mask: Truth, bool or in {0, 1}, of the same shape.
        ignore: True where a pixel does not count, of the same shape.
    """
    found, true = predicted.bool().flatten(1), mask.bool().flatten(1)
    valid = torch.ones_like(true) if ignore is None else ~ignore.bool().flatten(1)

    def count(pixels: Tensor) -> Tensor:
        return (pixels & valid).sum(dim=1)

    return ConfusionCounts(count(found & true), count(found & ~true), count(~found & true), count(~found & ~true))


def image_iou(counts: ConfusionCounts, when_empty: float = 1.0) -> Tensor:
    """Return intersection over union of each image (B,); ``when_empty`` where truth and prediction are both empty."""
    return _ratio(counts.tp, counts.tp + counts.fp + counts.fn, when_empty)


def image_f1(counts: ConfusionCounts, when_empty: float = 1.0) -> Tensor:
    """Return the F1 of each image (B,); ``when_empty`` where truth and prediction are both empty."""
    return _ratio(2 * counts.tp, 2 * counts.tp + counts.fp + counts.fn, when_empty)


def iou(counts: ConfusionCounts, convention: Convention) -> Tensor:
    """Return one intersection over union for all images.

    Args:
        counts: Of each image.
        convention: ``micro`` adds the counts of all images first; ``imagewise`` averages over images, where empty
            truth found empty counts 1 (smp); ``slbr`` averages with 1e-5 in the denominator, where it counts 0.
    """
    if convention == "micro":
        return image_iou(_pooled(counts)).squeeze(0)
    if convention == "imagewise":
        return image_iou(counts).mean()
    union = (counts.tp + counts.fp + counts.fn).double()
    return (counts.tp / (union + SLBR_IOU_EPS)).mean()


def f1(counts: ConfusionCounts, convention: Convention) -> Tensor:
    """Return one F1 for all images; conventions as in `iou`, with 1e-6 in SLBR's three denominators."""
    if convention == "micro":
        return image_f1(_pooled(counts)).squeeze(0)
    if convention == "imagewise":
        return image_f1(counts).mean()
    tp, eps = counts.tp.double(), SLBR_F1_EPS
    found = tp / (counts.tp + counts.fp + eps)
    recalled = tp / (counts.tp + counts.fn + eps)
    return (2 * found * recalled / (found + recalled + eps)).mean()


def precision(counts: ConfusionCounts, when_empty: float = 1.0) -> Tensor:
    """Return the share of predicted pixels, of all images together, that are mark."""
    return _ratio(counts.tp.sum(), (counts.tp + counts.fp).sum(), when_empty)


def recall(counts: ConfusionCounts, when_empty: float = 1.0) -> Tensor:
    """Return the share of mark pixels, of all images together, that were found."""
    return _ratio(counts.tp.sum(), (counts.tp + counts.fn).sum(), when_empty)


def false_area(counts: ConfusionCounts) -> Tensor:
    """Return the share of each image's unmarked pixels that was called mark (B,); nan where there are none."""
    return _ratio(counts.fp, counts.fp + counts.tn, math.nan)


def boundary_tolerance(height: int, width: int, fraction: float = 0.008) -> int:
    """Return the tolerance in pixels that is a fraction of the image's diagonal; 0.008 is DAVIS's."""
    return math.ceil(fraction * math.hypot(height, width))


def boundary(mask: Tensor) -> Tensor:
    """Return the mask's pixels with a 4-neighbour outside it, bool (B, 1, H, W); the frame is no boundary."""
    outside = F.pad((~mask.bool()).float(), (1, 1, 1, 1))
    vertical = torch.maximum(outside[..., :-2, 1:-1], outside[..., 2:, 1:-1])
    horizontal = torch.maximum(outside[..., 1:-1, :-2], outside[..., 1:-1, 2:])
    return mask.bool() & (torch.maximum(vertical, horizontal) > 0)


def boundary_f1(predicted: Tensor, mask: Tensor, tolerance_px: float) -> Tensor:
    """Return the F1 of each image's boundary pixels (B,), found where the other boundary is within the tolerance.

    1 where both masks have no boundary, 0 where only one has none. There is no ignore band here: it lies on the
    boundaries, and the tolerance does its work.

    Args:
        predicted: (B, 1, H, W), bool or in {0, 1}.
        mask: Truth, of the same shape.
        tolerance_px: Largest Euclidean distance between pixel centres.
    """
    found, true = boundary(predicted), boundary(mask)
    found_hits = (found & _within(true, tolerance_px)).flatten(1).sum(dim=1)
    true_hits = (true & _within(found, tolerance_px)).flatten(1).sum(dim=1)
    found_total, true_total = found.flatten(1).sum(dim=1), true.flatten(1).sum(dim=1)
    exact = _ratio(found_hits, found_total, 0.0)
    complete = _ratio(true_hits, true_total, 0.0)
    score = _ratio(2 * exact * complete, exact + complete, 0.0)
    return torch.where((found_total == 0) & (true_total == 0), torch.ones_like(score), score)


def _within(pixels: Tensor, radius: float) -> Tensor:
    """Dilate by a disk: its rows are runs, which grow by one pixel on either side as the rows get longer."""
    reach = math.floor(radius)
    height, width = pixels.shape[-2:]
    padded = F.pad(pixels, (reach, reach, reach, reach))
    run = padded[..., reach : reach + width].clone()  # height + 2 reach rows
    grown = torch.zeros_like(pixels)
    half = 0
    for offset in range(reach, -1, -1):  # from the shortest row of the disk to the longest
        while half < math.isqrt(math.floor(radius**2 - offset**2)):
            half += 1
            run |= padded[..., reach - half : reach - half + width]
            run |= padded[..., reach + half : reach + half + width]
        grown |= run[..., reach - offset : reach - offset + height, :]
        grown |= run[..., reach + offset : reach + offset + height, :]
    return grown


def _pooled(counts: ConfusionCounts) -> ConfusionCounts:
    return ConfusionCounts(*(count.sum(dim=0, keepdim=True) for count in counts))


def _ratio(numerator: Tensor, denominator: Tensor, when_empty: float) -> Tensor:
    # In float64: counts of a data set exceed what float32 holds exactly.
    quotient = numerator.double() / denominator.double().clamp(min=1e-12)
    return torch.where(denominator == 0, torch.full_like(quotient, when_empty), quotient)
