"""Stage 1: prompts, their file, cached latents, the loss, zero-shot classification, and what a run leaves."""

import copy

import numpy as np
import pytest
import torch
from lightning.pytorch import LightningDataModule, Trainer, seed_everything
from lightning.pytorch.callbacks import ModelCheckpoint
from safetensors.torch import save_file
from torch import nn
from torch.utils.data import DataLoader, Dataset

from callbacks.prior_separation import PriorSeparationEvaluation
from callbacks.prompt_file import PromptFile
from datamodules.base import collate_samples
from lightning_modules.seal2real.backbone import DiffusionBackbone, denoising_errors
from lightning_modules.seal2real.classification import classify, prior_errors
from lightning_modules.seal2real.latent_cache import LatentCache
from lightning_modules.seal2real.learned_prompt import LearnedPrompt
from lightning_modules.seal2real.prompt_files import PromptPair, read_prompts, write_prompts
from lightning_modules.seal2real.prompts import PromptPriorModule
from lightning_modules.seal2real.tiny_parts import TinySettings

SMALL = TinySettings(vae_channels=(8, 8), latent_channels=4, unet_channels=(16, 16), prompt_dim=16, head_dim=8)
SIDE = 16


@pytest.fixture(scope="module")
def small():
    return DiffusionBackbone.tiny(SMALL)


class Listener(nn.Module):
    """In place of a trained U-Net: the noise is a share of the input, and the prompt says which share."""

    def __init__(self, config):
        super().__init__()
        self.config = config
        self.unused = nn.Parameter(torch.zeros(1))

    def forward(self, noisy, timesteps, encoder_hidden_states):
        share = encoder_hidden_states.mean((1, 2)).reshape(-1, 1, 1, 1)
        return type("Answer", (), {"sample": noisy * share})


@pytest.fixture(autouse=True)
def _small_backbones(monkeypatch, small):
    monkeypatch.setattr(DiffusionBackbone, "load", classmethod(lambda cls, *_: copy.deepcopy(small)))


