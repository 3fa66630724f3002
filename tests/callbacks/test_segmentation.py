"""Each metric against brute force in numpy and SciPy, smp or torchmetrics, on random images with an ignore band."""

import itertools
import math

import numpy as np
import pytest
import segmentation_models_pytorch as smp
import torch
from scipy import ndimage
from torchmetrics.classification import BinaryF1Score, BinaryJaccardIndex, BinaryPrecision, BinaryRecall

from callbacks.metrics.bootstrap import value_of
from callbacks.metrics.sample_table import SampleTable
from callbacks.segmentation import SegmentationEvaluation

COUNT, SIDE = 14, 24
DILATIONS = (0, 1, 3)
THRESHOLD = 0.45


@pytest.fixture(scope="module")
def outputs():
    draw = np.random.default_rng(5)
    mask = np.zeros((COUNT, SIDE, SIDE), dtype=bool)
    for image in range(COUNT - 4):  # the last four are clean
        top, left, height, width = draw.integers(3, 12, size=4)
        mask[image, top : top + height, left : left + width] = True
    probability = np.clip(0.5 * mask + 0.55 * ndimage.gaussian_filter(draw.random(mask.shape), (0, 1, 1)), 0, 1)
    probability += 0.3 * draw.normal(size=(COUNT, 1, 1)) * ~mask
    probability[-1] = 0  # clean and found clean
    opacity = np.where(mask.any((1, 2)), draw.uniform(0.1, 1, COUNT), np.nan)
    return {
        "index": torch.arange(COUNT),
        "probability": torch.tensor(probability.clip(0, 1), dtype=torch.float32)[:, None],
        "mask": torch.tensor(mask, dtype=torch.float32)[:, None],
        "ignore": torch.tensor(draw.random(mask.shape) > 0.93)[:, None],
        "family": [("text", "logo")[i % 2] if i < COUNT - 4 else "clean" for i in range(COUNT)],
        "opacity": torch.tensor(opacity, dtype=torch.float32),
    }


@pytest.fixture(scope="module")
def measured(outputs):
    callback = SegmentationEvaluation(threshold=THRESHOLD, boundary_tolerance=2, dilations=DILATIONS)
    table = SampleTable(callback.columns, text_columns=callback.text_columns)
    for rows in (slice(0, 5), slice(5, COUNT)):
        part = {key: value[rows] for key, value in outputs.items()}
        table.update(part["index"], callback.rows(None, part, None))
    statistics = callback.summarise(table.compute())
    return {name: (value_of(statistic, COUNT), statistic.n) for name, statistic in statistics.items()}


@pytest.fixture(scope="module")
def images(outputs):
    found = (outputs["probability"] > THRESHOLD).numpy()[:, 0]
    return found, outputs["mask"].numpy()[:, 0] > 0, ~outputs["ignore"].numpy()[:, 0]


def brute_iou(found, true, valid, empty=1.0):
    union = ((found | true) & valid).sum()
    return (found & true & valid).sum() / union if union else empty


def test_dataset_values_equal_torchmetrics(measured, outputs):
    target = outputs["mask"].long().masked_fill(outputs["ignore"], -1)
    theirs = {
        "iou_dataset": BinaryJaccardIndex(THRESHOLD, ignore_index=-1),
        "f1_dataset": BinaryF1Score(THRESHOLD, ignore_index=-1),
        "precision": BinaryPrecision(THRESHOLD, ignore_index=-1),
        "recall": BinaryRecall(THRESHOLD, ignore_index=-1),
    }
    for name, metric in theirs.items():
        assert measured[name][0] == pytest.approx(metric(outputs["probability"], target).item(), rel=1e-6), name
        assert measured[name][1] == COUNT


def test_image_values_equal_smp(measured, images):
    found, true, valid = (torch.tensor(array) for array in images)
    stats = smp.metrics.get_stats((found & valid)[:, None].long(), (true & valid)[:, None].long(), mode="binary")
    for ours, theirs in (("iou_image", smp.metrics.iou_score), ("f1_image", smp.metrics.f1_score)):
        assert measured[ours][0] == pytest.approx(theirs(*stats, reduction="micro-imagewise").item(), rel=1e-6)
    assert measured["iou_dataset"][0] == pytest.approx(smp.metrics.iou_score(*stats, reduction="micro").item())


def test_slbr_values_equal_their_formula(measured, images):
    ious, f1s = [], []
    for found, true, valid in zip(*images, strict=True):
        f, t = (found & valid).astype(float), (true & valid).astype(float)
        overlap = (f * t).sum()
        ious.append(overlap / (f.sum() + t.sum() - overlap + 1e-5))
        precision, recall = overlap / (f.sum() + 1e-6), overlap / (t.sum() + 1e-6)
        f1s.append(2 * precision * recall / (precision + recall + 1e-6))
    assert measured["iou_slbr"][0] == pytest.approx(np.mean(ious), rel=1e-9)
    assert measured["f1_slbr"][0] == pytest.approx(np.mean(f1s), rel=1e-9)


