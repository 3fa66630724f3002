"""MaskSim's networks, precision, losses, optimiser and files equal the reference's recorded numbers."""

import copy
import json
from pathlib import Path
from zlib import crc32

import numpy as np
import pytest
import torch

from lightning_modules.functional.color import rgb_to_ycbcr_studio
from lightning_modules.masksim.bank import DetectorBank, Trunk, heads_of_detectors, trunk_of_detector
from lightning_modules.masksim.denoiser import DnCNN
from lightning_modules.masksim.folding import FoldedDenoiser
from lightning_modules.masksim.losses import sample_losses, training_similarity
from lightning_modules.masksim.module import MaskSimModule
from lightning_modules.masksim.network import MaskSimNetwork
from lightning_modules.masksim.published import detector_of, load_denoiser, read_detector, recognise, write_detector

METHOD = "masksim"
LISTING, KEYS = "state_dicts.json", "denoiser_keys.json"
W64, W512, VARIANTS = "pipeline_w64.safetensors", "pipeline_w512.safetensors", "variants_w32.safetensors"
TRAINING, LOSSES, REAL = "train_w48.safetensors", "loss_cases.safetensors", "denoiser_real_weights.safetensors"
WEIGHTS = Path(__file__).resolve().parents[3] / "shared" / "weights" / "masksim_denoiser.th"
needs_weights = pytest.mark.skipif(not WEIGHTS.is_file(), reason=f"the authors' denoiser weights are not at {WEIGHTS}")


def whole(file):
    """One case where the folder has the file."""
    return lambda folder: [file.split(".")[0]] if folder.has(file) else []


def or_none(cases):
    """The cases, or one that stands for files that the folder lacks: those that need the authors' weights."""
    return lambda folder: cases(folder) or ["none"]


@pytest.fixture(autouse=True)
def _skipped_without_its_file(request):
    if "golden" in request.fixturenames and request.getfixturevalue("golden").id == "none":
        pytest.skip("the goldens folder has no outputs of the authors' denoiser")


