"""SyncSeal's networks, attenuation, checkpoints and TorchScript interface equal the reference's recorded numbers."""

import math
import warnings
import zlib

import numpy as np
import pytest
import torch
import yaml

from lightning_modules.syncseal.discriminator import PatchDiscriminator
from lightning_modules.syncseal.embedder import RGBToYUV
from lightning_modules.syncseal.jnd import JND
from lightning_modules.syncseal.network import SyncNetwork
from lightning_modules.syncseal.published import (
    is_published,
    network_arguments,
    read_network,
    read_published,
    recognise,
    write_published,
)
from lightning_modules.syncseal.torchscript import decoded_corners, scripted

METHOD = "syncseal"
TOLERANCE = 2e-5
# What is stored in float16.
HALF_TOLERANCE = 1e-3
TINY = {
    "embedder_channels": (8, 16),
    "embedder_blocks": 1,
    "detector_depths": (1, 1, 2, 1),
    "detector_dims": (8, 12, 16, 24),
    "size": 64,
}
LISTED = {"model_unet_small2_yuv": "gelu_group", "model_unet_small2_yuv_quantizable": "relu_batch"}
FULL = {"full_gn": "gelu_group", "full_bn": "relu_batch"}


def fill(module, salt):
    """Give a module the weights that the goldens' rule gives to its keys."""
    state = module.state_dict()
    for key, value in state.items():
        if key.split(".")[-1] == "M" or key.startswith("attenuation."):
            continue
        seed = (zlib.crc32(key.encode()) + salt) % 2**32
        drawn = np.random.Generator(np.random.PCG64(seed)).standard_normal(tuple(value.shape)).astype(np.float32)
        if not value.is_floating_point():
            drawn = np.zeros(tuple(value.shape))
        elif key.endswith("running_mean"):
            drawn = 0.1 * drawn
        elif key.endswith("running_var"):
            drawn = 1 + 0.1 * abs(drawn)
        elif value.ndim > 1:
            drawn = drawn / math.sqrt(math.prod(value.shape[1:]))
        else:
            drawn = 1 + 0.1 * drawn if key.endswith("weight") else 0.1 * drawn
        state[key] = torch.from_numpy(np.asarray(drawn, np.float32)).to(value.dtype)
    module.load_state_dict(state)
    return module


@pytest.fixture(scope="module")
def networks():
    """Networks with the rule's weights, by variant, size and salt: drawing the largest takes a second."""
    made = {}

    def network(folder, variant, **options):
        salt = folder.manifest["salt"]
        key = (variant, salt, tuple(options))
        if key not in made:
            made[key] = fill(SyncNetwork(variant, **options), salt).eval()
        return made[key]

    return network


def as_tensor(array):
    return torch.from_numpy(array.copy())


def as_image(array):
    return as_tensor(array).float() / 255 if array.dtype == np.uint8 else as_tensor(array)


def assert_near(found, wanted, tolerance=TOLERANCE):
    allowed = HALF_TOLERANCE if wanted.dtype == np.float16 else tolerance
    np.testing.assert_allclose(found.numpy(), wanted.astype(np.float32), rtol=0, atol=allowed)


def assert_same_levels(found, wanted):
    difference = np.abs((found.numpy() * 255).round() - wanted.astype(np.float32))
    assert difference.max() <= 1
    assert (difference > 0).mean() <= 0.001


# --- state dicts and checkpoints -------------------------------------------------------------------------------------


def listings(folder):
    return folder.json("state_dict_keys.json") if folder.has("state_dict_keys.json") else {}


@pytest.mark.golden(METHOD, "keys", lambda folder: {name: name for name in LISTED if name in listings(folder)})
def test_listed_state_dicts_are_ours_in_order_and_are_recognised(golden):
    listed = listings(golden.folder)[golden.id]
    with torch.device("meta"):
        network = SyncNetwork(LISTED[golden.id])
    state = network.state_dict()
    found = {key: [list(value.shape), str(value.dtype).removeprefix("torch.")] for key, value in state.items()}
    assert list(found) == list(listed)
    assert found == listed
    known = recognise({key: torch.empty(shape, device="meta") for key, (shape, _) in listed.items()})
    assert known == {name: network.arguments[name] for name in known}


