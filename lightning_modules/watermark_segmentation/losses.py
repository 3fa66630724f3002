"""The losses of watermark segmentation: pure functions that leave ignored pixels out."""

from collections.abc import Callable
from typing import Literal

import torch
from segmentation_models_pytorch.losses import FocalLoss, LovaszLoss
from torch import Tensor, nn
from torch.nn import functional as F

LossName = Literal[
    "dice", "image_dice", "bce", "bce_dice", "bce_image_dice", "bce_lovasz", "bce_soft_iou", "focal", "lovasz"
]
# Sums a tensor over all processes; the identity on a single one.
SumOverRanks = Callable[[Tensor], Tensor]

IGNORED = 255


def _identity(values: Tensor) -> Tensor:
    return values


def _valid(mask: Tensor, ignore: Tensor | None) -> Tensor:
    return torch.ones_like(mask) if ignore is None else (~ignore).to(mask.dtype)


def _mean_over_ranks(numerator: Tensor, denominator: Tensor, total: SumOverRanks) -> Tensor:
    """Return the quotient of the sums over all ranks, 0 where there is nothing to average."""
    sums = total(torch.stack([numerator, denominator.to(numerator.dtype)]))
    return sums[0] / sums[1].clamp(min=1e-7)


def _probability(logits: Tensor) -> Tensor:
    # In float32 and through the logarithm, as smp does: sigmoid saturates earlier.
    return F.logsigmoid(logits.float()).exp()


def dice_loss(logits: Tensor, mask: Tensor, ignore: Tensor | None = None, total: SumOverRanks = _identity) -> Tensor:
    """Return the reference's Dice loss, one fraction over the whole batch.

    A batch without any mark has loss 0 and gradient 0, as in the reference.

    Args:
        logits: (B, 1, H, W).
        mask: (B, 1, H, W) in {0, 1}.
        ignore: (B, 1, H, W), true where a pixel does not count.
        total: Sum over processes, so that N processes see the Dice of the whole batch.
    """
    valid = _valid(mask, ignore)
    probability = _probability(logits) * valid
    truth = mask * valid
    sums = total(torch.stack([(probability * truth).sum(), probability.sum() + truth.sum(), truth.sum()]))
    return (1.0 - 2.0 * sums[0] / sums[1].clamp(min=1e-7)) * (sums[2] > 0)


def image_dice_loss(
    logits: Tensor, mask: Tensor, ignore: Tensor | None = None, total: SumOverRanks = _identity
) -> Tensor:
    """Return the mean over images of Dice with smoothing 1, which has a gradient on clean images too."""
    valid = _valid(mask, ignore)
    probability = _probability(logits) * valid
    truth = mask * valid
    overlap = (probability * truth).sum(dim=(1, 2, 3))
    size = probability.sum(dim=(1, 2, 3)) + truth.sum(dim=(1, 2, 3))
    losses = 1.0 - (2.0 * overlap + 1.0) / (size + 1.0)
    return _mean_over_ranks(losses.sum(), losses.new_tensor(float(losses.numel())), total)


def soft_iou_loss(
    logits: Tensor, mask: Tensor, ignore: Tensor | None = None, total: SumOverRanks = _identity
) -> Tensor:
    """Return the mean over images of 1 minus the soft intersection over union, with smoothing 1."""
    valid = _valid(mask, ignore)
    probability = _probability(logits) * valid
    truth = mask * valid
    overlap = (probability * truth).sum(dim=(1, 2, 3))
    union = probability.sum(dim=(1, 2, 3)) + truth.sum(dim=(1, 2, 3)) - overlap
    losses = 1.0 - (overlap + 1.0) / (union + 1.0)
    return _mean_over_ranks(losses.sum(), losses.new_tensor(float(losses.numel())), total)