class Pictures(Dataset):
    """Real pictures are smooth, synthetic ones are not; the same for an index each time."""

    def __init__(self, length=16, offset=0):
        self.length, self.offset = length, offset

    def __len__(self):
        return self.length

    def __getitem__(self, index):
        rng = np.random.default_rng(self.offset + index)
        fine = torch.from_numpy(rng.integers(0, 256, (3, SIDE, SIDE), dtype=np.uint8))
        coarse = torch.from_numpy(rng.integers(0, 256, (3, 2, 2), dtype=np.uint8))
        smooth = coarse.repeat_interleave(SIDE // 2, 1).repeat_interleave(SIDE // 2, 2)
        return {"image": fine, "real": smooth, "index": index, "path": str(index)}


class Data(LightningDataModule):
    def train_dataloader(self):
        order = torch.Generator().manual_seed(1)
        return DataLoader(Pictures(), 4, shuffle=True, generator=order, collate_fn=collate_samples)

    def val_dataloader(self):
        return DataLoader(Pictures(10, 1000), 4, collate_fn=collate_samples)

    test_dataloader = val_dataloader


def batch_of(count=3):
    return collate_samples([Pictures()[i] for i in range(count)])


def trainer_in(folder, **options):
    quiet = {"enable_progress_bar": False, "enable_model_summary": False, "logger": False}
    defaults = {"accelerator": "cpu", "max_epochs": 1, "default_root_dir": folder, "enable_checkpointing": False}
    return Trainer(**(defaults | quiet | options))


# --- prompts and their file ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("space", "count"), [("output", None), ("output", 5), ("token", None), ("token", 3)])
def test_a_prompt_starts_as_its_phrase(small, space, count):
    prompt = LearnedPrompt(small, "a real seal", count, space)
    free = count or {"output": 77, "token": 75}[space]
    assert prompt.values.shape == (free, 16)
    torch.testing.assert_close(prompt(small), small.embed(["a real seal"]))


def test_of_few_outputs_the_others_stay_those_of_the_phrase(small):
    prompt = LearnedPrompt(small, "a real seal", 5)
    with torch.no_grad():
        prompt.values.add_(1)
    moved = (prompt(small) - small.embed(["a real seal"]))[0].abs().sum(1) > 0
    assert moved.nonzero().flatten().tolist() == [1, 2, 3, 4, 5]


@pytest.mark.parametrize("count", [1, 3])
def test_learned_tokens_are_what_textual_inversion_loads(small, count):
    backbone = copy.deepcopy(small)
    prompt = LearnedPrompt(backbone, "a real seal", count, "token")
    with torch.no_grad():
        prompt.values.add_(torch.randn(prompt.values.shape, generator=torch.Generator().manual_seed(0)))
        wanted = prompt(backbone)
    pipeline = backbone.pipeline()
    pipeline.load_textual_inversion({"<real-seal>": prompt.values.detach()})
    found, _ = pipeline.encode_prompt("<real-seal>", "cpu", 1, False)
    torch.testing.assert_close(found, wanted)


def test_counts_that_do_not_fit_are_refused(small):
    for count, space in ((0, "output"), (78, "output"), (76, "token")):
        with pytest.raises(ValueError, match=rf"from 1 to \d+ for {space} vectors here, got {count}"):
            LearnedPrompt(small, "a real seal", count, space)


def test_the_file_gives_back_prompts_and_metadata(tmp_path):
    real, fake, tokens = torch.rand(77, 16), torch.rand(77, 16), (torch.rand(2, 16), torch.rand(2, 16))
    pair = PromptPair(real, fake, {"backbone": "tiny", "steps": 7, "num_tokens": None}, tokens)
    found = read_prompts(write_prompts(tmp_path / "deep" / "p.safetensors", pair))
    assert torch.equal(found.real, real)
    assert torch.equal(found.fake, fake)
    assert torch.equal(found.tokens[1], tokens[1])
    assert found.metadata == pair.metadata
    assert [file.name for file in (tmp_path / "deep").iterdir()] == ["p.safetensors"]
    save_file({"prompt_real": real[None], "prompt_fake": fake[None]}, tmp_path / "q.safetensors")
    assert torch.equal(read_prompts(tmp_path / "q.safetensors").real, real), "the reference's layout has a batch axis"


def test_files_that_hold_no_prompts_are_refused_in_one_line(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no prompts at .*: train stage 1"):
        read_prompts(tmp_path / "absent.safetensors")
    save_file({"weight": torch.zeros(1)}, tmp_path / "other.safetensors")
    with pytest.raises(ValueError, match="holds no prompt_real and prompt_fake"):
        read_prompts(tmp_path / "other.safetensors")
    with pytest.raises(ValueError, match=r"two of one shape \(T, D\), got \(77, 16\) and \(77, 8\)"):
        PromptPair(torch.zeros(77, 16), torch.zeros(77, 8))


@pytest.mark.parametrize("options", [{}, {"num_tokens": 4}, {"space": "token", "num_tokens": 2}])
def test_a_run_goes_on_from_the_file_of_another(tmp_path, options):
    module = PromptPriorModule("tiny", **options)
    with torch.no_grad():
        module.real_prompt.values.add_(0.3)
        module.fake_prompt.values.sub_(0.2)
    file = module.save_prompts(tmp_path / "p.safetensors")
    again = PromptPriorModule("tiny", weights=str(file), real_phrase="a red stamp", **options)
    torch.testing.assert_close(again.prompts(), module.prompts())
    if options.get("space") == "token":
        with pytest.raises(ValueError, match=r"the file's prompts are \(2, 16\), the model's \(3, 16\)"):
            PromptPriorModule("tiny", weights=str(file), space="token", num_tokens=3)
    else:
        with pytest.raises(ValueError, match="has no tokens"):
            PromptPriorModule("tiny", weights=str(file), space="token")


# --- latents ---------------------------------------------------------------------------------------------------------


def test_cached_latents_are_those_of_single_pictures_and_encoded_once(small):
    calls = []

    def encode(image):
        calls.append(len(image))
        return small.encode_moments(image)

    cache, images = LatentCache(encode), torch.rand(3, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(0))
    first = cache.moments("real", [4, 8, 2], images)
    again = cache.moments("real", [2, 4], images[[2, 0]])
    assert calls == [1, 1, 1]
    assert torch.equal(first[0][[2, 0]], again[0])
    torch.testing.assert_close(first[1], small.encode_moments(images)[1])
    cache.moments("image", [4], images[1:2])
    assert len(cache) == 4
    with pytest.raises(ValueError, match="sample 8 has another picture"):
        cache.moments("real", [8], images[:1])


@pytest.mark.parametrize("posterior", ["sample", "mode"])
def test_a_step_is_the_same_with_cached_latents(posterior):
    losses = []
    for cached in (False, True):
        module = PromptPriorModule("tiny", cache_latents=cached, posterior=posterior)
        module.log = lambda *_, **__: None
        losses += [module.training_step(batch_of(), 0).detach() for _ in range(2)]
    torch.testing.assert_close(torch.stack(losses), losses[0].expand(4), rtol=1e-5, atol=1e-6)


# --- the loss --------------------------------------------------------------------------------------------------------


def stage_1_inputs(count=2):
    draws = torch.Generator().manual_seed(3)
    latents, noise = torch.randn(2, 2 * count, 4, 8, 8, generator=draws).unbind()
    return latents, noise, torch.randint(0, 1000, (2 * count,), generator=draws)


def test_each_kind_trains_its_own_prompt(small):
    module = PromptPriorModule("tiny")
    latents, noise, timesteps = stage_1_inputs()
    loss, errors = module.prior_loss(latents, noise, timesteps)
    prompts = small.embed(["a real seal", "a fake seal"])
    for half, prompt in zip((slice(0, 2), slice(2, 4)), prompts, strict=True):
        wanted = denoising_errors(small, latents[half], noise[half], timesteps[half], prompt[None])
        torch.testing.assert_close(errors[half], wanted, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(loss, errors[:2].mean() + errors[2:].mean())
    gradient = torch.autograd.grad(errors[:2].sum(), [module.real_prompt.values, module.fake_prompt.values])
    assert float(gradient[0].abs().sum()) > 0
    assert float(gradient[1].abs().sum()) == 0


def test_the_hinge_is_on_the_other_prompt_at_the_same_draws(small):
    latents, noise, timesteps = stage_1_inputs()
    prompts = small.embed(["a real seal", "a fake seal"])
    rows = [prompts[i] for i in (0, 0, 1, 1)], [prompts[i] for i in (1, 1, 0, 0)]
    own, other = (denoising_errors(small, latents, noise, timesteps, torch.stack(row)) for row in rows)
    hinge = (own * 1.5 - other).clamp(min=0)
    assert float(hinge.min()) > 0, "the margin is wide enough to be seen"
    wanted = own[:2].mean() + own[2:].mean() + 0.7 * (hinge[:2].mean() + hinge[2:].mean())
    found, _ = PromptPriorModule("tiny", contrast_weight=0.7, contrast_margin=0.5).prior_loss(latents, noise, timesteps)
    torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-6)


def test_one_timestep_for_all_pictures_of_a_kind():
    latents, index = torch.zeros(8, 4, 8, 8), torch.arange(4)
    module = PromptPriorModule("tiny", timesteps="batch")
    _, timesteps = module._draw(latents, module.sample_draws(index, 2), 0)
    assert len(set(timesteps[:4].tolist())) == len(set(timesteps[4:].tolist())) == 1
    assert len(set(timesteps.tolist())) == 2
    _, others = module._draw(latents, module.sample_draws(index + 4, 2), 0)
    assert torch.equal(others, timesteps), "all processes have the timesteps of the batch"
    assert not torch.equal(module._draw(latents, module.sample_draws(index, 2), 1)[1], timesteps)
    _, timesteps = PromptPriorModule("tiny")._draw(latents, module.sample_draws(index, 2), 0)
    assert len(set(timesteps.tolist())) > 2


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"t_range": (500, 500)}, "`t_range` must ascend within 0 and 1000"),
        ({"eval_t_range": (0, 1001)}, "`eval_t_range` must ascend within 0 and 1000"),
        ({"contrast_weight": -1.0}, "must not be negative"),
        ({"eval_draws": 0}, "`eval_draws` must be at least 1"),
    ],
)
def test_settings_that_make_no_sense_are_refused(options, told):
    with pytest.raises(ValueError, match=told):
        PromptPriorModule("tiny", **options)


