"""Seal2Real's schedules, losses, both trainings and picture sizes equal the reference's recorded numbers."""

import cv2
import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch.optim import AdamW

from lightning_modules.seal2real.backbone import DiffusionBackbone, denoising_errors
from lightning_modules.seal2real.joint import JointFinetuneModule
from lightning_modules.seal2real.libraries import from_diffusers, from_transformers
from lightning_modules.seal2real.picture_sizes import floored, stretched
from lightning_modules.seal2real.prompts import PromptPriorModule

METHOD = "seal2real"
LMS_SCHEDULE, LMS_STEPS, LMS_NOISE = "lms_schedule.safetensors", "lms_steps.safetensors", "lms_add_noise.safetensors"
DDIM, LOSS, PICTURES = "ddim.safetensors", "mse_loss.safetensors", "image_transforms.safetensors"
STAGE1, TRAINING, TINY_SD = "stage1_embedding.safetensors", "train_step.safetensors", "tiny_sd.safetensors"


def whole(file):
    """One case where the folder has the file."""
    return lambda folder: [file.split(".")[0]] if folder.has(file) else []


def with_weights(file):
    """One case where the folder has the file and the tiny model's weights, else one that is skipped."""
    return lambda folder: whole(file)(folder) if folder.has(file) and folder.has(TINY_SD) else ["none"]


@pytest.fixture(autouse=True)
def _skipped_without_weights(request):
    if "golden" in request.fixturenames and request.getfixturevalue("golden").id == "none":
        pytest.skip("the tiny diffusion model's weights (4.4 MB) are in the full goldens folder only")


def case_of(golden):
    return golden.folder.manifest["cases"][golden.id]


def tensor(array):
    return torch.from_numpy(np.array(array))


def close(got, expected, atol, rtol=0.0):
    np.testing.assert_allclose(got.detach().numpy(), expected, rtol=rtol, atol=atol)


def tiny_backbone(folder):
    """The recorded tiny model."""
    about = folder.manifest["tiny_sd"]
    words = folder.json(about["tokenizer"])
    merges = [tuple(pair.split(" ")) for pair in words["merges"]]
    tokenizer = from_transformers("CLIPTokenizer")(vocab=words["vocab"], merges=merges, model_max_length=77)
    parts = {
        "unet": from_diffusers("UNet2DConditionModel")(**about["unet"]),
        "vae": from_diffusers("AutoencoderKL")(**about["vae"]),
        "text_encoder": from_transformers("CLIPTextModel")(from_transformers("CLIPTextConfig")(**about["clip_text"])),
    }
    weights = load_file(folder.path / about["weights"])
    for name, part in parts.items():
        own = {key.removeprefix(f"{name}."): value for key, value in weights.items() if key.startswith(f"{name}.")}
        part.load_state_dict(own)
    return DiffusionBackbone(**parts, tokenizer=tokenizer, schedule=about["ddim"])


@pytest.fixture
def recorded(golden, monkeypatch):
    """The recorded model, which modules get for any backbone."""
    backbone = tiny_backbone(golden.folder)
    monkeypatch.setattr(DiffusionBackbone, "load", classmethod(lambda cls, *_: backbone))
    return backbone


# --- schedules -------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def schedules():
    return DiffusionBackbone.tiny()


@pytest.mark.golden(METHOD, "lms_schedule", whole(LMS_SCHEDULE))
def test_lms_schedule(golden, schedules):
    expected, tolerance = golden.tensors(LMS_SCHEDULE), case_of(golden)["tol"]
    for steps in case_of(golden)["n"]:
        scheduler = schedules.scheduler("LMSDiscreteScheduler")
        close(scheduler.init_noise_sigma, expected["train_sigma_max"], 0, tolerance["sigmas_rel"])
        scheduler.set_timesteps(steps)
        close(scheduler.timesteps, expected[f"timesteps_{steps}"], tolerance["timesteps"])
        close(scheduler.sigmas, expected[f"sigmas_{steps}"], 0, tolerance["sigmas_rel"])


