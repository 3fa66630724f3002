"""The forger follows its prior, keeps the frozen model out of files, and goes on where it was stopped."""

import io

import numpy as np
import pytest
import torch
from lightning.pytorch import Callback, LightningDataModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from torch.utils.data import DataLoader

from lightning_modules.seal2real.backbone import DiffusionBackbone
from lightning_modules.seal2real.fake_branch import FakeBranch, without_adapter
from lightning_modules.seal2real.forger import ForgerModule
from lightning_modules.seal2real.forger_losses import ContentSettings, PriorSettings, latent_mask
from lightning_modules.seal2real.forger_prior import FrozenPrior, spread_timesteps
from lightning_modules.seal2real.prompt_files import PromptPair, write_prompts

SIDE = 32
KINDS = ["full", "sds", "dds", "vsd"]


def pictures(count=8, seed=0):
    """Flat red squares on white for the drawn ones, darker and grainy for the real ones."""
    rng = np.random.default_rng(seed)
    samples = []
    for index in range(count):
        ink = torch.zeros(1, SIDE, SIDE, dtype=torch.uint8)
        left = int(rng.integers(4, 12))
        ink[:, left : left + 14, left : left + 14] = 1
        red = torch.tensor([200, 40, 40], dtype=torch.uint8)[:, None, None]
        drawn = torch.where(ink > 0, red, torch.full((3, 1, 1), 250, dtype=torch.uint8))
        grain = torch.from_numpy(rng.integers(0, 60, (3, SIDE, SIDE), np.uint8))
        samples.append({"image": drawn, "real": drawn - grain.clamp(max=39), "ink": ink, "index": index})
    return samples


class Patches(LightningDataModule):
    """The pictures in a fixed order."""

    def __init__(self, count=8, batch=4):
        super().__init__()
        self.samples, self.batch = pictures(count), batch

    def loader(self):
        return DataLoader(self.samples, self.batch)

    train_dataloader = val_dataloader = test_dataloader = loader


def make(kind="dds", prior=None, **settings):
    torch.manual_seed(0)
    given = {"channels": (8, 16), "noise_scales": (1,), "eval_draws": 2} | settings
    return ForgerModule(prior=PriorSettings(kind=kind, t_range=(20, 700), **(prior or {})), **given)


def trainer(folder, **settings):
    given = {"max_steps": 2, "enable_checkpointing": False, "logger": False, "num_sanity_val_steps": 0} | settings
    return Trainer(
        accelerator="cpu",
        default_root_dir=folder,
        enable_progress_bar=False,
        enable_model_summary=False,
        **given,
    )


def frozen(kind="dds", rank=2):
    prior = FrozenPrior.load("tiny", None)
    return prior, FakeBranch(prior.backbone, prior.fake, rank) if kind == "vsd" else None


def batch_of(count=2):
    samples = pictures(count)
    return torch.stack([s["image"] for s in samples]).float() / 255, torch.stack([s["ink"] for s in samples]) > 0


def drawn_noise(prior, image):
    generator = torch.Generator().manual_seed(5)
    noise = torch.randn((len(image), *prior.latent_shape(image)), generator=generator)
    return noise, torch.tensor([100, 600][: len(image)])


# --- the prior -------------------------------------------------------------------------------------------------------


def test_full_is_the_gradient_of_the_denoising_error():
    prior, _ = frozen()
    image, ink = batch_of()
    noise, timesteps = drawn_noise(prior, image)
    one, other = image.clone().requires_grad_(), image.clone().requires_grad_()
    settings = PriorSettings(kind="full", normalise=False, around_seal=False)
    pull = prior.pull(one, ink, noise, timesteps, settings)
    pull.loss.backward()
    noisy = prior.backbone.add_noise(prior.backbone.encode(other), noise, timesteps)
    error = (prior.backbone.predict_noise(noisy, timesteps, prior.real[None]) - noise).square().mean()
    error.backward()
    assert float(pull.loss.detach()) == pytest.approx(float(error.detach()), rel=1e-5)
    torch.testing.assert_close(one.grad, other.grad, rtol=1e-4, atol=1e-9)


