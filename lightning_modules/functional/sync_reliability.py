"""Whether found corners may be relied on: reliable, unreliable, or no mark there at all."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

STATES = ("reliable", "unreliable", "absent")
Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Reliability:
    """Limits that validation pictures gave.

    Args:
        absent_up_to: A score up to it says that there is no mark; infinite where too few unmarked pictures were seen.
        reliable_up_to: A spread up to it says that the corners are reliable; minus infinity where too many were wrong.
        rate: Largest share of unmarked pictures taken for marked, and of wrong ones among the reliable.
        tolerance: A mean corner error above this share of the longer side is wrong.
        score: What tells marked from unmarked: ``presence``, or ``spread`` (its negative) where no presence was learnt.
        unmarked: Unmarked pictures behind the first limit.
        marked: Marked pictures behind the second.
        refinements: Looks that the limits are of.
        orientations: The same.
    """

    absent_up_to: float
    reliable_up_to: float
    rate: float
    tolerance: float
    score: str
    unmarked: int
    marked: int
    refinements: int
    orientations: int

    @classmethod
    def fit(
        cls,
        unmarked_score: ArrayLike,
        marked_score: ArrayLike,
        marked_spread: ArrayLike,
        marked_error: ArrayLike,
        *,
        rate: float,
        tolerance: float,
        score: str,
        looks: tuple[int, int],
    ) -> Reliability:
        """Set both limits from pictures that nothing was trained on.

        Args:
            unmarked_score: Scores of pictures without a mark (U,).
            marked_score: Scores of marked pictures (M,).
            marked_spread: Their spreads (M,).
            marked_error: Their mean corner errors as shares of the longer side (M,).
            rate: See above.
            tolerance: See above.
            score: See above.
            looks: Refinements and orientations.
        """
        if not 0 < rate < 1:
            raise ValueError(f"`rate` must be between 0 and 1, got {rate}")
        unmarked = _numbers(unmarked_score)
        absent = exceeded_by_few(unmarked, rate)
        found = _numbers(marked_score) > absent
        spread, wrong = _numbers(marked_spread)[found], _numbers(marked_error)[found] > tolerance
        limit = mostly_right_up_to(spread, wrong, rate)
        return cls(absent, limit, rate, tolerance, score, len(unmarked), len(np.atleast_1d(marked_score)), *looks)

    def scores(self, presence: ArrayLike, spread: ArrayLike) -> Floats:
        """Return what tells marked pictures from unmarked ones."""
        return _numbers(presence) if self.score == "presence" else -_numbers(spread)

    def states(self, presence: ArrayLike, spread: ArrayLike) -> list[str]:
        """Return the state of each picture."""
        found = self.scores(presence, spread) > self.absent_up_to
        relied = _numbers(spread) <= self.reliable_up_to
        return [STATES[0 if sure else 1] if there else STATES[2] for there, sure in zip(found, relied, strict=True)]

    def state(self) -> dict[str, Any]:
        """Return what a checkpoint keeps, readable as JSON too."""
        return {key: repr(value) if value in (math.inf, -math.inf) else value for key, value in asdict(self).items()}

    @classmethod
    def from_state(cls, state: Mapping[str, Any]) -> Reliability:
        """Take back what `state` gave."""
        limits = {name: float(state[name]) for name in ("absent_up_to", "reliable_up_to")}
        shares = {name: finite(state[name]) for name in ("rate", "tolerance")}
        counts = {name: int(state[name]) for name in ("unmarked", "marked", "refinements", "orientations")}
        if any(map(math.isnan, limits.values())) or state["score"] not in ("presence", "spread"):
            raise ValueError(f"limits {limits} of a score {state['score']!r}")
        return cls(**{**state, **limits, **shares, **counts})


def finite(value: Any) -> float:
    """Return a stored number; what is infinite or none is an error."""
    number = float(value)
    if not math.isfinite(number):
        raise ValueError(f"{number} is no finite number")
    return number


def exceeded_by_few(scores: Floats, rate: float) -> float:
    """Return the smallest limit that a further score of the same kind exceeds with a chance of at most ``rate``.

    It is one of the scores; infinite where there are fewer than ``1 / rate - 1`` of them.
    """
    allowed = math.floor(rate * (len(scores) + 1) + 1e-9)
    return float(np.sort(scores)[::-1][allowed - 1]) if allowed else math.inf


def mostly_right_up_to(spread: Floats, wrong: NDArray[np.bool_], rate: float) -> float:
    """Return the largest spread up to which at most ``rate`` of the pictures are wrong, one more counted as wrong."""
    order = np.argsort(spread, kind="stable")
    ordered = spread[order]
    share = (np.cumsum(wrong[order]) + 1) / (np.arange(len(order)) + 2)
    last_of_equals = np.append(ordered[1:] != ordered[:-1], True) if len(ordered) else np.empty(0, np.bool_)
    allowed = np.flatnonzero((share <= rate) & last_of_equals & np.isfinite(ordered))
    return float(ordered[allowed[-1]]) if len(allowed) else -math.inf


def _numbers(values: ArrayLike) -> Floats:
    return np.atleast_1d(np.asarray(values, dtype=np.float64))
