import json

import numpy as np
import pytest
import torch
from jsonargparse import ArgumentParser
from scipy import ndimage
from torch.nn import functional as F

from lightning_modules.functional.pixels import to_picture
from lightning_modules.watermark_segmentation.inference import (
    InferenceSettings,
    describe,
    overlay,
    predict_batch,
    probability_map,
    segment,
)

SMALL = InferenceSettings(tile=64, whole_size=64, whole_image=False)


def first_channel(images):
    return images[:, :1]


def blurred(images):
    """A convolution with a border of zeros: wrong at tile borders, as networks are."""
    kernel = torch.ones(1, 1, 5, 5) / 25
    return F.conv2d(images[:, :1], kernel, padding=2)


def image_of(height, width, seed=0):
    return torch.rand(3, height, width, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("size", [(1, 1), (64, 64), (65, 63), (7, 300), (300, 7), (150, 201)])
@pytest.mark.parametrize("overlap", [0.0, 0.25, 0.6])
@pytest.mark.parametrize("tta", ["none", "flips"])
def test_a_network_that_returns_its_input_gives_exactly_that(size, overlap, tta):
    image = image_of(*size)
    settings = InferenceSettings(tile=64, overlap=overlap, whole_image=False, tta=tta, tile_batch=3)
    result = probability_map(first_channel, image, settings)
    assert result.dtype == torch.float32
    torch.testing.assert_close(result, image[0], atol=1e-6, rtol=0)


def test_a_small_image_takes_one_pass_at_its_own_size():
    calls = []

    def spy(images):
        calls.append(tuple(images.shape))
        return images[:, :1]

    probability_map(spy, image_of(60, 64), InferenceSettings(tile=64, whole_image="auto"))
    assert calls == [(1, 3, 60, 64)]


def test_tiles_come_in_batches_of_one_size_and_the_whole_image_once():
    calls = []

    def spy(images):
        calls.append(tuple(images.shape))
        return images[:, :1]

    settings = InferenceSettings(tile=64, overlap=0.25, whole_size=64, tile_batch=4)
    probability_map(spy, image_of(100, 200), settings)
    assert all(call == (4, 3, 64, 64) for call in calls[:-2])
    assert calls[-1] == (1, 3, 32, 64)


def test_seams_are_fainter_than_with_hard_borders():
    image = image_of(192, 192)
    whole = blurred(image[None])[0, 0]
    soft = probability_map(blurred, image, InferenceSettings(tile=64, overlap=0.5, whole_image=False))
    hard = probability_map(blurred, image, InferenceSettings(tile=64, overlap=0.0, whole_image=False))
    assert (hard - whole).abs().max() > 0.1
    assert (soft - whole).abs().max() < 0.01


def test_moving_the_image_moves_the_map():
    image = image_of(160, 240)
    settings = InferenceSettings(tile=64, overlap=0.5, whole_image=False)
    left = probability_map(blurred, image[:, :, :192], settings)
    right = probability_map(blurred, image[:, :, 32:224], settings)
    torch.testing.assert_close(left[:, 64:160], right[:, 32:128], atol=0.01, rtol=0)


def test_the_whole_image_finds_what_a_tile_cannot():
    def large_things(images):
        """Sees a mark only where all of it is in view: the mean of the view."""
        return images.mean((1, 2, 3), keepdim=True).expand(-1, 1, *images.shape[-2:])

    image = torch.zeros(3, 256, 256)
    image[:, :, 128:] = 1
    settings = {"tile": 64, "overlap": 0.0, "whole_size": 64}
    tiles = probability_map(large_things, image, InferenceSettings(**settings, whole_image=False))
    mean = probability_map(large_things, image, InferenceSettings(**settings, fusion="mean"))
    top = probability_map(large_things, image, InferenceSettings(**settings, fusion="max"))
    assert tiles[0, 0] == 0
    torch.testing.assert_close(mean, (tiles + 0.5) / 2, atol=1e-6, rtol=0)
    torch.testing.assert_close(top, tiles.clamp(min=0.5), atol=1e-6, rtol=0)


def test_flips_make_the_map_of_a_flipped_image_the_flipped_map():
    def lopsided(images):
        return images[:, :1].cumsum(-1) / images.shape[-1]

    settings = InferenceSettings(tile=64, tta="flips")
    image = image_of(40, 50)
    map_ = probability_map(lopsided, image, settings)
    torch.testing.assert_close(probability_map(lopsided, image.flip(-1), settings), map_.flip(-1))
    torch.testing.assert_close(probability_map(lopsided, image.flip(-2), settings), map_.flip(-2))


def test_scales_average_six_views():
    sizes = []

    def spy(images):
        sizes.append(images.shape[-2:])
        return images.mean((1, 2, 3), keepdim=True).expand(-1, 1, *images.shape[-2:])

    result = probability_map(spy, torch.full((3, 80, 40), 0.3), InferenceSettings(tta="flips_scales"))
    assert [tuple(size) for size in sizes] == [(80, 40)] * 4 + [(60, 32), (100, 50)]
    torch.testing.assert_close(result, torch.full((80, 40), 0.3))


@pytest.mark.parametrize("bad", [torch.zeros(1, 3, 8, 8), torch.zeros(1, 8, 8), torch.zeros(3, 0, 8)])
def test_other_shapes_are_refused(bad):
    with pytest.raises(ValueError, match=r"`image` must be \(3, H, W\)"):
        probability_map(first_channel, bad, SMALL)


def smooth(seed, shape=(80, 90)):
    noise = ndimage.gaussian_filter(np.random.default_rng(seed).random(shape), 2)
    return ((noise - noise.min()) / np.ptp(noise)).astype(np.float32)


@pytest.mark.parametrize("steps", [0, 1, 3, 5])
@pytest.mark.parametrize("shape", ["cross", "square"])
def test_dilation_is_scipys(steps, shape):
    probability = smooth(1)
    mask = probability > 0.7
    structure = ndimage.generate_binary_structure(2, 1 if shape == "cross" else 2)
    expected = ndimage.binary_dilation(mask, structure, iterations=steps) if steps else mask
    settings = InferenceSettings(dilation=steps, dilation_shape=shape)
    np.testing.assert_array_equal(segment(torch.from_numpy(probability), 0.7, settings), expected)


def test_the_mask_goes_through_hysteresis_small_regions_holes_and_dilation_in_this_order():
    probability = smooth(2)
    settings = InferenceSettings(low_threshold=0.5, min_area=30, fill_holes=probability.size, dilation=2)
    eight = np.ones((3, 3))
    mask = ndimage.binary_propagation(probability > 0.65, structure=eight, mask=probability > 0.5)
    labels, count = ndimage.label(mask, structure=eight)
    areas = ndimage.sum_labels(mask, labels, np.arange(count + 1))
    mask = ndimage.binary_fill_holes(mask & (areas >= 30)[labels])
    mask = ndimage.binary_dilation(mask, iterations=2)
    np.testing.assert_array_equal(segment(probability, 0.65, settings), mask)


def test_areas_below_one_are_fractions_of_the_image():
    probability = np.zeros((100, 100), np.float32)
    probability[:3, :3] = probability[50:60, 50:60] = 1
    assert segment(probability, 0.5, InferenceSettings(min_area=0.005)).sum() == 100
    assert segment(probability, 0.5, InferenceSettings(min_area=9)).sum() == 109


def test_a_record_lists_boxes_by_size_with_their_mean_probability():
    probability = np.full((40, 60), 0.1, np.float32)
    probability[5:15, 10:30] = 0.9
    probability[30:33, 50:60] = 0.7
    record = describe(probability, probability > 0.5, threshold=0.5)
    assert json.loads(json.dumps(record)) == record
    assert record["boxes"] == [
        {"box": [10, 5, 30, 15], "area": 200, "score": 0.9},
        {"box": [50, 30, 60, 33], "area": 30, "score": 0.7},
    ]
    assert record["watermarked"] is True
    assert (record["width"], record["height"]) == (60, 40)
    assert record["area_fraction"] == pytest.approx(230 / 2400, abs=1e-6)
    assert record["score"] == pytest.approx(0.9)
    entropy = -np.mean([p * np.log2(p) + (1 - p) * np.log2(1 - p) for p in [0.9] * 200 + [0.7] * 30])
    assert record["uncertainty"] == pytest.approx(entropy, abs=1e-4)
    few = describe(probability, probability > 0.5, threshold=0.5, max_boxes=1)
    assert (few["box_count"], len(few["boxes"])) == (2, 1)


def test_one_odd_pixel_does_not_make_the_score():
    probability = np.full((100, 100), 0.01, np.float32)
    probability[50, 50] = 1
    record = describe(probability, np.zeros((100, 100), bool), threshold=0.5)
    assert record["score"] < 0.1
    assert record["watermarked"] is False
    assert record["boxes"] == []


def test_the_spread_of_the_views_is_the_uncertainty():
    def lopsided(images):
        return torch.linspace(0, 1, images.shape[-1]).expand(len(images), 1, *images.shape[-2:])

    batch = {"image": [image_of(40, 65)], "path": ["a"], "index": torch.tensor([3])}
    record = predict_batch(lopsided, batch, InferenceSettings(tta="flips"), 0.9, "cpu")["records"][0]
    ramp = torch.linspace(0, 1, 65)
    assert record["uncertainty"] == pytest.approx(float((ramp - 0.5).abs().mean()), abs=1e-4)
    tiled = InferenceSettings(tta="flips", tile=64, whole_size=64)
    assert predict_batch(lopsided, batch, tiled, 0.9, "cpu")["records"][0]["uncertainty"] > 0.1


@pytest.mark.parametrize("tta", ["none", "flips"])
def test_a_batch_of_any_sizes_is_answered_in_order_as_one_by_one(tta):
    sizes = [(40, 50), (1, 1), (40, 50), (130, 70), (50, 40), (40, 50)]
    images = [image_of(*size, seed=i) for i, size in enumerate(sizes)]
    batch = {"image": images, "path": [f"{i}.png" for i in range(6)], "index": torch.arange(10, 16)}
    calls = []

    def spy(pixels):
        calls.append(len(pixels))
        return blurred(pixels)

    settings = InferenceSettings(tile=64, whole_size=64, tta=tta, tile_batch=2)
    out = predict_batch(spy, batch, settings, 0.5, "cpu")
    assert [r["path"] for r in out["records"]] == batch["path"]
    assert [r["index"] for r in out["records"]] == list(range(10, 16))
    assert max(calls) == 2
    for image, record, pictures in zip(images, out["records"], out["images"], strict=True):
        expected = segment(probability_map(blurred, image, settings), 0.5, settings)
        np.testing.assert_array_equal(pictures["mask"], expected * np.uint8(255))
        assert pictures["mask"].dtype == pictures["overlay"].dtype == np.uint8
        assert pictures["overlay"].shape == (*expected.shape, 3)
        assert record["watermarked"] == expected.any()


def test_bytes_are_answered_as_the_same_numbers():
    images = [(image_of(*size, seed=i) * 255).round() for i, size in enumerate([(40, 50), (130, 70)])]
    batch = {"path": ["a", "b"], "index": torch.arange(2)}
    settings = InferenceSettings(tile=64, whole_size=64)
    numbers, levels = (
        predict_batch(blurred, batch | {"image": part}, settings, 0.5, "cpu")
        for part in ([image / 255 for image in images], [image.byte() for image in images])
    )
    assert levels["records"] == numbers["records"]
    for first, second in zip(levels["images"], numbers["images"], strict=True):
        np.testing.assert_array_equal(first["overlay"], second["overlay"])


def test_an_empty_batch_is_no_error():
    empty = {"image": [], "path": [], "index": torch.empty(0, dtype=torch.int64), "skipped": []}
    assert predict_batch(first_channel, empty, SMALL, 0.5, "cpu") == {"records": [], "images": []}


def test_a_network_that_answers_no_number_is_reported():
    batch = {"image": [image_of(8, 8)], "path": ["x.png"], "index": torch.tensor([0])}
    with pytest.raises(ValueError, match=r"x\.png.*no number"):
        predict_batch(lambda x: x[:, :1] * float("nan"), batch, SMALL, 0.5, "cpu")


def test_the_overlay_changes_marked_pixels_only():
    image = image_of(30, 40)
    mask = np.zeros((30, 40), bool)
    mask[10:20, 5:25] = True
    picture = overlay(image, mask)
    plain = to_picture(image)
    np.testing.assert_array_equal(plain, np.rint(image.permute(1, 2, 0).numpy() * 255))
    np.testing.assert_array_equal(picture[~mask], plain[~mask])
    assert (picture[mask] != plain[mask]).any(-1).all()
    np.testing.assert_array_equal(overlay(image, np.zeros((30, 40), bool)), plain)


@pytest.mark.parametrize(
    ("name", "value"),
    [("tile", 8), ("overlap", 0.95), ("overlap", -0.1), ("tile_batch", 0), ("dilation", -1), ("low_threshold", 1.5)],
)
def test_settings_out_of_range_are_named(name, value):
    with pytest.raises(ValueError, match=rf"`{name}` must .* got {value}"):
        InferenceSettings(**{name: value})


def test_settings_are_a_type_of_the_command_line():
    parser = ArgumentParser(exit_on_error=False)
    parser.add_argument("--inference", type=InferenceSettings)
    parsed = parser.parse_args(["--inference.tta=flips", "--inference.low_threshold=0.2"])
    settings = parser.instantiate(parsed).inference
    assert settings == InferenceSettings(tta="flips", low_threshold=0.2)