@pytest.mark.parametrize("kind", KINDS)
def test_normalised_pulls_have_one_size_whatever_the_prior(kind):
    prior, branch = frozen(kind)
    image, ink = batch_of()
    noise, timesteps = drawn_noise(prior, image)
    latents = prior.backbone.encode(image).requires_grad_()
    prior.backbone.encode = lambda _: latents
    pull = prior.pull(image, ink, noise, timesteps, PriorSettings(kind=kind), branch)
    pull.loss.backward()
    # Each picture has a share of 1, over the latents that see its ink.
    reached = latents.grad.abs().flatten(1).sum(1)
    torch.testing.assert_close(reached, torch.full_like(reached, 0.5))
    apart = latent_mask(ink, prior.backbone.downscale).expand_as(latents) == 0
    assert bool(apart.any())
    assert latents.grad[apart].abs().max() == 0, "the page is not the seal's"


def test_equal_prompts_pull_nowhere():
    prior, _ = frozen()
    prior.fake = prior.real
    image, ink = batch_of()
    image.requires_grad_()
    pull = prior.pull(image, ink, *drawn_noise(prior, image), PriorSettings(kind="dds", normalise=False))
    pull.loss.backward()
    assert image.grad.abs().max() < 1e-9
    assert float(pull.loss.detach()) > 0.1, "its value is the denoising error, not the pull"


def test_errors_are_means_over_levels():
    prior, _ = frozen()
    image, _ = batch_of()
    generator = torch.Generator().manual_seed(6)
    noise = torch.randn((2, 3, *prior.latent_shape(image)), generator=generator)
    levels = spread_timesteps((0, 600), 3)
    assert levels.tolist() == [100, 300, 500]
    got = prior.errors(image, noise, levels)
    expected = []
    for draw, level in enumerate(levels):
        timesteps = level.expand(2)
        noisy = prior.backbone.add_noise(prior.backbone.encode(image), noise[:, draw], timesteps)
        seen = prior.backbone.predict_noise(noisy, timesteps, prior.real[None])
        expected.append((seen - noise[:, draw]).square().mean((1, 2, 3)))
    torch.testing.assert_close(got, torch.stack(expected).mean(0))


def test_the_adapter_can_be_lifted_off():
    prior, _ = frozen()
    image, _ = batch_of()
    noisy, timesteps = drawn_noise(prior, image)
    before = prior.backbone.predict_noise(noisy, timesteps, prior.real[None])
    errors = prior.errors(image, noisy[:, None], timesteps[:1])
    branch = FakeBranch(prior.backbone, prior.fake, 2)
    for parameter in branch.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    changed = prior.backbone.predict_noise(noisy, timesteps, prior.real[None])
    assert (changed - before).abs().max() > 1e-3
    with torch.no_grad(), without_adapter(prior.backbone):
        assert torch.equal(prior.backbone.predict_noise(noisy, timesteps, prior.real[None]), before)
    assert torch.equal(prior.errors(image, noisy[:, None], timesteps[:1]), errors), "validation asks the frozen model"
    assert all(parameter.requires_grad for parameter in branch.parameters())
    branch(prior.backbone, noisy, timesteps).sum().backward()
    assert all(parameter.grad is not None for parameter in branch.parameters())


def test_each_loss_of_vsd_reaches_its_own_parameters():
    module = make("vsd")
    module.frozen, module.fake = frozen("vsd")
    image, ink = batch_of()
    loss, fake_loss, _ = module.losses_of(image, ink, torch.arange(len(image)))
    loss.backward()
    assert all(parameter.grad is None for parameter in module.fake.parameters())
    assert module.network.generator.head.weight.grad.abs().max() > 0
    module.network.zero_grad()
    fake_loss.backward()
    assert all(parameter.grad is None for parameter in module.network.parameters())
    assert module.fake.prompt.grad.abs().max() > 0


