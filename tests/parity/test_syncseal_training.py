"""SyncSeal's losses, schedules and one step of both players equal the reference's recorded numbers."""

import math
from zlib import crc32

import numpy as np
import pytest
import torch
from lightning.pytorch import Callback, Trainer
from torch.utils.data import DataLoader

from lightning_modules.functional.geometry import frame_corners_px, warp
from lightning_modules.functional.image_quality import image_mse
from lightning_modules.syncseal.augmentation.attack import Attacked
from lightning_modules.syncseal.discriminator import PatchDiscriminator
from lightning_modules.syncseal.losses import (
    LossWeights,
    adversarial_loss,
    corner_loss,
    generator_loss,
    hinge_loss,
    presence_loss,
    targets_of,
)
from lightning_modules.syncseal.module import SyncSealModule
from lightning_modules.syncseal.schedules import ScalingSchedule, discriminator_factor

METHOD = "syncseal"
VALUES, TENSORS = "loss_values.json", "losses.safetensors"
STEP, STEP_VALUES, TINY = "train_step.safetensors", "train_step.json", "tiny_io.safetensors"
SCHEDULES = "metrics.json"
NAMES = {"pixels": "percep", "discriminator": "disc", "presence": "detect", "corners": "transform"}
TINY_NETWORKS = {
    "size": 64,
    "embedder_channels": (8, 16),
    "embedder_blocks": 1,
    "detector_depths": (1, 1, 2, 1),
    "detector_dims": (8, 12, 16, 24),
}


def filled(module, salt):
    """Fill a module by the goldens' rule."""
    state = module.state_dict()
    for key, value in state.items():
        if key.split(".")[-1] == "M" or key.startswith("attenuation."):
            continue
        rng = np.random.Generator(np.random.PCG64((crc32(key.encode()) + salt) % 2**32))
        drawn = rng.standard_normal(tuple(value.shape)).astype(np.float32)
        if value.ndim > 1:
            drawn = drawn / math.sqrt(math.prod(value.shape[1:]))
        else:
            drawn = 1 + 0.1 * drawn if key.endswith("weight") else 0.1 * drawn
        state[key] = torch.from_numpy(np.asarray(drawn, np.float32))
    module.load_state_dict(state)
    return module


def weights_of(kwargs):
    return LossWeights(
        corners=kwargs["sync_weight"],
        discriminator=kwargs["disc_weight"],
        pixels=kwargs["percep_weight"],
        presence=kwargs["detect_weight"],
    )


def tensor(array):
    return torch.from_numpy(np.array(array))


# --- losses ----------------------------------------------------------------------------------------------------------


def loss_cases(folder):
    if not folder.has(VALUES):
        return {}
    return {
        f"{name}.{place}": (name, recorded)
        for name, case in folder.json(VALUES).items()
        for place, recorded in enumerate(case["results"])
    }


def discriminator_cases(folder):
    """One case a kind of discriminator; one that stands for a folder without the images."""
    return folder.json(VALUES) if "inputs" in folder.keys(TENSORS) else ["none"]


@pytest.mark.golden(METHOD, "losses", loss_cases)
def test_losses(golden):
    name, recorded = golden.value
    kwargs, tensors = golden.folder.json(VALUES)[name]["kwargs"], golden.tensors(TENSORS)
    weights, log = weights_of(kwargs), recorded["log"]
    factor = discriminator_factor(recorded["epoch"], kwargs["disc_start"])
    logits, real = tensor(tensors[f"{name}.logits_fake"]), tensor(tensors[f"{name}.logits_real"])
    if recorded["optimizer_idx"] == 1:
        for ours, theirs in ((real, "real"), (logits, "fake")):
            assert ours.mean().item() == pytest.approx(log[f"logits_{theirs}"], abs=1e-5)
        assert factor == log["disc_factor"]
        assert factor * hinge_loss(real, logits).item() == pytest.approx(recorded["loss"], abs=1e-5)
        return
    preds, target = tensor(tensors["preds"]), tensor(tensors["target_pts"])
    every = {
        # The committed subset has no images; there the step below sees this loss.
        "pixels": lambda: (
            image_mse(tensor(tensors["reconstructions"]), tensor(tensors["inputs"])).mean()
            if "inputs" in tensors
            else torch.tensor(log["loss_percep"])
        ),
        "discriminator": lambda: adversarial_loss(logits),
        "presence": lambda: presence_loss(preds[:, 0]),
        "corners": lambda: corner_loss(preds[:, 1:], target, kwargs["transform_loss"]),
    }
    terms = {key: make() for key, make in every.items() if getattr(weights, key) > 0}
    loss = generator_loss(terms, weights, factor)
    assert {f"loss_{NAMES[key]}" for key in terms} == {key for key in log if key.startswith("loss_")}
    for key, value in loss.terms.items():
        assert value.item() == pytest.approx(log[f"loss_{NAMES[key]}"], abs=1e-5)
    assert loss.total.item() == pytest.approx(recorded["loss"], abs=1e-5)


@pytest.mark.golden(METHOD, "discriminator", discriminator_cases)
def test_logits_of_the_discriminator(golden):
    if golden.id == "none":
        pytest.skip("the goldens folder has no images of the losses")
    kwargs, tensors = golden.value["kwargs"], golden.tensors(TENSORS)
    discriminator = PatchDiscriminator(kwargs["disc_num_layers"], kwargs["disc_in_channels"])
    filled(discriminator, golden.folder.manifest["salt"])
    with torch.no_grad():
        for images, theirs in (("inputs", "real"), ("reconstructions", "fake")):
            logits = discriminator(tensor(tensors[images])).numpy()
            np.testing.assert_allclose(logits, tensors[f"{golden.id}.logits_{theirs}"], rtol=0, atol=1e-5)