# --- classification --------------------------------------------------------------------------------------------------


def test_errors_of_all_prompts_and_pictures_share_their_draws(small):
    latents = torch.randn(3, 4, 8, 8, generator=torch.Generator().manual_seed(1))
    prompts = small.embed(["a real seal", "a fake seal"])
    seen = []

    class Watched(DiffusionBackbone):
        def predict_noise(self, noisy, timesteps, prompt):
            seen.append((noisy, timesteps))
            return super().predict_noise(noisy, timesteps, prompt)

    watched = copy.deepcopy(small)
    watched.__class__ = Watched
    errors = prior_errors(watched, latents, prompts, 5, torch.Generator().manual_seed(2), (100, 600))
    assert errors.shape == (2, 3)
    for (first, steps), (second, same) in zip(seen[::2], seen[1::2], strict=True):
        assert torch.equal(first, second)
        assert torch.equal(steps, same)
    # One timestep in each fifth of the range.
    assert [(int(steps[0]) - 100) // 100 for _, steps in seen[::2]] == [0, 1, 2, 3, 4]
    alone = prior_errors(small, latents[1:2], prompts, 5, torch.Generator().manual_seed(2), (100, 600))
    torch.testing.assert_close(alone[:, 0], errors[:, 1], rtol=1e-5, atol=1e-6)


def test_a_picture_is_more_real_the_lower_its_error_under_the_real_prompt(small):
    images = torch.rand(2, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(0))
    prompts = small.embed(["a real seal", "a fake seal"])
    score = classify(small, images, tuple(prompts), 3, torch.Generator().manual_seed(1))
    real, fake = prior_errors(small, small.encode(images), prompts, 3, torch.Generator().manual_seed(1))
    assert torch.equal(score, fake - real)
    assert torch.equal(classify(small, images, prompts.flip(0), 3, torch.Generator().manual_seed(1)), -score)


# --- runs ------------------------------------------------------------------------------------------------------------


def small_copies(backbone, images):
    """In place of a trained VAE: what smooth pictures and noise keep of their contrast tells them apart."""
    pooled = torch.nn.functional.avg_pool2d(4 * images - 2, 2)[:, [0, 1, 2, 0]]
    return pooled, torch.full_like(pooled, -30.0)


def test_a_run_learns_to_tell_the_two_kinds_and_leaves_a_small_file(tmp_path, monkeypatch):
    seed_everything(0)
    module = PromptPriorModule("tiny", lr=0.1, cache_latents=True)
    module.backbone.unet = Listener(module.backbone.unet.config).requires_grad_(False)
    monkeypatch.setattr(DiffusionBackbone, "encode_moments", small_copies)
    module.backbone.vae.register_to_config(scaling_factor=1.0)
    evaluation = PriorSeparationEvaluation(resamples=50)
    saving = ModelCheckpoint(tmp_path, "last", save_top_k=-1)
    trainer = trainer_in(
        tmp_path,
        max_epochs=12,
        callbacks=[evaluation, PromptFile(str(tmp_path / "p.safetensors")), saving],
        enable_checkpointing=True,
        check_val_every_n_epoch=12,
    )
    before = trainer.validate(module, Data(), verbose=False)[0]
    frozen = copy.deepcopy([*module.backbone.parameters()])
    trainer.fit(module, Data())
    after = trainer.callback_metrics
    assert before["val/auroc"] == 0.5, "at first the prompts have one mean, which is all that this network hears"
    assert after["val/loss"] < before["val/loss"]
    assert after["val/advantage_percent"] > before["val/advantage_percent"] + 1
    assert after["val/auroc"] > 0.9
    assert all(torch.equal(*pair) for pair in zip(frozen, module.backbone.parameters(), strict=True))
    pair = read_prompts(tmp_path / "p.safetensors")
    torch.testing.assert_close(torch.stack([pair.real, pair.fake]), module.prompts().detach())
    assert pair.metadata["steps"] == 48
    assert pair.metadata["backbone"] == "tiny"
    checkpoint = torch.load(tmp_path / "last.ckpt", weights_only=True)
    assert set(checkpoint["state_dict"]) == {"real_prompt.values", "fake_prompt.values"}
    assert (tmp_path / "last.ckpt").stat().st_size < 4 * (2 * 77 * 16 * 4) + 30_000
    tested = trainer.test(module, Data(), verbose=False)[0]
    assert tested["test/auroc"] == pytest.approx(float(after["val/auroc"]))


def test_pictures_of_any_size_are_judged_one_by_one():
    module = PromptPriorModule("tiny", longest_side=24).eval()
    draws = torch.Generator().manual_seed(0)
    images = [torch.randint(0, 256, (3, *size), generator=draws, dtype=torch.uint8) for size in ((16, 21), (60, 30))]
    images.append(torch.zeros(3, 1, 40, dtype=torch.uint8))
    batch = {"image": images, "path": ["a", "b", "c"], "index": torch.tensor([5, 6, 7])}
    answer = module.predict_step(batch, 0)
    first, second, none = answer["records"]
    assert first == {"path": "a", "index": 5, "score": first["score"], "verdict": first["verdict"]}
    assert first["verdict"] == ("real" if first["score"] > 0 else "fake")
    assert isinstance(second["score"], float)
    assert none["score"] is none["verdict"] is None
    assert module.predict_step({"image": [], "path": [], "index": torch.zeros(0)}, 0)["records"] == []