# --- training --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_a_fit_moves_the_forger_and_nothing_frozen(kind, tmp_path):
    module = make(kind)
    run = trainer(tmp_path)
    start = {key: value.clone() for key, value in module.state_dict().items()}
    run.fit(module, Patches())
    assert run.global_step == 2, "one step a batch, whatever the number of optimisers"
    assert {key.split(".")[0] for key in start} == {"network"}
    moved = [key for key, value in start.items() if not torch.equal(module.state_dict()[key], value)]
    assert len(moved) > len(start) / 2
    fresh = DiffusionBackbone.tiny().unet.state_dict()
    unet = dict(module.frozen.backbone.unet.named_parameters())
    own = {key.replace(".base_layer", ""): value for key, value in unet.items() if ".lora_" not in key}
    assert own
    assert all(torch.equal(value, fresh[key]) for key, value in own.items())
    if kind == "vsd":
        assert (module.fake.prompt - module.frozen.fake).abs().max() > 0
        weights = [value for key, value in module.fake.adapter.items() if "lora_B" in key]
        assert all(value.abs().max() > 0 for value in weights), "both matrices of the adapter are trained"


@pytest.mark.parametrize("kind", ["full", "dds"])
def test_the_pull_alone_lowers_what_it_follows(kind, tmp_path):
    # Along a fixed direction the forger must come to agree with it.
    module = make(kind, lr=3e-3, content=ContentSettings(pixel=0.0))
    module.frozen, _ = frozen()
    image, ink = batch_of()
    noise, timesteps = drawn_noise(module.frozen, image)
    settings = PriorSettings(kind="full", around_seal=False, normalise=kind == "dds")
    optimizer = torch.optim.Adam(module.network.parameters(), 3e-3)
    values = []
    for _ in range(25):
        optimizer.zero_grad()
        forged = module(image, ink, module.sample_draws(torch.arange(len(image))))
        pull = module.frozen.pull(forged, module.allowed(ink), noise, timesteps, settings)
        pull.loss.backward()
        optimizer.step()
        values.append(float(pull.loss.detach()))
    assert values[-1] < values[0] - 1e-4
    assert values[-1] == pytest.approx(min(values), abs=1e-3)


def test_content_holds_the_forger_to_the_drawn_picture(tmp_path):
    module = make("dds", prior={"weight": 0.0}, content=ContentSettings(pixel=1.0), lr=1e-2)
    torch.nn.init.normal_(module.network.generator.head.weight, std=0.2)
    image, ink = batch_of()
    noise = torch.zeros(2, 1, SIDE, SIDE)
    before = (module(image, ink, noise) - image).abs().mean()
    trainer(tmp_path, max_steps=30, max_epochs=-1).fit(module, Patches())
    assert (module(image, ink, noise) - image).abs().mean() < before / 3


@pytest.mark.parametrize("kind", ["dds", "vsd"])
def test_a_checkpoint_holds_what_is_trained_and_no_more(kind, tmp_path):
    module = make(kind)
    saver = ModelCheckpoint(tmp_path, filename="last", every_n_train_steps=2)
    run = trainer(tmp_path, enable_checkpointing=True, callbacks=[saver])
    run.fit(module, Patches())
    checkpoint = torch.load(tmp_path / "last.ckpt", weights_only=True)
    trained = {"network"} if kind == "dds" else {"network", "fake"}
    assert {key.split(".")[0] for key in checkpoint["state_dict"]} == trained
    needed = io.BytesIO()
    states = [optimizer.state_dict()["state"] for optimizer in run.optimizers]
    torch.save({"weights": [p.detach().clone() for p in module.parameters()], "optimizers": states}, needed)
    assert (tmp_path / "last.ckpt").stat().st_size < 1.2 * needed.tell()


