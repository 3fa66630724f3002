"""The frozen diffusion model: latents, noise, prompts, files, and what happens without a network."""

import json
import os
import shutil
import socket
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from lightning_modules.seal2real.backbone import DiffusionBackbone, denoising_errors, draw_noise
from lightning_modules.seal2real.tiny_parts import TinySettings, learn_merges, tiny_tokenizer

ROOT = Path(__file__).parents[3]
PHRASES = ["a real seal", "a fake seal"]
SMALL = TinySettings(vae_channels=(8, 8), latent_channels=4, unet_channels=(8, 16), prompt_dim=8, head_dim=4)


@pytest.fixture(scope="module")
def tiny():
    return DiffusionBackbone.load("tiny")


@pytest.fixture(scope="module")
def folder(tiny, tmp_path_factory):
    return tiny.save(tmp_path_factory.mktemp("tiny") / "sd")


@pytest.fixture
def copied(folder, tmp_path):
    return Path(shutil.copytree(folder, tmp_path / "copy"))


def pictures(count=2, side=64, seed=0):
    return torch.rand(count, 3, side, side, generator=torch.Generator().manual_seed(seed))


# --- numbers ---------------------------------------------------------------------------------------------------------


def test_the_tiny_model_has_the_stated_size_and_is_the_same_each_time(tiny):
    sizes = [sum(p.numel() for p in part.parameters()) for part in (tiny.unet, tiny.vae)]
    assert sizes == [792_964, 261_079]
    again = DiffusionBackbone.tiny()
    for first, second in zip(tiny.unet.parameters(), again.unet.parameters(), strict=True):
        assert torch.equal(first, second)
    other = DiffusionBackbone.tiny(seed=1)
    assert not torch.equal(next(tiny.unet.parameters()), next(other.unet.parameters()))


def test_building_it_leaves_the_random_stream_alone():
    torch.manual_seed(3)
    wanted = torch.rand(2)
    torch.manual_seed(3)
    DiffusionBackbone.tiny(SMALL)
    assert torch.equal(torch.rand(2), wanted)


def test_latents_are_the_mode_or_a_sample_scaled(tiny):
    images = pictures()
    posterior = tiny.vae.encode(2 * images - 1).latent_dist
    torch.testing.assert_close(tiny.encode(images), posterior.mode() * 0.18215)
    sample = posterior.sample(torch.Generator().manual_seed(5)) * 0.18215
    torch.testing.assert_close(tiny.encode(images, torch.Generator().manual_seed(5)), sample)
    assert tiny.downscale == 8
    assert tiny.encode(images).shape == (2, 4, 8, 8)


def test_latents_and_predictions_keep_gradients_to_the_picture(tiny):
    images = pictures(1).requires_grad_()
    noise, timesteps = draw_noise(torch.zeros(1, 4, 8, 8), 20, 980)
    denoising_errors(tiny, tiny.encode(images), noise, timesteps, tiny.embed(PHRASES[:1])).sum().backward()
    assert float(images.grad.abs().sum()) > 0
    assert all(p.grad is None for p in tiny.parameters())


def test_decoding_is_the_pipelines(tiny):
    latents = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        wanted = (tiny.vae.decode(latents / 0.18215).sample / 2 + 0.5).clamp(0, 1)
        assert torch.equal(tiny.decode(latents), wanted)


def test_noise_is_added_as_the_formula_says(tiny):
    # The schedule in float64, by itself.
    betas = np.linspace(0.00085**0.5, 0.012**0.5, 1000) ** 2
    kept = np.cumprod(1 - betas)
    latents, noise = torch.randn(2, 3, 4, 8, 8, generator=torch.Generator().manual_seed(2)).unbind()
    timesteps = torch.tensor([0, 431, 999])
    rates = kept[timesteps.numpy()].reshape(-1, 1, 1, 1)
    wanted = np.sqrt(rates) * latents.numpy() + np.sqrt(1 - rates) * noise.numpy()
    np.testing.assert_allclose(tiny.add_noise(latents, noise, timesteps).numpy(), wanted, atol=2e-6)


