"""Do realised seals look real, and is all that was drawn still where its labels say?"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import numpy as np
import torch
from lightning.pytorch import LightningModule, Trainer
from torch import Tensor

from callbacks.evaluation import EvaluationCallback, Stage
from callbacks.metrics.bootstrap import Floats, Statistic, mean_of, ratio_of_sums
from callbacks.metrics.crop_store import CropStore
from callbacks.metrics.domain_classifier import SMALLEST, JudgeSettings
from callbacks.metrics.domain_statistics import REAL, REALISED, SYNTHETIC, Judged, domain_statistics, judge_domains
from callbacks.metrics.inception_distances import inception_distances, inception_weights
from callbacks.metrics.sample_table import Table
from lightning_modules.functional.realism import changed_pixels, find_ink, ink_color, mean_change
from lightning_modules.functional.segmentation import confusion_counts

INPUT, KEPT = "input", "kept"
LEGIBLE = 0.5
_COUNTS = ("tp", "fp", "fn")
_PRIORS = (REALISED, SYNTHETIC, REAL)
_WITHOUT_INTERVAL = ("fid", "kid")


class RealismEvaluation(EvaluationCallback):
    """Reports how well realised pictures are told from real ones, and whether their labels still hold.

    Domains: ``domain_auc/realised`` and ``domain_auc/synthetic`` by small classifiers that were trained on other
    samples, 0.5 being the aim; see `domain_statistics`. Their intervals are over the judged samples, not over trainings
    of judges. ``fid`` and ``kid`` only where Inception is on this machine. Judges are trained in `stages` alone.

    Labels: ``ink_iou/realised`` and ``ink_iou/input``, ink found by its colour (`functional.realism` has the rule)
    against the labelled ink; ``ink_iou/kept``, found after against found before. ``ink_visible``, share of the labelled
    ink that is found; ``legible``, share of crops in which it is at least a half. Of the seal's text alone where
    batches hold ``text``. ``changed_outside_px`` has to be 0 and ``exact_outside`` 1. ``change_levels``, of 255, where
    change is allowed and on ink. ``prior_gap/…``: denoising error under the real prompt less that of real pictures.

    Args:
        judge: How domain classifiers are trained.
        judged_samples: Most samples that classifiers are trained and asked on.
        judged_px: Larger pictures are cut to the middle for them.
        inception: File of Inception's weights; the one in torch's cache where not given.
        stages: Stages that end with a table on the terminal and files; values are logged in every stage.
        output_dir: Folder for the files; the run's log folder where not given.
        resamples: Number of bootstrap data sets behind the 95 % intervals.
        bootstrap_seed: Seed of the resampling.
    """

    required_outputs: ClassVar[tuple[str, ...]] = (
        *("image", "realised", "real", "ink", "allowed"),
        *(f"prior_{name}" for name in _PRIORS),
    )

    def __init__(
        self,
        judge: JudgeSettings | None = None,
        judged_samples: int = 1000,
        judged_px: int = 128,
        inception: str | None = None,
        stages: Sequence[Stage] = ("test",),
        output_dir: str | None = None,
        resamples: int = 1000,
        bootstrap_seed: int = 0,
    ) -> None:
        super().__init__(stages, output_dir, resamples, bootstrap_seed)
        if judged_px < SMALLEST:
            raise ValueError(f"`judged_px` of RealismEvaluation must be at least {SMALLEST}, got {judged_px}")
        self.judge = judge or JudgeSettings()
        self.judged_samples = judged_samples
        self.judged_px = judged_px
        self.inception = inception
        self._crops: CropStore | None = None
        self._judged: tuple[np.ndarray[Any, np.dtype[np.int64]], Judged] | None = None
        self._inception: dict[str, float] = {}

    @property
    def columns(self) -> tuple[str, ...]:
        """Counts of ink pixels, shares that are visible, changes and denoising errors."""
        counts = (f"{name}_{group}" for group in (REALISED, INPUT, KEPT) for name in _COUNTS)
        visible = (f"visible_{group}" for group in (REALISED, INPUT))
        return (*counts, *visible, "changed_outside", "change_allowed", "change_ink", *(f"prior_{n}" for n in _PRIORS))

    def rows(
        self,
        pl_module: LightningModule,
        outputs: Mapping[str, Any],
        batch: Any,
    ) -> dict[str, Tensor | Sequence[str]]:
        """The columns of each sample."""
        image, realised, ink = outputs["image"], outputs["realised"], outputs["ink"].bool()
        color = ink_color(image, ink)
        before, after = find_ink(image, ink, color), find_ink(realised, ink, color)
        text = batch.get("text") if isinstance(batch, Mapping) else None
        counted = ink if text is None else ink & (text > 0)
        rows: dict[str, Tensor | Sequence[str]] = {
            "visible_realised": _share(after, counted),
            "visible_input": _share(before, counted),
            "changed_outside": changed_pixels(image, realised, outputs["allowed"].bool()),
            "change_allowed": 255 * mean_change(image, realised, outputs["allowed"].bool()),
            "change_ink": 255 * mean_change(image, realised, ink),
            **{f"prior_{name}": outputs[f"prior_{name}"] for name in _PRIORS},
        }
        for group, found, truth in ((REALISED, after, ink), (INPUT, before, ink), (KEPT, after, before)):
            counts = confusion_counts(found, truth)
            rows |= {f"{name}_{group}": getattr(counts, name) for name in _COUNTS}
        return rows

    def summarise(self, table: Table) -> dict[str, Statistic]:
        """Figures of domains, where they were judged, then of labels, changes and the prior."""
        statistics: dict[str, Statistic] = {}
        if self._judged is not None:
            numbers, judged = self._judged
            members = np.searchsorted(table["index"], numbers)
            statistics |= domain_statistics(judged, members)
            statistics |= {name: _Fixed(value, len(numbers)) for name, value in self._inception.items()}
        for group in (REALISED, INPUT, KEPT):
            tp, fp, fn = (table[f"{name}_{group}"] for name in _COUNTS)
            statistics[f"ink_iou/{group}"] = ratio_of_sums(tp, tp + fp + fn, when_empty=1.0)
        for group in (REALISED, INPUT):
            share = table[f"visible_{group}"]
            statistics[f"ink_visible/{group}"] = mean_of(share)
            statistics[f"legible/{group}"] = mean_of(np.where(np.isnan(share), np.nan, share >= LEGIBLE))
        statistics["changed_outside_px"] = mean_of(table["changed_outside"])
        statistics["exact_outside"] = mean_of((table["changed_outside"] == 0).astype(np.float64))
        statistics["change_levels/allowed"] = mean_of(table["change_allowed"])
        statistics["change_levels/ink"] = mean_of(table["change_ink"])
        for name in _PRIORS:
            statistics[f"prior/{name}"] = mean_of(table[f"prior_{name}"])
        for name in (REALISED, SYNTHETIC):
            statistics[f"prior_gap/{name}"] = mean_of(table[f"prior_{name}"] - table[f"prior_{REAL}"])
        return statistics

    def settings(self, pl_module: LightningModule) -> dict[str, float | str]:
        """How judges were trained, and why FID and KID are not there."""
        judge, found = self.judge, inception_weights(self.inception)
        told: dict[str, float | str] = {
            "judges": f"{judge.folds} parts, {judge.steps} steps of {judge.batch_size}, seed {judge.seed}",
        }
        if isinstance(found, str):
            told["fid and kid"] = f"not measured: {found}"
        return told

    def _start(self, stage: Stage, trainer: Trainer, pl_module: LightningModule) -> None:
        super()._start(stage, trainer, pl_module)
        judging = stage in self.stages and not trainer.sanity_checking
        names = (SYNTHETIC, REALISED, REAL)
        self._crops = CropStore(names, self.judged_samples, self.judged_px) if judging else None
        self._judged, self._inception = None, {}

    def _add(self, pl_module: LightningModule, outputs: Mapping[str, Any], batch: Any) -> None:
        super()._add(pl_module, outputs, batch)
        if self._crops is not None:
            pictures = {SYNTHETIC: outputs["image"], REALISED: outputs["realised"], REAL: outputs["real"]}
            self._crops.add(outputs["index"], real_groups(outputs, batch), pictures)

    def _finish(self, stage: Stage, trainer: Trainer, pl_module: LightningModule) -> None:
        if self._crops is not None:
            numbers, groups, crops = self._crops.gathered(trainer)
            found: list[Any] = [None, {}]
            if trainer.is_global_zero and len(set(groups)) >= self.judge.folds:
                found[0] = judge_domains(crops, groups, self.judge, pl_module.device)
                weights = inception_weights(self.inception)
                if not isinstance(weights, str):
                    found[1] = self._distances(crops, pl_module.device)
            if trainer.world_size > 1:
                torch.distributed.broadcast_object_list(found)
            self._judged = None if found[0] is None else (numbers, found[0])
            self._inception = found[1]
        super()._finish(stage, trainer, pl_module)

    def _distances(self, crops: Mapping[str, Any], device: torch.device) -> dict[str, float]:
        weights = inception_weights(self.inception)
        assert not isinstance(weights, str)
        return {
            f"{name}/{group}": value
            for group in (REALISED, SYNTHETIC)
            for name, value in inception_distances(crops[REAL], crops[group], 2048, device, weights).items()
        }

    def _publish(self, stage: Stage, trainer: Trainer, pl_module: LightningModule, log_dir: str | None) -> None:
        nan = float("nan")
        self.results = [
            dataclasses.replace(result, low=nan, high=nan, draws=None) if result.metric in _WITHOUT_INTERVAL else result
            for result in self.results
        ]
        super()._publish(stage, trainer, pl_module, log_dir)


@dataclasses.dataclass(frozen=True)
class _Fixed:
    """A number that is not resampled."""

    value: float
    n: int

    def __call__(self, weights: Floats) -> Floats:
        """The number for each row of weights."""
        return np.full(len(weights), self.value)


def real_groups(outputs: Mapping[str, Any], batch: Any) -> list[str]:
    """Return what each real picture was cut from: ``real_path`` of outputs or batch, else the sample itself."""
    for holder in (outputs, batch):
        if isinstance(holder, Mapping) and "real_path" in holder:
            return [str(path) for path in holder["real_path"]]
    return [str(int(number)) for number in outputs["index"]]


def _share(found: Tensor, labelled: Tensor) -> Tensor:
    """Share of labelled pixels that are found, (B,); nan where none is labelled."""
    return (found & labelled).flatten(1).sum(1).double() / labelled.flatten(1).sum(1)
