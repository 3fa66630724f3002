"""Documents keep every pixel that is no seal's, and seals get what the forger made."""

import cv2
import numpy as np
import pytest
import torch

from lightning_modules.seal2real.realising import (
    RealiseSettings,
    Window,
    boxes_of_ink,
    cut,
    cut_seals,
    realise,
    realise_batch,
    window_around,
)


def document(height=90, width=120, boxes=((20, 15, 60, 55), (80, 50, 100, 74))):
    """A page of noise with a ring in each box."""
    rng = np.random.default_rng(0)
    page = rng.integers(100, 200, (3, height, width), np.uint8)
    ink = np.zeros((height, width), np.uint8)
    for x0, y0, x1, y1 in boxes:
        center, axes = ((x0 + x1) // 2, (y0 + y1) // 2), ((x1 - x0) // 2 - 2, (y1 - y0) // 2 - 2)
        cv2.ellipse(ink, center, axes, 0, 0, 360, 1, 2)
    return torch.from_numpy(page), torch.from_numpy(ink) > 0, [list(map(float, box)) for box in boxes]


def darker(crops, ink, seeds):
    return crops - 0.25


@pytest.mark.parametrize("paste", ["residual", "pixels"])
@pytest.mark.parametrize("size", [None, 32, 128])
def test_outside_of_the_allowed_mask_nothing_changes(size, paste):
    image, ink, boxes = document()
    settings = RealiseSettings(size=size, paste=paste)
    ((made, allowed),) = realise(darker, [(image, ink, boxes, 0)], settings, dilation=2)
    assert torch.equal(made[:, ~allowed], image[:, ~allowed])
    assert not torch.equal(made[:, allowed], image[:, allowed])
    assert bool(allowed[ink].all())
    grown = cv2.dilate(ink.numpy().astype(np.uint8), np.ones((15, 15), np.uint8)) > 0
    assert not bool(allowed[torch.from_numpy(~grown)].any())


def test_at_its_own_scale_a_seal_is_exactly_what_was_made():
    image, ink, boxes = document()
    ((made, allowed),) = realise(darker, [(image, ink, boxes, 0)], RealiseSettings(size=None), dilation=1)
    expected = (image.float() - 0.25 * 255).round().to(torch.uint8)
    assert torch.equal(made[:, allowed], expected[:, allowed])


def test_a_reduced_crop_leaves_the_documents_detail():
    # The change is smooth, the page is noise: enlarging the crop itself would blur the page.
    image, ink, boxes = document()
    crisp = image.float() - 0.25 * 255
    error = {}
    for paste in ("residual", "pixels"):
        settings = RealiseSettings(size=24, paste=paste)
        ((made, allowed),) = realise(darker, [(image, ink, boxes, 0)], settings, dilation=1)
        error[paste] = float((made.float() - crisp)[:, allowed].abs().mean())
    assert error["residual"] < 1
    assert error["pixels"] > 5


def test_a_forger_that_changes_nothing_gives_the_same_bytes():
    image, ink, boxes = document()
    for size in (None, 40):
        ((made, _),) = realise(
            lambda crops, ink, seeds: crops, [(image, ink, boxes, 0)], RealiseSettings(size=size), dilation=2
        )
        assert torch.equal(made, image)


def test_overlapping_seals_are_not_changed_twice():
    image, ink, _ = document(boxes=((20, 15, 60, 55), (40, 30, 90, 80)))
    boxes = [[20.0, 15.0, 60.0, 55.0], [40.0, 30.0, 90.0, 80.0]]
    crops = cut_seals(image, ink, boxes, RealiseSettings(size=None), 2, 0)
    assert len(crops) == 2
    assert not bool((crops[0].allowed & crops[1].allowed).any())
    ((made, allowed),) = realise(darker, [(image, ink, boxes, 0)], RealiseSettings(size=None), 2)
    change = image.int() - made.int()
    assert int(change[:, allowed].min()) >= 63
    assert int(change.max()) <= 64


@pytest.mark.parametrize("box", [(-10, -8, 20, 22), (100, 70, 140, 110), (0, 0, 120, 90)])
def test_seals_at_the_border_are_cut_and_put_back_in_place(box):
    image, ink = torch.full((3, 90, 120), 128, dtype=torch.uint8), torch.zeros(90, 120, dtype=torch.bool)
    ink[max(0, box[1]) : box[3], max(0, box[0]) : box[2]] = True
    rows = torch.linspace(0, 1, 64)[None, None, :, None]

    def slope(crops, ink, seeds):
        return crops + 0.3 * (rows - 0.5)

    ((made, allowed),) = realise(slope, [(image, ink, [box], 0)], RealiseSettings(size=64), 0)
    window = window_around(box, 0.15)
    expected = 128 + 255 * 0.3 * ((torch.arange(90) - window.top + 0.5) / window.side - 0.5)
    got = made.float().mean(0)
    difference = (got - expected[:, None])[allowed].abs()
    assert difference.max() < 1.6


def test_windows_are_squares_around_boxes():
    assert window_around((10, 20, 30, 24), 0.0) == Window(10, 12, 20)
    window = window_around((10, 20, 30, 24), 0.5)
    assert window.side == 40
    assert window == Window(0, 2, 40)


def test_a_crop_is_the_window_with_its_border_repeated():
    image = torch.arange(12.0).view(1, 3, 4) / 12
    got = cut(image, Window(-1, -1, 5), None)[0]
    assert torch.equal(got, torch.from_numpy(np.pad(image[0].numpy(), ((1, 1), (1, 0)), "edge")))


def test_each_seal_has_a_seed_of_its_own_whatever_the_batch():
    seen = []

    def watching(crops, ink, seeds):
        seen.append(list(seeds))
        return crops

    documents = [(*document(), 7), (*document(), 8)]
    for batch in (1, 3):
        realise(watching, documents, RealiseSettings(batch=batch), 1)
    flat = [[seed for part in parts for seed in part] for parts in (seen[:4], seen[4:])]
    assert sorted(flat[0]) == sorted(flat[1]) == [7000, 7001, 8000, 8001]


def test_seals_are_found_in_ink_where_no_boxes_are_given():
    _, ink, boxes = document(300, 400, ((40, 40, 140, 140), (220, 60, 330, 130)))
    found = boxes_of_ink(ink.numpy())
    assert len(found) == 2
    for got, wanted in zip(sorted(found), sorted(boxes), strict=True):
        np.testing.assert_allclose(got, wanted, atol=4)
    assert boxes_of_ink(np.zeros((50, 50), bool)) == []


def test_a_batch_of_documents_of_many_sizes_gives_records_and_pictures():
    first, second = document(), document(60, 70, ((10, 10, 40, 40),))
    empty = (torch.zeros(3, 20, 30, dtype=torch.uint8), torch.zeros(20, 30, dtype=torch.bool), [])
    batch = {
        "image": [first[0], second[0], empty[0]],
        "ink": [first[1][None], second[1].to(torch.uint8), empty[1]],
        "boxes": [torch.tensor(first[2]), torch.tensor(second[2]), torch.zeros(0, 4)],
        "index": torch.tensor([3, 4, 5]),
        "path": ["a.png", "b.png", "c.png"],
    }
    outputs = realise_batch(darker, batch, RealiseSettings(), 1, "cpu")
    assert [record["seals"] for record in outputs["records"]] == [2, 1, 0]
    assert all(record["changed_outside"] == 0 for record in outputs["records"])
    assert outputs["records"][0]["mean_change_levels"] > 50
    assert outputs["images"][1]["realised"].shape == (60, 70, 3)
    assert outputs["images"][1]["pair"].shape == (60, 140, 3)
    assert np.array_equal(outputs["images"][2]["realised"], empty[0].permute(1, 2, 0).numpy())
    del batch["boxes"]
    found = realise_batch(darker, batch, RealiseSettings(), 1, "cpu")["records"]
    assert [record["seals"] for record in found] == [2, 1, 0]


@pytest.mark.parametrize("settings", [{"size": 8}, {"margin": -0.1}, {"batch": 0}])
def test_wrong_settings_are_refused(settings):
    with pytest.raises(ValueError, match=next(iter(settings))):
        RealiseSettings(**settings)
