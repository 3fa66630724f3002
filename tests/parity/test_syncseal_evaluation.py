"""The published evaluation: rows, errors, quality; its baselines by matching and by a grid of messages."""

import numpy as np
import pytest
import torch
from torchmetrics.functional.image import peak_signal_noise_ratio, structural_similarity_index_measure

from callbacks.sync_setups import QUALITY_HEADER, SYNC_HEADER
from lightning_modules.functional.geometry import unwarp
from lightning_modules.functional.image_quality import psnr
from lightning_modules.syncseal.augmentation.setups import GEOMETRIC_SETUPS
from lightning_modules.syncseal.evaluation import (
    LADDERS,
    NetworkSynchroniser,
    evaluate_setups,
    setup_labels,
    similarity,
)
from lightning_modules.syncseal.matching import (
    fit_grid,
    grid_corners,
    match_corners,
    published_numbers,
    quadrant_masks,
)
from lightning_modules.syncseal.published import read_network

METHOD = "syncseal"
ROWS, IMAGE, WEIGHTS = "eval_rows.json", "eval_image.safetensors", "tiny_checkpoint.pth"
METRICS, BASELINES, LOSSES, GEOMETRY = (
    "metrics.json",
    "baselines.safetensors",
    "losses.safetensors",
    "geometry.safetensors",
)
SIFT_TOLERANCE_PX = 3


def moves(folder):
    """The moves without randomness, whose errors are recorded."""
    if not all(folder.has(name) for name in (ROWS, IMAGE, WEIGHTS)):
        return []
    return list(dict.fromkeys(move for move, _, _ in folder.json(ROWS)["fixed_rows"]))


@pytest.fixture(scope="module")
def network(golden_folder):
    return read_network(golden_folder(METHOD).path / WEIGHTS)


@pytest.mark.golden(METHOD, "evaluated move", moves)
def test_errors_of_a_move_under_every_change_of_values(golden, network, monkeypatch):
    recorded = golden.folder.json(ROWS)
    wanted = {change: error for move, change, error in recorded["fixed_rows"] if move == golden.id}
    assert len(wanted) == 21
    ladder = tuple(entry for entry in LADDERS["published"] if entry[0] == golden.id)
    monkeypatch.setitem(LADDERS, "published", ladder)
    image = torch.from_numpy(golden.tensors(IMAGE)["image_u8"].copy())[None].float() / 255
    synchroniser = NetworkSynchroniser(network, detect=None, compat=True)
    outputs = evaluate_setups(synchroniser, image, torch.tensor([0]), "published", compat=True)
    errors = dict(zip((label.split("|")[2] for label in outputs["setups"]), outputs["corner_error_px"][0], strict=True))
    for change, error in wanted.items():
        # libjpeg may differ; a pixel of rounding moves a corner by one step of the grid.
        assert float(errors[change]) == pytest.approx(error, abs=1.0 if "JPEG" in change else 6e-4), change
    assert float(outputs["psnr"]) == pytest.approx(recorded["psnr"], abs=1e-3)
    assert float(outputs["ssim"]) == pytest.approx(recorded["ssim"], abs=1e-4)


def row_files(folder):
    return [ROWS] if folder.has(ROWS) else []


@pytest.mark.golden(METHOD, "evaluation table", row_files)
def test_rows_and_headers_are_the_published_ones(golden):
    recorded = golden.folder.json(ROWS)
    assert setup_labels("published") == recorded["row_labels"]
    assert recorded["csv_header"] == SYNC_HEADER
    assert recorded["quality_header"] == QUALITY_HEADER
    assert len(GEOMETRIC_SETUPS) == 21


def baselines(folder):
    found = [key.removeprefix("wam_label_") for key in folder.keys(BASELINES) if key.startswith("wam_label_")]
    cases = [f"grid {name}" for name in found] + ["masks"] * folder.has(METRICS)
    return cases + ["sift"] * ("sift_image_u8" in folder.keys(BASELINES))


@pytest.mark.golden(METHOD, "baseline", baselines)
def test_baselines_answer_as_published(golden):
    recorded = golden.folder.json(METRICS)
    kind, _, name = golden.id.partition(" ")
    if kind == "masks":
        for size in (256, 512):
            masks, wanted = quadrant_masks(size), recorded[f"wam_grid_mask_{size}"]
            assert masks.sum(axis=(1, 2)).tolist() == wanted["sum_per_mask"]
            edges = [np.argwhere(mask) for mask in masks]
            assert [[*(t := e.T)[0][[0, -1]], t[1].min(), t[1].max()] for e in edges] == wanted[
                "first_last_row_of_ones"
            ]
    elif kind == "grid":
        check_grid(golden, name, next(case for case in recorded["wam_fit"] if case["case"] == name))
    else:
        check_sift(golden.tensors(BASELINES), recorded["sift"])


def check_grid(golden, name, recorded):
    tensors = golden.tensors(BASELINES)
    fit = fit_grid(tensors[f"wam_label_{name}"])
    assert list(fit) == recorded["result(rot,cut_i,cut_j,flip)"]
    if f"wam_revert_{name}" not in tensors or not golden.folder.has(GEOMETRY):
        return
    tile = torch.from_numpy(golden.tensors(GEOMETRY)["image96_u8"].copy()).float() / 255
    picture = tile.repeat(1, 1, 3, 3)[:, :, :256, :256]
    straight = unwarp(picture, torch.from_numpy(grid_corners(fit, 256))[None]).images
    reverted = torch.from_numpy(tensors[f"wam_revert_{name}"].copy()).float()
    # The published one pads and resizes, which keeps edges in other places by up to half a pixel.
    assert float((straight - reverted).abs().mean()) < 0.03


def check_sift(tensors, recorded):
    original, rotated = (tensors[f"sift_{name}_u8"][0].transpose(1, 2, 0).copy() for name in ("image", "rotated"))
    found = published_numbers(match_corners(original, rotated), 256, 256)
    assert np.abs(found - recorded["rotate20_preds"][1:]).max() * 128 < SIFT_TOLERANCE_PX
    distance = np.linalg.norm(match_corners(original, rotated) - recorded["true_points"], axis=1)
    assert distance.max() < SIFT_TOLERANCE_PX
    same = published_numbers(match_corners(original, original), 256, 256)
    np.testing.assert_allclose(same, recorded["identity_preds"][1:], atol=1e-5)
    flat = np.full_like(original, 128)
    assert published_numbers(match_corners(flat, flat), 256, 256).tolist() == recorded["flat_image_fallback_preds"][1:]


def test_quality_of_recorded_pictures(golden_folder):
    folder = golden_folder(METHOD)
    if not {"reconstructions", "inputs"} <= set(folder.keys(LOSSES)):
        pytest.skip(f"{folder.path} has no pictures in {LOSSES}")
    tensors, recorded = folder.tensors(LOSSES), folder.json(METRICS)
    pair = [torch.from_numpy(tensors[name].copy()) for name in ("reconstructions", "inputs")]
    torch.testing.assert_close(psnr(*pair), torch.tensor(recorded["psnr_per_image"]), atol=1e-3, rtol=0)
    assert float(similarity(*pair).mean()) == pytest.approx(recorded["torchmetrics_ssim"], abs=1e-4)
    assert float(peak_signal_noise_ratio(*pair, data_range=1.0)) == pytest.approx(
        recorded["torchmetrics_psnr"], abs=1e-3
    )
    assert float(structural_similarity_index_measure(*pair, data_range=1.0)) == pytest.approx(
        recorded["torchmetrics_ssim"], abs=1e-5
    )