@pytest.mark.parametrize("kind", ["dds", "vsd"])
def test_a_run_goes_on_bit_for_bit(kind, tmp_path):
    whole = make(kind)
    trainer(tmp_path, max_steps=4).fit(whole, Patches())
    broken = make(kind)
    saver = ModelCheckpoint(tmp_path, filename="half", every_n_train_steps=2)
    trainer(tmp_path, enable_checkpointing=True, callbacks=[saver]).fit(broken, Patches())
    resumed = make(kind)
    trainer(tmp_path, max_steps=4).fit(resumed, Patches(), ckpt_path=tmp_path / "half.ckpt", weights_only=True)
    for key, value in whole.state_dict().items():
        assert torch.equal(resumed.state_dict()[key], value), key


@pytest.mark.parametrize("kind", ["dds", "vsd"])
def test_an_average_of_weights_is_kept_without_the_frozen_model(kind, tmp_path):
    module = make(kind, ema_decay=0.5)
    saver = ModelCheckpoint(tmp_path, filename="average", every_n_train_steps=2)
    trainer(tmp_path, enable_checkpointing=True, callbacks=[saver]).fit(module, Patches())
    checkpoint = torch.load(tmp_path / "average.ckpt", weights_only=True)
    state, current = checkpoint["state_dict"], checkpoint["current_model_state"]
    assert {key.split(".")[0] for key in state} == ({"network"} if kind == "dds" else {"network", "fake"})
    assert state.keys() == current.keys()
    assert all(not torch.equal(value, current[key]) for key, value in state.items() if ".head." in key)


def test_half_precision_and_checkpointing_give_nearly_the_same_gradients(tmp_path):
    image, ink = batch_of()
    gradients = []
    for checkpointed, precision in ((False, "float32"), (True, "float32"), (False, "bfloat16")):
        module = make("full", gradient_checkpointing=checkpointed)
        module.frozen = FrozenPrior.load("tiny", None, precision)
        module.frozen.backbone.set_gradient_checkpointing(checkpointed)
        module.losses_of(image, ink, torch.arange(len(image)))[0].backward()
        gradients.append(module.network.generator.head.weight.grad.flatten())
    plain, again, half = gradients
    torch.testing.assert_close(again, plain, rtol=1e-4, atol=1e-7)
    assert torch.nn.functional.cosine_similarity(half, plain, dim=0) > 0.97


# --- evaluation ------------------------------------------------------------------------------------------------------


class Outputs(Callback):
    """Keeps what evaluation returned."""

    def __init__(self):
        self.seen = []

    def on_validation_batch_end(self, trainer, pl_module, outputs, batch, batch_idx, dataloader_idx=0):
        self.seen.append(outputs)


def test_evaluation_returns_what_callbacks_read_and_repeats_itself(tmp_path):
    module, kept = make("dds", lr=1e-30), Outputs()
    torch.nn.init.normal_(module.network.generator.head.weight, std=0.2)
    run = trainer(tmp_path, callbacks=[kept], max_epochs=2, max_steps=-1)
    module.frozen, _ = frozen()
    calls, errors = [], module.frozen.errors
    module.frozen.errors = lambda *given: calls.append(1) or errors(*given)
    # With a step of 0 the two validations see one forger.
    run.fit(module, Patches())
    first, again = kept.seen[0], kept.seen[2]
    # Two batches: three kinds of pictures in the first epoch, the forged ones alone in the second.
    assert len(calls) == 2 * 3 + 2, "prior values of drawn and real pictures are computed once"
    assert set(first) == set(ForgerModule._evaluation_step.__annotations__["return"].__annotations__)
    for key in ("image", "realised", "real"):
        assert first[key].shape == (4, 3, SIDE, SIDE)
        assert first[key].dtype == torch.float32
    for key in ("prior_realised", "prior_synthetic", "prior_real"):
        assert first[key].shape == (4,)
        torch.testing.assert_close(first[key], again[key])
    assert torch.equal(first["realised"], again["realised"]), "its noise is of the index alone"
    kept_pixels = ~first["allowed"].expand(-1, 3, -1, -1)
    assert torch.equal(first["realised"][kept_pixels], first["image"][kept_pixels])
    assert bool(first["allowed"][first["ink"]].all())
    assert not torch.equal(first["prior_realised"], first["prior_synthetic"])