@pytest.mark.golden(METHOD, "lms_steps", whole(LMS_STEPS))
def test_lms_steps(golden, schedules):
    expected, tolerance = golden.tensors(LMS_STEPS), case_of(golden)["tol"]
    for order, name in ((4, "prev_samples"), (2, "prev_samples_order2")):
        scheduler = schedules.scheduler("LMSDiscreteScheduler")
        scheduler.set_timesteps(case_of(golden)["n"])
        x = tensor(expected["x_init"])
        for i, timestep in enumerate(scheduler.timesteps):
            scaled = scheduler.scale_model_input(x, timestep)
            answer = scheduler.step(tensor(expected["model_outputs"][i]), timestep, x, order=order)
            x = answer.prev_sample
            close(x, expected[name][i], **tolerance)
            if order == 4:
                close(scaled, expected["scaled_inputs"][i], **tolerance)
                close(answer.pred_original_sample, expected["pred_original"][i], **tolerance)


@pytest.mark.golden(METHOD, "lms_add_noise", whole(LMS_NOISE))
def test_lms_noise(golden, schedules):
    expected = golden.tensors(LMS_NOISE)
    scheduler = schedules.scheduler("LMSDiscreteScheduler")
    scheduler.set_timesteps(case_of(golden)["n"])
    nearest = [int((scheduler.timesteps - step).abs().argmin()) for step in tensor(expected["timesteps"])]
    latents, noise = tensor(expected["x0"]), tensor(expected["noise"])
    noisy = scheduler.add_noise(latents, noise, scheduler.timesteps[nearest])
    close(noisy, expected["noisy"], case_of(golden)["tol"]["atol"])


@pytest.mark.golden(METHOD, "ddim", whole(DDIM))
def test_ddim(golden, schedules):
    expected, tolerance = golden.tensors(DDIM), case_of(golden)["tol"]
    close(schedules.alphas_cumprod, expected["alphas_cumprod"], 0)
    noise, timesteps = tensor(expected["an_noise"]), tensor(expected["an_t"])
    close(schedules.add_noise(tensor(expected["an_x0"]), noise, timesteps), expected["an_noisy"], 1e-6)
    schedules.schedule["steps_offset"] = 0
    scheduler = schedules.pipeline().scheduler
    close(scheduler.final_alpha_cumprod, expected["final_alpha_cumprod"], 0)
    scheduler.set_timesteps(case_of(golden)["n"])
    assert scheduler.timesteps.tolist() == expected["timesteps"].tolist()
    x = tensor(expected["x_init"])
    for i, timestep in enumerate(scheduler.timesteps):
        answer = scheduler.step(tensor(expected["model_outputs"][i]), timestep, x)
        x = answer.prev_sample
        close(x, expected["prev_samples"][i], **tolerance)
        close(answer.pred_original_sample, expected["pred_original"][i], **tolerance)


# --- losses and trainings --------------------------------------------------------------------------------------------


@pytest.mark.golden(METHOD, "mse_loss", whole(LOSS))
def test_mse_loss(golden, schedules, monkeypatch):
    expected = golden.tensors(LOSS)
    monkeypatch.setattr(schedules, "predict_noise", lambda *_: tensor(expected["noise_pred"]))
    noise = tensor(expected["noise"])
    found = denoising_errors(
        schedules, noise, noise, torch.zeros(len(noise), dtype=torch.int64), torch.zeros(1, 77, 32)
    )
    close(found.mean(), expected["loss"], case_of(golden)["tol"]["atol"])


