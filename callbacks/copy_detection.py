"""How well are copies found again: DISC's figures, and Copydays'."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from lightning.pytorch import LightningModule
from numpy.typing import NDArray

from callbacks.descriptor_evaluation import ChallengeFile, DescriptorEvaluation, Row, Task
from callbacks.descriptor_store import Indices
from callbacks.evaluation import Stage
from callbacks.metrics.bootstrap import Statistic
from callbacks.metrics.copy_rankings import Ranking, SearchSettings
from callbacks.metrics.copy_statistics import (
    METRIC_NAMES,
    copy_statistics,
    copydays_statistics,
    threshold_at_precision,
)
from lightning_modules.functional.retrieval import ScoreNormalisation


class CopyDetectionEvaluation(DescriptorEvaluation):
    """Reports micro average precision and its companions under codecs and score normalisation, as DISC does.

    ``uAP``, ``accuracy_at_1``, ``recall_at_10``, ``mrr``, ``recall_at_p90`` and the score where that is, in the metric
    that the name of the threshold ends in. Validation compares descriptors as they are, by squared distance, k = 10.
    Names such as ``uAP/PCAW512,L2norm,Flat SN 1.00[0,2]`` tell codec and normalisation; without, there are none.
    A group's figures are over its own queries alone.

    Args:
        codecs: Codecs such as ``PCAW512,L2norm,Flat``; null takes the reference's default for the descriptors:
            as they are, and whitened where there is a background.
        score_norm: ``weight[first,last]`` such as ``1.0[0,2]``, reported beside the scores without; null for none.
        k: Candidates a query.
        global_candidates: Whether the best k x queries pairs over all queries are the candidates, as in the challenge.
        stages: Stages that end with a table on the terminal and files; values are logged in every stage.
        output_dir: Folder for the files; the run's log folder where not given.
        resamples: Number of bootstrap data sets behind the 95 % intervals; resampled are queries.
        bootstrap_seed: Seed of the resampling.
        metadata: Text for a column of this name in ``disc_metrics.csv``.
        challenge_files: What to write in the challenge's formats: ``predictions`` (a CSV for each way of comparing)
            and ``descriptors`` (HDF5).
    """

    csv_name = "disc_metrics.csv"
    csv_columns: ClassVar[Mapping[str, str]] = {
        "codec": "codec",
        "score_norm": "score_norm",
        "uAP": "uAP",
        "accuracy-at-1": "accuracy_at_1",
        "recall-at-p90": "recall_at_p90",
    }

    def __init__(
        self,
        codecs: Sequence[str] | None = None,
        score_norm: str | None = "1.0[0,2]",
        k: int = 10,
        global_candidates: bool = False,
        stages: Sequence[Stage] = ("test",),
        output_dir: str | None = None,
        resamples: int = 1000,
        bootstrap_seed: int = 0,
        metadata: str | None = None,
        challenge_files: Sequence[ChallengeFile] = (),
    ) -> None:
        super().__init__(stages, output_dir, resamples, bootstrap_seed, metadata, challenge_files)
        _check(self, codecs, k)
        if score_norm is not None:
            ScoreNormalisation.parse(score_norm)
        self._settings = SearchSettings(None if codecs is None else tuple(codecs), score_norm, k, global_candidates)

    def search_settings(self, stage: Stage) -> SearchSettings:
        """As given for test; descriptors as they are for validation."""
        return self._settings if stage == "test" else SearchSettings(("Flat",))

    def figures(self, ranking: Ranking, task: Task, queries: Indices) -> Row:
        """Those of all queries, then those of each group."""
        statistics: dict[str, Statistic] = {}
        constants: dict[str, tuple[float, int]] = {}
        for group, members in {"": queries, **task.groups}.items():
            ending = f"/{group}" if group else ""
            members = np.sort(members)
            statistics |= {
                f"{name}{ending}": _Among(statistic, queries, members)
                for name, statistic in copy_statistics(ranking.candidates, task.pairs, members).items()
            }
            threshold = threshold_at_precision(ranking.candidates, task.pairs, members)
            constants[f"threshold_at_p90_{METRIC_NAMES[ranking.metric]}{ending}"] = threshold, len(members)
        return Row(ranking, statistics, constants)

    def settings(self, pl_module: LightningModule) -> dict[str, float | str]:
        """What candidates are."""
        return {"candidates": f"{self._settings.k} a query{', over all' if self._settings.global_candidates else ''}"}


class CopydaysEvaluation(DescriptorEvaluation):
    """Reports mean average precision of each block of Copydays, and that of all queries pooled.

    Average precision is Copydays' own, the area below trapezoids. Among equal distances wrong images come first.

    Args:
        codecs: Codecs such as ``PCAW512,L2norm,Flat`` (whitened) or ``PCA512,L2norm,Flat`` (centred).
        k: Candidates a query.
        stages: Stages that end with a table on the terminal and files; values are logged in every stage.
        output_dir: Folder for the files; the run's log folder where not given.
        resamples: Number of bootstrap data sets behind the 95 % intervals; resampled are queries.
        bootstrap_seed: Seed of the resampling.
        metadata: Text for a column of this name in ``copydays_metrics.csv``.
        challenge_files: What to write in the challenge's formats: ``predictions`` (a CSV for each way of comparing)
            and ``descriptors`` (HDF5).
    """

    csv_name = "copydays_metrics.csv"
    csv_columns: ClassVar[Mapping[str, str]] = {
        "codec": "codec",
        "strong_mAP": "strong_mAP",
        "overall_uAP": "overall_uAP",
    }

    def __init__(
        self,
        codecs: Sequence[str] = ("Flat",),
        k: int = 100,
        stages: Sequence[Stage] = ("test",),
        output_dir: str | None = None,
        resamples: int = 1000,
        bootstrap_seed: int = 0,
        metadata: str | None = None,
        challenge_files: Sequence[ChallengeFile] = (),
    ) -> None:
        super().__init__(stages, output_dir, resamples, bootstrap_seed, metadata, challenge_files)
        _check(self, codecs, k)
        self._settings = SearchSettings(tuple(codecs), None, k)

    def search_settings(self, stage: Stage) -> SearchSettings:
        """As given for test; descriptors as they are for validation."""
        return self._settings if stage == "test" else SearchSettings(("Flat",), None, self._settings.k)

    def figures(self, ranking: Ranking, task: Task, queries: Indices) -> Row:
        """The strong block's, the pooled one, and each block's."""
        return Row(ranking, copydays_statistics(ranking.candidates, task.pairs, queries, task.groups), {})

    def settings(self, pl_module: LightningModule) -> dict[str, float | str]:
        """What candidates are."""
        return {"candidates": f"{self._settings.k} a query"}


@dataclass(frozen=True)
class _Among:
    """A figure of some of the samples, as one of weights of all samples."""

    statistic: Statistic
    samples: Indices
    members: Indices

    @property
    def n(self) -> int:
        return self.statistic.n

    def __call__(self, weights: NDArray[np.float64]) -> NDArray[np.float64]:
        return self.statistic(weights[:, np.searchsorted(self.samples, self.members)])


def _check(owner: object, codecs: Sequence[str] | None, k: int) -> None:
    if k < 1:
        raise ValueError(f"`k` of {type(owner).__name__} must be at least 1, got {k}")
    wrong = next((codec for codec in codecs or () if codec.split(",")[-1] != "Flat"), None)
    if wrong is not None:
        raise ValueError(f"codec {wrong!r} of {type(owner).__name__} must end in Flat: others lose exactness")
