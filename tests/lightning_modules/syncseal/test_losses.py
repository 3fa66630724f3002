"""Losses against NumPy, and what each leaves alone."""

import math

import numpy as np
import pytest
import torch

from lightning_modules.syncseal.losses import (
    SMOOTH_BELOW,
    LossWeights,
    adversarial_loss,
    corner_loss,
    generator_loss,
    hinge_loss,
    presence_loss,
    targets_of,
)


@pytest.fixture
def corners():
    rng = np.random.default_rng(0)
    return rng.normal(size=(5, 8)).astype(np.float32), rng.normal(size=(5, 8)).astype(np.float32)


@pytest.mark.parametrize("kind", ["mae", "mse", "smooth_l1"])
def test_corner_losses_are_those_of_numpy(corners, kind):
    found, target = corners
    found = np.where(np.arange(8) < 4, target + 0.3 * SMOOTH_BELOW, found)  # both branches of the smooth one
    difference = np.abs(found.astype(np.float64) - target)
    smooth = np.where(difference < SMOOTH_BELOW, difference**2 / (2 * SMOOTH_BELOW), difference - SMOOTH_BELOW / 2)
    wanted = {"mae": difference.mean(), "mse": (difference**2).mean(), "smooth_l1": smooth.mean()}[kind]
    assert corner_loss(torch.tensor(found), torch.tensor(target), kind).item() == pytest.approx(wanted, rel=1e-5)


def test_laplace_is_a_likelihood_and_is_least_at_the_mean_error(corners):
    found, target = corners
    error = np.abs(found - target).reshape(5, 4, 2).mean(axis=2)
    scipy_stats = pytest.importorskip("scipy.stats")

    def loss(log_scale):
        answer = torch.tensor(np.concatenate([found, log_scale], axis=1), dtype=torch.float32)
        return corner_loss(answer, torch.tensor(target), "laplace").item()

    best = np.log(error)
    wanted = -scipy_stats.laplace.logpdf(found, target, np.exp(np.repeat(best, 2, axis=1))).mean() - math.log(2)
    assert loss(best) == pytest.approx(wanted, rel=1e-5)
    assert loss(best) < min(loss(best - 0.2), loss(best + 0.2))


def test_both_kinds_of_presence_count_the_same():
    marked, unmarked = torch.tensor([2.0, -1.0, 0.5]), torch.tensor([-3.0])
    found = -np.log(1 / (1 + np.exp(-marked.numpy()))).mean()
    clean = -np.log(1 / (1 + np.exp(-3.0)))
    assert presence_loss(marked).item() == pytest.approx(found, rel=1e-6)
    assert presence_loss(marked, unmarked).item() == pytest.approx((found + clean) / 2, rel=1e-6)
    assert presence_loss(marked, unmarked[:0]).item() == pytest.approx(found, rel=1e-6), "no negatives"


def test_hinge_is_flat_beyond_the_margins_and_the_embedder_wants_the_opposite():
    sure = hinge_loss(torch.tensor([1.5, 9.0]), torch.tensor([-1.0, -4.0]))
    assert sure.item() == 0
    assert hinge_loss(torch.tensor([0.25]), torch.tensor([0.5])).item() == pytest.approx(0.5 * (0.75 + 1.5))
    assert adversarial_loss(torch.tensor([1.0, 3.0])).item() == -2


def test_total_is_the_weighted_sum_and_keeps_terms_apart():
    terms = {"corners": torch.tensor(2.0, requires_grad=True), "discriminator": torch.tensor(-3.0)}
    weights = LossWeights(corners=0.5, discriminator=0.1)
    assert generator_loss(terms, weights).total.item() == pytest.approx(1.0 - 0.3)
    before = generator_loss(terms, weights, discriminator_factor=0.0)
    assert before.total.item() == pytest.approx(1.0)
    assert before.terms["discriminator"].item() == -3, "shown although it does not count yet"
    assert not before.terms["corners"].requires_grad


def test_targets_do_not_depend_on_the_size_of_the_pictures():
    quads = torch.tensor([[[0.0, 0], [63, 0], [63, 47], [0, 47]]])
    # The published identity target: not symmetric.
    wanted = torch.tensor([[-1, -1, 127 / 128, -1, 127 / 128, 127 / 128, -1, 127 / 128]])
    torch.testing.assert_close(targets_of(quads, (48, 64), 256), wanted, rtol=0, atol=1e-6)
