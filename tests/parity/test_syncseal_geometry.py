"""SyncSeal's quads, warps, value changes and corner error equal the reference's."""

import numpy as np
import pytest
import torch

from lightning_modules.functional.geometry import corner_error_px, decode_corners, normalise_corners, unwarp, warp
from lightning_modules.functional.jpeg import jpeg
from lightning_modules.syncseal.augmentation.replay import RecordedDraws, replay_geometry
from lightning_modules.syncseal.augmentation.settings import GeometricSettings
from lightning_modules.syncseal.augmentation.setups import GEOMETRIC_SETUPS, VALUE_SETUPS, named_quads, named_values

METHOD = "syncseal"
GRADIENT = "jpeg_straight_through_grad"
STORED_AS_FLOAT16 = 1e-3


def listed(folder, file):
    return folder.json(file) if folder.has(file) else []


def tracks(folder):
    return {case["id"]: case for case in listed(folder, "geometry_tracks.json")}


def warps(folder):
    stored = folder.keys("geometry.safetensors")
    return {name: case for name, case in tracks(folder).items() if f"{name}.out" in stored}


def unwarps(folder):
    stored = folder.keys("unwarp.safetensors")
    return {case["key"]: case for case in listed(folder, "unwarp_cases.json") if case["key"] in stored}


def value_cases(folder):
    stored = folder.keys("valuemetric.safetensors")
    return [name for name in stored if name.split("_")[0] in KINDS or name == GRADIENT]


def corner_errors(folder):
    listed_ones = folder.json("metrics.json")["corner_error"] if folder.has("metrics.json") else []
    return {str(number): case for number, case in enumerate(listed_ones)}


def row_labels(folder):
    return {"all": folder.json("eval_rows.json")["row_labels"]} if folder.has("eval_rows.json") else {}


KINDS = {
    "Brightness", "Contrast", "Saturation", "Hue", "GaussianBlur", "JPEG", "MedianFilter", "Grayscale",
}  # fmt: skip


def picture(golden, file, name):
    return torch.from_numpy(golden.tensors(file)[name].copy()).float() / 255


def settings_of(case):
    given = case["params"]
    if isinstance(given, str):
        return GeometricSettings()
    return GeometricSettings(
        crop_area=(given.get("min_size", 0.05), given.get("max_size", 1.0)),
        max_angle_deg=given.get("max_angle", 45),
        quarter_turns=given.get("do90", True),
        max_distortion=given.get("max_distortion_scale", 0.4),
    )


@pytest.mark.golden(METHOD, "quads", tracks)
def test_quad_from_recorded_draws(golden):
    case = golden.value
    size = case["H"], case["W"]
    draws = RecordedDraws(case["draws"])
    if case["op"] == "rotate" and not case["params"]["do90"]:
        quad = named_quads(f"rotate_{case['params']['max_angle']}", 1, *size, torch.Generator())[0]
    else:
        operations = [step["aug_type"] + "_top_left" * step.get("topleft", False) for step in case["applied"]]
        quad = replay_geometry(operations, *size, settings_of(case), draws)
        assert draws.left() == 0
    np.testing.assert_allclose(quad.numpy(), case["points"], rtol=0, atol=1e-9)
    np.testing.assert_allclose(normalise_corners(quad).numpy(), case["target_norm_256"], rtol=0, atol=1e-9)


@pytest.mark.golden(METHOD, "warps", warps)
def test_published_warp(golden):
    case, stored = golden.value, golden.tensors("geometry.safetensors")
    image = picture(golden, "geometry.safetensors", case["source"])
    quads = torch.tensor(case["points"], dtype=torch.float64)[None]
    warped = warp(image, quads, compat=True)
    np.testing.assert_allclose(warped.numpy(), stored[f"{golden.id}.out"], rtol=0, atol=STORED_AS_FLOAT16)
    if f"{golden.id}.mask" in stored:
        mask = warp(torch.ones_like(image[:, :1]), quads, nearest=True, compat=True)
        assert (mask.numpy() == stored[f"{golden.id}.mask"]).all()


@pytest.mark.golden(METHOD, "unwarps", unwarps)
def test_published_unwarping(golden):
    case = golden.value
    size = tuple(case["original_size"])
    quads = decode_corners(torch.tensor(case["pts_norm"])[None], *size, compat=True)
    assert quads.trunc()[0].tolist() == case["endpoints_used_after_truncation"]
    image = picture(golden, "geometry.safetensors", case["source"])
    images, ok = unwarp(image, quads, size, compat=True)
    assert ok.all()
    expected = golden.tensors("unwarp.safetensors")[golden.id]
    np.testing.assert_allclose(images.numpy(), expected, rtol=0, atol=STORED_AS_FLOAT16)


@pytest.mark.golden(METHOD, "values", value_cases)
def test_value_change(golden):
    image = picture(golden, "valuemetric.safetensors", "image_u8")
    expected = golden.tensors("valuemetric.safetensors")[golden.id].astype(np.float32)
    if golden.id == GRADIENT:
        image.requires_grad_()
        jpeg(image, torch.tensor([50])).backward(torch.linspace(0, 1, image.numel()).view_as(image))
        np.testing.assert_allclose(image.grad.numpy(), expected, rtol=0, atol=1e-6)
        return
    changed = image
    for name in golden.id.split("_then_"):
        changed = named_values(changed, name)
    error = np.abs(changed.numpy() - expected)
    if "JPEG" in golden.id:
        assert error.max() <= 2 / 255 * (2 if "then" in golden.id else 1)
        assert error.mean() <= 0.5 / 255
    else:
        assert error.max() <= STORED_AS_FLOAT16


@pytest.mark.golden(METHOD, "corner_error", corner_errors)
def test_corner_error(golden):
    case = golden.value
    answer = torch.tensor(case["pred"])
    quad = decode_corners(answer, *case["original_size"], size=case["img_size"], compat=True)
    np.testing.assert_allclose(quad.numpy(), case["points"], rtol=0, atol=1e-3)
    error = corner_error_px(quad, torch.tensor(case["orig_points"]))
    assert float(error) == pytest.approx(case["error"], abs=1e-3)


@pytest.mark.golden(METHOD, "rows", row_labels)
def test_setups_are_named_as_the_published_rows(golden):
    ours = [
        f"{move.name}|{move.strength}|{value.name}|{value.strength}"
        for move in GEOMETRIC_SETUPS
        for value in VALUE_SETUPS
    ]
    assert ours == golden.value