def test_a_model_of_velocities_answers_with_noise(tiny):
    """v = sqrt(a) eps - sqrt(1 - a) x0: a network that knows v must be read as one that knows eps."""

    class Knows(nn.Module):
        config = tiny.unet.config

        def __init__(self, answer):
            super().__init__()
            self.weight = nn.Parameter(torch.zeros(1))
            self.answer = answer

        def forward(self, noisy, timesteps, encoder_hidden_states):
            return type("Answer", (), {"sample": self.answer})

    latents, noise = torch.randn(2, 3, 4, 8, 8, generator=torch.Generator().manual_seed(4)).unbind()
    timesteps = torch.tensor([10, 500, 990])
    kept = tiny.alphas_cumprod[timesteps].reshape(-1, 1, 1, 1)
    velocity = kept.sqrt() * noise - (1 - kept).sqrt() * latents
    schedule = tiny.schedule | {"prediction_type": "v_prediction"}
    model = DiffusionBackbone(Knows(velocity), tiny.vae, tiny.text_encoder, tiny.tokenizer, schedule)
    found = model.predict_noise(model.add_noise(latents, noise, timesteps), timesteps, torch.zeros(1, 77, 32))
    torch.testing.assert_close(found, noise, atol=2e-5, rtol=1e-4)
    with pytest.raises(ValueError, match="epsilon and v_prediction are known"):
        DiffusionBackbone(tiny.unet, tiny.vae, tiny.text_encoder, tiny.tokenizer, {"prediction_type": "sample"})


def test_errors_are_of_each_picture_and_of_its_own_prompt(tiny):
    latents = torch.randn(3, 4, 8, 8, generator=torch.Generator().manual_seed(6))
    noise, timesteps = draw_noise(latents, 0, 1000, torch.Generator().manual_seed(7))
    prompts = tiny.embed([*PHRASES, "an image"])
    together = denoising_errors(tiny, latents, noise, timesteps, prompts)
    for i in range(3):
        part = slice(i, i + 1)
        alone = denoising_errors(tiny, latents[part], noise[part], timesteps[part], prompts[part])
        torch.testing.assert_close(alone, together[part], atol=1e-5, rtol=1e-5)


def test_timesteps_are_drawn_from_the_whole_range(tiny):
    _, timesteps = draw_noise(torch.zeros(4000, 1, 1, 1), 20, 30, torch.Generator().manual_seed(0))
    assert sorted(set(timesteps.tolist())) == list(range(20, 30))


def test_sides_that_do_not_fit_are_refused(tiny):
    with pytest.raises(ValueError, match="multiples of 8 here, got 60x64"):
        tiny.encode(torch.zeros(1, 3, 60, 64))


# --- prompts ---------------------------------------------------------------------------------------------------------


def test_phrases_are_encoded_as_the_pipeline_does_it(tiny):
    wanted, _ = tiny.pipeline().encode_prompt(PHRASES, "cpu", 1, False)
    assert torch.equal(tiny.embed(PHRASES), wanted)
    assert wanted.shape == (2, 77, 32)


def test_tokens_of_a_phrase_give_its_outputs_and_get_gradients(tiny):
    vectors = tiny.token_vectors(PHRASES).requires_grad_()
    found = tiny.embed_vectors(vectors)
    torch.testing.assert_close(found, tiny.embed(PHRASES))
    found[:, 3:].square().sum().backward()
    assert float(vectors.grad[:, :3].abs().sum()) > 0
    torch.testing.assert_close(tiny.embed(PHRASES), found.detach()), "no hook is left behind"


def test_merges_join_the_most_frequent_pairs_first():
    assert learn_merges(["aab aab ab"]) == [("a", "b</w>"), ("a", "ab</w>")]
    tokenizer = tiny_tokenizer(["real seal", "real seal"])
    assert tokenizer.tokenize("real seal unreal") == ["real</w>", "seal</w>", "u", "n", "real</w>"]
    assert tokenizer.decode(tokenizer("Ünreal", add_special_tokens=False).input_ids).strip() == "ünreal"


# --- modes, precision, state -----------------------------------------------------------------------------------------


class Holder(nn.Module):
    def __init__(self, seed=0):
        super().__init__()
        self.backbone = DiffusionBackbone.tiny(SMALL, seed)
        self.learned = nn.Linear(2, 2)


def test_it_stays_frozen_and_in_eval_mode():
    holder = Holder().train()
    assert holder.training
    assert not any(module.training for module in holder.backbone.modules())
    assert not any(p.requires_grad for p in holder.backbone.parameters())