# --- schedules -------------------------------------------------------------------------------------------------------


def schedule_cases(folder):
    return ["scaling_linear", "scaling_cosine"] if folder.has(SCHEDULES) else []


@pytest.mark.golden(METHOD, "scaling", schedule_cases)
def test_scaling(golden):
    recorded = golden.folder.json(SCHEDULES)[golden.id]
    kwargs = recorded["kwargs"]
    schedule = ScalingSchedule(
        kwargs["scaling_o"],
        kwargs["scaling_min"],
        int(kwargs["epochs"]),
        int(kwargs.get("start_epoch", 0)),
        kwargs["name"].lower(),
    )
    for epoch, value in recorded["values"].items():
        assert schedule.at(int(epoch)) == pytest.approx(value, rel=1e-12)


# --- one step --------------------------------------------------------------------------------------------------------


class Recorder(Callback):
    """Keeps gradients as they are when the optimisers step."""

    def __init__(self):
        self.gradients = {}

    def on_before_optimizer_step(self, trainer, module, optimizer):
        self.gradients = {name: p.grad.clone() for name, p in module.named_parameters() if p.grad is not None}


class RotatedByTwentyDegrees(SyncSealModule):
    """The recorded attack in place of a drawn one."""

    def attack(self, marked, unmarked, index):
        corners = frame_corners_px(*marked.shape[-2:])
        centre, angle = corners.mean(dim=0), math.radians(20)
        turn = torch.tensor([[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]])
        quads = ((corners - centre) @ turn.double().T + centre).expand(len(marked), 4, 2)
        return Attacked(warp(marked, quads, compat=True), quads, ["rotate"] * len(marked), ["none"] * len(marked))


def step_cases(folder):
    return dict(folder.json(STEP_VALUES)) if folder.has(STEP) else {}


@pytest.mark.golden(METHOD, "train_step", step_cases)
def test_one_step_of_both_players(golden, tmp_path):
    recorded, tensors, salt = golden.value, golden.tensors(STEP), golden.folder.manifest["salt"]
    kwargs, log = recorded["loss_kwargs"], recorded["g_log"]
    module = RotatedByTwentyDegrees(
        **TINY_NETWORKS,
        sync_weight=kwargs["sync_weight"],
        disc_weight=kwargs["disc_weight"],
        pixel_weight=kwargs["percep_weight"],
        presence_weight=kwargs["detect_weight"],
        disc_start=kwargs["disc_start"] - recorded["epoch"],  # this run's first epoch stands for the recorded one
        disc_layers=kwargs["disc_num_layers"],
        disc_inputs=kwargs["disc_in_channels"],
        corner_loss=kwargs["transform_loss"],
    )
    filled(module.network, salt)
    filled(module.discriminator, salt)
    if "batch.image_u8" in tensors:
        image = tensors["batch.image_u8"].astype(np.float32) / np.float32(255)
    else:
        image = golden.tensors(TINY)["batch.image"][:2]
    batch = [{"image": tensor(pixels), "index": torch.tensor(place)} for place, pixels in enumerate(image)]
    recorder = Recorder()
    trainer = Trainer(
        accelerator="cpu",
        max_steps=1,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=[recorder],
        default_root_dir=tmp_path,
    )
    attacked = module.attack(tensor(image), tensor(image[:0]), torch.arange(2))
    target = targets_of(attacked.quads_px, (64, 64), 64)
    np.testing.assert_allclose(target, tensors[f"{golden.id}.target_pts"], rtol=0, atol=1e-6)

    trainer.fit(module, DataLoader(batch, batch_size=2))
    assert trainer.global_step == 1, "two optimisers, one step"
    metrics = trainer.callback_metrics
    assert metrics["train/loss"].item() == pytest.approx(recorded["g_loss"], abs=1e-5)
    assert metrics["train/loss_hinge"].item() == pytest.approx(recorded["d_loss"], abs=1e-5)
    for ours, theirs in NAMES.items():
        if f"loss_{theirs}" in log:
            assert metrics[f"train/loss_{ours}"].item() == pytest.approx(log[f"loss_{theirs}"], abs=1e-5)
    assert metrics["train/gradient_norm"].item() == pytest.approx(recorded["grad_norm"], rel=1e-4)
    for name, norm in recorded["disc_grad_norms"].items():
        ours = recorder.gradients[f"discriminator.{name}"].norm().item()
        assert ours == pytest.approx(norm, rel=1e-3, abs=1e-5)

    state = module.network.state_dict()
    prefix = f"{golden.id}.grad."
    names = [key.removeprefix(prefix) for key in tensors if key.startswith(prefix)]
    assert names
    for name in names:
        gradient = tensors[prefix + name]
        ours = recorder.gradients[f"network.{name}"].numpy()
        np.testing.assert_allclose(ours, gradient, rtol=1e-3, atol=1e-5, err_msg=name)
        # Adam's first step is nearly the sign of the gradient; of a vanishing one that is rounding.
        allowed = np.where(np.abs(gradient) < 1e-7, 2e-4, 2e-6)
        moved = np.abs(state[name].numpy() - tensors[f"{golden.id}.after.{name}"])
        assert (moved <= allowed).all(), f"{name}: {moved.max()}"