@pytest.mark.parametrize(("shift", "stops"), [(-1.0, True), (1.0, False)])
def test_training_ends_at_the_real_prior_value(shift, stops, tmp_path):
    module = make("dds", stop_at_real=True)
    run = trainer(tmp_path, max_steps=8, max_epochs=4)
    module._constant_errors = lambda *given: (torch.ones(4), torch.full((4,), 1e3 if stops else -1e3))
    run.fit(module, Patches())
    assert run.global_step == (2 if stops else 8)


def test_a_module_can_be_validated_and_then_trained(tmp_path):
    module = make("vsd")
    trainer(tmp_path).validate(module, Patches(), verbose=False)
    assert module.fake is None
    trainer(tmp_path).fit(module, Patches())
    assert (module.fake.prompt - module.frozen.fake).abs().max() > 0


# --- mistakes --------------------------------------------------------------------------------------------------------


def test_prompts_of_another_width_are_refused_in_one_line(tmp_path):
    write_prompts(tmp_path / "prompts.safetensors", PromptPair(torch.zeros(77, 768), torch.zeros(77, 768), {}))
    with pytest.raises(ValueError, match=r"\(77, 768\).*tiny takes vectors of 32") as error:
        trainer(tmp_path).fit(make("dds", prompts=str(tmp_path / "prompts.safetensors")), Patches())
    assert "\n" not in str(error.value)


def test_prompts_that_are_not_there_are_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="nowhere"):
        trainer(tmp_path).fit(make("dds", prompts="nowhere.safetensors"), Patches())


def test_learned_prompts_are_taken(tmp_path):
    real, fake = torch.randn(2, 77, 32)
    write_prompts(tmp_path / "prompts.safetensors", PromptPair(real, fake, {}))
    prior = FrozenPrior.load("tiny", str(tmp_path / "prompts.safetensors"))
    assert torch.equal(prior.real, real)
    assert torch.equal(prior.fake, fake)


def test_a_forger_with_nothing_to_learn_from_is_refused():
    with pytest.raises(ValueError, match="nothing to learn from"):
        make("dds", prior={"weight": 0.0}, content=ContentSettings(pixel=0.0))
    with pytest.raises(ValueError, match=r"prior\.weight must be above 0 for vsd"):
        PriorSettings(kind="vsd", weight=0.0)


def test_levels_beyond_the_schedule_are_refused(tmp_path):
    module = ForgerModule(channels=(8, 16), prior=PriorSettings(t_range=(20, 2000)))
    with pytest.raises(ValueError, match="1000 levels"):
        trainer(tmp_path).fit(module, Patches())


def test_a_missing_perceptual_network_is_named(monkeypatch, tmp_path):
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    with pytest.raises(ValueError, match="alexnet-owt"):
        make("dds", content=ContentSettings(lpips=1.0))


def test_weights_of_another_forger_are_refused(tmp_path):
    module = make("vsd")
    run = trainer(tmp_path, max_steps=1)
    run.fit(module, Patches())
    run.save_checkpoint(tmp_path / "forger.ckpt")
    again = make("dds", weights=str(tmp_path / "forger.ckpt"))
    image, ink = batch_of()
    noise = torch.zeros(2, 1, SIDE, SIDE)
    assert torch.equal(again(image, ink, noise), module(image, ink, noise)), "a fake branch is left in the file"
    with pytest.raises(ValueError, match=r"model\.channels"):
        make("dds", channels=(8, 24), weights=str(tmp_path / "forger.ckpt"))