def test_marked_and_clean_images_equal_brute_force(measured, images):
    rows = list(zip(*images, strict=True))
    marked = [brute_iou(f, t, v) for f, t, v in rows if (t & v).any()]
    assert measured["iou_image_marked"] == (pytest.approx(np.mean(marked)), len(marked))
    clean = [(f & v).sum() / v.sum() for f, t, v in rows if not t.any()]
    assert measured["false_area_clean"] == (pytest.approx(np.mean(clean)), 4)
    assert np.mean(clean) > 0


def test_boundary_f_equals_a_distance_transform(measured, images):
    def edge(mask):
        # The border of the picture is no boundary.
        return mask & ~ndimage.binary_erosion(mask, border_value=1)

    scores = []
    for found, true, _ in list(zip(*images, strict=True))[: COUNT - 4]:
        f, t = edge(found), edge(true)
        near_true = ndimage.distance_transform_edt(~t) <= 2
        near_found = ndimage.distance_transform_edt(~f) <= 2 if f.any() else np.zeros_like(f)
        precision = (f & near_true).sum() / f.sum() if f.any() else 0.0
        recall = (t & near_found).sum() / t.sum()
        scores.append(2 * precision * recall / (precision + recall) if precision + recall else 0.0)
    assert measured["boundary_f"] == (pytest.approx(np.mean(scores), rel=1e-9), COUNT - 4)


def test_families_and_bands_equal_the_metric_of_their_images(measured, outputs, images):
    rows = list(zip(*images, outputs["family"], outputs["opacity"].tolist(), strict=True))
    for family in ("text", "logo"):
        values = [brute_iou(f, t, v) for f, t, v, name, _ in rows if name == family]
        assert measured[f"iou_image/{family}"] == (pytest.approx(np.mean(values)), len(values))
    edges = [0, 0.3, 0.5, 0.7, 0.9, 1]
    bands = 0
    for low, high in itertools.pairwise(edges):
        of_band = [(f, t, v) for f, t, v, _, opacity in rows if low <= opacity < high]
        if of_band:
            bands += len(of_band)
            found, true, valid = map(np.stack, zip(*of_band, strict=True))
            expected = pytest.approx(brute_iou(found, true, valid))
            assert measured[f"iou_dataset/opacity_{low:g}-{high:g}"] == (expected, len(of_band))
    assert bands == COUNT - 4
    assert measured["false_area_clean/clean"] == measured["false_area_clean"]
    assert "iou_image/clean" not in measured


def test_the_sweep_equals_scipy_dilation(measured, images):
    found, true, valid = images
    for times in DILATIONS:
        grown = np.stack([ndimage.binary_dilation(f, iterations=times) if times else f for f in found])
        hits = (grown & true & valid).sum()
        assert measured[f"recall/dilated_{times}"][0] == pytest.approx(hits / (true & valid).sum())
        assert measured[f"precision/dilated_{times}"][0] == pytest.approx(hits / (grown & valid).sum())
        assert measured[f"iou_dataset/dilated_{times}"][0] == pytest.approx(brute_iou(grown, true, valid))
    recalls = [measured[f"recall/dilated_{times}"][0] for times in DILATIONS]
    assert recalls == sorted(recalls)


def test_the_threshold_is_the_modules_unless_given(echo):
    data = [echo.EchoData()[i] for i in range(4)]
    batch = torch.utils.data.default_collate(data)
    module = echo.EchoModule()
    module.threshold = 0.2
    low = SegmentationEvaluation().rows(module, batch, None)["fp"]
    high = SegmentationEvaluation(threshold=0.5).rows(module, batch, None)["fp"]
    found = (batch["probability"] > 0.2) & (batch["mask"] == 0) & ~batch["ignore"]
    assert low.tolist() == found.sum((1, 2, 3)).tolist()
    assert (low > high).any()
    del module.threshold
    with pytest.raises(ValueError, match="EchoModule has no `threshold`"):
        SegmentationEvaluation().rows(module, batch, None)


def test_the_default_tolerance_follows_the_diagonal(outputs):
    by_default = SegmentationEvaluation(threshold=0.5).rows(None, outputs, None)["boundary_f"]
    pixels = math.ceil(0.008 * math.hypot(SIDE, SIDE))
    explicit = SegmentationEvaluation(threshold=0.5, boundary_tolerance=pixels).rows(None, outputs, None)
    assert torch.equal(by_default, explicit["boundary_f"])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"threshold": 1.5}, r"`threshold` .* got 1.5"),
        ({"opacity_bands": [0.5, 0.3]}, r"`opacity_bands` .* \[0.5, 0.3\]"),
        ({"dilations": [-1]}, r"`dilations` .* \[-1\]"),
        ({"resamples": -1}, r"`resamples` .* -1"),
    ],
)
def test_bad_options_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        SegmentationEvaluation(**options)
