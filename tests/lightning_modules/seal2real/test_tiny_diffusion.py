"""The small diffusion model that is trained from nothing, and the joint fine-tuning of U-Net and prompt."""

import numpy as np
import pytest
import torch
from lightning.pytorch import LightningDataModule, Trainer, seed_everything
from lightning.pytorch.callbacks import ModelCheckpoint
from torch.utils.data import DataLoader, Dataset

from callbacks.diffusion_folder import DiffusionFolder
from datamodules.base import collate_samples
from lightning_modules.seal2real.backbone import DiffusionBackbone, denoising_errors
from lightning_modules.seal2real.joint import JointFinetuneModule
from lightning_modules.seal2real.prompt_files import PromptPair, write_prompts
from lightning_modules.seal2real.tiny import TinyDiffusionModule
from lightning_modules.seal2real.tiny_parts import TinySettings

SIDE = 16
SIZES = {
    "vae_channels": (8, 8),
    "latent_channels": 4,
    "unet_channels": (8, 16),
    "prompt_dim": 8,
    "head_dim": 4,
    "latent_side": 8,
}


class Pictures(Dataset):
    """Red stripes for real pictures, blue ones for synthetic ones."""

    def __len__(self):
        return 16

    def __getitem__(self, index):
        phase = np.random.default_rng(index).uniform(0, 6)
        wave = (127 + 120 * np.sin(np.arange(SIDE) / 2 + phase)).astype(np.uint8)
        stripes = torch.from_numpy(np.broadcast_to(wave, (3, SIDE, SIDE)).copy())
        red, blue = (torch.tensor(color, dtype=torch.uint8)[:, None, None] for color in ((255, 40, 40), (40, 40, 255)))
        return {"real": stripes.minimum(red), "image": stripes.minimum(blue), "index": index, "path": str(index)}


class Data(LightningDataModule):
    def train_dataloader(self):
        order = torch.Generator().manual_seed(1)
        return DataLoader(Pictures(), 4, shuffle=True, generator=order, collate_fn=collate_samples)

    def val_dataloader(self):
        return DataLoader(Pictures(), 4, collate_fn=collate_samples)

    test_dataloader = val_dataloader