def test_frozen_weights_stay_out_of_state_dicts_and_need_not_be_in_them():
    holder = Holder()
    assert set(holder.state_dict()) == {"learned.weight", "learned.bias"}
    other = Holder(seed=1)
    before = [p.clone() for p in other.backbone.parameters()]
    other.load_state_dict(holder.state_dict())
    assert torch.equal(other.learned.weight, holder.learned.weight)
    assert all(torch.equal(*pair) for pair in zip(before, other.backbone.parameters(), strict=True))
    with pytest.raises(RuntimeError, match=r"Missing key.*learned\.bias"):
        other.load_state_dict({"learned.weight": holder.learned.weight})
    with pytest.raises(RuntimeError, match=r"Unexpected key.*backbone\.nothing"):
        other.load_state_dict(holder.state_dict() | {"backbone.nothing": torch.zeros(1)})


def test_what_is_made_trainable_is_saved():
    holder, other = Holder(), Holder(seed=1)
    for each in (holder, other):
        each.backbone.unet.requires_grad_(True)
    state = holder.state_dict()
    assert {key.split(".")[1] for key in state if key.startswith("backbone")} == {"unet"}
    other.load_state_dict(state)
    assert all(
        torch.equal(*pair)
        for pair in zip(holder.backbone.unet.parameters(), other.backbone.unet.parameters(), strict=True)
    )


def test_lora_layers_are_saved_even_while_they_are_switched_off():
    from peft import LoraConfig

    holder = Holder()
    holder.backbone.unet.add_adapter(LoraConfig(r=2, target_modules=["to_q"]), adapter_name="forgery")
    holder.backbone.unet.disable_adapters()
    names = [key for key in holder.state_dict() if key.startswith("backbone")]
    assert names
    assert all(".lora_" in key for key in names)


def test_half_precision_keeps_the_schedule_exact():
    model = DiffusionBackbone.tiny(SMALL)
    exact = model.alphas_cumprod.clone()
    model.to(torch.bfloat16)
    assert model.alphas_cumprod.dtype == torch.float32
    assert torch.equal(model.alphas_cumprod, exact)
    latents = model.encode(pictures(1, 16))
    assert latents.dtype == model.predict_noise(latents, torch.tensor([5]), model.embed(PHRASES)[:1]).dtype
    assert latents.dtype == model.decode(latents).dtype == torch.float32


def test_gradient_checkpointing_changes_no_gradient():
    gradients = []
    for checkpointed in (False, True):
        model = DiffusionBackbone.tiny(SMALL)
        model.set_gradient_checkpointing(checkpointed)
        images = pictures(1, 16).requires_grad_()
        noise = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(0))
        prompt = model.embed(PHRASES[:1])
        denoising_errors(model, model.encode(images), noise, torch.tensor([300]), prompt).sum().backward()
        gradients.append(images.grad)
    torch.testing.assert_close(*gradients)


# --- files and the hub -----------------------------------------------------------------------------------------------


def test_a_saved_folder_loads_to_the_same_answers(tiny, folder):
    again = DiffusionBackbone.load(str(folder))
    assert torch.equal(again.encode(pictures()), tiny.encode(pictures()))
    assert torch.equal(again.embed(PHRASES), tiny.embed(PHRASES))
    assert torch.equal(again.alphas_cumprod, tiny.alphas_cumprod)


def test_older_key_names_of_the_text_encoder_load(copied, tiny):
    file = copied / "text_encoder" / "model.safetensors"
    tensors = load_file(file)
    assert not any(key.startswith("text_model.") for key in tensors)
    save_file({f"text_model.{key}": value for key, value in tensors.items()}, file, {"format": "pt"})
    assert torch.equal(DiffusionBackbone.load(str(copied)).embed(PHRASES), tiny.embed(PHRASES))


def test_a_folder_with_half_precision_weights_alone_loads(copied, tiny):
    weights = [*copied.glob("*/diffusion_pytorch_model.safetensors"), *copied.glob("*/model.safetensors")]
    assert len(weights) == 3
    for file in weights:
        halved = {key: value.half() for key, value in load_file(file).items()}
        save_file(halved, file.with_suffix(".fp16.safetensors"), {"format": "pt"})
        file.unlink()
    model = DiffusionBackbone.load(str(copied))
    torch.testing.assert_close(model.encode(pictures()), tiny.encode(pictures()), atol=2e-3, rtol=2e-2)
    assert {p.dtype for p in model.parameters()} == {torch.float32}


