"""Crops are cut, resized and compressed as planned, small pictures keep their spectrum, labels play no part."""

import io
from collections import Counter

import numpy as np
import pytest
from PIL import Image

from datamodules.images.file_facts import grid_phase, jpeg_quality
from datamodules.images.procedural import draw_scene
from datamodules.transforms.spectrum_crops import (
    CropPlan,
    CropSettings,
    apply_plan,
    central_crop,
    compress,
    draw_plan,
    fill_window,
    resized_central_crop,
    target_size,
)

BICUBIC = Image.Resampling.BICUBIC
PLAIN = CropPlan(1.0, BICUBIC, 0.0, 0.0, "none", 90, False)


def picture(height: int, width: int, seed: int = 0) -> np.ndarray:
    return draw_scene(np.random.default_rng(seed), (height, width), "dead_leaves")


def wave(height: int, width: int, period: float) -> np.ndarray:
    level = 128 + 90 * np.cos(2 * np.pi * np.arange(width) / period)
    return np.repeat(np.rint(np.broadcast_to(level, (height, width)))[..., None], 3, axis=2).astype(np.uint8)


def peak(image: np.ndarray) -> int:
    """The strongest horizontal frequency but zero."""
    spectrum = np.abs(np.fft.rfft(image[..., 1] - image[..., 1].mean(), axis=1)).mean(axis=0)
    return int(spectrum[1:].argmax()) + 1


def test_an_unresized_crop_is_a_part_of_the_picture_and_reaches_every_corner() -> None:
    image = picture(70, 90)
    for x, y in ((0.0, 0.0), (0.999, 0.999), (0.5, 0.2)):
        plan = CropPlan(1.0, BICUBIC, x, y, "none", 90, False)
        top, left = int(y * 7), int(x * 27)
        np.testing.assert_array_equal(apply_plan(image, 64, plan), image[top : top + 64, left : left + 64])


@pytest.mark.parametrize("scale", [0.5, 0.75, 1.25])
def test_resizing_moves_frequencies_by_its_factor(scale: float) -> None:
    image = wave(200, 200, 8)
    plan = CropPlan(scale, BICUBIC, 0.3, 0.6, "none", 90, False)
    for crop in (apply_plan(image, 64, plan), resized_central_crop(image, 64, scale)):
        assert crop.shape == (64, 64, 3)
        assert abs(peak(crop) - 8 / scale) <= 1


def test_shrinking_leaves_no_alias_of_fine_detail() -> None:
    fine = wave(256, 256, 2.4)
    shrunk = apply_plan(fine, 64, CropPlan(0.5, BICUBIC, 0.0, 0.0, "none", 90, False)).astype(float)
    assert shrunk.std() < 4 < fine[::2, ::2].std()


def test_a_picture_decoded_at_a_reduced_size_gives_the_same_view() -> None:
    image = picture(512, 640)
    half = np.asarray(Image.fromarray(image).resize((320, 256), Image.Resampling.BOX))
    plan = CropPlan(0.25, BICUBIC, 0.4, 0.7, "none", 90, False)
    whole, reduced = apply_plan(image, 64, plan), apply_plan(half, 64, plan, (512, 640))
    assert np.abs(whole.astype(float) - reduced).mean() < 6
    assert np.corrcoef(whole.ravel(), reduced.ravel())[0, 1] > 0.97


def test_reduced_decoding_is_for_shrinking_alone() -> None:
    assert target_size((2000, 3000), 0.75) is None
    assert target_size((2000, 3000), 1.0) is None
    assert target_size((2000, 3000), 0.3) == 600


@pytest.mark.parametrize("size_hw", [(100, 160), (64, 64), (71, 65), (640, 512)])
def test_the_central_crop_keeps_the_grid(size_hw: tuple[int, int]) -> None:
    image = picture(*size_hw)
    packed = np.asarray(Image.open(io.BytesIO(_jpeg(image, 20))))
    assert grid_phase(central_crop(packed, 64)) == (0, 0)


@pytest.mark.parametrize("size_hw", [(40, 64), (64, 20), (9, 13), (1, 1)])
def test_a_small_picture_is_continued_and_never_enlarged(size_hw: tuple[int, int]) -> None:
    image = picture(64, 64)[: size_hw[0], : size_hw[1]]
    filled = fill_window(image, 64)
    assert filled.shape == (64, 64, 3)
    np.testing.assert_array_equal(filled[: size_hw[0], : size_hw[1]], image)
    assert peak(fill_window(wave(40, 40, 8), 64)) == 8


