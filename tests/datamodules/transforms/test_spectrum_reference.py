"""What the goldens do not show of the published processing: refusals, ignored settings, OpenCV's resize as oracle."""

from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image

from datamodules.images.procedural import draw_scene
from datamodules.transforms.spectrum_reference import (
    ReferenceSettings,
    aligned_offset,
    central_offset,
    encode,
    process,
    read_plain,
    resize_bilinear,
)

EXACT = 1e3  # squared levels that OpenCV's search by Fourier transform leaves between equal pictures


def scene(height: int = 70, width: int = 90) -> np.ndarray:
    return draw_scene(np.random.default_rng(0), (height, width), "landscape")


def test_resize_is_bilinear_without_antialiasing() -> None:
    image = scene(120, 160)
    size_hw = (66, 88)
    wanted = cv2.resize(image.astype(np.float64), size_hw[::-1], interpolation=cv2.INTER_LINEAR)
    got = resize_bilinear(image, size_hw)
    # Cut off, not rounded; only at the border do the two continue the picture in different ways.
    inner = np.s_[2:-2, 2:-2]
    assert np.abs(got[inner].astype(int) - np.floor(wanted[inner] + 1e-9)).max() <= 1
    assert (got[inner] != np.floor(wanted[inner] + 1e-9)).mean() < 0.01


def test_an_enlarged_picture_is_mirrored_at_its_edge() -> None:
    """The published resize enlarges pictures of up to 1.5 windows; beyond the first pixel's centre lies the second."""
    image = np.repeat(np.array([[0, 100], [0, 100]], np.uint8)[..., None], 3, axis=2)
    assert resize_bilinear(image, (4, 4))[..., 0].tolist() == [[25, 25, 75, 75]] * 4


def test_only_real_training_pictures_are_resized() -> None:
    image = scene()
    settings = ReferenceSettings(64, "train", None)
    for seed in range(20):
        crop, quality = process(image, 1, settings, np.random.RandomState(seed)) or (None, 0)
        assert quality is None
        found = cv2.matchTemplate(image, crop, cv2.TM_SQDIFF)
        assert found.min() < EXACT
    resized = [process(image, 0, settings, np.random.RandomState(seed)) for seed in range(40)]
    parts = [cv2.matchTemplate(image, crop[0], cv2.TM_SQDIFF).min() < EXACT for crop in resized if crop]
    assert 10 <= sum(parts) <= 30


def test_a_small_picture_is_refused_and_alpha_is_dropped() -> None:
    draws = np.random.RandomState(0)
    assert process(scene(63, 90), 0, ReferenceSettings(64), draws) is None
    assert draws.rand() == np.random.RandomState(0).rand()
    rgba = np.dstack([scene(), np.zeros((70, 90), np.uint8)])
    crop, _ = process(rgba, 0, ReferenceSettings(64, "test"), draws) or (None, 0)
    np.testing.assert_array_equal(crop, scene()[:64, 8:72])


def test_webp_ignores_a_fixed_quality_and_jpeg_takes_no_draw_for_it() -> None:
    image = scene(64, 64)
    free, fixed = (
        process(image, 0, ReferenceSettings(64, "valid", "webp", quality), np.random.RandomState(4))
        for quality in (None, 90)
    )
    assert free is not None
    assert fixed is not None
    assert free[1] == fixed[1]
    np.testing.assert_array_equal(free[0], fixed[0])
    draws = np.random.RandomState(4)
    crop, quality = process(image, 0, ReferenceSettings(64, "valid", "jpeg", 90), draws) or (None, 0)
    assert quality == 90
    np.testing.assert_array_equal(crop, encode(image, "JPEG", 90))
    assert draws.rand() == np.random.RandomState(4).rand()


def test_a_twentieth_stays_uncompressed() -> None:
    image = scene(64, 64)
    draws = np.random.RandomState(0)
    qualities = [(process(image, 0, ReferenceSettings(64, "valid"), draws) or (0, 0))[1] for _ in range(600)]
    kept = sum(quality is None for quality in qualities)
    assert 12 <= kept <= 50
    assert {quality for quality in qualities if quality} == set(range(65, 101))


@pytest.mark.parametrize("kind", ["L", "I;16", "1", "LA"])
def test_grey_files_are_refused(kind: str, tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    grey = scene()[..., 0]
    picture = Image.fromarray(grey.astype(np.uint16)) if kind == "I;16" else Image.fromarray(grey).convert(kind)
    picture.save(path)
    assert read_plain(str(path)) is None


def test_stored_pixels_are_read_without_turning_them(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[274] = 6
    Image.fromarray(scene()).save(tmp_path / "a.png", exif=exif)
    np.testing.assert_array_equal(read_plain(str(tmp_path / "a.png")), scene())


def test_offsets() -> None:
    assert [aligned_offset(side, 64) for side in (64, 79, 80, 96, 40)] == [0, 0, 8, 16, 0]
    assert [central_offset(side, 64) for side in (64, 79, 80, 96, 40)] == [0, 7, 8, 16, 0]
