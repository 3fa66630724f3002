"""How well are marks found: overlap, boundaries and false marks, per family of marks and band of opacity."""

import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any, ClassVar

import numpy as np
import torch
from lightning.pytorch import LightningModule
from numpy.typing import NDArray
from torch import Tensor

from callbacks.evaluation import EvaluationCallback, Stage
from callbacks.metrics.bootstrap import Floats, Statistic, mean_of, ratio_of_sums
from callbacks.metrics.sample_table import Table
from lightning_modules.functional.morphology import dilate_cross
from lightning_modules.functional.segmentation import (
    ConfusionCounts,
    boundary_f1,
    boundary_tolerance,
    confusion_counts,
    f1,
    false_area,
    image_f1,
    image_iou,
    iou,
)

Mask = NDArray[np.bool_]
_PER_IMAGE = ("iou", "f1", "iou_slbr", "f1_slbr", "boundary_f", "false_area", "clean", "opacity")


class SegmentationEvaluation(EvaluationCallback):
    """Reports IoU and F1 in the conventions of the field, boundary F and the area of false marks.

    Pixels of the ignore band take part in nothing but `boundary_f`. "Marked" images have a true pixel outside that
    band, "clean" ones have none at all. Names that end in `_dataset` and `precision` and `recall` add the pixels of
    all images. Where truth and prediction are both empty, `iou_image` and `f1_image` are 1 (smp's convention),
    `iou_slbr` and `f1_slbr` 0 (that of SLBR's code). `boundary_f` is over marked images.

    Args:
        threshold: Probability above which a pixel is marked; the module's own `threshold` where not given.
        boundary_tolerance: Pixels that a boundary may be off; 0.8 % of the image's diagonal where not given.
        opacity_bands: Ascending edges of the bands of opacity.
        dilations: Numbers of dilations by the 4-connected cross at which counts are made once more.
        stages: Stages that end with a table on the terminal and files; values are logged in every stage.
        output_dir: Folder for the files; the run's log folder where not given.
        resamples: Number of bootstrap data sets behind the 95 % intervals.
        bootstrap_seed: Seed of the resampling.
    """

    required_outputs: ClassVar[tuple[str, ...]] = ("probability", "mask", "ignore", "family", "opacity")
    text_columns: ClassVar[tuple[str, ...]] = ("family",)

    def __init__(
        self,
        threshold: float | None = None,
        boundary_tolerance: float | None = None,
        opacity_bands: Sequence[float] = (0.3, 0.5, 0.7, 0.9),
        dilations: Sequence[int] = (),
        stages: Sequence[Stage] = ("test",),
        output_dir: str | None = None,
        resamples: int = 1000,
        bootstrap_seed: int = 0,
    ) -> None:
        super().__init__(stages, output_dir, resamples, bootstrap_seed)
        if threshold is not None and not 0 <= threshold <= 1:
            raise ValueError(f"`threshold` of SegmentationEvaluation must be in [0, 1], got {threshold}")
        if list(opacity_bands) != sorted(set(opacity_bands)):
            raise ValueError(f"`opacity_bands` of SegmentationEvaluation must ascend, got {list(opacity_bands)}")
        if any(times < 0 for times in dilations):
            raise ValueError(f"`dilations` of SegmentationEvaluation must be 0 or more, got {list(dilations)}")
        self.threshold = threshold
        self.boundary_tolerance = boundary_tolerance
        self.opacity_bands = tuple(opacity_bands)
        self.dilations = tuple(dilations)

    @property
    def columns(self) -> tuple[str, ...]:
        """Counts of pixels, what follows from them for the image, and the counts after each dilation."""
        dilated = (f"{name}_dilated_{times}" for times in self.dilations for name in ConfusionCounts._fields)
        return (*ConfusionCounts._fields, *_PER_IMAGE, *dilated)

    def rows(
        self,
        pl_module: LightningModule,
        outputs: Mapping[str, Any],
        batch: Any,
    ) -> dict[str, Tensor | Sequence[str]]:
        """The columns of each image at the threshold."""
        predicted, mask = outputs["probability"] > self._threshold(pl_module), outputs["mask"] > 0.5
        counts = confusion_counts(predicted, mask, outputs["ignore"])
        rows: dict[str, Tensor | Sequence[str]] = {
            **_counts_by_name(counts),
            "iou": image_iou(counts),
            "f1": image_f1(counts),
            "iou_slbr": _image_by_image(counts, partial(iou, convention="slbr")),
            "f1_slbr": _image_by_image(counts, partial(f1, convention="slbr")),
            "boundary_f": boundary_f1(predicted, mask, self._tolerance(mask)),
            "false_area": false_area(counts),
            "clean": ~mask.flatten(1).any(1),
            "opacity": outputs["opacity"],
            "family": outputs["family"],
        }
        for times in self.dilations:
            dilated = confusion_counts(dilate_cross(predicted, times), mask, outputs["ignore"])
            rows.update(_counts_by_name(dilated, f"_dilated_{times}"))
        return rows

    def summarise(self, table: Table) -> dict[str, Statistic]:
        """The headline metrics, then those of families, bands of opacity and dilations."""
        marked, clean = table["tp"] + table["fn"] > 0, table["clean"] > 0
        statistics = _headline(table, marked, clean)
        for family in np.unique(table["family"]).tolist():
            of_family = table["family"] == family
            statistics |= _group(table, family, of_family & marked, of_family & clean)
        for name, in_band in self._bands(table["opacity"]):
            statistics |= _group(table, name, in_band & marked, in_band & clean)
        for times in self.dilations:
            statistics |= _after_dilation(table, times)
        return statistics

    def settings(self, pl_module: LightningModule) -> dict[str, float | str]:
        """The threshold and the tolerance."""
        tolerance = "0.8 % of diagonal" if self.boundary_tolerance is None else f"{self.boundary_tolerance:g} px"
        return {"threshold": self._threshold(pl_module), "boundary tolerance": tolerance}

    def _threshold(self, pl_module: LightningModule) -> float:
        if self.threshold is not None:
            return self.threshold
        threshold = getattr(pl_module, "threshold", None)
        if threshold is None:
            raise ValueError(f"{type(pl_module).__name__} has no `threshold`: give one to SegmentationEvaluation")
        return float(threshold)

    def _tolerance(self, mask: Tensor) -> float:
        if self.boundary_tolerance is not None:
            return self.boundary_tolerance
        return boundary_tolerance(mask.shape[-2], mask.shape[-1])

    def _bands(self, opacity: Floats) -> Iterator[tuple[str, Mask]]:
        edges = [0.0, *self.opacity_bands, 1.0]
        for low, high in itertools.pairwise(edges):
            top = opacity <= high if high == 1.0 else opacity < high
            if (opacity >= low).any():
                yield f"opacity_{low:g}-{high:g}", (opacity >= low) & top