def test_mirroring_distorts_the_spectrum_less_than_tiling() -> None:
    """Against the spectrum of the whole picture, of which only a part is given."""
    errors: dict[str, list[float]] = {"symmetric": [], "wrap": []}
    for seed in range(12):
        whole = picture(128, 128, seed)
        wanted = _log_spectrum(whole)
        for mode, found in errors.items():
            given = np.pad(whole[:80, :80], ((0, 48), (0, 48), (0, 0)), mode=mode)  # type: ignore[call-overload]
            found.append(np.abs(_log_spectrum(given) - wanted).mean())
        np.testing.assert_array_equal(
            fill_window(whole[:80, :80], 128), np.pad(whole[:80, :80], ((0, 48), (0, 48), (0, 0)), mode="symmetric")
        )
    assert np.mean(errors["symmetric"]) < np.mean(errors["wrap"])


def test_compression_is_what_it_says() -> None:
    crop = picture(64, 64)
    errors = [np.abs(compress(crop, "jpeg", quality).astype(float) - crop).mean() for quality in (20, 60, 95)]
    assert errors[0] > errors[1] > errors[2] > 0
    red = np.zeros((64, 64, 3), np.uint8)
    red[::2] = (255, 0, 0)
    full, half = (np.abs(compress(red, "jpeg", 95, full).astype(float) - red).mean() for full in (True, False))
    assert half > 4 * full
    assert np.abs(compress(crop, "webp", 80).astype(float) - crop).mean() < 12
    assert compress(crop, "none", 1) is crop


def test_opencv_and_pillow_write_the_same_jpeg() -> None:
    crop = picture(64, 64)
    pillow = np.asarray(Image.open(io.BytesIO(_jpeg(crop, 77))))
    difference = np.abs(compress(crop, "jpeg", 77).astype(int) - pillow)
    assert difference.max() <= 1  # two builds of one library


def test_plans_follow_the_settings() -> None:
    settings = CropSettings(resize_probability=0.2, fit_probability=0.3, jpeg_probability=0.5, webp_probability=0.4)
    rng = np.random.default_rng(0)
    plans = [draw_plan((512, 700), 64, settings, rng) for _ in range(4000)]
    codecs = Counter(plan.codec for plan in plans)
    for codec, share in (("jpeg", 0.5), ("webp", 0.4), ("none", 0.1)):
        assert abs(codecs[codec] / 4000 - share) < 0.03
    fitted = [plan.scale for plan in plans if plan.scale < 0.5]
    assert abs(len(fitted) / 4000 - 0.3) < 0.03
    assert 1 <= min(fitted) * 512 / 64 < max(fitted) * 512 / 64 <= 1.5
    assert {plan.quality for plan in plans if plan.codec == "jpeg"} == set(range(30, 101))
    assert all(draw_plan((40, 40), 64, CropSettings(0, fit_probability=1), rng).scale == 1 for _ in range(20))


def test_every_plan_takes_equally_many_draws() -> None:
    ends = set()
    for settings in (CropSettings(0, jpeg_probability=0), CropSettings(1, jpeg_probability=1, webp_probability=0)):
        rng = np.random.default_rng(5)
        draw_plan((100, 100), 64, settings, rng)
        ends.add(rng.random())
    assert len(ends) == 1


@pytest.mark.parametrize(
    "options",
    [
        {"resize_probability": 0.8, "fit_probability": 0.4},
        {"scale": (2, 1)},
        {"jpeg_quality": (0, 50)},
        {"fit": (0.5, 1)},
    ],
)
def test_impossible_settings_are_named(options: dict[str, object]) -> None:
    with pytest.raises(ValueError, match=next(iter(options))):
        CropSettings(**options)  # type: ignore[arg-type]


def _jpeg(image: np.ndarray, quality: int) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "JPEG", quality=quality)
    assert jpeg_quality(Image.open(buffer).quantization) == quality
    return buffer.getvalue()


def _log_spectrum(image: np.ndarray) -> np.ndarray:
    return np.log(np.abs(np.fft.fft2(image.astype(float).mean(axis=2))) + 1)