def ruled(key, tensor, salt):
    """The value that the goldens' rule gives to a key of a state dict."""
    shape = tuple(tensor.shape)
    rng = np.random.Generator(np.random.PCG64(crc32((salt + key).encode())))
    if key.endswith("num_batches_tracked"):
        return torch.zeros_like(tensor)
    if key in ("mask_conv.weight", "conv_filter.weight"):
        return tensor
    if key.endswith("running_var"):
        value = rng.uniform(0.5, 1.5, shape)
    elif key.endswith("running_mean"):
        value = 0.1 * rng.standard_normal(shape)
    elif key.startswith("ref_pattern_list"):
        rows, columns = (np.arange(side) - side // 2 for side in shape[1:])
        radius = np.hypot(rows[:, None], columns[None])
        value = -((-1.0) ** int(key.split(".")[1])) * np.log1p(radius) + 0.2 * rng.standard_normal(shape)
    elif key.startswith("mask_pre_activ_list"):
        value = 2 * rng.standard_normal(shape)
    elif key in ("clf_a", "clf_b"):
        value = 2 + 0.1 * rng.standard_normal() if key == "clf_a" else 0.3 * rng.standard_normal()
    elif key.endswith("weight") and len(shape) == 1:
        value = 1 + 0.1 * rng.standard_normal(shape)
    elif key.endswith("bias"):
        value = 0.05 * rng.standard_normal(shape)
    else:
        value = rng.standard_normal(shape) * np.sqrt(2 / np.prod(shape[1:]))
    return torch.from_numpy(np.asarray(value)).to(tensor.dtype)


def filled(network, folder):
    salt = folder.manifest["salt"]
    network.load_state_dict({key: ruled(key, value, salt) for key, value in network.state_dict().items()})
    return network.eval()


def pixels(array):
    """Network inputs of recorded bytes, NHWC or HWC."""
    array = array if array.ndim == 4 else array[None]
    return torch.from_numpy(array.copy()).permute(0, 3, 1, 2).float() / 255


def tensor(array):
    return torch.from_numpy(array.copy())


def close(got, expected, atol, rtol=0.0):
    np.testing.assert_allclose(got.detach().numpy(), expected, rtol=rtol, atol=atol)


def spectra_close(got, expected):
    """Bins near zero are rounding of the residual, whose logarithm is large: so magnitudes must agree."""
    got = got.detach().numpy()
    np.testing.assert_allclose(np.exp(got), np.exp(expected), rtol=2e-5, atol=4e-5)
    assert np.median(np.abs(got - expected)) < 1e-4


def map_display(similarity_map):
    from scipy.ndimage import grey_dilation

    return grey_dilation(similarity_map.detach().mean(dim=(0, 1)).numpy(), size=(5, 5))


# --- networks --------------------------------------------------------------------------------------------------------


@pytest.mark.golden(METHOD, "pipeline_w64", whole(W64))
def test_pipeline_of_small_windows(golden):
    expected, image = golden.tensors(W64), pixels(golden.tensors(W64)["input_u8"])
    network = filled(MaskSimNetwork(64, "dncnn"), golden.folder)
    residual = network.residual(image)
    close(residual, expected["residual"], 2e-5)
    spectrum = network.log_spectrum(image)
    spectra_close(spectrum, expected["logspec"])
    if "logspec_conv" in expected:
        mixed = network.in_conv_fft(spectrum).detach().numpy()
        assert np.median(np.abs(mixed - expected["logspec_conv"])) < 1e-4
    close(network.masks()[0], expected["mask"], 1e-7)
    found = network.similarity_map(image)
    close(found, expected["sim_map"], 1e-5)
    close(found.sum(dim=(2, 3)), expected["sim_per_channel"], 1e-5)
    np.testing.assert_allclose(map_display(found), expected["map_display"], rtol=0, atol=1e-5)
    similarity = network.similarity(spectrum)
    close(similarity, expected["similarity"], 5e-6)
    close(network(image), expected["logit"], 5e-5)
    close(network(image).sigmoid(), expected["prob"], 1e-5)


@pytest.mark.golden(METHOD, "pipeline_w64", whole(W64))
def test_the_bank_scores_as_the_recorded_network(golden):
    # In float64: in float32 the first window's bins are so small that similarities differ by 1e-5.
    expected, image = golden.tensors(W64), pixels(golden.tensors(W64)["input_u8"]).double()
    network = filled(MaskSimNetwork(64, "dncnn"), golden.folder).double()
    bank = DetectorBank.from_detectors([("a", network), ("b", copy.deepcopy(network))], color="rgb")
    assert len(bank.trunks) == 1
    spectra = bank.log_spectrum(image)
    for head in (0, 1):
        close(bank.similarity(spectra)[:, head], expected["similarity"], 5e-6)
        close(bank(image)[:, head].sigmoid(), expected["prob"], 1e-5)
        close(bank.similarity_map(image, head), expected["sim_map"], 1e-5)


def variants(folder):
    names = [key.removesuffix("_similarity") for key in folder.keys(VARIANTS) if key.endswith("_similarity")]
    return {name: name.rsplit("_", 2) for name in names}


@pytest.mark.golden(METHOD, "variants_w32", variants)
def test_variants(golden):
    kind, masks, kernel = golden.value
    expected, image = golden.tensors(VARIANTS), pixels(golden.tensors(VARIANTS)["input_u8"])
    preprocess = "identity" if kind == "none" else kind
    network = filled(MaskSimNetwork(32, preprocess, int(masks[1:]), int(kernel[1:])), golden.folder)
    spectrum = network.log_spectrum(image)
    bank = DetectorBank.from_detectors([("a", network)], color="rgb")
    found = {
        "residual": (network.residual(image), 2e-5),
        "masks": (network.masks(), 1e-7),
        "sim_map_first": (network.similarity_map(image), 1e-5),
        "similarity_per_mask": (network.similarity_per_mask(spectrum), 5e-6),
    }
    for name, (value, tolerance) in found.items():
        if f"{golden.id}_{name}" in expected:  # the committed subset has few of them
            close(value, expected[f"{golden.id}_{name}"], tolerance)
    if f"{golden.id}_logspec" in expected:
        spectra_close(spectrum, expected[f"{golden.id}_logspec"])
    if f"{golden.id}_sim_map_first" in expected:
        close(bank.similarity_map(image, 0), expected[f"{golden.id}_sim_map_first"], 1e-5)
    for similarity in (network.similarity(spectrum), bank.similarity(bank.log_spectrum(image))[:, 0]):
        close(similarity, expected[f"{golden.id}_similarity"], 5e-6)
    for logit in (network(image), bank(image)[:, 0]):
        close(logit.sigmoid(), expected[f"{golden.id}_prob"], 1e-5)


@needs_weights
@pytest.mark.golden(METHOD, "pipeline_w512", or_none(whole(W512)))
def test_pipeline_of_a_published_window(golden, tmp_path):
    import cv2

    expected = golden.tensors(W512)
    network = filled(MaskSimNetwork(512, "dncnn"), golden.folder)
    load_denoiser(network.preproc, WEIGHTS)
    bank = DetectorBank.from_detectors([("a", network)])
    close(network.masks()[0][:, ::16, ::16], expected["mask"], 1e-7)
    # The picture itself is not recorded, but this JPEG of it is; how it is decoded may move bytes by one.
    file = tmp_path / "q75.jpg"
    file.write_bytes(expected["jpeg75_bytes"].tobytes())
    rgb = torch.from_numpy(cv2.cvtColor(cv2.imread(str(file)), cv2.COLOR_BGR2RGB)).permute(2, 0, 1)[None]
    quality, similarity, probability, length, total = expected["jpeg_scores"][1]
    assert (quality, length) == (75, file.stat().st_size)
    image = rgb_to_ycbcr_studio(rgb, truncate=True)
    assert float(image.double().sum()) == total
    with torch.inference_mode():
        # In the memory layout that the reference's pictures have: in another one the kernels round by 2e-5 otherwise.
        found = network.similarity(network.log_spectrum(image.contiguous(memory_format=torch.channels_last)))
        assert float(found) == pytest.approx(similarity, abs=5e-6)
        assert float(network.logit(found).sigmoid()) == pytest.approx(probability, abs=1e-5)
        # Folded it is 3e-7 from the network in float64, which is -0.04895365 here.
        assert float(bank.similarity(bank.log_spectrum(rgb))) == pytest.approx(similarity, abs=5e-5)


# --- the denoiser's precision ----------------------------------------------------------------------------------------


def crops(folder):
    return [key.removeprefix("out64_") for key in folder.keys(REAL) if key.startswith("out64_")]


@pytest.fixture(scope="module")
def published():
    denoiser = DnCNN().eval()
    load_denoiser(denoiser, WEIGHTS)
    return denoiser


def errors(got, expected):
    difference = got.double().numpy()[0] - expected
    return np.sqrt(np.mean(difference**2)), np.abs(difference).max()


@needs_weights
@pytest.mark.golden(METHOD, "denoiser", or_none(crops))
def test_denoiser_of_published_weights(golden, published):
    expected, image = golden.tensors(REAL)[f"out64_{golden.id}"], pixels(golden.tensors(REAL)[f"in_{golden.id}"])
    with torch.inference_mode():
        rms, largest = errors(published(image), expected)
        assert rms < 3e-3
        assert largest < 2e-2
        doubled = copy.deepcopy(published).double()
        assert errors(doubled(image.double()), expected)[1] < 1e-9
        # Folded in float64 it is the same function; in float32 it is 100 times nearer.
        assert errors(FoldedDenoiser(doubled)(image.double()), expected)[1] < 1e-8
        assert errors(FoldedDenoiser(published)(image), expected)[0] < 1e-5


@needs_weights
@pytest.mark.golden(METHOD, "denoiser_noise", or_none(whole(REAL)))
def test_denoiser_of_noise_and_in_train_mode(golden, published):
    expected = golden.tensors(REAL)
    image = tensor(expected["in_noise"])
    with torch.no_grad():
        # Noise is far from what it was trained on: values reach 235.
        close(published(image), expected["out_noise"], 5e-2)
        network = copy.deepcopy(published).train()
        close(network(image), expected["out_noise_trainmode"], 2e-3)
    close(network.model[3].running_mean, expected["trainmode_bn3_running_mean_after"], 1e-5)
    close(network.model[3].running_var, expected["trainmode_bn3_running_var_after"], 1e-5, rtol=1e-5)


@needs_weights
@pytest.mark.golden(METHOD, "denoiser_layers", or_none(whole(REAL)))
def test_layers_of_the_denoiser(golden, published):
    expected = golden.tensors(REAL)
    features = pixels(expected["in_ycc_astronaut"]).double()
    network = copy.deepcopy(published).double()
    for row, layer in zip(expected["layer_stats_ycc_astronaut"], network.model, strict=True):
        with torch.no_grad():
            features = layer(features.clone())
        found = [features.mean(), features.std(), features.min(), features.max(), features.sum(), features.abs().sum()]
        # Recorded in float32; a sum of n numbers is off by n times as much as their mean.
        count = features.numel()
        tolerance = 2e-3 * np.abs(row) + np.array([1e-3, 1e-3, 5e-3, 5e-3, 1e-4 * count, 1e-4 * count])
        assert (np.abs(np.array(found) - row) <= tolerance).all()


@needs_weights
@pytest.mark.golden(METHOD, "denoiser_keys", or_none(whole(KEYS)))
def test_keys_of_the_published_denoiser(golden, published):
    listed = golden.folder.json(KEYS)["network"]
    state = published.model.state_dict()
    assert list(state) == list(listed)
    assert all(list(state[key].shape) == entry["shape"] for key, entry in listed.items())


# --- losses and training ---------------------------------------------------------------------------------------------


def loss_cases(folder):
    return [key.removesuffix(".loss") for key in folder.keys(LOSSES) if key.endswith(".loss")]


@pytest.mark.golden(METHOD, "loss", loss_cases)
def test_training_loss(golden):
    name, a, b = golden.id.rsplit(".", 2)
    expected = golden.tensors(LOSSES)
    similarity, positive = tensor(expected[f"{name}.similarity"])[:, None], tensor(expected[f"{name}.labels"])[:, None]
    positive = positive > 0.5
    seen = training_similarity(similarity, positive, "reference")
    logit = torch.tensor(float(a[1:])).exp() * seen + float(b[1:])
    loss = sample_losses(logit, positive, "reference").mean()
    assert float(loss) == pytest.approx(float(expected[f"{golden.id}.loss"][0]), abs=5e-6, rel=5e-6)


@pytest.mark.golden(METHOD, "validation_loss", lambda folder: ["valid"] if folder.has(LOSSES) else [])
def test_validation_loss(golden, monkeypatch):
    expected = golden.tensors(LOSSES)
    module = MaskSimModule(["a"], img_size=8, preprocess="identity").eval()
    a, b = expected["valid.clf"]
    logged = {}
    monkeypatch.setattr(module, "log", lambda name, value, **_: logged.update({name: float(value)}))
    module.on_validation_epoch_start()
    for similarity, label in zip(expected["valid.similarity"], expected["valid.labels"], strict=True):
        logits = (torch.tensor(a).exp() * tensor(similarity) + b).float()
        monkeypatch.setattr(module, "test_step", lambda *_, logits=logits: {"logit": logits[:, None, None]})
        names = ["a" if one > 0.5 else "real" for one in label]
        module.validation_step({"label": tensor(label), "generator": names}, 0)
    module.on_validation_epoch_end()
    for ours, theirs in (("", ""), ("_pos", "_pos"), ("_neg", "_neg")):
        wanted = expected[f"valid.logged.valid_loss{theirs}"][-1]
        assert logged[f"val/loss{ours}"] == pytest.approx(float(wanted), abs=5e-6)


RUNS = {
    "dncnn64": ({"preprocess": "dncnn"}, torch.float64),
    "identity": ({"preprocess": "identity"}, torch.float32),
    "linear3x3": ({"preprocess": "linear3x3"}, torch.float32),
    "identity_2masks": ({"preprocess": "identity", "num_masks": 2}, torch.float32),
}


def runs(folder):
    return {name: RUNS[name] for name in RUNS if f"{name}.losses" in folder.keys(TRAINING)}


def statistics(values):
    """How the goldens sum up a tensor that is too large to keep."""
    values = values.double()
    return torch.stack(
        [values.mean(), values.std(unbiased=False), values.min(), values.max(), values.sum(), values.abs().sum()]
    ).numpy()


def compare(state, expected, prefix, exact):
    """Compare tensors, or their statistics, with those recorded under a prefix."""
    count = 0
    for key, value in state.items():
        value = value.detach()
        if (name := f"{prefix}.{key}") in expected:
            got, wanted = value.double().numpy().reshape(-1), expected[name].reshape(-1)
        elif (name := f"{prefix}stats.{key}") in expected:
            got, wanted = statistics(value), expected[name]
        else:
            continue
        size = max(1, value.numel()) if "stats" in name else 1
        tolerance = np.array([1, 1, 1, 1, size, size]) if "stats" in name else 1.0
        difference = np.abs(got - wanted)
        limit = exact[0] * tolerance + exact[1] * np.abs(wanted)
        assert (difference <= limit).all(), f"{name}: {difference.max():.2e}"
        count += 1
    return count


@pytest.mark.golden(METHOD, "train", runs)
def test_three_steps_of_the_published_network(golden):
    settings, dtype = golden.value
    expected = golden.tensors(TRAINING)
    image, positive = pixels(expected["input_u8"]).to(dtype), tensor(expected["labels"])[:, None] > 0.5
    network = filled(MaskSimNetwork(48, **settings), golden.folder).to(dtype).train()
    own = list(network.preproc.parameters()) if settings["preprocess"] == "dncnn" else []
    rest = [p for p in network.parameters() if p.requires_grad and all(p is not q for q in own)]
    groups = [{"params": rest, "lr": 1e-3}] + ([{"params": own, "lr": 1e-4}] if own else [])
    optimizer = torch.optim.Adam(groups)
    precise = dtype == torch.float64
    for step in range(3):
        similarity = network.similarity(network.log_spectrum(image))[:, None]
        logit = network.logit(training_similarity(similarity, positive, "reference"))
        loss = sample_losses(logit, positive, "reference").mean()
        np.testing.assert_allclose(
            float(loss.detach()), expected[f"{golden.id}.losses"][step], atol=1e-7 if precise else 2e-6
        )
        close(similarity[:, 0], expected[f"{golden.id}.sims"][step], 1e-7 if precise else 2e-6)
        optimizer.zero_grad()
        loss.backward()
        if step == 0:
            gradients = {key: p.grad for key, p in network.named_parameters() if p.grad is not None}
            found = compare(gradients, expected, f"{golden.id}.grad0", (1e-7, 1e-6) if precise else (1e-6, 5e-5))
            assert found == len(gradients)
        optimizer.step()
    found = compare(network.state_dict(), expected, f"{golden.id}.after", (1e-7, 1e-7) if precise else (2e-6, 2e-6))
    assert found == len(network.state_dict())


def module_of(network, **settings):
    """Our module with the weights of a published detector, which gets windows in the detector's colours."""
    module = MaskSimModule(["a"], img_size=network.img_size, color="rgb", **settings)
    module.trunks[0].load_detector(network)
    module.heads.load_detector(0, network)
    return module


# Windows as they are have spectra with bins of zero. In float32 these hold the rounding of the transform, which is
# another one over half the plane: 2e-4 to float64 for either. `test_module` compares both in float64.
@pytest.mark.golden(METHOD, "train_module", runs)
def test_three_steps_of_our_module(golden):
    settings, dtype = golden.value
    expected = golden.tensors(TRAINING)
    network = filled(MaskSimNetwork(48, **settings), golden.folder)
    module = module_of(network, **settings).to(dtype).train()
    names = ["a" if label > 0.5 else "real" for label in expected["labels"]]
    batch = {
        "image": pixels(expected["input_u8"]).to(dtype),
        "label": tensor(expected["labels"]),
        "generator": names,
    }
    made = module.configure_optimizers()
    optimizer, schedule = made["optimizer"], made["lr_scheduler"]
    precise = dtype == torch.float64
    for step in range(3):
        loss = module.training_step(batch, step)
        limit = 1e-7 if precise else 2e-6 if golden.id == "linear3x3" else 2e-4
        np.testing.assert_allclose(float(loss.detach()), expected[f"{golden.id}.losses"][step], atol=limit)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert schedule["interval"] == "epoch"
    schedule["scheduler"].step()
    rates = [group["lr"] for group in optimizer.param_groups]
    np.testing.assert_allclose(rates, expected[f"{golden.id}.lrs_after_epoch"], rtol=1e-12)
    module.hparams["color"] = "ycbcr"  # what a published detector is told to be of
    state = module.detector("a").state_dict()
    limits = (1e-7, 1e-7) if precise else (1e-5, 1e-5) if golden.id == "linear3x3" else (2e-4, 2e-4)
    assert compare(state, expected, f"{golden.id}.after", limits) == len(state)


@pytest.mark.golden(METHOD, "train_float32", whole(TRAINING))
def test_first_step_in_single_precision(golden):
    expected = golden.tensors(TRAINING)
    network = filled(MaskSimNetwork(48, "dncnn"), golden.folder).train()
    positive = tensor(expected["labels"])[:, None] > 0.5
    similarity = network.similarity(network.log_spectrum(pixels(expected["input_u8"])))[:, None]
    loss = sample_losses(network.logit(training_similarity(similarity, positive, "reference")), positive, "reference")
    close(similarity[:, 0], expected["dncnn32.sims_step0"], 1e-3)
    assert float(loss.detach().mean()) == pytest.approx(float(expected["dncnn32.loss_step0"][0]), abs=1e-3)


# --- files -----------------------------------------------------------------------------------------------------------


KINDS = {"DnCNN": "dncnn", "linear3x3": "linear3x3", "cross_diff": "cross_diff"}


def listings(folder):
    return folder.json(LISTING) if folder.has(LISTING) else {}


@pytest.mark.golden(METHOD, "state_dicts", listings)
def test_listed_state_dict_loads_strictly_both_ways(golden, tmp_path):
    listed = golden.value["state_dict"] if "state_dict" in golden.value else golden.value["keys"]
    given = golden.value["init_kwargs"]
    state = {key: torch.zeros(entry["shape"], dtype=getattr(torch, entry["dtype"])) for key, entry in listed.items()}
    side = given.get("kernel_sz", 3)
    state["mask_conv.weight"] += 1 / side**2
    assert json.dumps(recognise(state))
    network = detector_of(state, "listing")
    own = network.state_dict()
    assert set(own) == set(listed)
    assert {key: (list(own[key].shape), str(own[key].dtype)) for key in own} == {
        key: (entry["shape"], f"torch.{entry['dtype']}") for key, entry in listed.items()
    }
    assert network.preprocess == KINDS.get(given.get("preprocess", "linear3x3"), "identity")
    assert network.img_size == given["img_size"]
    frozen = MaskSimNetwork(**recognise(state), freeze_preprocessor=given.get("preproc_freeze", True))
    trainable = {name for name, p in frozen.named_parameters() if p.requires_grad}
    expected = {key for key, entry in listed.items() if entry["requires_grad"]}
    assert trainable == expected
    path = tmp_path / "sd1-epoch=01-valid_auroc=0.99.ckpt"
    write_detector(network, path)
    again = read_detector(path)
    path.unlink()
    assert all(torch.equal(value, own[key]) for key, value in again.state_dict().items())
    # To our layout and back.
    trunk, heads = trunk_of_detector(network), heads_of_detectors([network])
    assert isinstance(trunk, Trunk)
    trunk.write_detector(again)
    heads.write_detector(0, again)
    assert all(torch.equal(value, own[key]) for key, value in again.state_dict().items())