def trainer_in(folder, **options):
    quiet = {"enable_progress_bar": False, "enable_model_summary": False, "logger": False}
    return Trainer(accelerator="cpu", max_epochs=-1, default_root_dir=folder, **quiet, **options)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A run, its model as it was before, and what validation said before and after."""
    folder = tmp_path_factory.mktemp("tiny")
    seed_everything(0)
    module = TinyDiffusionModule(**SIZES, vae_steps=40, lr=1e-2)
    saving = ModelCheckpoint(folder, "last", every_n_train_steps=80, save_top_k=-1)
    trainer = trainer_in(folder, max_steps=80, callbacks=[DiffusionFolder(str(folder / "sd")), saving])
    before = trainer.validate(module, Data(), verbose=False)[0]
    trainer.fit(module, Data())
    after = trainer.validate(module, Data(), verbose=False)[0]
    return folder, module, before, after


def test_both_halves_learn(trained):
    _, module, before, after = trained
    assert after["val/reconstruction"] < 0.5 * before["val/reconstruction"]
    assert after["val/loss"] < 0.8 * before["val/loss"]
    pictures = torch.stack([Pictures()[i]["real"] for i in range(16)]) / 255
    with torch.no_grad():
        latents = module.backbone.encode(pictures)
    assert 0.5 < float(latents.std()) < 2, "latents have about the spread of the noise"


def test_the_folder_is_a_model_that_stock_diffusers_loads(trained):
    from diffusers import StableDiffusionPipeline

    folder, module, *_ = trained
    pipeline = StableDiffusionPipeline.from_pretrained(folder / "sd")
    assert pipeline.vae_scale_factor == module.backbone.downscale == 2
    assert pipeline.vae.config.scaling_factor == pytest.approx(float(module.scale))
    pipeline.set_progress_bar_config(disable=True)
    images = pipeline("a photo", num_inference_steps=2, output_type="np").images
    assert images.shape == (1, SIDE, SIDE, 3)
    again = DiffusionBackbone.load(str(folder / "sd"))
    pictures = torch.rand(2, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        torch.testing.assert_close(again.encode(pictures), module.backbone.encode(pictures), rtol=1e-4, atol=1e-4)


def test_a_checkpoint_brings_back_weights_and_scale(trained):
    folder, module, *_ = trained
    again = TinyDiffusionModule(**SIZES, weights=str(folder / "last.ckpt"))
    pictures = torch.rand(2, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        found, wanted = (each.backbone.encode(pictures) for each in (again, module))
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-4)
    keys = {key.split(".")[1] for key in module.state_dict() if key.startswith("backbone.")}
    assert keys == {"vae", "unet"}, "the text encoder comes from the seed"


def test_captions_are_of_the_own_kind_and_sometimes_empty():
    captions = {"real_captions": ("a b", "c d"), "fake_captions": ("e f",)}
    module = TinyDiffusionModule(**SIZES, **captions, caption_dropout=0.25)
    torch.manual_seed(0)
    drawn = module._captions(400)
    wanted = module.backbone.embed(["a b", "c d", "e f", ""])
    which = torch.stack([(drawn - caption).abs().sum((1, 2)) for caption in wanted]).argmin(0)
    assert set(which[:400].tolist()) == {0, 1, 3}
    assert set(which[400:].tolist()) == {2, 3}
    assert 0.2 < float((which == 3).float().mean()) < 0.3
    assert torch.equal(module._captions(1, first=True), wanted[[0, 2]])


def test_impossible_sizes_and_captions_are_refused():
    with pytest.raises(ValueError, match="must be multiples of 8"):
        TinySettings(vae_channels=(12,))
    with pytest.raises(ValueError, match="at least one caption"):
        TinyDiffusionModule(**SIZES, real_captions=())


# --- joint fine-tuning -----------------------------------------------------------------------------------------------


@pytest.fixture
def joint(trained, monkeypatch):
    folder = str(trained[0] / "sd")
    return lambda **options: JointFinetuneModule(folder, **options)


def test_every_picture_is_in_a_step_several_times_with_draws_of_its_own(joint, monkeypatch):
    module = joint(repeats=3)
    module.log = lambda *_, **__: None
    seen = []
    monkeypatch.setattr(JointFinetuneModule, "forward", lambda self, *given: seen.append(given) or torch.zeros(6))
    batch = collate_samples([Pictures()[i] for i in range(2)])
    torch.manual_seed(0)
    module.training_step(batch, 0)
    latents, noise, timesteps = seen[0]
    assert torch.equal(latents[:2], latents[2:4])
    assert torch.equal(latents[:2], latents[4:])
    assert len(set(timesteps.tolist())) == 6
    assert not torch.equal(noise[:2], noise[2:4])


def test_both_rates_move_their_own_part_and_a_run_leaves_a_model(joint, tmp_path):
    seed_everything(0)
    module = joint(lr=1e-2, unet_lr=1e-3, repeats=2)
    start = {name: value.clone() for name, value in module.named_parameters()}
    trainer = trainer_in(tmp_path, max_steps=1, callbacks=[DiffusionFolder(str(tmp_path / "sd"))])
    before = trainer.validate(module, Data(), verbose=False)[0]["val/loss"]
    trainer.fit(module, Data())
    moved = {name: float((value - start[name]).abs().max()) for name, value in module.named_parameters()}
    # Adam's first step is its rate.
    assert moved["prompt.values"] == pytest.approx(1e-2, rel=1e-3)
    assert max(size for name, size in moved.items() if ".unet." in name) == pytest.approx(1e-3, rel=1e-3)
    assert max(size for name, size in moved.items() if ".vae." in name or ".text_encoder." in name) == 0
    tuned = DiffusionBackbone.load(str(tmp_path / "sd"))
    assert all(
        torch.equal(*pair) for pair in zip(tuned.unet.parameters(), module.backbone.unet.parameters(), strict=True)
    )
    assert trainer.validate(module, Data(), verbose=False)[0]["val/loss"] != before
    assert {key.split(".")[0] for key in module.state_dict()} == {"prompt", "backbone"}
    assert {key.split(".")[1] for key in module.state_dict() if key.startswith("backbone")} == {"unet"}


def test_it_starts_from_a_file_of_prompts_and_stretches_pictures(joint, tmp_path):
    real, fake = torch.rand(2, 77, 8, generator=torch.Generator().manual_seed(0))
    file = write_prompts(tmp_path / "p.safetensors", PromptPair(real, fake))
    module = joint(prompts=str(file), side=8)
    assert torch.equal(module.prompt(module.backbone)[0], real)
    batch = collate_samples([Pictures()[0]])
    assert module._pictures(batch).shape == (1, 3, 8, 8)
    latents, noise = torch.randn(2, 1, 4, 4, 4, generator=torch.Generator().manual_seed(1)).unbind()
    steps = torch.tensor([500])
    assert torch.equal(
        module(latents, noise, steps), denoising_errors(module.backbone, latents, noise, steps, real[None])
    )
    with pytest.raises(ValueError, match="`repeats` must be at least 1"):
        joint(repeats=0)


def test_the_folder_callback_refuses_other_modules_and_taken_places(tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(ValueError, match="holds something else: name a new folder"):
        DiffusionFolder(str(tmp_path)).setup(None, TinyDiffusionModule(**SIZES), "fit")
    with pytest.raises(ValueError, match="Module trains none"):
        DiffusionFolder().setup(None, type("Module", (), {})(), "fit")
