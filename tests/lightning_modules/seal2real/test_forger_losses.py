"""The forger's losses against NumPy, and the gradients that they carry."""

import numpy as np
import pytest
import torch

from lightning_modules.seal2real.forger_losses import (
    ContentSettings,
    PriorSettings,
    carry,
    content_terms,
    denoising_error,
    distillation_gradient,
    edge_l1,
    latent_mask,
    low_pass_l1,
    masked_mean,
    noise_weight,
    normalised,
    total_variation,
)

SHAPE = (3, 4, 6, 5)


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.fixture
def pair():
    """Forged and drawn pictures and their ink."""
    generator = torch.Generator().manual_seed(4)
    forged, drawn = torch.rand(2, 2, 3, 16, 12, generator=generator, dtype=torch.float64)
    ink = torch.zeros(2, 1, 16, 12, dtype=torch.bool)
    ink[0, :, 3:9, 2:7] = True
    ink[1, :, 1:3, 5:12] = True
    return forged, drawn, ink


def test_masked_means_are_those_of_each_picture():
    values, where = normal(*SHAPE), torch.rand(3, 1, 6, 5, generator=torch.Generator().manual_seed(1)) < 0.4
    where[2] = False
    expected = [float(v.numpy()[:, w.numpy()[0]].mean()) for v, w in zip(values[:2], where[:2], strict=True)]
    assert masked_mean(values, where)[:2].tolist() == pytest.approx(expected)
    assert masked_mean(values, where)[2] == 0, "nothing counts where the mask is empty"


def test_the_denoising_error_is_a_mean_square():
    predicted, noise = normal(*SHAPE), normal(*SHAPE, seed=1)
    expected = ((predicted - noise) ** 2).numpy().reshape(3, -1).mean(1)
    np.testing.assert_allclose(denoising_error(predicted, noise), expected)
    everywhere = torch.ones(3, 1, 6, 5)
    np.testing.assert_allclose(denoising_error(predicted, noise, everywhere), expected)


def test_noise_levels_are_weighted_as_named():
    kept, timesteps = torch.linspace(0.99, 0.01, 10), torch.tensor([0, 9, 4])
    variance = 1 - kept[timesteps]
    assert torch.equal(noise_weight(kept, timesteps, "one_minus_alpha"), variance)
    assert torch.equal(noise_weight(kept, timesteps, "sqrt"), variance.sqrt())
    assert torch.equal(noise_weight(kept, timesteps, "uniform"), torch.ones(3))


def test_the_direction_is_a_weighted_difference_where_it_counts():
    real, other, weight = normal(*SHAPE), normal(*SHAPE, seed=1), torch.tensor([0.5, 1.0, 2.0])
    where = torch.zeros(3, 1, 6, 5)
    where[..., 2:4] = 1
    got = distillation_gradient(real, other, weight, where)
    np.testing.assert_allclose(got, weight.numpy()[:, None, None, None] * (real - other).numpy() * where.numpy())


@pytest.mark.parametrize("masked", [False, True])
def test_normalised_directions_have_a_mean_size_of_one_each(masked):
    where = torch.zeros(3, 1, 6, 5)
    where[..., 1:3] = 1
    gradient = normal(*SHAPE) * torch.tensor([1e-6, 1.0, 1e4]).view(-1, 1, 1, 1)
    got = normalised(gradient * where if masked else gradient, where if masked else None)
    size = got.abs()[..., 1:3] if masked else got.abs()
    np.testing.assert_allclose(size.flatten(1).mean(1), 1, rtol=1e-5)
    assert (normalised(torch.zeros(SHAPE)) == 0).all(), "nothing to normalise is nothing, not NaN"


def test_a_carried_gradient_arrives_as_it_is():
    latents, gradient = normal(*SHAPE).requires_grad_(), normal(*SHAPE, seed=1)
    loss = carry(latents, gradient, torch.tensor([1.0, 2.0, 6.0], dtype=torch.float64))
    assert float(loss.detach()) == 3
    loss.backward()
    np.testing.assert_allclose(latents.grad, gradient / gradient.numel())


