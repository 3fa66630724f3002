"""The sampling loop paints what stock pipelines paint, and asks the model no more than it must."""

import pytest
import torch

from lightning_modules.seal2real.backbone import DiffusionBackbone
from lightning_modules.seal2real.sampling import guided, make_sampler, noise_model, sample_latents

STOCK = {"ddim": "DDIMScheduler", "lms": "LMSDiscreteScheduler"}


@pytest.fixture(scope="module")
def backbone():
    return DiffusionBackbone.tiny()


@pytest.mark.parametrize("name", ["ddim", "lms"])
@torch.no_grad()
def test_the_loop_is_the_stock_pipelines(backbone, name):
    empty, prompt = backbone.embed(["", "a real seal"]).split(1)
    noise = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(3))
    pipeline = backbone.pipeline()
    pipeline.scheduler = backbone.scheduler(STOCK[name])
    prompts = {"prompt_embeds": prompt.expand(2, -1, -1), "negative_prompt_embeds": empty.expand(2, -1, -1)}
    sizes = {"height": 64, "width": 64, "num_inference_steps": 4, "guidance_scale": 5.0}
    wanted = pipeline(**prompts, **sizes, latents=noise, output_type="latent").images
    sampler = make_sampler(name, backbone.schedule, 4)
    found = sample_latents(noise_model(backbone), sampler, noise, prompt, empty, 5.0)
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-4)


def test_a_guidance_of_one_asks_the_model_once_and_guidance_leads_away_from_the_empty_prompt():
    asked = []

    def model(latents, timesteps, prompts):
        asked.append((len(latents), timesteps.tolist()))
        return latents * 0 + prompts.mean(dim=(1, 2)).reshape(-1, 1, 1, 1)

    latents, prompt, empty = torch.zeros(2, 1, 1, 1), torch.ones(1, 3, 4), torch.zeros(1, 3, 4)
    now = torch.tensor([7.0, 7.0])
    assert guided(model, latents, now, prompt, empty, 1.0).flatten().tolist() == [1.0, 1.0]
    assert guided(model, latents, now, prompt, empty + 0.5, 3.0).flatten().tolist() == [2.0, 2.0]
    guided(model, latents, torch.stack([now - 2, now]), prompt, empty, 3.0)
    assert asked == [(2, [7, 7]), (4, [7, 7, 7, 7]), (4, [5, 5, 7, 7])]


@torch.no_grad()
def test_a_velocity_model_is_asked_at_whole_timesteps(backbone):
    parts = backbone.unet, backbone.vae, backbone.text_encoder, backbone.tokenizer
    velocity = DiffusionBackbone(*parts, {**backbone.schedule, "prediction_type": "v_prediction"})
    prompt, latents = backbone.embed(["a real seal"]), torch.randn(1, 4, 8, 8)
    found = noise_model(velocity)(latents, torch.tensor([998.6]), prompt)
    torch.testing.assert_close(found, velocity.predict_noise(latents, torch.tensor([999]), prompt))
    # The sampler is told noise, so it must not turn it into noise once more.
    assert make_sampler("ddim", velocity.schedule, 4).config.prediction_type == "epsilon"


def test_unknown_samplers_and_no_steps_are_refused(backbone):
    with pytest.raises(ValueError, match="`sampler` must be ddim or lms, got 'euler'"):
        make_sampler("euler", backbone.schedule, 4)
    with pytest.raises(ValueError, match="`steps` must be at least 1, got 0"):
        make_sampler("ddim", backbone.schedule, 0)