def _counts_by_name(counts: ConfusionCounts, suffix: str = "") -> dict[str, Tensor]:
    return {f"{name}{suffix}": count for name, count in counts._asdict().items()}


def _image_by_image(counts: ConfusionCounts, mean_over_images: Callable[[ConfusionCounts], Tensor]) -> Tensor:
    """The mean over images of a single image is its value."""
    # In float64: SLBR's small constants vanish beside integer counts, which become float32.
    images = torch.stack(counts).double().T
    return torch.stack([mean_over_images(ConfusionCounts(*image[:, None])) for image in images])


def _headline(table: Table, marked: Mask, clean: Mask) -> dict[str, Statistic]:
    tp, fp, fn = table["tp"], table["fp"], table["fn"]
    return {
        "iou_dataset": ratio_of_sums(tp, tp + fp + fn, when_empty=1.0),
        "iou_image": mean_of(table["iou"]),
        "iou_image_marked": mean_of(table["iou"], marked),
        "iou_slbr": mean_of(table["iou_slbr"]),
        "f1_dataset": ratio_of_sums(2 * tp, 2 * tp + fp + fn, when_empty=1.0),
        "f1_image": mean_of(table["f1"]),
        "f1_slbr": mean_of(table["f1_slbr"]),
        "precision": ratio_of_sums(tp, tp + fp),
        "recall": ratio_of_sums(tp, tp + fn),
        "boundary_f": mean_of(table["boundary_f"], marked),
        "false_area_clean": mean_of(table["false_area"], clean),
    }


def _group(table: Table, name: str, marked: Mask, clean: Mask) -> dict[str, Statistic]:
    tp, fp, fn = table["tp"], table["fp"], table["fn"]
    statistics: dict[str, Statistic] = {}
    if marked.any():
        statistics[f"iou_image/{name}"] = mean_of(table["iou"], marked)
        statistics[f"iou_dataset/{name}"] = ratio_of_sums(tp, tp + fp + fn, marked)
        statistics[f"recall/{name}"] = ratio_of_sums(tp, tp + fn, marked)
    if clean.any():
        statistics[f"false_area_clean/{name}"] = mean_of(table["false_area"], clean)
    return statistics


def _after_dilation(table: Table, times: int) -> dict[str, Statistic]:
    tp, fp, fn = (table[f"{name}_dilated_{times}"] for name in ("tp", "fp", "fn"))
    return {
        f"iou_dataset/dilated_{times}": ratio_of_sums(tp, tp + fp + fn, when_empty=1.0),
        f"precision/dilated_{times}": ratio_of_sums(tp, tp + fp),
        f"recall/dilated_{times}": ratio_of_sums(tp, tp + fn),
    }