@pytest.mark.golden(METHOD, "stage1_embedding", with_weights(STAGE1))
def test_stage_1(golden, recorded):
    """The loss, its gradient and AdamW's steps on the real prompt; and the embedding that it starts from."""
    expected, tolerance = golden.tensors(STAGE1), case_of(golden)["tol"]
    module = PromptPriorModule("recorded", lr=1e-3, weight_decay=0.01)
    close(module.real_prompt(recorded), expected["embedding_init"], 2e-6)
    with torch.no_grad():
        module.real_prompt.values.copy_(tensor(expected["embedding_init"])[0])
    optimizer = module.configure_optimizers()["optimizer"]
    assert isinstance(optimizer, AdamW)
    for i, timestep in enumerate(expected["timesteps"]):
        latents, noise = (tensor(expected[name][i]).float()[None] for name in ("latents", "noise"))
        # The same picture as real and as synthetic: the real half of the loss is the reference's.
        steps = torch.full((2,), int(timestep))
        loss, errors = module.prior_loss(latents.repeat(2, 1, 1, 1), noise.repeat(2, 1, 1, 1), steps)
        loss.backward()
        errors = errors.detach()
        assert float(loss.detach()) == pytest.approx(float(errors.sum()), rel=1e-6)
        assert float(errors[0]) == pytest.approx(float(expected["replay_losses"][i]), abs=tolerance["replay_losses"])
        assert float(errors[0]) == pytest.approx(float(expected["losses"][i]), rel=tolerance["losses_rel"])
        if i == 0:
            close(module.real_prompt.values.grad[None], expected["replay_grad_first"], 1e-7, 1e-3)
        optimizer.step()
        optimizer.zero_grad()
        close(module.real_prompt.values, expected["replay_embeddings"][i], tolerance["replay_embeddings"])
    # The reference's own noise and latents were not rounded to half precision.
    close(module.real_prompt(recorded), expected["embedding_final"], 5e-5)


@pytest.mark.golden(METHOD, "train_step", with_weights(TRAINING))
def test_joint_finetuning(golden, recorded):
    """One step of the released program on three pictures, three times each."""
    expected, tolerance = golden.tensors(TRAINING), case_of(golden)["tol"]
    module = JointFinetuneModule("recorded")
    with torch.no_grad():
        module.prompt.values.copy_(tensor(expected["real_embedding_before"])[0])
    before = {name: value.clone() for name, value in recorded.unet.named_parameters()}
    probe = case_of(golden)["probe"]
    close(before[probe], expected["unet_probe_before"], 1e-7)
    optimizer = module.configure_optimizers()
    noise, latents = (tensor(expected[name]).float() for name in ("noise", "latents"))
    loss = module(latents, noise, tensor(expected["timesteps"])).mean()
    assert float(loss.detach()) == pytest.approx(float(expected["loss"][0]), rel=tolerance["loss_rel"])
    loss.backward()
    optimizer.step()
    after = dict(recorded.unet.named_parameters())
    close(module.prompt.values[None], expected["real_embedding_after"], 5e-5)
    close(after[probe], expected["unet_probe_after"], 1e-6)
    largest = max(float((after[name] - value).abs().max()) for name, value in before.items())
    assert largest == pytest.approx(float(expected["unet_max_abs_change"]), rel=0.02)


# --- pictures --------------------------------------------------------------------------------------------------------


def pixels(path):
    return torch.from_numpy(cv2.cvtColor(cv2.imread(str(path)), cv2.COLOR_BGR2RGB)).permute(2, 0, 1)


@pytest.mark.golden(METHOD, "image_transforms", whole(PICTURES))
def test_picture_sizes(golden):
    expected, tolerance = golden.tensors(PICTURES), case_of(golden)["tol"]
    given = floored(pixels(golden.folder.path / "pre_input.png"), 32)
    close(2 * given[None] - 1, expected["preprocess_out"], tolerance["preprocess"])
    images = [pixels(golden.folder.path / f"ds_img_{i}.png") for i in range(3)]
    found = 2 * torch.stack([stretched(image[None] / 255, 512)[0] for image in images]) - 1
    close(found[:, :, 3::37, 5::37], expected["dataset_strided"], tolerance["dataset"])
    close(found.mean((2, 3)), expected["dataset_mean"], 1e-3)
    close(found.std((2, 3)), expected["dataset_std"], 1e-3)
