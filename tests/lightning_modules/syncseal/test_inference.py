"""Predict: pictures of many sizes, records that undo the attack, overlays that show where the frame is."""

import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from datamodules.images.procedural import draw_scene
from datamodules.images.randomness import sample_rng
from lightning_modules.functional.geometry import apply_homography, frame_corners_px, warp
from lightning_modules.syncseal.inference import SyncSettings, fingerprint, overlay, predict_batch
from lightning_modules.syncseal.network import SyncNetwork
from lightning_modules.syncseal.refinement import Detection


class Known(torch.nn.Module):
    """Answers with given quads, and marks by a grey level."""

    device = torch.device("cpu")
    reliability = None

    def __init__(self, quads=None, states=None):
        super().__init__()
        self.quads = quads
        self.network = self
        self.size = 32
        self.asked = []
        if states is not None:
            self.reliability = SimpleNamespace(states=lambda presence, spread: states[: len(presence)])

    def embed(self, images):
        from lightning_modules.syncseal.network import Embedded

        return Embedded(images, (images + 1 / 255).clamp(0, 1))

    def detect(self, images):
        self.asked.append(tuple(images.shape))
        height, width = images.shape[-2:]
        quads = frame_corners_px(height, width).repeat(len(images), 1, 1) if self.quads is None else self.quads
        return Detection(quads.float(), torch.zeros(len(images)), torch.full((len(images),), torch.nan))


def scene(number, size):
    return torch.from_numpy(draw_scene(sample_rng(7, 0, number), size)).permute(2, 0, 1)


def batch_of(*images):
    return {"image": list(images), "path": [f"{n}.png" for n in range(len(images))], "index": torch.arange(len(images))}


def test_a_record_undoes_the_attack():
    image = scene(0, (60, 80))
    quad = frame_corners_px(60, 80) * 0.7 + torch.tensor([9.0, 6.0], dtype=torch.float64)
    attacked = warp(image[None].float() / 255, quad[None])[0]
    answer = predict_batch(Known(quad[None]), batch_of(attacked), SyncSettings())
    record, pictures = answer["records"][0], answer["images"][0]
    assert json.loads(json.dumps(record)) == record
    np.testing.assert_allclose(record["corners_px"], quad, atol=1e-3)
    moved = apply_homography(torch.tensor(record["homography"], dtype=torch.float64), frame_corners_px(60, 80))
    np.testing.assert_allclose(moved, quad, atol=1e-3)
    assert record["straightened"]
    assert record["reliability"] is None
    assert (record["width"], record["height"]) == (80, 60)
    shown = np.zeros((60, 80), bool)
    shown[8:46, 11:62] = True
    difference = np.abs(pictures["rectified"].astype(int) - image.permute(1, 2, 0).numpy())
    assert difference[shown].mean() < 4
    assert not pictures["rectified"][:4].any()


def test_the_outline_lies_on_the_frame_of_the_original():
    image = torch.full((3, 60, 80), 0.5)
    drawn = overlay(image, frame_corners_px(60, 80), "reliable", (60, 80))
    assert drawn.shape == (120, 160, 3)
    green = (drawn.astype(int) - [40, 170, 70] == 0).all(axis=2)
    rows, columns = np.nonzero(green)
    assert abs(columns.max() - (40 + 79)) <= 2
    assert abs(rows.max() - (30 + 59)) <= 2
    # Half as much is shown: the frame is twice as large, so its right and lower sides are beyond the margins.
    half = overlay(image, frame_corners_px(60, 80) / 2, None, (60, 80))
    blue = (half.astype(int) - [30, 110, 230] == 0).all(axis=2)
    assert blue[:40, :60].any()
    assert not blue[45:, 60:].any()
    broken = overlay(image, torch.full((4, 2), torch.nan), None, (60, 80))
    assert broken.shape == (120, 160, 3)


