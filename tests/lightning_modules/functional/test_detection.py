import numpy as np
import pytest
import scipy.stats
import torch
import torchmetrics.functional.classification as oracle

from lightning_modules.functional.detection import (
    Ranking,
    accuracy,
    balanced_accuracy,
    binomial_interval,
    calibration_error,
    confusion_at,
    matthews,
    reference_accuracy,
)


def draw(seed=0, n=300, levels=None):
    """Overlapping scores of both classes; few levels give many ties."""
    rng = np.random.default_rng(seed)
    labels = rng.random(n) < 0.4
    scores = 1 / (1 + np.exp(-rng.normal(np.where(labels, 0.8, -0.6), 1.0)))
    return (scores if levels is None else np.round(scores * levels) / levels), labels


@pytest.mark.parametrize("levels", [None, 7])
def test_curves_equal_brute_force_and_torchmetrics(levels):
    scores, labels = draw(levels=levels)
    curve = Ranking.of(scores, labels).curve()
    real, fake = scores[~labels][None, :], scores[labels][:, None]
    assert curve.auroc()[0] == pytest.approx(((fake > real) + 0.5 * (fake == real)).mean(), abs=1e-12)
    given = torch.tensor(scores), torch.tensor(labels).long()
    assert curve.average_precision()[0] == pytest.approx(oracle.binary_average_precision(*given).item(), abs=1e-6)
    counts = [confusion_at(scores, labels, t) for t in [*np.unique(scores), np.inf]]
    assert curve.best_mcc()[0] == pytest.approx(max(matthews(c)[0] for c in counts), abs=1e-12)
    assert curve.best_accuracy()[0] == pytest.approx(max(accuracy(c)[0] for c in counts), abs=1e-12)
    for target in (0.0, 0.01, 0.05, 0.1, 1.0):
        kept = [c for c in counts if c.fp[0] / (~labels).sum() <= target]
        assert curve.recall_at_fpr(target)[0] == pytest.approx(max(c.tp[0] for c in kept) / labels.sum(), abs=1e-12)
    precision, recall, _ = oracle.binary_precision_recall_curve(*given)
    area = -np.trapezoid(precision.double().numpy(), recall.double().numpy())
    assert curve.pr_auc()[0] == pytest.approx(area, abs=1e-6)


@pytest.mark.parametrize("strict", [False, True])
def test_figures_at_a_threshold(strict):
    scores, labels = draw(levels=4)
    counts = confusion_at(scores, labels, 0.5, strict=strict)
    decided = torch.tensor(scores > 0.5 if strict else scores >= 0.5).long()
    truth = torch.tensor(labels).long()
    assert (scores == 0.5).any()
    assert accuracy(counts)[0] == pytest.approx(oracle.binary_accuracy(decided, truth).item(), abs=1e-6)
    assert matthews(counts)[0] == pytest.approx(oracle.binary_matthews_corrcoef(decided, truth).item(), abs=1e-6)
    parts = [float((decided == truth)[truth == value].float().mean()) for value in (0, 1)]
    assert balanced_accuracy(counts)[0] == pytest.approx(np.mean(parts), abs=1e-6)


def test_the_reference_counts_a_score_on_the_threshold_as_wrong():
    assert reference_accuracy([0.5, 0.5, 0.4, 0.6], [0, 1, 0, 1])[0] == 0.5
    assert accuracy(confusion_at([0.5, 0.5, 0.4, 0.6], [0, 1, 0, 1], 0.5))[0] == 0.75


def test_the_calibration_error_equals_torchmetrics():
    scores, labels = draw(3)
    wanted = oracle.binary_calibration_error(torch.tensor(scores), torch.tensor(labels).long(), n_bins=15).item()
    assert calibration_error(scores, labels)[0] == pytest.approx(wanted, abs=1e-6)
    assert calibration_error(labels.astype(float), labels)[0] == 0


def figures(scores, labels, weights=None):
    curve = Ranking.of(scores, labels).curve(weights)
    counts = confusion_at(scores, labels, 0.5, weights)
    return np.stack(
        [
            curve.auroc(),
            curve.average_precision(),
            curve.pr_auc(),
            curve.best_mcc(),
            curve.best_accuracy(),
            curve.recall_at_fpr(0.05),
            accuracy(counts),
            balanced_accuracy(counts),
            matthews(counts),
            calibration_error(scores, labels, weights),
            reference_accuracy(scores, labels, 0.5, weights),
        ],
        axis=1,
    )


def test_a_weight_is_a_repetition_and_the_order_of_samples_is_none():
    scores, labels = draw(1, 80, levels=9)
    weights = np.random.default_rng(2).integers(0, 4, (5, 80)).astype(float)
    found = figures(scores, labels, weights)
    for row, weight in zip(found, weights, strict=True):
        times = weight.astype(int)
        np.testing.assert_allclose(row, figures(np.repeat(scores, times), np.repeat(labels, times))[0], atol=1e-12)
    order = np.random.default_rng(3).permutation(80)
    np.testing.assert_allclose(figures(scores[order], labels[order], weights[:, order]), found, atol=1e-12)


def test_one_class_alone_has_no_figures_that_need_both():
    curve = Ranking.of([0.2, 0.7], [1, 1]).curve()
    assert np.isnan(curve.auroc()[0])
    assert np.isnan(curve.recall_at_fpr(0.1)[0])
    assert curve.average_precision()[0] == 1
    assert np.isnan(Ranking.of([], []).curve().auroc()[0])


def test_a_score_that_is_no_number_is_refused():
    with pytest.raises(ValueError, match="1 of 2 scores are not a number"):
        Ranking.of([0.1, np.nan], [0, 1])


@pytest.mark.parametrize(("k", "n"), [(0, 20), (1, 20), (20, 20), (37, 300)])
def test_binomial_intervals_equal_scipys(k, n):
    wanted = scipy.stats.binomtest(k, n).proportion_ci(method="exact")
    assert binomial_interval(k, n) == pytest.approx((wanted.low, wanted.high), abs=1e-12)
    assert np.isnan(binomial_interval(0, 0)).all()