def test_a_masked_gradient_is_a_mean_over_what_counts():
    latents, gradient = normal(*SHAPE).requires_grad_(), normal(*SHAPE, seed=1)
    where = torch.zeros(3, 1, 6, 5, dtype=torch.float64)
    where[0, :, 0, :2] = 1
    carry(latents, gradient * where, torch.zeros(3, dtype=torch.float64), where).backward()
    np.testing.assert_allclose(latents.grad[0, :, 0, :2], gradient[0, :, 0, :2] / (3 * 4 * 2))
    assert (latents.grad[1:] == 0).all()


def test_latents_that_see_the_mask_count():
    mask = torch.zeros(1, 1, 16, 16, dtype=torch.bool)
    mask[..., 7:9, 3] = True
    expected = torch.zeros(1, 1, 4, 4)
    expected[..., 1:3, 0] = 1
    assert torch.equal(latent_mask(mask, 4), expected)


def test_content_terms_equal_numpy(pair):
    forged, drawn, ink = pair
    settings = ContentSettings(pixel=2.0, outside=3.0, low_pass=1.0, low_pass_side=4, edge=5.0, variation=0.5)
    terms = content_terms(forged, drawn, ink, settings)
    f, d, on = forged.numpy(), drawn.numpy(), ink.numpy()[:, 0]
    change = f - d
    assert float(terms["pixel"]) == pytest.approx(2 * np.abs(change).mean())
    outside = np.mean([np.abs(c)[:, ~m].mean() for c, m in zip(change, on, strict=True)])
    assert float(terms["outside"]) == pytest.approx(3 * outside)
    blocks = change.reshape(2, 3, 4, 4, 3, 4).mean((3, 5))
    seen = on.reshape(2, 4, 4, 3, 4).any((2, 4))
    low = np.mean([np.abs(b)[:, m].mean() for b, m in zip(blocks, seen, strict=True)])
    assert float(terms["low_pass"]) == pytest.approx(low)
    gray = d.mean(1)
    steps = np.zeros_like(gray)
    steps[:, :, :-1] += np.abs(np.diff(gray, axis=2))
    steps[:, :-1] += np.abs(np.diff(gray, axis=1))
    edge = np.mean([(np.abs(c) * s)[:, m].mean() for c, s, m in zip(change, steps, on, strict=True)])
    assert float(terms["edge"]) == pytest.approx(5 * edge)
    varied = np.abs(np.diff(change, axis=3)).mean() + np.abs(np.diff(change, axis=2)).mean()
    assert float(terms["variation"]) == pytest.approx(0.5 * varied)
    assert set(terms) == {"pixel", "outside", "low_pass", "edge", "variation"}


def test_what_keeps_local_means_costs_nothing_by_low_pass(pair):
    _, drawn, ink = pair
    checker = ((torch.arange(16)[:, None] + torch.arange(12)) % 2).double() - 0.5
    assert float(low_pass_l1(drawn + 0.1 * checker, drawn, ink, 4)) == pytest.approx(0, abs=1e-12)
    assert float(low_pass_l1(drawn + 0.1, drawn, ink, 4)) == pytest.approx(0.1)


def test_a_flat_picture_has_no_edges_to_keep(pair):
    forged, drawn, ink = pair
    assert edge_l1(forged, torch.full_like(drawn, 0.5), ink) == 0


def test_gradients_of_the_terms_are_right(pair):
    forged, drawn, ink = pair
    forged = forged[..., :8, :8].clone().requires_grad_()
    settings = ContentSettings(pixel=1, outside=1, low_pass=1, edge=1, variation=1)

    def total(x):
        return sum(content_terms(x, drawn[..., :8, :8], ink[..., :8, :8], settings).values())

    assert torch.autograd.gradcheck(total, forged, eps=1e-8, atol=1e-5)
    assert total_variation(torch.ones(1, 3, 4, 4)) == 0


@pytest.mark.parametrize(
    ("wrong", "told"),
    [
        (lambda: PriorSettings(t_range=(50, 50)), "t_range"),
        (lambda: PriorSettings(weight=-1), "model.prior.weight"),
        (lambda: PriorSettings(lora_rank=0), "lora_rank"),
        (lambda: ContentSettings(edge=-1), "model.content.edge"),
        (lambda: ContentSettings(low_pass_side=0), "low_pass_side"),
    ],
)
def test_wrong_settings_are_refused(wrong, told):
    with pytest.raises(ValueError, match=told):
        wrong()
