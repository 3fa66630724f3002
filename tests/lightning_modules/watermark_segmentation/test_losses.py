import numpy as np
import pytest
import torch
from segmentation_models_pytorch.losses import DiceLoss, FocalLoss, LovaszLoss
from torch.nn import functional as F

from lightning_modules.watermark_segmentation.losses import (
    _TERMS,
    SegmentationLoss,
    bce_loss,
    dice_loss,
    focal_loss,
    image_dice_loss,
    image_lovasz_loss,
    lovasz_loss,
    masked_l1_loss,
    soft_iou_loss,
)

ALL = (dice_loss, image_dice_loss, soft_iou_loss, bce_loss, focal_loss, lovasz_loss, image_lovasz_loss)


@pytest.fixture
def batch():
    rng = torch.Generator().manual_seed(0)
    logits = 2 * torch.randn(3, 1, 9, 11, generator=rng)
    mask = (torch.rand(3, 1, 9, 11, generator=rng) < 0.3).float()
    ignore = torch.rand(3, 1, 9, 11, generator=rng) < 0.2
    return logits, mask, ignore


def test_losses_equal_smp_and_torch(batch):
    logits, mask, _ = batch
    pairs = [
        (dice_loss, DiceLoss("binary", from_logits=True)),
        (bce_loss, F.binary_cross_entropy_with_logits),
        (focal_loss, FocalLoss("binary")),
        (lovasz_loss, LovaszLoss("binary")),
        (image_lovasz_loss, LovaszLoss("binary", per_image=True)),
    ]
    for ours, theirs in pairs:
        assert ours(logits, mask).item() == pytest.approx(theirs(logits, mask).item(), abs=1e-6), ours.__name__


def test_image_losses_equal_numpy(batch):
    logits, mask, ignore = (value.numpy() for value in batch)
    dice, iou = [], []
    for x, y, skip in zip(logits, mask, ignore, strict=True):
        p, t = 1 / (1 + np.exp(-x[~skip])), y[~skip]
        dice.append(1 - (2 * (p * t).sum() + 1) / (p.sum() + t.sum() + 1))
        iou.append(1 - ((p * t).sum() + 1) / (p.sum() + t.sum() - (p * t).sum() + 1))
    assert image_dice_loss(*batch).item() == pytest.approx(np.mean(dice), abs=1e-5)
    assert soft_iou_loss(*batch).item() == pytest.approx(np.mean(iou), abs=1e-5)


@pytest.mark.parametrize("loss", ALL)
def test_ignored_pixels_change_neither_value_nor_gradient(loss, batch):
    logits, mask, ignore = batch
    other = torch.where(ignore, -logits, logits).requires_grad_()
    value = loss(other, torch.where(ignore, 1 - mask, mask), ignore)
    assert value.item() == pytest.approx(loss(logits, mask, ignore).item(), abs=1e-6)
    value.backward()
    assert other.grad[ignore].abs().max() == 0
    assert other.grad[~ignore].abs().max() > 0


@pytest.mark.parametrize("loss", ALL)
def test_an_image_that_is_ignored_altogether_costs_nothing(loss, batch):
    logits, mask, _ = batch
    logits.requires_grad_()
    value = loss(logits, mask, torch.ones_like(mask, dtype=torch.bool))
    value.backward()
    assert value.item() == 0
    assert logits.grad.abs().max() == 0


@pytest.mark.parametrize("name", [*_TERMS])
def test_only_the_references_dice_is_blind_on_clean_batches(name, batch):
    logits = batch[0].requires_grad_()
    loss = SegmentationLoss(name)(logits, torch.zeros_like(logits))
    loss.backward()
    steepest = logits.grad.abs().max()
    assert (steepest == 0) if name == "dice" else (steepest > 1e-6)
    assert (loss == 0) if name == "dice" else (loss > 0)


@pytest.mark.parametrize("name", [*_TERMS])
def test_gradient_descent_on_logits_finds_the_mask(name, batch):
    logits, mask, _ = batch
    logits = logits.clone().requires_grad_()
    optimizer = torch.optim.Adam([logits], lr=0.2)
    for _ in range(120):
        optimizer.zero_grad()
        SegmentationLoss(name)(logits, mask).backward()
        optimizer.step()
    assert torch.equal(logits > 0, mask > 0)


@pytest.mark.parametrize("name", ["dice", "bce_image_dice", "bce_lovasz", "bce_soft_iou", "focal"])
def test_sums_over_ranks_give_the_loss_of_the_whole_batch(name, batch):
    """Two ranks are played in turn: each sees the other's sums, as a sum over processes would add them."""
    logits, mask, ignore = (torch.cat([value, value[:1]]) for value in batch)
    whole = SegmentationLoss(name)(logits, mask, ignore)
    recorded = []
    for rank in range(2):
        part = slice(2 * rank, 2 * rank + 2)
        sums = []
        SegmentationLoss(name)(logits[part], mask[part], ignore[part], lambda s, sums=sums: sums.append(s) or s)
        recorded.append(sums)
    others = iter(recorded[1])
    split = SegmentationLoss(name)(logits[:2], mask[:2], ignore[:2], lambda s: s + next(others))
    assert split.item() == pytest.approx(whole.item(), abs=1e-6)


def test_masked_l1_is_a_weighted_mean():
    prediction, target = torch.full((1, 3, 2, 2), 0.5), torch.zeros(1, 3, 2, 2)
    target[..., 0, 0] = 0.25
    weight = torch.tensor([[[[1.0, 3.0], [0.0, 0.0]]]])
    assert masked_l1_loss(prediction, target, weight).item() == pytest.approx((0.25 + 3 * 0.5) / 4)
    assert masked_l1_loss(prediction, target, torch.zeros_like(weight)).item() == 0


def test_an_unknown_name_lists_the_known():
    with pytest.raises(ValueError, match=r"bce_image_dice.*'hinge'"):
        SegmentationLoss("hinge")
