"""The forger's losses and their gradients equal those that were recorded with the lab's own arithmetic."""

import numpy as np
import pytest
import torch

from lightning_modules.seal2real.backbone import DiffusionBackbone
from lightning_modules.seal2real.fake_branch import FakeBranch
from lightning_modules.seal2real.forger_losses import (
    PriorSettings,
    carry,
    denoising_error,
    distillation_gradient,
    noise_weight,
    pixel_l1,
)
from lightning_modules.seal2real.forger_prior import FrozenPrior

METHOD, LOSSES = "seal2real", "stage2_losses_lab.safetensors"
TINY = "tiny_sd.safetensors"
# As the manifest states.
ATOL, RTOL = 1e-5, 1e-3


def recorded(folder):
    return ["stage2"] if folder.has(LOSSES) else []


def networks(folder):
    """The networks that made the numbers lie in a full goldens folder alone."""
    kinds = ["full", "sds", "dds", "vsd"]
    return kinds if folder.has(LOSSES) and folder.has(TINY) else ["none"]


def tensor(array):
    return torch.from_numpy(array.copy())


def close(got, expected):
    np.testing.assert_allclose(got.detach().numpy(), expected, atol=ATOL, rtol=RTOL)


def tiny_prior(golden):
    """A frozen prior of the recorded networks and prompts."""
    backbone = DiffusionBackbone.tiny()
    stored, expected = golden.tensors(TINY), golden.tensors(LOSSES)
    for name in ("unet", "vae"):
        part = getattr(backbone, name)
        part.load_state_dict({key: tensor(stored[f"{name}.{key}"]) for key in part.state_dict()})
    return FrozenPrior(backbone, tensor(expected["T_r"])[0], tensor(expected["T_f"])[0])


@pytest.mark.golden(METHOD, "stage2_losses_lab", recorded)
def test_losses_and_directions_follow_from_the_recorded_predictions(golden):
    expected = {key: tensor(value) for key, value in golden.tensors(LOSSES).items()}
    noise, timesteps, real, fake = (expected[key] for key in ("noise", "timesteps", "eps_r", "eps_f"))
    prior, content = denoising_error(real, noise).mean(), pixel_l1(expected["y"], expected["x"])
    close(prior, expected["L_prior"])
    close(content, expected["L_content_l1"])
    close(prior + content, expected["L_forger_w1"])
    close(denoising_error(fake, noise).mean(), expected["L_adversarial"])
    betas = torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64) ** 2
    weight = noise_weight((1 - betas).cumprod(0).float(), timesteps, "one_minus_alpha")
    close(distillation_gradient(real, noise, weight), expected["sds_grad_z"])
    close(distillation_gradient(real, fake, weight), expected["vsd_grad_z"])


@pytest.mark.golden(METHOD, "stage2_losses_lab", networks)
def test_gradients_reach_the_picture_as_recorded(golden):
    if golden.id == "none":
        pytest.skip(f"the goldens folder has no {TINY}: give --goldens a full one")
    expected, prior = golden.tensors(LOSSES), tiny_prior(golden)
    picture = ((tensor(expected["y"]) + 1) / 2).requires_grad_()
    noise, timesteps = tensor(expected["noise"]), tensor(expected["timesteps"])
    latents = prior.backbone.encode(picture)
    close(latents, expected["latents"])
    close(prior.backbone.add_noise(latents, noise, timesteps), expected["noisy"])
    settings = PriorSettings(kind=golden.id, normalise=False, around_seal=False)
    # One that has learned nothing yet sees what the frozen model sees under the fake prompt.
    branch = FakeBranch(prior.backbone, prior.fake, 4) if golden.id == "vsd" else None
    gradient, error, fake_loss = prior.gradient(latents.detach(), noise, timesteps, settings, branch=branch)
    close(error.mean(), expected["L_prior"])
    if fake_loss is not None:
        close(fake_loss, expected["L_adversarial"])
    if golden.id != "full":
        close(gradient, expected["sds_grad_z" if golden.id == "sds" else "vsd_grad_z"])
    loss = carry(latents, gradient, error)
    close(loss, expected["L_prior"])
    loss.backward()
    wanted = expected[{"full": "grad_y_prior_full", "sds": "grad_y_sds"}.get(golden.id, "grad_y_vsd")]
    # Recorded for pixels in [-1, 1], ours are in [0, 1].
    reached = picture.grad.numpy() / 2
    np.testing.assert_allclose(reached, wanted, atol=ATOL, rtol=RTOL)
    # The tolerance is larger than many of these numbers: their pattern has to agree, too.
    assert np.corrcoef(reached.ravel(), wanted.ravel())[0, 1] > 0.99999
    assert np.abs(reached).mean() == pytest.approx(np.abs(wanted).mean(), rel=RTOL)
