import numpy as np
import pytest
import scipy.optimize

from callbacks.metrics.bootstrap import value_of
from callbacks.metrics.packaging import (
    cross_validated_scores,
    design_of,
    fit_logistic,
    packaging_statistics,
    packaging_warning,
)


def auroc(scores, labels):
    real, fake = scores[~labels][None], scores[labels][:, None]
    return ((fake > real) + 0.5 * (fake == real)).mean()


def draw(n=200, seed=0):
    rng = np.random.default_rng(seed)
    return rng, rng.random(n) < 0.5


def test_the_regression_minimises_its_loss():
    rng, labels = draw()
    design = np.column_stack([rng.normal(labels[:, None] * 0.7, 1, (200, 3)), np.ones(200)])
    weight = np.where(labels, 0.5 / labels.mean(), 0.5 / (1 - labels.mean()))

    def loss(w):
        margin = design @ w
        return weight @ (np.logaddexp(0, margin) - labels * margin) + 0.5 * (w[:3] @ w[:3])

    wanted = scipy.optimize.minimize(loss, np.zeros(4), method="BFGS", options={"gtol": 1e-8}).x
    np.testing.assert_allclose(fit_logistic(design, labels), wanted, atol=1e-6)


def test_pictures_are_scored_by_a_fit_that_has_not_seen_them():
    rng, labels = draw(60)
    noise = rng.normal(size=(60, 40))  # as many columns as would be learnt by heart
    seen = np.column_stack([noise, np.ones(60)])
    assert auroc(seen @ fit_logistic(seen, labels), labels) > 0.95
    assert auroc(cross_validated_scores(noise, labels), labels) < 0.7
    np.testing.assert_array_equal(cross_validated_scores(noise, labels, 1), cross_validated_scores(noise, labels, 1))
    assert (cross_validated_scores(noise, labels, 1) != cross_validated_scores(noise, labels, 2)).any()


def test_a_class_of_one_picture_cannot_be_cross_validated():
    assert cross_validated_scores(np.zeros((5, 1)), np.arange(5) == 0) is None
    assert cross_validated_scores(np.zeros((5, 1)), np.arange(5) < 2) is not None


def test_facts_are_told_apart_in_either_direction_and_together():
    rng, labels = draw()
    facts = {
        "width": np.where(labels, 512.0, rng.integers(400, 3000, 200).astype(float)),
        "bytes_per_pixel": rng.random(200) + 0.1 - 0.3 * labels + 0.5,
        "jpeg_quality": np.where(labels, np.nan, rng.integers(50, 99, 200).astype(float)),
        "blockiness": rng.normal(size=200),
        "blockiness_levelled": rng.normal(size=200) - labels,
    }
    formats = np.where(labels, "PNG", "JPEG")
    found = packaging_statistics(facts, formats, labels)
    values = {name.removeprefix("packaging_auroc/"): value_of(s, 200) for name, s in found.items()}
    assert values["all_together"] == values["format_PNG"] == values["jpeg_quality"] == 1
    assert values["bytes_per_pixel"] == pytest.approx(1 - auroc(facts["bytes_per_pixel"], labels))
    assert values["blockiness"] < 0.6
    assert values["blockiness@levelled"] == pytest.approx(1 - auroc(facts["blockiness_levelled"], labels))
    assert 0.65 < values["all_together@levelled"] < 0.9


def test_what_does_not_vary_tells_nothing():
    _, labels = draw(40)
    found = packaging_statistics({"width": np.full(40, 512.0), "gone": np.full(40, np.nan)}, np.full(40, "PNG"), labels)
    assert {name: value_of(s, 40) for name, s in found.items()} == {
        "packaging_auroc/width": 0.5,
        "packaging_auroc/gone": 0.5,
        "packaging_auroc/all_together": pytest.approx(0.5, abs=0.15),
    }
    assert packaging_statistics({"width": np.zeros(40)}, np.full(40, "PNG"), np.ones(40, dtype=bool)) == {}


def test_missing_values_are_a_feature():
    values = np.array([1.0, np.nan, 3.0, np.nan])
    design = design_of([values])
    assert np.isfinite(design).all()
    assert design.shape == (4, 3)  # value, logarithm, whether it is there
    np.testing.assert_allclose(design[:, 2], [-1, 1, -1, 1])
    assert design_of([np.array([-1.0, 0.0, 1.0])]).shape == (3, 1)


def test_the_warning_compares_native_figures():
    values = {"auroc": 0.9, "packaging_auroc/width": 0.6, "packaging_auroc/all_together": 0.95}
    assert "AUROC 0.950 by all_together, detector 0.900" in packaging_warning(values)
    values["packaging_auroc/all_together"] = 0.89
    values["packaging_auroc/all_together@levelled"] = 0.99
    assert packaging_warning(values) is None
    assert packaging_warning({"auroc": 0.9}) is None