def test_pictures_of_one_size_go_together_and_keep_their_order():
    module = Known()
    sizes = [(20, 30), (24, 24), (20, 30), (20, 30)]
    answer = predict_batch(module, batch_of(*(scene(n, size) for n, size in enumerate(sizes))), SyncSettings(batch=2))
    assert sorted(module.asked) == [(1, 3, 20, 30), (1, 3, 24, 24), (2, 3, 20, 30)]
    for number, (record, pictures) in enumerate(zip(answer["records"], answer["images"], strict=True)):
        assert record["index"] == number
        assert record["path"] == f"{number}.png"
        expected = scene(number, sizes[number]).permute(1, 2, 0).numpy()
        assert np.abs(pictures["rectified"].astype(int) - expected).max() <= 1
    assert predict_batch(module, batch_of(), SyncSettings()) == {"records": [], "images": []}


def test_originals_of_another_size_are_asked_for():
    answer = predict_batch(Known(), batch_of(scene(0, (20, 30))), SyncSettings(original_size=(40, 90), overlay=False))
    assert answer["images"][0]["rectified"].shape == (40, 90, 3)
    assert answer["records"][0]["corners_px"] == [[0.0, 0.0], [89.0, 0.0], [89.0, 39.0], [0.0, 39.0]]


def test_pictures_without_a_mark_are_left_alone():
    image = scene(0, (20, 30))
    quads = (frame_corners_px(20, 30) / 2)[None]
    answer = predict_batch(Known(quads, ["absent"]), batch_of(image), SyncSettings())
    assert answer["records"][0]["reliability"] == "absent"
    assert not answer["records"][0]["straightened"]
    assert np.array_equal(answer["images"][0]["rectified"], image.permute(1, 2, 0).numpy())
    forced = predict_batch(Known(quads, ["absent"]), batch_of(image), SyncSettings(absent="rectify"))
    assert forced["records"][0]["straightened"]


def test_broken_corners_are_said_and_stop_nothing():
    quads = torch.stack([torch.zeros(4, 2), torch.full((4, 2), torch.nan)])
    answer = predict_batch(Known(quads), batch_of(scene(0, (20, 30)), scene(1, (20, 30))), SyncSettings())
    assert [record["straightened"] for record in answer["records"]] == [False, False]
    assert answer["records"][1]["corners_px"][0] == [None, None]
    assert np.array_equal(answer["images"][0]["rectified"], scene(0, (20, 30)).permute(1, 2, 0).numpy())


def test_embedding_says_how_much_it_changes():
    image = torch.full((3, 20, 30), 100, dtype=torch.uint8)
    answer = predict_batch(Known(), batch_of(image), SyncSettings(mode="embed", difference=True))
    assert answer["records"][0]["psnr_db"] == pytest.approx(20 * np.log10(255), abs=1e-2)
    assert (answer["images"][0]["marked"] == 101).all()
    assert (answer["images"][0]["difference"] == 148).all(), "20 levels above the middle, rounded"


def test_a_fingerprint_follows_weights_and_settings():
    torch.manual_seed(0)
    network = SyncNetwork(
        embedder_channels=(8, 16), embedder_blocks=1, detector_depths=(1, 1, 1, 1), detector_dims=(8, 8, 8, 8), size=32
    )
    first = fingerprint(network, SyncSettings())
    assert first == fingerprint(network, SyncSettings())
    assert first != fingerprint(network, SyncSettings(mode="embed"))
    network.scaling_w = 0.3
    assert first != fingerprint(network, SyncSettings())
    network.scaling_w = 0.2
    with torch.no_grad():
        next(network.detector.parameters()).add_(1e-3)
    assert first != fingerprint(network, SyncSettings())


def test_what_a_user_gets_wrong_is_one_line():
    with pytest.raises(ValueError, match="`batch` must be at least 1"):
        SyncSettings(batch=0)
    with pytest.raises(ValueError, match="`original_size` must be"):
        SyncSettings(original_size=(1, 5))
