"""Losses of all heads at once, each over the samples that it learns from."""

from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

LossName = Literal["reference", "sealmark"]


def training_similarity(similarity: Tensor, positive: Tensor, loss: LossName) -> Tensor:
    """Return similarities (B, G) as the loss sees them: as published, negatives are pushed to 0 from both sides."""
    return torch.where(positive, similarity, similarity.abs()) if loss == "reference" else similarity


def sample_losses(logit: Tensor, positive: Tensor, loss: LossName) -> Tensor:
    """Return the binary cross entropy of each sample and head, (B, G).

    As published it is taken of probabilities: a saturated wrong one counts 100 and has no gradient.
    """
    target = positive.to(logit.dtype)
    if loss == "reference":
        # torch refuses NaN for a probability with an error, which on a GPU ends the process: it is to be a NaN loss.
        losses = F.binary_cross_entropy(logit.sigmoid().nan_to_num(), target, reduction="none")
        return torch.where(logit.isnan(), logit, losses)
    return F.binary_cross_entropy_with_logits(logit, target, reduction="none")


def samples_of_heads(generated: Tensor, head: Tensor, heads: int, others_are_negatives: bool) -> Tensor:
    """Return which samples each head learns from, bool (B, G): real ones and those of its own generator.

    Args:
        generated: Which samples a machine made, bool (B,).
        head: The head of each sample's generator, int64 (B,); of a real one it is not read.
        heads: Number of heads.
        others_are_negatives: Whether samples of other generators are taken, too.
    """
    positive = targets_of_heads(generated, head, heads)
    return torch.ones_like(positive) if others_are_negatives else ~generated[:, None] | positive


def targets_of_heads(generated: Tensor, head: Tensor, heads: int) -> Tensor:
    """Return which samples are generated in the eyes of each head: by its own generator, bool (B, G)."""
    return generated[:, None] & (head[:, None] == torch.arange(heads, device=head.device))


def sample_weights(positive: Tensor, selected: Tensor, counts: Tensor, balanced: bool) -> Tensor:
    """Return weights (B, G) by which the sum of sample losses is the mean of each head, 0 for samples not selected.

    Args:
        positive: Which samples are generated in the eyes of each head, bool (B, G).
        selected: Which samples each head learns from, bool (B, G).
        counts: Selected negatives and positives of each head over all processes, (2, G).
        balanced: Whether each of the classes that there are has the same share, whatever its number.
    """
    negatives, positives = counts.unbind()
    if not balanced:
        return selected / (negatives + positives).clamp_min(1)
    classes = (counts > 0).sum(dim=0).clamp_min(1)
    of_sample = torch.where(positive, positives, negatives).clamp_min(1)
    return selected / (of_sample * classes)


def class_counts(positive: Tensor, selected: Tensor) -> Tensor:
    """Return the numbers of selected negatives and positives of each head, float64 (2, G)."""
    return torch.stack([(selected & ~positive).sum(dim=0), (selected & positive).sum(dim=0)]).double()


def loss_sums(losses: Tensor, positive: Tensor, selected: Tensor, by_batch: bool) -> Tensor:
    """Return sums (row 0) and their numbers (row 1) of losses of negatives and positives of each head, (2, 2, G).

    Args:
        losses: Of samples and heads (B, G).
        positive: Which samples are generated in the eyes of each head, bool (B, G).
        selected: Which samples each head is judged by, bool (B, G).
        by_batch: Whether a batch counts once, by its mean, as published, and not by its samples.
    """
    chosen = torch.stack([selected & ~positive, selected & positive])
    total, number = (losses.double() * chosen).sum(dim=1), chosen.sum(dim=1).double()
    if by_batch:
        total, number = total / number.clamp_min(1), number.clamp_max(1)
    return torch.stack([total, number])
