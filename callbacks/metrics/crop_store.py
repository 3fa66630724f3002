"""Pictures kept for the end of an evaluation: of every process, each sample once."""

from collections.abc import Mapping

import numpy as np
import torch
from lightning.pytorch import Trainer
from numpy.typing import NDArray
from torch import Tensor

Crops = NDArray[np.uint8]


class CropStore:
    """Collects square crops by name and sample as bytes, at most so many samples.

    Args:
        names: What is kept of each sample.
        most_samples: Later ones are not kept.
        most_px: Larger pictures are cut to the middle, at their own scale.
    """

    def __init__(self, names: tuple[str, ...], most_samples: int, most_px: int) -> None:
        self.names = names
        self.most_samples = most_samples
        self.most_px = most_px
        self._kept: dict[int, tuple[str, dict[str, Crops]]] = {}

    def add(self, index: Tensor, groups: list[str], pictures: Mapping[str, Tensor]) -> None:
        """Keep the samples of a batch.

        Args:
            index: Position of each sample in the data set, (B,).
            groups: What each sample's real picture belongs to.
            pictures: (B, 3, H, W) in [0, 1] by name.
        """
        numbers = [int(number) for number in index]
        new = [place for place, number in enumerate(numbers) if number not in self._kept]
        new = new[: max(0, self.most_samples - len(self._kept))]
        levels = {name: self._levels(pictures[name][new]) for name in self.names}
        for turn, place in enumerate(new):
            self._kept[numbers[place]] = groups[place], {name: levels[name][turn].copy() for name in self.names}

    def gathered(self, trainer: Trainer) -> tuple[NDArray[np.int64], list[str], dict[str, Crops]]:
        """Return indices, groups and pictures of all processes, in the order of the indices."""
        kept = self._kept
        if trainer.world_size > 1:
            parts: list[dict[int, tuple[str, dict[str, Crops]]]] = [{} for _ in range(trainer.world_size)]
            torch.distributed.all_gather_object(parts, kept)
            # Of a sample that was dealt twice the first is kept, as in a sample table.
            kept = {number: sample for part in reversed(parts) for number, sample in part.items()}
        numbers = sorted(kept)[: self.most_samples]
        crops = {name: np.stack([kept[number][1][name] for number in numbers]) for name in self.names if numbers}
        return np.array(numbers, dtype=np.int64), [kept[number][0] for number in numbers], crops

    def _levels(self, pictures: Tensor) -> Crops:
        height, width = pictures.shape[-2:]
        side = min(height, width, self.most_px)
        top, left = (height - side) // 2, (width - side) // 2
        middle = pictures[..., top : top + side, left : left + side].detach().float()
        levels: Crops = (middle.clamp(0, 1) * 255).round().to(torch.uint8).cpu().numpy()
        return levels