@pytest.mark.golden(METHOD, "keys", lambda folder: ["discriminator"] if listings(folder) else [])
def test_listed_discriminator_and_sizes_are_ours(golden):
    listed = listings(golden.folder)
    with torch.device("meta"):
        discriminator, network = PatchDiscriminator(), SyncNetwork()
    found = {key: [list(value.shape), "float32"] for key, value in discriminator.state_dict().items()}
    assert found == listed["discriminator_n_layers2_in1"]
    parts = {"embedder": network.embedder, "detector": network.detector, "discriminator": discriminator}
    counts = {name: sum(parameter.numel() for parameter in part.parameters()) for name, part in parts.items()}
    assert counts == listed["param_counts"]
    trained = [*network.embedder.parameters(), *network.detector.parameters()]
    assert len(trained) == listed["optimizer"]["n_params"]
    assert len(list(discriminator.parameters())) == listed["optimizer_d"]["n_params"]


def checkpoints(folder):
    return ["tiny"] if folder.has("tiny_checkpoint.pth") else []


@pytest.mark.golden(METHOD, "checkpoint", checkpoints)
def test_an_official_checkpoint_loads_strictly_without_its_yaml_files(golden, networks, tmp_path):
    path = tmp_path / "alone.pth"
    path.write_bytes((golden.folder.path / "tiny_checkpoint.pth").read_bytes())
    assert is_published(path)
    published = read_published(path)
    assert network_arguments(published) == {
        "embedder": "gelu_group", **TINY, "detector_outputs": 9, "attenuation": "jnd_1_1",
        "scaling_w": 0.2, "scaling_i": 1.0,
    }  # fmt: skip
    wanted = networks(golden.folder, "gelu_group", **TINY).state_dict()
    loaded = read_network(path).state_dict()
    assert list(loaded) == list(published.tensors)
    assert all(torch.equal(loaded[key], wanted[key]) for key in wanted)


@pytest.mark.golden(METHOD, "checkpoint", checkpoints)
def test_what_is_written_in_that_layout_has_its_keys_and_files(golden, tmp_path):
    folder = golden.folder.path
    network = read_network(folder / "tiny_checkpoint.pth")
    write_published(network, tmp_path / "ours.pth", epoch=3, arguments={"num_augs": 2, "scaling_w": 7})
    ours, theirs = (
        torch.load(path, weights_only=True) for path in (tmp_path / "ours.pth", folder / "tiny_checkpoint.pth")
    )
    assert list(ours) == list(theirs)
    assert list(ours["model"]) == list(theirs["model"])
    assert all(torch.equal(ours["model"][key], theirs["model"][key]) for key in ours["model"])
    told, wanted = yaml.safe_load(ours["args"]), yaml.safe_load(theirs["args"])
    for name in ("img_size", "img_size_proc", "scaling_w", "scaling_i", "attenuation", "num_augs"):
        assert told[name] == wanted[name]
    named = {"embedder": "embedder_model", "extractor": "extractor_model", "attenuation": "attenuation"}
    for kind, name in named.items():
        written = yaml.safe_load((tmp_path / told[f"{kind}_config"]).read_text())
        recorded = yaml.safe_load((folder / wanted[f"{kind}_config"]).read_text())
        assert written[told[name]] == recorded[wanted[name]]
    assert read_network(tmp_path / "ours.pth").arguments == network.arguments


# --- networks --------------------------------------------------------------------------------------------------------


def full_cases(folder):
    images = [(file, key) for file in FULL for key in folder.keys(f"{file}.safetensors") if key.endswith("image_u8")]
    return {f"{file}.{key.split('.')[0]}": (file, key.split(".")[0]) for file, key in images}


@pytest.mark.golden(METHOD, "full", full_cases)
def test_networks_of_published_size(golden, networks):
    file, case = golden.value
    network = networks(golden.folder, FULL[file])
    recorded = {
        key.removeprefix(f"{case}."): value
        for key, value in golden.tensors(f"{file}.safetensors").items()
        if key.startswith(f"{case}.")
    }
    image, marked = as_image(recorded["image_u8"]), as_image(recorded["imgs_w_u8"])
    with torch.inference_mode():
        embedded = network.embed(image)
        assert_same_levels(embedded.marked, recorded["imgs_w_u8"])
        assert_near(network.detect(marked), recorded["detect_on_watermarked"])
        assert_near(network.detect(image), recorded["detect_on_original"])
        if "preds_w" in recorded:
            assert_near(embedded.pattern, recorded["preds_w"])
        if "raw_w256" in recorded:
            assert_near(network.pattern(image), recorded["raw_w256"])
        if "preds_w_lowres_attenuation" in recorded:
            assert_near(network.embed(image, lowres_attenuation=True).pattern, recorded["preds_w_lowres_attenuation"])


