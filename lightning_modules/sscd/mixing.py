"""Mixup and cutmix of a batch of views, a draw per view."""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor


@dataclass(frozen=True)
class Mixture:
    """What is done to each view of a batch; row i is mixed with row N-1-i."""

    share: Tensor
    """Share that a view keeps of itself (N,); 1 where it stays as it is."""
    box: Tensor
    """Rectangle that comes from the partner, top, bottom, left, right (N, 4); empty for plain mixing."""
    cut: Tensor
    """Whether the rectangle is pasted instead of the whole being mixed, bool (N,)."""


def draw_mixture(
    count: int,
    size_hw: tuple[int, int],
    rng: np.random.Generator,
    probability: float = 0.05,
    concentration: float = 2.0,
    cut_probability: float = 0.5,
) -> Mixture:
    """Draw what happens to each of ``count`` views.

    Args:
        count: Views in the batch.
        size_hw: Their height and width.
        rng: All draws come from it.
        probability: That a view is mixed at all.
        concentration: Of the symmetric beta distribution of the share.
        cut_probability: That a mixed view gets a rectangle instead of a blend.
    """
    cut = rng.random(count) < cut_probability
    share = np.where(rng.random(count) < probability, rng.beta(concentration, concentration, count), 1.0)
    centre = np.stack([rng.integers(0, side, count) for side in size_hw], axis=1)
    return place_boxes(torch.from_numpy(share), torch.from_numpy(cut), torch.from_numpy(centre), size_hw)


def place_boxes(share: Tensor, cut: Tensor, centre: Tensor, size_hw: tuple[int, int]) -> Mixture:
    """Return the mixture with boxes of area 1 - share around the centres, clipped, and the shares they leave."""
    height, width = size_hw
    side = (1.0 - share).clamp(min=0).sqrt()
    half_h, half_w = (height * side).int() // 2, (width * side).int() // 2
    top, bottom = (centre[:, 0] - half_h).clamp(0, height), (centre[:, 0] + half_h).clamp(0, height)
    left, right = (centre[:, 1] - half_w).clamp(0, width), (centre[:, 1] + half_w).clamp(0, width)
    box = torch.stack([top, bottom, left, right], dim=1) * cut[:, None]
    area = (box[:, 1] - box[:, 0]) * (box[:, 3] - box[:, 2])
    left_over = torch.where(cut, 1.0 - area / (height * width), share)
    return Mixture(left_over, box, cut)


def mix(images: Tensor, mixture: Mixture) -> Tensor:
    """Return the mixed views (N, C, H, W); every source is an unmixed view."""
    partner = images.flip(0)
    height, width = images.shape[-2:]
    share = mixture.share.to(images.device, images.dtype)[:, None, None, None]
    top, bottom, left, right = mixture.box.to(images.device).T[:, :, None]
    rows, columns = (torch.arange(side, device=images.device)[None] for side in (height, width))
    in_rows, in_columns = (rows >= top) & (rows < bottom), (columns >= left) & (columns < right)
    inside = in_rows[:, None, :, None] & in_columns[:, None, None]
    cut = mixture.cut.to(images.device)[:, None, None, None]
    return torch.where(cut, torch.where(inside, partner, images), images * share + partner * (1 - share))


def mixed_sources(sources: Tensor, share: Tensor) -> Tensor:
    """Return which pictures each view shows, (N, 2), of the picture that each showed before (N,)."""
    partner = sources.flip(0)
    share = share.to(sources.device)
    return torch.stack([torch.where(share > 0, sources, partner), torch.where(share < 1, partner, sources)], dim=1)
