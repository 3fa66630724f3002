import numpy as np
import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint

from callbacks.threshold_calibration import ThresholdCalibration, best_candidate, count_above

BINS = 64


def brute_scores(echo, objective, thresholds):
    """The objective and the mean false area on clean images at each threshold, one image and threshold at a time."""
    rows = [echo.EchoData()[i] for i in range(echo.SAMPLES)]
    scores, false_areas = [], []
    for threshold in thresholds:
        tops, bottoms, areas = [], [], []
        for row in rows:
            valid = ~row["ignore"].numpy()
            found = (row["probability"].numpy() > threshold)[valid]
            true = (row["mask"].numpy() > 0)[valid]
            tp, fp, fn = (found & true).sum(), (found & ~true).sum(), (~found & true).sum()
            factor = 2 if objective.startswith("f1") else 1
            tops.append(factor * tp)
            bottoms.append(factor * tp + fp + fn)
            if not row["mask"].any():
                areas.append(found.mean())
        if objective == "iou_dataset":
            scores.append(sum(tops) / sum(bottoms))
        else:
            scores.append(np.mean([t / b if b else 1.0 for t, b in zip(tops, bottoms, strict=True)]))
        false_areas.append(np.mean(areas))
    return np.array(scores), np.array(false_areas)


def calibrated(echo, folder, **options):
    module = echo.EchoModule()
    run = echo.trainer(folder, [ThresholdCalibration(bins=BINS, **options)])
    run.validate(module, echo.loader(), verbose=False)
    return module.threshold, run.callback_metrics


@pytest.mark.parametrize("objective", ["iou_dataset", "iou_image", "f1_image"])
def test_the_threshold_is_the_best_by_brute_force(echo, tmp_path, objective):
    threshold, logged = calibrated(echo, tmp_path, objective=objective)
    candidates = np.arange(BINS) / BINS
    scores, _ = brute_scores(echo, objective, candidates)
    assert threshold in candidates
    assert scores[int(threshold * BINS)] == scores.max()
    assert 0 < threshold < candidates[-1]
    assert logged["val/threshold"] == threshold
    assert logged[f"val/{objective}_calibrated"] == pytest.approx(scores.max(), rel=1e-6)
    assert scores.max() > scores[BINS // 2], "the threshold that it starts from would do"


def test_a_limit_on_false_marks_is_kept(echo, tmp_path):
    candidates = np.arange(BINS) / BINS
    scores, false_areas = brute_scores(echo, "iou_dataset", candidates)
    limit = float(false_areas[scores == scores.max()].min() * 0.3)
    threshold, _ = calibrated(echo, tmp_path, max_false_area=limit)
    chosen = int(threshold * BINS)
    assert false_areas[chosen] <= limit
    assert scores[chosen] == scores[false_areas <= limit].max()
    assert scores[chosen] < scores.max()


def test_a_limit_that_nothing_keeps_gives_the_fewest_false_marks(echo, tmp_path):
    _, false_areas = brute_scores(echo, "iou_dataset", np.arange(BINS) / BINS)
    threshold, _ = calibrated(echo, tmp_path, max_false_area=-1.0)
    assert false_areas[int(threshold * BINS)] == false_areas.min()


def test_counts_equal_comparisons_at_the_candidates_themselves():
    draw = torch.Generator().manual_seed(0)
    probability = torch.rand(3, 1, 20, 20, generator=draw)
    probability[0, 0, 0, :8] = torch.arange(8) / BINS  # exactly on candidates
    probability[0, 0, 1, :2] = torch.tensor([0.0, 1.0])
    pixels = torch.rand(3, 1, 20, 20, generator=draw) > 0.5
    pixels[0, 0, :2] = True
    counts = count_above(probability, pixels, BINS)
    for k in range(BINS):
        assert counts[:, k].tolist() == ((probability > k / BINS) & pixels).sum((1, 2, 3)).tolist()


def test_checkpoints_hold_the_threshold_of_their_own_epoch(echo, tmp_path):
    checkpoint = ModelCheckpoint(tmp_path, filename="best", monitor="val/threshold", mode="max")
    run = echo.trainer(tmp_path, [checkpoint, ThresholdCalibration(bins=BINS)], max_epochs=1, enable_checkpointing=True)
    module = echo.EchoModule()
    run.fit(module, echo.loader(), echo.loader())
    stored = torch.load(tmp_path / "best.ckpt", weights_only=True)["calibration"]["threshold"]
    assert stored == module.threshold == calibrated(echo, tmp_path)[0]
    assert stored != 0.5


def test_the_sanity_check_leaves_the_threshold_alone(echo, tmp_path):
    run = echo.trainer(tmp_path, [ThresholdCalibration()], max_epochs=1, limit_train_batches=0)
    module = echo.EchoModule()
    run.fit(module, echo.loader(), echo.loader())
    assert module.threshold == 0.5


def test_no_marked_image_leaves_the_threshold_alone(echo, tmp_path):
    module = echo.EchoModule()
    run = echo.trainer(tmp_path, [ThresholdCalibration()])
    with pytest.warns(UserWarning, match="no marked validation image"):
        run.validate(module, echo.loader(1), verbose=False)
    assert module.threshold == 0.5


def test_of_equal_scores_the_one_nearest_the_middle_wins():
    scores = np.array([0.1, 0.9, 0.3, 0.9, 0.9, 0.2, 0.9, 0.1])
    assert best_candidate(scores, np.ones(8, dtype=bool)) == 4
    allowed = np.array([1, 1, 1, 0, 0, 1, 0, 1], dtype=bool)
    assert best_candidate(scores, allowed) == 1


@pytest.mark.parametrize(
    ("options", "message"), [({"bins": 100}, "power of two, got 100"), ({"objective": "auc"}, "auc")]
)
def test_bad_options_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        ThresholdCalibration(**options)
