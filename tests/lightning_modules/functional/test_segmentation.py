import cv2
import numpy as np
import pytest
import torch
from scipy.ndimage import binary_erosion, distance_transform_edt
from torchmetrics.functional.classification import binary_f1_score, binary_jaccard_index

from lightning_modules.functional.segmentation import (
    ConfusionCounts,
    boundary,
    boundary_f1,
    boundary_tolerance,
    confusion_counts,
    f1,
    false_area,
    image_f1,
    image_iou,
    iou,
    precision,
    recall,
)


def random_masks(seed, share=0.4, batch=4):
    values = np.random.default_rng(seed).random((2, batch, 1, 37, 41))
    return torch.from_numpy(values < share)


def blobs(seed, batch=3, size=(40, 56)):
    rng = np.random.default_rng(seed)
    noise = [cv2.GaussianBlur(rng.standard_normal(size).astype(np.float32), (0, 0), 3) > 0.1 for _ in range(batch)]
    return torch.from_numpy(np.stack(noise)[:, None])


def counts_of(*rows):
    return ConfusionCounts(*(torch.tensor(column) for column in zip(*rows, strict=True)))


def test_counts_equal_numpy_without_the_ignored_pixels():
    predicted, mask = random_masks(0)
    ignore = random_masks(1)[0]
    counts = confusion_counts(predicted, mask, ignore)
    p, m, valid = predicted.numpy(), mask.numpy(), ~ignore.numpy()
    for got, want in zip(counts, (p & m, p & ~m, ~p & m, ~p & ~m), strict=True):
        np.testing.assert_array_equal(got, (want & valid).sum(axis=(1, 2, 3)))
    assert torch.equal(sum(counts), (~ignore).flatten(1).sum(1))


def test_micro_values_equal_torchmetrics():
    predicted, mask = random_masks(2)
    counts = confusion_counts(predicted, mask)
    assert iou(counts, "micro").item() == pytest.approx(binary_jaccard_index(predicted.int(), mask.int()).item())
    assert f1(counts, "micro").item() == pytest.approx(binary_f1_score(predicted.int(), mask.int()).item())


def test_imagewise_is_the_mean_of_single_images():
    predicted, mask = random_masks(3)
    single = [iou(confusion_counts(p[None], m[None]), "micro") for p, m in zip(predicted, mask, strict=True)]
    assert iou(confusion_counts(predicted, mask), "imagewise").item() == pytest.approx(
        torch.stack(single).mean().item()
    )


def test_the_conventions_differ_where_truth_is_empty():
    found_nothing, false_alarm = (0, 0, 0, 100), (0, 10, 0, 90)
    assert image_iou(counts_of(found_nothing, false_alarm)).tolist() == [1.0, 0.0]
    assert image_f1(counts_of(found_nothing, false_alarm)).tolist() == [1.0, 0.0]
    for value in (iou, f1):
        assert value(counts_of(found_nothing), "imagewise") == 1.0
        assert value(counts_of(found_nothing), "slbr") == 0.0
        assert value(counts_of(false_alarm), "slbr") == 0.0


def test_precision_and_recall_by_hand():
    counts = counts_of((6, 2, 3, 9), (0, 1, 0, 19))
    assert precision(counts) == 6 / 9
    assert recall(counts) == 6 / 9
    assert precision(counts_of((0, 0, 5, 5))) == 1.0
    assert recall(counts_of((0, 5, 0, 5))) == 1.0


def test_false_area_is_the_share_of_unmarked_pixels():
    areas = false_area(counts_of((0, 5, 0, 95), (10, 0, 0, 0)))
    assert areas[0] == 0.05
    assert areas[1].isnan()


def boundary_oracle(mask):
    return mask & ~binary_erosion(mask, border_value=1)


def boundary_f1_oracle(predicted, mask, tolerance):
    found, true = boundary_oracle(predicted), boundary_oracle(mask)
    if not found.any() and not true.any():
        return 1.0
    if not found.any() or not true.any():
        return 0.0
    exact = (distance_transform_edt(~true)[found] <= tolerance).mean()
    complete = (distance_transform_edt(~found)[true] <= tolerance).mean()
    return 2 * exact * complete / (exact + complete) if exact + complete else 0.0


def test_boundary_equals_erosion():
    masks = blobs(4)
    for got, mask in zip(boundary(masks), masks, strict=True):
        np.testing.assert_array_equal(got[0].numpy(), boundary_oracle(mask[0].numpy()))


@pytest.mark.parametrize("tolerance", [0, 1, 2, 2.5, 5])
def test_boundary_f1_equals_distance_transforms(tolerance):
    predicted, masks = blobs(5), blobs(6)
    predicted[0, :, :, :20] = masks[0, :, :, :20]
    scores = boundary_f1(predicted, masks, tolerance)
    for score, p, m in zip(scores, predicted, masks, strict=True):
        assert score.item() == pytest.approx(boundary_f1_oracle(p[0].numpy(), m[0].numpy(), tolerance))


def test_boundary_f1_of_empty_masks():
    mask, nothing = blobs(7), torch.zeros(3, 1, 40, 56, dtype=torch.bool)
    assert boundary_f1(nothing, nothing, 2).tolist() == [1.0] * 3
    assert boundary_f1(mask, nothing, 2).tolist() == [0.0] * 3
    assert boundary_f1(nothing, mask, 2).tolist() == [0.0] * 3


def test_boundary_f1_forgives_a_shift_up_to_the_tolerance():
    mask = torch.zeros(1, 1, 40, 40, dtype=torch.bool)
    mask[..., 10:20, 10:20] = True
    shifted = mask.roll(3, dims=-1)
    assert boundary_f1(shifted, mask, 3).item() == 1.0
    assert boundary_f1(shifted, mask, 2).item() < 1.0


def test_tolerance_is_a_fraction_of_the_diagonal():
    assert boundary_tolerance(300, 400) == 4
    assert boundary_tolerance(300, 400, 0.02) == 10
