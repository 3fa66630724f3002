"""What changes with the epoch: the strength of the pattern, and when the discriminator takes part."""

import math
from dataclasses import dataclass
from typing import Literal

ScalingShape = Literal["constant", "linear", "cosine"]


@dataclass(frozen=True)
class ScalingSchedule:
    """Strength of the pattern by epoch: from ``initial`` down to ``final``.

    Args:
        initial: Until ``start_epoch``.
        final: After the fall.
        epochs: Length of the fall.
        start_epoch: Where it begins.
        shape: Of the fall; constant for none.
    """

    initial: float
    final: float = 0.0
    epochs: int = 0
    start_epoch: int = 0
    shape: ScalingShape = "constant"

    def __post_init__(self) -> None:
        if self.shape not in ("constant", "linear", "cosine"):
            raise ValueError(f"`scaling_schedule` must be constant, linear or cosine, got {self.shape!r}")
        if self.shape != "constant" and self.epochs < 1:
            raise ValueError(
                f"`scaling_epochs` must be at least 1 where scaling_schedule is {self.shape}, got {self.epochs}"
            )

    def at(self, epoch: float) -> float:
        """Return the strength of an epoch; parts of one are possible."""
        passed = epoch - self.start_epoch
        if self.shape == "constant" or passed < 0:
            return self.initial
        if passed > self.epochs:
            return self.final
        share = passed / self.epochs
        if self.shape == "cosine":
            return self.final + 0.5 * (self.initial - self.final) * (1 + math.cos(math.pi * share))
        return self.initial + (self.final - self.initial) * share


def discriminator_factor(epoch: int, start_epoch: int) -> float:
    """Return what the discriminator's losses are multiplied by: 0 before ``start_epoch``, 1 from there on."""
    return 0.0 if epoch < start_epoch else 1.0
