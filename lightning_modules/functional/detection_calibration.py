"""Scores that can be defended: how often does a real picture score like this one?

A head's p-value is (n + 1) / (N + 1), n of N real calibration pictures scoring at least as high. If the picture is real
and exchangeable with them, p <= a happens with a chance of at most a, whatever the detector.

"Any generator" ranks the picture and the calibration pictures together in every head, takes each one's best rank, among
equal ones its largest logit, and compares those as above. They are a symmetric function of the N + 1 pictures, so the
p-value is valid in the same sense although the heads depend on each other and no data was split off. Without the second
look, as many pictures as there are heads would share the first rank, and p could not fall below G / (N + 1).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor, nn

from lightning_modules.functional.detection import Floats, binomial_interval

NOMINAL_RATES = (0.01, 0.05, 0.10)
VERDICTS = ("generated", "unsure", "no evidence")
_FORMAT = 1
_BLOCK_CELLS = 4_000_000
_NEWTON_STEPS = 100


@dataclass(frozen=True)
class OperatingPoint:
    """Where a false-positive rate is kept.

    Args:
        nominal: The rate that is asked for.
        threshold: A logit above it is a detection; infinite where there are too few calibration pictures.
        measured: Share of the calibration pictures above it.
        low: Lower end of the 95 % interval of the rate (Clopper-Pearson).
        high: Upper end of that interval.
    """

    nominal: float
    threshold: float
    measured: float
    low: float
    high: float


@dataclass(frozen=True, eq=False)
class Calibration:
    """What logits of real pictures say about a new logit.

    Args:
        generators: Names of the heads, in the order of the logits.
        scores: Logits of the real calibration pictures, (N, G), rows in lexicographic order. They hold float32
            values, which is what networks give and what an exported file keeps.
        scale: Factor of each logit in the probability, one over the temperature, (G,).
        offset: What is added then, (G,).
        fitted: Whether scale and offset of a head were fitted; 1 and 0 where not, (G,).
        limits: Largest p-value of the verdict "generated", and of "unsure".
    """

    generators: tuple[str, ...]
    scores: Floats
    scale: Floats
    offset: Floats
    fitted: NDArray[np.bool_]
    limits: tuple[float, float] = (0.01, 0.05)

    def __post_init__(self) -> None:
        wanted = f"0 < generated <= unsure < 1, got {tuple(self.limits)}"
        if not 0 < self.limits[0] <= self.limits[1] < 1:
            raise ValueError(f"`limits` of a calibration must be p-values with {wanted}")

    @classmethod
    def fit(
        cls,
        real: ArrayLike,
        generators: Sequence[str],
        generated: ArrayLike | None = None,
        labels: ArrayLike | None = None,
        limits: tuple[float, float] = (0.01, 0.05),
    ) -> Calibration:
        """Take the logits of real pictures, and scale probabilities where a head's own generator is there.

        Args:
            real: Logits of real pictures that nothing was trained on, (N, G).
            generators: Names of the heads.
            generated: Logits of generated pictures, (M, G).
            labels: Generator of each of those, M names.
            limits: Largest p-value of the verdict "generated", and of "unsure".
        """
        scores = _checked(real, len(generators), "real")
        if not len(scores):
            raise ValueError("a calibration needs real pictures, got none: see the real sets of the validation data")
        others = _checked(np.empty((0, len(generators))) if generated is None else generated, len(generators), "other")
        names = np.asarray(labels if labels is not None else [], dtype=np.str_)
        if len(names) != len(others):
            raise ValueError(f"{len(others)} generated calibration pictures have {len(names)} labels")
        scale, offset = np.ones(len(generators)), np.zeros(len(generators))
        fitted = np.array([bool((names == name).any()) for name in generators])
        for head, name in enumerate(generators):
            if fitted[head]:
                scale[head], offset[head] = fit_platt(scores[:, head], others[names == name, head])
        return cls(tuple(generators), scores[np.lexsort(scores.T[::-1])], scale, offset, fitted, limits)

    def __len__(self) -> int:
        """How many real pictures stand behind it."""
        return len(self.scores)

    @property
    def temperature(self) -> Floats:
        """What each head's logit is divided by, (G,)."""
        return 1 / self.scale

    @cached_property
    def ranks(self) -> NDArray[np.int64]:
        """How many calibration pictures score at least as high as each one, itself included, per head, (N, G)."""
        return self._count(self.scores)

    def p_values(self, logits: ArrayLike) -> Floats:
        """Return the p-value of each head, (..., G)."""
        return (self._count(logits) + 1) / (len(self) + 1)

    def any_p_value(self, logits: ArrayLike) -> Floats:
        """Return the p-value of "some head's generator", (...)."""
        values = _as_scores(logits)
        flat = values.reshape(-1, len(self.generators))
        best = self._count(flat).min(axis=1, initial=len(self)) + 1
        own_best = self.ranks.min(axis=1)
        # The new picture moves those that it reaches down by one rank: those two or more ranks ahead stay ahead.
        counts = np.searchsorted(np.sort(own_best), best - 1, side="left").astype(np.int64)
        for rank in np.unique(best):
            near = (own_best == rank) | (own_best == rank - 1)
            counts[best == rank] += self._ahead_among(near, int(rank), flat[best == rank])
        p: Floats = ((counts + 1) / (len(self) + 1)).reshape(values.shape[:-1])
        return p

    def probability(self, logits: ArrayLike) -> Floats:
        """Return the chance of each head's generator against real at even odds, (..., G)."""
        return sigmoid(_as_scores(logits) * self.scale + self.offset)

    def operating_point(self, head: int, nominal: float) -> OperatingPoint:
        """Return where a head's p-value is at most ``nominal``."""
        allowed = _detections_allowed(nominal, len(self))
        column = np.sort(self.scores[:, head])[::-1]
        threshold = float(column[allowed]) if allowed >= 0 else float("inf")
        alarms = int((column > threshold).sum())
        return OperatingPoint(nominal, threshold, alarms / len(self), *binomial_interval(alarms, len(self)))

    def left_out_p_values(self) -> Floats:
        """Return each calibration picture's p-values among the others: those of the heads, then any, (N, G + 1)."""
        # Ranks count the picture itself, which is the one that the formula adds.
        places = np.column_stack([self.ranks.min(axis=1), -self.scores.max(axis=1)])
        _, inverse, counts = np.unique(places, axis=0, return_inverse=True, return_counts=True)
        return np.column_stack([self.ranks, np.cumsum(counts)[inverse]]) / len(self)

    def verdict(self, p_value: float) -> str:
        """Return "generated", "unsure" or "no evidence"."""
        return VERDICTS[int(self.verdict_codes(p_value))]

    def verdict_codes(self, p_values: ArrayLike) -> NDArray[np.int64]:
        """Return positions in `VERDICTS`, of any shape."""
        p = np.asarray(p_values, dtype=np.float64)
        return (p > self.limits[0]).astype(np.int64) + (p > self.limits[1])

    def cautions(self) -> list[str]:
        """Return what is too small to be relied on, one line each."""
        least = 1 / (len(self) + 1)
        lines = [
            f"{len(self)} real calibration pictures cannot show p <= {rate:g} (the least p is {least:.3g}): "
            f"{_pictures_needed(rate)} are needed"
            for rate in sorted({*NOMINAL_RATES, *self.limits})
            if _detections_allowed(rate, len(self)) < 0
        ]
        if not lines and _detections_allowed(self.limits[0], len(self)) < 10:
            top = binomial_interval(_detections_allowed(self.limits[0], len(self)), len(self))[1]
            lines.append(f"{len(self)} real calibration pictures: the true rate at {self.limits[0]:g} may be {top:.2g}")
        return lines

    def state(self) -> dict[str, Tensor | float | list[Any]]:
        """Return what a checkpoint keeps; loads with ``weights_only``."""
        return {
            "format": float(_FORMAT),
            "generators": list(self.generators),
            "scores": torch.from_numpy(self.scores.astype(np.float32)),
            "scale": torch.from_numpy(self.scale.copy()),
            "offset": torch.from_numpy(self.offset.copy()),
            "fitted": self.fitted.tolist(),
            "limits": list(self.limits),
        }

    @classmethod
    def from_state(cls, state: Mapping[str, Any]) -> Calibration:
        """Restore what `state` returned."""
        if state.get("format") != _FORMAT:
            raise ValueError(f"calibration of format {state.get('format')} in the checkpoint, {_FORMAT} is known here")
        numbers = {key: np.asarray(state[key], dtype=np.float64) for key in ("scores", "scale", "offset")}
        heads = len(state["generators"])
        shapes = [np.shape(numbers["scores"])[1:], *(np.shape(numbers[key]) for key in ("scale", "offset"))]
        shapes.append(np.shape(state["fitted"]))
        named = all(isinstance(name, str) for name in state["generators"])
        if not named or not len(numbers["scores"]) or any(shape != (heads,) for shape in shapes):
            raise ValueError(f"shapes {shapes} for {heads} named heads")
        if not all(np.isfinite(values).all() for values in numbers.values()):
            raise ValueError("a number in it is infinite or none")
        low, high = state["limits"]
        return cls(tuple(state["generators"]), fitted=np.asarray(state["fitted"], dtype=np.bool_),
                   limits=(float(low), float(high)), **numbers)  # fmt: skip

    def _ahead_among(self, near: NDArray[np.bool_], rank: int, values: Floats) -> NDArray[np.int64]:
        """How many of some calibration pictures come before or level with values (B, G) whose best rank is ``rank``."""
        ranks, scores = self.ranks[near], self.scores[near]
        block = max(1, _BLOCK_CELLS // max(1, scores.size))
        counts = np.zeros(len(values), dtype=np.int64)
        for start in range(0, len(values), block):
            part = values[start : start + block]
            joint = (ranks + (part[:, None] >= scores)).min(axis=2, initial=len(self) + 1)
            level = (joint == rank) & (scores.max(axis=1) >= part.max(axis=1, keepdims=True))
            counts[start : start + block] = ((joint < rank) | level).sum(axis=1)
        return counts

    @cached_property
    def _columns(self) -> Floats:
        return np.sort(self.scores, axis=0)

    def _count(self, logits: ArrayLike) -> NDArray[np.int64]:
        """Calibration pictures that score at least as high, (..., G)."""
        values = _as_scores(logits)
        if values.shape[-1] != len(self.generators):
            raise ValueError(f"{values.shape[-1]} logits for a calibration of {len(self.generators)} heads")
        below = [np.searchsorted(self._columns[:, g], values[..., g], side="left") for g in range(values.shape[-1])]
        return len(self) - np.stack(below, axis=-1).astype(np.int64)


class CalibrationLayer(nn.Module):
    """The p-values of a `Calibration` as part of a network: equal to it, and fit for every export format.

    It must stay float32: half precision would merge scores of the table.
    """

    scores: Tensor
    ranks: Tensor

    def __init__(self, calibration: Calibration) -> None:
        super().__init__()
        self.register_buffer("scores", torch.from_numpy(calibration.scores.astype(np.float32)))
        self.register_buffer("ranks", torch.from_numpy(calibration.ranks.copy()))

    def forward(self, logits: Tensor) -> Tensor:
        """Return the p-values of the heads and, last, of any: logits (B, G) to float32 (B, G + 1)."""
        values = logits.float()[:, None, :]
        counts = (self.scores >= values).sum(dim=1)
        best = counts.amin(dim=1, keepdim=True) + 1
        joint = (self.ranks + (values >= self.scores).long()).amin(dim=2)
        level = (joint == best) & (self.scores.amax(dim=1) >= values.amax(dim=2))
        any_count = ((joint < best) | level).sum(dim=1, keepdim=True)
        total = self.scores.shape[0] + 1
        # In float64 first: the same rounding as in NumPy.
        return ((torch.cat([counts, any_count], dim=1) + 1).double() / total).float()


def fit_platt(real: ArrayLike, generated: ArrayLike) -> tuple[float, float]:
    """Fit scale and offset of a logit so that its sigmoid is a probability at even odds.

    Logistic regression by Newton's method. Both classes weigh the same; targets are Platt's, which stay off 0 and 1
    so that perfectly separated scores have a finite fit.

    Args:
        real: Logits of real pictures, at least one.
        generated: Logits of generated pictures, at least one.
    """
    negative, positive = np.ravel(np.asarray(real, np.float64)), np.ravel(np.asarray(generated, np.float64))
    score = np.concatenate([negative, positive])
    target = np.repeat([1 / (len(negative) + 2), (len(positive) + 1) / (len(positive) + 2)],
                       [len(negative), len(positive)])  # fmt: skip
    weight = np.repeat([0.5 / len(negative), 0.5 / len(positive)], [len(negative), len(positive)])
    centre, spread = float(score.mean()), float(score.std()) or 1.0
    design = np.column_stack([(score - centre) / spread, np.ones_like(score)])

    def loss(parameters: Floats) -> float:
        margin = design @ parameters
        return float(weight @ (np.logaddexp(0, margin) - target * margin))

    found = np.zeros(2)
    for _ in range(_NEWTON_STEPS):
        chance = sigmoid(design @ found)
        slope = design.T @ (weight * (chance - target))
        bend = (design * (weight * chance * (1 - chance))[:, None]).T @ design + 1e-12 * np.eye(2)
        step = np.linalg.solve(bend, slope)
        while loss(found - step) > loss(found) and np.abs(step).max() > 1e-12:
            step = step / 2
        found = found - step
        if np.abs(step).max() < 1e-10:
            break
    return float(found[0] / spread), float(found[1] - found[0] * centre / spread)


def sigmoid(values: Floats) -> Floats:
    """Return 1 / (1 + exp(-x)) without overflow."""
    decayed = np.exp(-np.abs(values))
    return np.asarray(np.where(values >= 0, 1.0, decayed) / (1 + decayed))


def _detections_allowed(nominal: float, pictures: int) -> int:
    """How many of the calibration pictures may score at least as high at p <= nominal; -1 where even none is too few.

    The largest n with (n + 1) / (N + 1) <= nominal, by the same division, so that thresholds agree with p-values.
    """
    n = int(nominal * (pictures + 1))
    while (n + 1) / (pictures + 1) <= nominal:
        n += 1
    while n >= 0 and (n + 1) / (pictures + 1) > nominal:
        n -= 1
    return n


def _pictures_needed(nominal: float) -> int:
    needed = max(0, int(1 / nominal) - 2)
    while 1 / (needed + 1) > nominal:
        needed += 1
    return needed


def _as_scores(logits: ArrayLike) -> Floats:
    """Float32 values in float64, as the tables hold them."""
    values = np.asarray(logits).astype(np.float32).astype(np.float64)
    if np.isnan(values).any():
        raise ValueError(f"{int(np.isnan(values).sum())} logits are not a number")
    return values


def _checked(logits: ArrayLike, heads: int, kind: str) -> Floats:
    values = _as_scores(logits)
    if values.ndim != 2 or values.shape[1] != heads:
        raise ValueError(f"logits of {kind} calibration pictures are {values.shape}, wanted (N, {heads})")
    return values
