"""How well a picture's packaging alone tells generated from real: format, size, bytes, JPEG quality, blockiness."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from callbacks.metrics.bootstrap import Floats, Statistic
from callbacks.metrics.detection_statistics import CurveSlot, ScoredGroup, auroc_statistic, separation_statistic
from lightning_modules.functional.detection import Bools
from lightning_modules.functional.detection_calibration import sigmoid

FOLDS = 5
RIDGE = 1.0
LEVELLED = "_levelled"
TOGETHER = "all_together"
_IRLS_STEPS = 50


def packaging_statistics(
    facts: Mapping[str, Floats], formats: NDArray[np.str_], labels: Bools, seed: int = 0
) -> dict[str, Statistic]:
    """Return the AUROC of each fact in its better direction, and of a logistic regression over all of them.

    The regression is cross-validated: each picture is scored by one that has not seen it. Facts whose names end in
    ``_levelled`` are measured in the levelled view and have figures of their own. A fact that is not there (the JPEG
    quality of a PNG) is a value of its own.

    Args:
        facts: Of all pictures by name, (N,) each.
        formats: Format of each picture's file, (N,).
        labels: Whether a picture is generated, (N,).
        seed: Seed of the folds.
    """
    if labels.all() or not labels.any():
        return {}
    native = {name: values for name, values in facts.items() if not name.endswith(LEVELLED)}
    names = np.unique(formats)
    if len(names) > 1:
        native |= {f"format_{name}": (formats == name).astype(np.float64) for name in names.tolist()}
    levelled = {name.removesuffix(LEVELLED): values for name, values in facts.items() if name.endswith(LEVELLED)}
    statistics = {}
    slot, everything = CurveSlot(), np.ones(len(labels), dtype=np.bool_)
    for columns, ending in ((native, ""), (levelled, "@levelled")):
        for name, values in columns.items():
            group = ScoredGroup(_with_gaps_lowest(values), labels, everything, slot)
            statistics[f"packaging_auroc/{name}{ending}"] = separation_statistic(group)
        scores = cross_validated_scores(design_of(list(columns.values())), labels, seed) if columns else None
        if scores is not None:
            group = ScoredGroup(scores, labels, everything, slot)
            statistics[f"packaging_auroc/{TOGETHER}{ending}"] = auroc_statistic(group)
    return statistics


def packaging_warning(values: Mapping[str, float]) -> str | None:
    """Return a line where packaging alone separates at least as well as the detector, None where it does not.

    Args:
        values: Results by name, "metric" or "metric/group".
    """
    detector = values.get("auroc", float("nan"))
    facts = {name: value for name, value in values.items() if name.startswith("packaging_auroc/") and "@" not in name}
    best = max(facts, key=lambda name: facts[name], default=None)
    if best is None or not facts[best] >= detector:
        return None
    return (
        f"warning: packaging alone separates generated from real as well as the detector (AUROC {facts[best]:.3f} by "
        f"{best.partition('/')[2]}, detector {detector:.3f}): trust the levelled view alone"
    )


def design_of(columns: Sequence[Floats]) -> Floats:
    """Return standardised columns, logarithms of the positive ones beside them, and flags where a value is missing."""
    made: list[Floats] = []
    for values in columns:
        missing = np.isnan(values)
        known = values[~missing]
        if not len(known):
            continue
        made.append(_standardised(np.where(missing, known.mean(), values)))
        if known.min() > 0:
            logs = np.log(np.where(missing, 1.0, values))
            made.append(_standardised(np.where(missing, np.log(known).mean(), logs)))
        if missing.any():
            made.append(_standardised(missing.astype(np.float64)))
    length = len(columns[0]) if columns else 0
    return np.column_stack(made) if made else np.zeros((length, 0))


def cross_validated_scores(design: Floats, labels: Bools, seed: int = 0) -> Floats | None:
    """Return each picture's logit by a regression fitted without its fold; None where a class has one picture.

    Args:
        design: Features of each picture, (N, F).
        labels: Whether it is generated, (N,).
        seed: Seed of the folds, which hold equal shares of both classes.
    """
    folds = min(FOLDS, int(labels.sum()), int((~labels).sum()))
    if folds < 2:
        return None
    rng = np.random.default_rng(seed)
    fold = np.empty(len(labels), dtype=np.int64)
    for which in (labels, ~labels):
        fold[which] = rng.permutation(int(which.sum())) % folds
    design = np.column_stack([design, np.ones(len(design))])
    scores = np.empty(len(labels))
    for number in range(folds):
        out = fold == number
        scores[out] = design[out] @ fit_logistic(design[~out], labels[~out])
    return scores


def fit_logistic(design: Floats, labels: Bools, ridge: float = RIDGE) -> Floats:
    """Fit a logistic regression by iteratively reweighted least squares, both classes weighing the same.

    Args:
        design: Features, the last column ones, (N, F).
        labels: Whether a picture is generated, (N,).
        ridge: Penalty on half the squared coefficients but the last, against a total weight of N.
    """
    target = labels.astype(np.float64)
    weight = np.where(labels, 0.5 / labels.mean(), 0.5 / (1 - labels.mean()))
    penalty = np.full(design.shape[1], ridge)
    penalty[-1] = 1e-9
    found = np.zeros(design.shape[1])
    for _ in range(_IRLS_STEPS):
        chance = sigmoid(design @ found)
        slope = design.T @ (weight * (chance - target)) + penalty * found
        bend = (design * (weight * np.maximum(chance * (1 - chance), 1e-6))[:, None]).T @ design + np.diag(penalty)
        step = np.linalg.solve(bend, slope)
        found = found - step
        if np.abs(step).max() < 1e-9:
            break
    return found


def _with_gaps_lowest(values: Floats) -> Floats:
    known = values[~np.isnan(values)]
    return np.where(np.isnan(values), known.min(initial=0.0) - 1, values)


def _standardised(values: Floats) -> Floats:
    spread = values.std()
    return np.asarray((values - values.mean()) / (spread if spread > 0 else 1.0))
