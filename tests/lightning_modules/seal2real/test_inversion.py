"""Inversion and the way back are each other's inverse, as far as the noise is known, and better with corrections."""

import itertools

import pytest
import torch

from lightning_modules.seal2real.inversion import InversionSettings, invert_latents, move, refine, time_grid, walk_back
from lightning_modules.seal2real.libraries import from_diffusers
from lightning_modules.seal2real.sampling import guided

KEPT = (1 - torch.linspace(0.00085**0.5, 0.012**0.5, 1000) ** 2).cumprod(0)
PROMPTS = torch.zeros(1, 2, 3), torch.ones(1, 2, 3)


def steady(latents, timesteps, prompts):
    """Noise that does not depend on where one is."""
    return torch.ones_like(latents) * 0.3


def curved(latents, timesteps, prompts):
    return torch.tanh(2 * latents) * torch.cos(timesteps / 700).reshape(-1, 1, 1, 1)


def latents_of(count=2):
    return torch.randn(count, 4, 8, 8, generator=torch.Generator().manual_seed(1))


def round_trip(model, latents, guidance, settings):
    noisy = invert_latents(model, KEPT, latents, PROMPTS, 20, guidance, settings)

    def noise_at(now, time):
        return guided(model, now, time.expand(len(now)), PROMPTS[1], PROMPTS[0], guidance)

    return walk_back(noise_at, KEPT, noisy, 20)


def test_a_move_is_a_step_of_the_stock_scheduler():
    schedule = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "clip_sample": False}
    sampler = from_diffusers("DDIMScheduler")(**schedule, set_alpha_to_one=False)
    sampler.set_timesteps(10)
    latents, noise = latents_of(), torch.randn(2, 4, 8, 8)
    for time, earlier in itertools.pairwise(sampler.timesteps.tolist()):
        wanted = sampler.step(noise, time, latents).prev_sample
        torch.testing.assert_close(move(latents, noise, KEPT[time], KEPT[earlier]), wanted, rtol=1e-4, atol=1e-5)


def test_steady_noise_is_inverted_exactly():
    found = round_trip(steady, latents_of(), 3.0, InversionSettings(refine_iterations=0))
    torch.testing.assert_close(found, latents_of(), rtol=1e-4, atol=1e-4)


def test_corrections_bring_the_way_back_closer():
    latents = latents_of()
    plain = (round_trip(curved, latents, 1.0, InversionSettings(refine_iterations=0)) - latents).abs().mean()
    settings = InversionSettings(refine_skip=0.0, stop_below=1e-3, refine_iterations=8)
    corrected = (round_trip(curved, latents, 1.0, settings) - latents).abs().mean()
    assert corrected < plain / 3


def test_latents_of_a_batch_do_not_see_each_other():
    latents = latents_of(3) * torch.tensor([0.2, 1.0, 3.0]).reshape(-1, 1, 1, 1)
    together = invert_latents(curved, KEPT, latents, PROMPTS, 10)
    alone = torch.cat([invert_latents(curved, KEPT, each[None], PROMPTS, 10) for each in latents])
    torch.testing.assert_close(together, alone, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(("rule", "shares"), [("sampling", (0.9, 0.9)), ("reference", (0.81, 0.729))])
def test_corrections_shrink_when_told_to(rule, shares):
    asked = []

    def back(candidate):
        asked.append(candidate.clone())
        return candidate / 2

    wanted = torch.full((1, 1, 1, 1), 100.0)
    settings = InversionSettings(rule=rule, stop_below=0.0)
    best = refine(wanted, wanted, back, settings)
    first, second, third = (float(each) for each in asked)
    assert second - first == pytest.approx(shares[0] * (100 - first / 2), rel=1e-5)
    assert third - second == pytest.approx(shares[1] * (100 - second / 2), rel=1e-5)
    assert float(best) == third


def test_the_best_candidate_is_kept_where_a_correction_overshoots():
    wanted = torch.full((1, 1, 1, 1), 1.0)
    best = refine(wanted, wanted * 0.9, lambda candidate: 10 * candidate - 8.5, InversionSettings(stop_below=0.0))
    assert float(best) == pytest.approx(0.9)


def test_the_grid_is_whole_and_settings_are_checked():
    assert time_grid(4) == [0, 249, 499, 749, 999]
    with pytest.raises(ValueError, match="`steps` must be from 1 to 999, got 0"):
        time_grid(0)
    with pytest.raises(ValueError, match="`refine_skip` must be from 0 to 1"):
        InversionSettings(refine_skip=2)
