"""Latents that are computed once for each sample of a data set."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

Moments = tuple[Tensor, Tensor]


class LatentCache:
    """Keeps mean and log variance of the latents of pictures by their index.

    Pictures are encoded one by one, so that what is kept does not depend on the batch in which a picture first came:
    a resumed run, which starts with an empty cache, gets the same numbers.

    Args:
        encode: Returns mean and log variance of images (1, 3, H, W).
    """

    def __init__(self, encode: Callable[[Tensor], Moments]) -> None:
        self._encode = encode
        self._kept: dict[tuple[str, int], tuple[float, Moments]] = {}

    def __len__(self) -> int:
        return len(self._kept)

    def moments(self, name: str, indices: Sequence[int], images: Tensor) -> Moments:
        """Return mean and log variance (B, C, h, w) of images, from memory where their index was seen.

        Args:
            name: Which pictures of the samples these are.
            indices: Of the samples.
            images: (B, 3, H, W).
        """
        sums = images.flatten(1).sum(1, dtype=torch.float64).tolist()
        found = [
            self._one(name, index, total, image)
            for index, total, image in zip(indices, sums, images[:, None], strict=True)
        ]
        return torch.cat([mean for mean, _ in found]), torch.cat([variance for _, variance in found])

    def _one(self, name: str, index: int, total: float, image: Tensor) -> Moments:
        if (name, index) not in self._kept:
            self._kept[name, index] = total, self._encode(image)
        seen, moments = self._kept[name, index]
        if seen != total:
            raise ValueError(
                f"model.cache_latents: sample {index} has another picture ({name}) than when it was first seen; "
                f"cached latents need the same pictures every epoch: set data.redraw to false"
            )
        return moments
