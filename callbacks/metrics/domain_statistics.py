"""How far realised pictures are from real ones: judges that were trained on other pictures, and their features."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from callbacks.metrics.bootstrap import Floats, Statistic
from callbacks.metrics.domain_classifier import Crops, JudgeSettings, describe, folds_of, train_judge
from lightning_modules.functional.detection import Ranking
from lightning_modules.functional.realism import frechet_distance

Places = NDArray[np.int64]
SYNTHETIC, REALISED, REAL = "synthetic", "realised", "real"


@dataclass(frozen=True)
class Judged:
    """What judges say of samples that they have not seen.

    Args:
        logits: High where a picture looks real, by "judge/pictures", (N,). Judge ``realised`` was trained to tell
            realised from real pictures, judge ``synthetic`` untouched from real ones.
        features: Of the same pictures by judge ``synthetic``, by pictures, (N, F).
        drawn_fold: Part of each sample's drawn pictures, (N,).
        real_fold: Part of each sample's real picture, (N,).
    """

    logits: Mapping[str, Floats]
    features: Mapping[str, Floats]
    drawn_fold: Places
    real_fold: Places


def judge_domains(
    crops: Mapping[str, Crops], real_groups: Sequence[str], settings: JudgeSettings, device: torch.device
) -> Judged:
    """Train judges part by part and let them judge the other parts.

    Args:
        crops: Pictures ``synthetic``, ``realised`` and ``real`` of each sample, (N, 3, S, S) each.
        real_groups: What each real picture belongs to; those of one group are never on both sides.
        settings: How judges are trained.
        device: Where.
    """
    samples = len(real_groups)
    drawn = folds_of([str(place) for place in range(samples)], settings.folds, settings.seed)
    real = folds_of(real_groups, settings.folds, settings.seed)
    fold_of = {SYNTHETIC: drawn, REALISED: drawn, REAL: real}
    asked = {SYNTHETIC: (SYNTHETIC, REALISED, REAL), REALISED: (REALISED, REAL)}
    width = 4 * settings.width
    logits = {f"{judge}/{name}": np.zeros(samples) for judge, names in asked.items() for name in names}
    features = {name: np.zeros((samples, width)) for name in asked[SYNTHETIC]}
    for fold in range(settings.folds):
        for judged_by, names in asked.items():
            judge = train_judge(crops[REAL][real != fold], crops[judged_by][drawn != fold], settings, device)
            for name in names:
                members = fold_of[name] == fold
                found, described = describe(judge, crops[name][members], device)
                logits[f"{judged_by}/{name}"][members] = found
                if judged_by == SYNTHETIC:
                    features[name][members] = described
    return Judged(logits, features, drawn, real)


def domain_statistics(judged: Judged, members: Places) -> dict[str, Statistic]:
    """Return the statistics of judged samples, by name.

    ``domain_auc/realised`` and ``/synthetic``: how well a judge that was trained on such pictures tells real ones from
    them; 0.5 is not at all. ``domain_auc/realised_old_judge``: the judge of the untouched pictures asked about
    realised ones. ``domain_auc_drop``: untouched less realised. ``feature_distance``: the Frechet distance of the
    features of the judge of untouched pictures.

    Args:
        judged: By judges that had not seen them.
        members: Positions of the judged samples among all of the table.
    """
    fooled = FoldedAuroc(judged, REALISED, REALISED, members)
    before = FoldedAuroc(judged, SYNTHETIC, SYNTHETIC, members)
    return {
        "domain_auc/realised": fooled,
        "domain_auc/synthetic": before,
        "domain_auc/realised_old_judge": FoldedAuroc(judged, SYNTHETIC, REALISED, members),
        "domain_auc_drop": Difference(before, fooled),
        "feature_distance/realised": FoldedDistance(judged, REALISED, members),
        "feature_distance/synthetic": FoldedDistance(judged, SYNTHETIC, members),
    }


@dataclass(frozen=True, eq=False)
class FoldedAuroc:
    """Chance that a real picture looks more real than a drawn one to their judge; mean over parts.

    Logits of two judges are on two scales, so pictures are compared within a part alone.
    """

    judged: Judged
    judge: str
    pictures: str
    members: Places

    @property
    def n(self) -> int:
        """How many samples are judged."""
        return len(self.members)

    def __call__(self, weights: Floats) -> Floats:
        """One value a row of weights (R, N)."""
        real, drawn = self.judged.logits[f"{self.judge}/{REAL}"], self.judged.logits[f"{self.judge}/{self.pictures}"]
        parts = []
        for ours, theirs in _parts(self.judged):
            scores = np.concatenate([real[ours], drawn[theirs]])
            labels = np.arange(len(scores)) < len(ours)
            counted = weights[:, self.members[np.concatenate([ours, theirs])]]
            parts.append(Ranking.of(scores, labels).curve(counted).auroc())
        return np.asarray(np.mean(parts, axis=0))


@dataclass(frozen=True, eq=False)
class FoldedDistance:
    """Frechet distance of features of real and of drawn pictures; mean over parts."""

    judged: Judged
    pictures: str
    members: Places

    @property
    def n(self) -> int:
        """How many samples are judged."""
        return len(self.members)

    def __call__(self, weights: Floats) -> Floats:
        """One value a row of weights (R, N)."""
        real, drawn = self.judged.features[REAL], self.judged.features[self.pictures]
        counted = weights[:, self.members]
        parts = [
            frechet_distance(real[ours], drawn[theirs], counted[:, ours], counted[:, theirs])
            for ours, theirs in _parts(self.judged)
        ]
        return np.asarray(np.mean(parts, axis=0))


@dataclass(frozen=True, eq=False)
class Difference:
    """One statistic less another, on the same resamples."""

    first: Statistic
    second: Statistic

    @property
    def n(self) -> int:
        """How many samples the first rests on."""
        return self.first.n

    def __call__(self, weights: Floats) -> Floats:
        """One value a row of weights (R, N)."""
        return self.first(weights) - self.second(weights)


def _parts(judged: Judged) -> list[tuple[Places, Places]]:
    """Positions of the real and of the drawn pictures of each part."""
    folds = range(int(judged.drawn_fold.max()) + 1)
    return [(np.flatnonzero(judged.real_fold == fold), np.flatnonzero(judged.drawn_fold == fold)) for fold in folds]