def probe_cases(folder):
    files = [file for file in FULL if folder.has(f"{file}_probes.json")]
    probes = {f"{file}-{name}": (file, name) for file in files for name in folder.json(f"{file}_probes.json")}
    return probes or {"absent": None}


@pytest.fixture(scope="module")
def probed(networks):
    """What each part of a network gives for the first picture, run once a file."""
    seen = {}

    def outputs(folder, file):
        if file not in seen:
            network, found = networks(folder, FULL[file]), {}
            names = folder.json(f"{file}_probes.json")
            hooks = [
                network.get_submodule(name).register_forward_hook(
                    lambda _module, _inputs, output, name=name: found.update({name: output})
                )
                for name in names
            ]
            recorded = folder.tensors(f"{file}.safetensors")
            with torch.inference_mode():
                network.pattern(as_image(recorded["A.image_u8"]))
                network.detect(as_image(recorded["A.imgs_w_u8"]))
            for hook in hooks:
                hook.remove()
            seen[file] = found
        return seen[file]

    return outputs


@pytest.mark.golden(METHOD, "probes", probe_cases)
def test_every_part_gives_what_the_references_gives(golden, probed):
    if golden.value is None:
        pytest.skip(f"{golden.folder.path} has no probes of networks of published size")
    file, name = golden.value
    wanted, found = golden.folder.json(f"{file}_probes.json")[name], probed(golden.folder, file)[name]
    if list(found.shape) != wanted["shape"]:  # recorded with channels last
        found = found.permute(0, 2, 3, 1)
    assert list(found.shape) == wanted["shape"]
    first = np.array(wanted["first8"])
    scale = max(1.0, float(np.abs(first).max()))
    np.testing.assert_allclose(found.flatten()[: len(first)].numpy(), first, rtol=0, atol=TOLERANCE * scale)
    assert float(found.mean()) == pytest.approx(wanted["mean"], abs=TOLERANCE * scale)
    if found.numel() > 1:
        assert float(found.std()) == pytest.approx(wanted["std"], rel=1e-4)


def tiny_cases(folder):
    return sorted({key.split(".")[0] for key in folder.keys("tiny_io.safetensors")})


@pytest.mark.golden(METHOD, "tiny", tiny_cases)
def test_small_networks(golden, networks):
    network = networks(golden.folder, "gelu_group", **TINY)
    recorded = golden.tensors("tiny_io.safetensors")
    image_key = f"{golden.id}.image" if f"{golden.id}.image" in recorded else f"{golden.id}.image_u8"
    image = as_image(recorded[image_key])
    with torch.no_grad():
        embedded, trained = network.embed(image), network.mark(image)
        assert_near(embedded.marked, recorded[f"{golden.id}.imgs_w"])
        assert_near(network.detect(embedded.marked), recorded[f"{golden.id}.preds"])
        if f"{golden.id}.preds_w" in recorded:
            assert_near(embedded.pattern, recorded[f"{golden.id}.preds_w"])
        if f"{golden.id}.imgs_w_noround_noclamp" in recorded:
            blended = network.blend(image, embedded.pattern)
            assert_near(blended, recorded[f"{golden.id}.imgs_w_noround_noclamp"])
    # The path of training attenuates the difference, which for a picture of full strength is the same.
    assert_same_levels(trained.marked, (recorded[f"{golden.id}.imgs_w"] * 255).round())


def batch_norm_cases(folder):
    return ["batch"] if folder.has("tiny_bn_io.safetensors") else ["absent"]


@pytest.mark.golden(METHOD, "tiny_bn", batch_norm_cases)
def test_small_networks_with_batch_norm(golden, networks):
    if golden.id == "absent":
        pytest.skip(f"{golden.folder.path} has no small networks with batch norm")
    network = networks(golden.folder, "relu_batch", **TINY)
    recorded = golden.tensors("tiny_bn_io.safetensors")
    image = as_image(golden.tensors("tiny_io.safetensors")["batch.image"])
    before = {key: value.clone() for key, value in network.state_dict().items()}
    with torch.no_grad():
        embedded = network.embed(image)
        assert_near(embedded.marked, recorded["imgs_w"])
        assert_near(embedded.pattern, recorded["preds_w"])
        assert_near(network.detect(embedded.marked), recorded["preds"])
        network.train()
        assert_near(network.pattern(image), recorded["train_mode_raw_w"], tolerance=1e-4)
    after = network.state_dict()
    for key in recorded:
        if key.startswith("after_train_fwd."):
            assert_near(after[key.removeprefix("after_train_fwd.")], recorded[key])
    network.load_state_dict(before)
    network.eval()