def refused(source):
    with pytest.raises((ValueError, FileNotFoundError)) as caught:
        DiffusionBackbone.load(str(source))
    told = str(caught.value)
    assert "\n" not in told
    return told


def test_what_is_wrong_with_a_folder_is_told_in_one_line(copied, tmp_path):
    assert "has no unet, vae" in refused(tmp_path)
    single = tmp_path / "model.safetensors"
    single.write_bytes(b"0")
    assert "is a single file" in refused(single)
    assert "no diffusion model at" in refused(tmp_path / "absent" / "deeper")
    (copied / "vae" / "diffusion_pytorch_model.safetensors").write_bytes(b"damaged")
    assert f"{copied / 'vae'} cannot be loaded" in refused(copied)
    shutil.rmtree(copied / "tokenizer")
    assert "it has no tokenizer" in refused(copied)


def test_a_damaged_schedule_is_told_in_one_line(copied):
    (copied / "scheduler" / "scheduler_config.json").write_text("{")
    assert "scheduler_config.json cannot be read" in refused(copied)


def test_without_a_network_a_hub_id_ends_in_one_line_in_seconds(monkeypatch, tmp_path):
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)  # as CI sets it
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: time.sleep(60))
    start = time.monotonic()
    told = refused("owner/model")
    assert time.monotonic() - start < 5
    assert "no answer in 2 s" in told
    assert "hf download owner/model --local-dir FOLDER" in told
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: (_ for _ in ()).throw(OSError("no such name")))
    assert "(no such name)" in refused("owner/model")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert "HF_HUB_OFFLINE is set" in refused("owner/model")


def test_a_model_in_the_hubs_cache_needs_no_network(monkeypatch, tmp_path, folder, tiny):
    snapshot = tmp_path / "models--owner--model" / "snapshots" / "0123456789abcdef0123456789abcdef01234567"
    shutil.copytree(folder, snapshot)
    (tmp_path / "models--owner--model" / "refs").mkdir()
    (tmp_path / "models--owner--model" / "refs" / "main").write_text(snapshot.name)
    script = "import sys; from lightning_modules.seal2real.hub import find_model; print(find_model('owner/model'))"
    environment = os.environ | {"HF_HUB_CACHE": str(tmp_path), "HF_HUB_OFFLINE": "1", "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", script]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.stdout.strip() == str(snapshot), done.stderr


# --- the stock library alone -----------------------------------------------------------------------------------------

SCRIPT = """
import sys
import torch
from diffusers import StableDiffusionPipeline
from safetensors.torch import load_file

folder, prompts, picture = sys.argv[1:]
pipeline = StableDiffusionPipeline.from_pretrained(folder)
learned = load_file(prompts)
images = pipeline(
    prompt_embeds=learned["prompt_real"][None],
    negative_prompt_embeds=learned["prompt_fake"][None],
    height=64, width=64, num_inference_steps=3, output_type="pt",
    generator=torch.Generator().manual_seed(0),
).images
assert not [name for name in sys.modules if name.split(".")[0] in ("lightning_modules", "datamodules", "callbacks")]
torch.save(images, picture)
"""


@pytest.mark.slow
def test_learned_prompts_are_sampled_from_by_a_script_without_our_code(folder, tiny, tmp_path):
    from lightning_modules.seal2real.prompt_files import PromptPair, write_prompts

    real, fake = tiny.embed(PHRASES) + 0.1
    file = write_prompts(tmp_path / "prompts.safetensors", PromptPair(real, fake, {"backbone": "tiny"}))
    assert file.stat().st_size < 1e6
    (tmp_path / "script.py").write_text(SCRIPT)
    command = [sys.executable, "-P", "script.py", str(folder), str(file), "picture.pt"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    images = torch.load(tmp_path / "picture.pt", weights_only=True)
    assert images.shape == (1, 3, 64, 64)
    pipeline = tiny.pipeline()
    options = {"height": 64, "width": 64, "num_inference_steps": 3, "output_type": "pt"}
    draws = torch.Generator().manual_seed(0)
    wanted = pipeline(prompt_embeds=real[None], negative_prompt_embeds=fake[None], generator=draws, **options).images
    torch.testing.assert_close(images, wanted)
    assert json.loads((folder / "model_index.json").read_text())["_class_name"] == "StableDiffusionPipeline"
