"""What a test of a detector reports: figures by generator, view and JPEG quality, nominal rates, changed verdicts."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from callbacks.metrics.bootstrap import Floats, Statistic, mean_of
from callbacks.metrics.detection_statistics import (
    CurveSlot,
    DecisionFigure,
    ScoredGroup,
    auroc_statistic,
    detection_statistics,
    even_odds_error,
)
from lightning_modules.functional.detection import Bools
from lightning_modules.functional.detection_calibration import NOMINAL_RATES, Calibration

NATIVE = "native"
ANY = "any"
FPR, TPR, FLIPS = "fpr_at_nominal", "tpr_at_nominal", "verdict_flips"


def is_binomial(metric: str) -> bool:
    """Whether a metric is a share of pictures, which has an exact interval."""
    return metric.removeprefix("any_").startswith((FPR, TPR, FLIPS))


@dataclass(frozen=True, eq=False)
class DetectionFigures:
    """The pictures of a test.

    Args:
        logits: Of all views and heads, (N, V, G).
        labels: Whether a picture is generated, (N,).
        generators: What it comes from, (N,).
        sources: Name of its set, (N,).
        heads: Names of the heads.
        views: Names of the views.
        calibration: Of the heads, where there is one.
    """

    logits: Floats
    labels: Bools
    generators: NDArray[np.str_]
    sources: NDArray[np.str_]
    heads: tuple[str, ...]
    views: tuple[str, ...]
    calibration: Calibration | None = None
    slot: CurveSlot = field(default_factory=CurveSlot)

    @property
    def native(self) -> int:
        """Position of the view that the others are compared with."""
        return self.views.index(NATIVE) if NATIVE in self.views else 0

    @cached_property
    def present(self) -> list[str]:
        """Generators that the pictures come from."""
        return sorted(set(self.generators[self.labels].tolist()))

    @cached_property
    def p_values(self) -> Floats:
        """P-values of the heads and, last, of any, (N, V, G + 1); there must be a calibration."""
        assert self.calibration is not None
        heads, of_any = self.calibration.p_values(self.logits), self.calibration.any_p_value(self.logits)
        return np.concatenate([heads, of_any[..., None]], axis=2)

    def of_generators(self) -> dict[str, Statistic]:
        """All figures of each view: of all generators together, then of each."""
        statistics: dict[str, Statistic] = {}
        everything = np.ones(len(self.labels), dtype=np.bool_)
        for view in self._native_first():
            largest = self.logits[:, view].max(axis=1)
            statistics |= self._all_figures(largest, everything, "", view)
            for name in self.present:
                where = self._against_real(name)
                statistics |= self._all_figures(self._own_logit(name, view), where, name, view)
                group = self._group(largest, where)
                if group.has_both:
                    statistics[_named("any_auroc", name, self._suffix(view))] = auroc_statistic(group)
        return statistics

    def of_quality_bands(self, quality: Floats, edges: Sequence[float]) -> dict[str, Statistic]:
        """All figures of the native view among pictures of one JPEG quality."""
        statistics: dict[str, Statistic] = {}
        largest = self.logits[:, self.native].max(axis=1)
        for low, high in itertools.pairwise([0.0, *edges, 101.0]):
            in_band = (quality >= low) & (quality < high)
            statistics |= self._all_figures(largest, in_band, f"quality_{low:g}-{high - 1:g}", self.native)
        return statistics

    def of_calibration(self) -> dict[str, Statistic]:
        """Rates at nominal levels, and the calibration error of fitted probabilities."""
        if self.calibration is None:
            return {}
        statistics: dict[str, Statistic] = {}
        real = ~self.labels
        for view in self._native_first():
            suffix = self._suffix(view)
            group = self._group(-self.p_values[:, view, -1], np.ones(len(real), dtype=np.bool_))
            if group.has_both:
                statistics[_named("any_p_auroc", "", suffix)] = auroc_statistic(group)
            for nominal in NOMINAL_RATES:
                ending = f"_{100 * nominal:g}"
                flagged = (self.p_values[:, view] <= nominal).astype(np.float64)
                statistics |= self._of_any(flagged[:, -1], ending, suffix)
                if view == self.native:
                    statistics |= self._of_heads(flagged, ending)
        return statistics | self._probability_errors()

    def of_verdict_flips(self) -> dict[str, Statistic]:
        """How often the verdict of a view is another than that of the native one."""
        verdicts = self._verdicts()
        statistics: dict[str, Statistic] = {}
        for view, name in enumerate(self.views):
            if view == self.native:
                continue
            flipped = (verdicts[:, view] != verdicts[:, self.native]).astype(np.float64)
            statistics[f"{FLIPS}/@{name}"] = mean_of(flipped)
            for kind, which in (("real", ~self.labels), ("generated", self.labels)):
                if which.any():
                    statistics[f"{FLIPS}/{kind}@{name}"] = mean_of(flipped, which)
        return statistics

    def _of_any(self, flagged: Floats, ending: str, suffix: str) -> dict[str, Statistic]:
        statistics: dict[str, Statistic] = {}
        real = ~self.labels
        if real.any():
            statistics[_named(FPR + ending, ANY, suffix)] = mean_of(flagged, real)
        sources = sorted(set(self.sources[real].tolist()))
        for source in sources if len(sources) > 1 else []:
            statistics[_named(f"any_{FPR}{ending}", source, suffix)] = mean_of(flagged, real & (self.sources == source))
        for generator in self.present:
            own = (self.generators == generator) & self.labels
            statistics[_named(f"any_{TPR}{ending}", generator, suffix)] = mean_of(flagged, own)
        return statistics

    def _of_heads(self, flagged: Floats, ending: str) -> dict[str, Statistic]:
        statistics: dict[str, Statistic] = {}
        for head, name in enumerate(self.heads):
            own = (self.generators == name) & self.labels
            if not self.labels.all():
                statistics[f"{FPR}{ending}/{name}"] = mean_of(flagged[:, head], ~self.labels)
            if own.any():
                statistics[f"{TPR}{ending}/{name}"] = mean_of(flagged[:, head], own)
        return statistics

    def _probability_errors(self) -> dict[str, Statistic]:
        assert self.calibration is not None
        probability = self.calibration.probability(self.logits[:, self.native])
        statistics: dict[str, Statistic] = {}
        for head, name in enumerate(self.heads):
            group = self._group(probability[:, head], self._against_real(name))
            if self.calibration.fitted[head] and group.has_both:
                statistics[f"ece_calibrated/{name}"] = DecisionFigure(group, even_odds_error)
        return statistics

    def _verdicts(self) -> NDArray[np.int64]:
        if self.calibration is None:
            return np.asarray(self.logits.max(axis=2) >= 0).astype(np.int64)
        return self.calibration.verdict_codes(self.p_values[:, :, -1])

    def _all_figures(self, scores: Floats, where: Bools, name: str, view: int) -> dict[str, Statistic]:
        figures = detection_statistics(self._group(scores, where))
        return {_named(metric, name, self._suffix(view)): statistic for metric, statistic in figures.items()}

    def _group(self, scores: Floats, where: Bools) -> ScoredGroup:
        return ScoredGroup(scores, self.labels, where, self.slot)

    def _against_real(self, generator: str) -> Bools:
        return np.asarray(~self.labels | (self.generators == generator))

    def _own_logit(self, generator: str, view: int) -> Floats:
        logits = self.logits[:, view]
        return logits[:, self.heads.index(generator)] if generator in self.heads else logits.max(axis=1)

    def _native_first(self) -> Iterator[int]:
        yield self.native
        yield from (view for view in range(len(self.views)) if view != self.native)

    def _suffix(self, view: int) -> str:
        return "" if view == self.native else f"@{self.views[view]}"


def _named(metric: str, group: str, suffix: str) -> str:
    return f"{metric}/{group}{suffix}" if group or suffix else metric