def bce_loss(logits: Tensor, mask: Tensor, ignore: Tensor | None = None, total: SumOverRanks = _identity) -> Tensor:
    """Return the mean binary cross-entropy over the pixels that count."""
    valid = _valid(mask, ignore)
    losses = F.binary_cross_entropy_with_logits(logits.float(), mask.float(), reduction="none")
    return _mean_over_ranks((losses * valid).sum(), valid.sum(), total)


def focal_loss(logits: Tensor, mask: Tensor, ignore: Tensor | None = None, total: SumOverRanks = _identity) -> Tensor:
    """Return the mean focal loss (gamma 2) over the pixels that count."""
    valid = _valid(mask, ignore).bool()
    losses = FocalLoss("binary", reduction="sum")(logits.float()[valid], mask.float()[valid])
    return _mean_over_ranks(losses, valid.sum(), total)


def lovasz_loss(logits: Tensor, mask: Tensor, ignore: Tensor | None = None) -> Tensor:
    """Return the Lovász hinge of the batch's pixels as one set, as smp does.

    It sorts all pixels of a batch, so processes that share a batch do not add up: training takes the one per image.
    """
    marked = mask if ignore is None else mask.masked_fill(ignore, IGNORED)
    loss: Tensor = LovaszLoss("binary", per_image=False, ignore_index=IGNORED)(logits.float(), marked.float())
    return loss


def image_lovasz_loss(
    logits: Tensor, mask: Tensor, ignore: Tensor | None = None, total: SumOverRanks = _identity
) -> Tensor:
    """Return the mean over images of the Lovász hinge."""
    losses = [
        lovasz_loss(logits[i : i + 1], mask[i : i + 1], None if ignore is None else ignore[i : i + 1])
        for i in range(len(logits))
    ]
    stacked = torch.stack(losses)
    return _mean_over_ranks(stacked.sum(), stacked.new_tensor(float(len(losses))), total)


def masked_l1_loss(prediction: Tensor, target: Tensor, weight: Tensor, total: SumOverRanks = _identity) -> Tensor:
    """Return the weighted mean of |prediction - target| over pixels and channels.

    Args:
        prediction: (B, C, H, W).
        target: (B, C, H, W).
        weight: (B, 1, H, W), for instance the mask, or the opacity for a colour.
        total: Sum over processes.
    """
    difference = (prediction.float() - target).abs().mean(dim=1, keepdim=True)
    return _mean_over_ranks((difference * weight).sum(), weight.sum(), total)


_TERMS: dict[str, tuple[Callable[..., Tensor], ...]] = {
    "dice": (dice_loss,),
    "image_dice": (image_dice_loss,),
    "bce": (bce_loss,),
    "bce_dice": (bce_loss, dice_loss),
    "bce_image_dice": (bce_loss, image_dice_loss),
    "bce_lovasz": (bce_loss, image_lovasz_loss),
    "bce_soft_iou": (bce_loss, soft_iou_loss),
    "focal": (focal_loss,),
    "lovasz": (image_lovasz_loss,),
}
# The others divide by sums over the whole batch, be it by the number of pixels that count.
MEANS_OVER_IMAGES = ("image_dice", "lovasz")


class SegmentationLoss(nn.Module):
    """Sums the terms that its name lists, with equal weights.

    Args:
        name: Terms joined by underscores. ``dice`` alone is the reference's, with no gradient on clean batches.
    """

    def __init__(self, name: LossName = "bce_image_dice") -> None:
        super().__init__()
        if name not in _TERMS:
            raise ValueError(f"`loss` must be one of {', '.join(_TERMS)}, got {name!r}")
        self.name = name

    def forward(
        self, logits: Tensor, mask: Tensor, ignore: Tensor | None = None, total: SumOverRanks = _identity
    ) -> Tensor:
        """Return the loss of logits (B, 1, H, W) against a mask in {0, 1}, leaving ``ignore`` out."""
        terms = [term(logits, mask, ignore, total) for term in _TERMS[self.name]]
        return torch.stack(terms).sum()