def weight_cases(folder):
    return ["tiny", "tiny_bn"] if folder.has("tiny_weights.safetensors") else ["absent"]


@pytest.mark.golden(METHOD, "tiny_weights", weight_cases)
def test_stored_weights_are_those_of_the_rule(golden, networks):
    if golden.id == "absent":
        pytest.skip(f"{golden.folder.path} has no stored weights: the rule makes them")
    stored = golden.tensors(f"{golden.id}_weights.safetensors")
    network = networks(golden.folder, "relu_batch" if golden.id == "tiny_bn" else "gelu_group", **TINY)
    ours = network.state_dict()
    assert set(stored) == set(ours)
    for key, value in stored.items():
        np.testing.assert_array_equal(ours[key].numpy(), value)


# --- attenuation and colour ------------------------------------------------------------------------------------------

MAPS = {
    "heatmap_1_1": JND(), "heatmap_1_3": JND(1, 3), "heatmap_3_3": JND(3, 3), "heatmap_3_1": JND(3, 1),
    "heatmap_1_3_blue": JND(1, 3, blue=True),
}  # fmt: skip


def map_cases(folder):
    keys = folder.keys("jnd_color_data.safetensors")
    others = ("ramp_heatmap_1_1", "rgb2yuv", "apply_multiply_1_1", "apply_clamp_1_1")
    return [key for key in (*MAPS, *others) if key in keys]


@pytest.mark.golden(METHOD, "jnd", map_cases)
def test_attenuation_and_colour(golden):
    recorded = golden.tensors("jnd_color_data.safetensors")
    image = as_image(recorded["image_u8"])
    if golden.id in MAPS:
        found = MAPS[golden.id](image)
    elif golden.id == "ramp_heatmap_1_1":
        levels = torch.arange(256.0).view(16, 16).repeat_interleave(8, 0).repeat_interleave(8, 1)
        found = JND()((levels / 255).expand(1, 3, -1, -1))
    elif golden.id == "rgb2yuv":
        found = RGBToYUV()(image)
    else:
        found = JND().attenuate(image, as_image(recorded["imgs_w_in"]), golden.id.split("_")[1])
    assert_near(found, recorded[golden.id], tolerance=1e-6)


# --- the TorchScript interface ---------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def script(networks):
    """The small network behind the published interface."""
    made = {}

    def interface(folder):
        if "script" not in made:
            made["script"] = scripted(networks(folder, "gelu_group", **TINY))
        return made["script"]

    return interface


@pytest.mark.golden(METHOD, "script", tiny_cases)
def test_the_published_interface_answers_as_the_reference(golden, script):
    recorded = golden.tensors("tiny_io.safetensors")
    image_key = f"{golden.id}.image" if f"{golden.id}.image" in recorded else f"{golden.id}.image_u8"
    with torch.no_grad():
        embedded = script(golden.folder).embed(as_image(recorded[image_key]))
        found = script(golden.folder).detect(embedded["imgs_w"])
    assert_near(embedded["imgs_w"], recorded[f"{golden.id}.imgs_w"])
    assert_near(found["preds"], recorded[f"{golden.id}.preds"])
    assert torch.equal(found["preds_pts"], found["preds"][:, 1:])


def unwarp_cases(folder):
    files = ("unwarp_cases.json", "unwarp.safetensors", "geometry.safetensors")
    if not all(folder.has(file) for file in files):
        return {"absent": None}
    stored = folder.keys("unwarp.safetensors")
    return {case["key"]: case for case in folder.json("unwarp_cases.json") if case["key"] in stored}


@pytest.mark.golden(METHOD, "script_unwarp", unwarp_cases)
def test_the_published_unwarp_straightens_as_the_reference(golden, script):
    if golden.value is None:
        pytest.skip(f"{golden.folder.path} has no unwarp cases")
    case = golden.value
    points, (height, width) = torch.tensor(case["pts_norm"])[None], case["original_size"]
    corners = decoded_corners(points, height, width, 256)
    assert corners.trunc().int()[0].tolist() == case["endpoints_used_after_truncation"]
    image = as_image(golden.tensors("geometry.safetensors")[case["source"]])
    interface = script(golden.folder)
    with warnings.catch_warnings(action="ignore"):
        interface.img_size = 256  # the grid that the cases were recorded with
        found = interface.unwarp(image, points, (height, width))
        interface.img_size = TINY["size"]
    assert_near(found, golden.tensors("unwarp.safetensors")[case["key"]])
