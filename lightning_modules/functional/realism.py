"""What of a seal can still be seen: ink found by its colour, pixels that changed, distances between sets of features.

The colour rule. In optical density ``-log(pixel / paper)`` ink adds itself to what lies below it. The seal's own colour
is the median density of its labelled pixels in the *input*, the clean drawing. A pixel is ink where at least half of
that colour is found in it: measured without the part that all three channels share, which is toner and shadow, unless
the seal itself is black or grey. Input and output are judged by one colour, so ink that was bleached below half is
lost, and a stain of half the ink's strength is found.
"""

from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

DARKEST = 0.02
PAPER_QUANTILE = 0.75
GREY_SHARE = 0.25  # below it a colour counts as black: its channels differ by less than this share of its density
HALF = 0.5

Floats = NDArray[np.float64]


class InkColor(NamedTuple):
    """The colour of a seal's ink, as found in the clean drawing.

    Args:
        density: Optical density of each channel, or what is left of it without the shared part, (B, 3).
        grey: Whether the ink is black or grey, so that the shared part counts, bool (B,).
    """

    density: Tensor
    grey: Tensor


def ink_color(image: Tensor, ink: Tensor) -> InkColor:
    """Return the colour of the labelled ink of clean drawings; no ink has density 0.

    Args:
        image: (B, 3, H, W) in [0, 1].
        ink: Labelled pixels, bool (B, 1, H, W).
    """
    whole = masked_quantile(_density(image, ink), ink, 0.5)
    shared = whole.amin(1)
    grey = whole.amax(1) - shared < GREY_SHARE * whole.norm(dim=1)
    return InkColor(torch.where(grey[:, None], whole, whole - shared[:, None]), grey)


def find_ink(image: Tensor, ink: Tensor, color: InkColor) -> Tensor:
    """Return where at least half of an ink's colour is found, bool (B, 1, H, W).

    Args:
        image: (B, 3, H, W) in [0, 1].
        ink: Labelled pixels, bool (B, 1, H, W); they are left out where the tone of the paper is measured.
        color: Of each seal, from `ink_color`.
    """
    density = _density(image, ink)
    seen = torch.where(color.grey[:, None, None, None], density, density - density.amin(1, keepdim=True))
    axis = color.density[:, :, None, None]
    strength = (seen * axis).sum(1, keepdim=True) / (axis * axis).sum(1, keepdim=True).clamp(min=1e-8)
    return (strength >= HALF) & (axis.amax(1, keepdim=True) > 0)


def paper_tone(image: Tensor, ink: Tensor) -> Tensor:
    """Return the tone of the page beside the ink, (B, 3): a quantile that printed text does not reach."""
    return masked_quantile(image, ~ink, PAPER_QUANTILE, when_empty=1.0)


def changed_pixels(before: Tensor, after: Tensor, allowed: Tensor) -> Tensor:
    """Return how many pixels outside the allowed ones are not bit for bit the same, int64 (B,).

    Args:
        before: (B, 3, H, W).
        after: Of the same shape and type.
        allowed: Where pixels may change, bool (B, 1, H, W).
    """
    changed = (before != after).any(1, keepdim=True) & ~allowed
    return changed.flatten(1).sum(1)


def mean_change(before: Tensor, after: Tensor, where: Tensor) -> Tensor:
    """Return the mean absolute difference over channels and chosen pixels, (B,); nan where none is chosen."""
    difference = (before.double() - after.double()).abs().mean(1, keepdim=True) * where
    return difference.flatten(1).sum(1) / where.flatten(1).sum(1)


def masked_quantile(values: Tensor, where: Tensor, quantile: float, when_empty: float = 0.0) -> Tensor:
    """Return a quantile of each channel over chosen pixels, (B, C): the nearest value that is there.

    Args:
        values: Finite, (B, C, H, W).
        where: Bool (B, 1, H, W).
        quantile: In [0, 1].
        when_empty: Result where nothing is chosen.
    """
    # Sorting has no limit of size, which torch.quantile has.
    ordered = values.masked_fill(~where, torch.inf).flatten(2).sort(dim=2).values
    count = where.flatten(1).sum(1)
    place = ((count - 1).clamp(min=0) * quantile).round().long()
    found = ordered.gather(2, place[:, None, None].expand(-1, values.shape[1], 1)).squeeze(2)
    return torch.where(count[:, None] > 0, found, torch.full_like(found, when_empty))


def frechet_distance(first: Floats, second: Floats, first_weights: Floats, second_weights: Floats) -> Floats:
    """Return the squared Frechet distance of Gaussians fitted to two sets of features, for each row of weights, (R,).

    NaN where all of a set's weights are 0.

    Args:
        first: (N, F).
        second: (M, F).
        first_weights: How often each sample of the first set counts, (R, N).
        second_weights: The same of the second set, (R, M).
    """
    there = (first_weights.sum(1) > 0) & (second_weights.sum(1) > 0)
    mean_a, cov_a = _moments(first, first_weights[there])
    mean_b, cov_b = _moments(second, second_weights[there])
    values, vectors = np.linalg.eigh(cov_a)
    root = (vectors * np.sqrt(values.clip(min=0))[:, None, :]) @ vectors.transpose(0, 2, 1)
    # The trace of the root of a product: eigenvalues of the symmetric form are the same.
    shared = np.sqrt(np.linalg.eigvalsh(root @ cov_b @ root).clip(min=0)).sum(1)
    gap = ((mean_a - mean_b) ** 2).sum(1)
    distance = np.full(len(there), np.nan)
    distance[there] = gap + np.trace(cov_a + cov_b, axis1=1, axis2=2) - 2 * shared
    return distance


def _density(image: Tensor, ink: Tensor) -> Tensor:
    paper = paper_tone(image, ink).clamp(min=DARKEST)[:, :, None, None]
    return (paper.log() - image.float().clamp(min=DARKEST).log()).clamp(min=0)


def _moments(features: Floats, weights: Floats) -> tuple[Floats, Floats]:
    """Return means (R, F) and covariances (R, F, F) as of samples that are there several times."""
    total = weights.sum(1)[:, None]
    mean = weights @ features / total
    second = np.zeros((len(weights), features.shape[1], features.shape[1]))
    for place, row in enumerate(weights):
        second[place] = (features * row[:, None]).T @ features
    second /= total[:, :, None]
    cov = second - mean[:, :, None] * mean[:, None, :]
    return mean, cov * (total / (total - 1).clip(min=1))[:, :, None]
