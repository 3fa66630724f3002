"""draw_scene: endless pictures that are the same for the same generator and like photographs in their statistics."""

from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image

from datamodules.images.procedural import HARD_NEGATIVE_KINDS, SCENE_KINDS, draw_scene, draw_scene_with_kind
from datamodules.images.randomness import sample_rng
from datamodules.images.scene_layers import draw_tints, octaves

PHOTOS = Path(__file__).resolve().parents[4] / "shared" / "realdata" / "photos"


def spectrum_slope(picture):
    """Exponent of the radial power spectrum of a square picture under a Hann window."""
    grey = cv2.cvtColor(picture, cv2.COLOR_RGB2GRAY).astype(np.float64)
    n = grey.shape[0]
    window = np.hanning(n)
    power = np.abs(np.fft.fftshift(np.fft.fft2((grey - grey.mean()) * window * window[:, None]))) ** 2
    radius = np.hypot(*(np.indices(power.shape) - n // 2)).astype(int).ravel()
    radial = np.bincount(radius, power.ravel()) / np.bincount(radius)
    band = np.arange(4, int(n * 0.4))
    return np.polyfit(np.log(band), np.log(radial[band] + 1e-9), 1)[0]


@pytest.fixture(scope="module")
def scenes():
    return [draw_scene(sample_rng(3, 0, index), (128, 128)) for index in range(60)]


@pytest.mark.parametrize("kind", SCENE_KINDS)
def test_same_generator_state_draws_the_same_pixels(kind):
    first, again = (draw_scene(sample_rng(1, 0, 5), (96, 80), kind) for _ in range(2))
    np.testing.assert_array_equal(first, again)
    other = draw_scene(sample_rng(1, 0, 6), (96, 80), kind)
    assert (first != other).mean() > 0.2


@pytest.mark.parametrize("kind", SCENE_KINDS)
@pytest.mark.parametrize("size_hw", [(16, 16), (16, 97), (131, 17), (77, 203)])
def test_every_kind_has_the_asked_size(kind, size_hw):
    scene = draw_scene(sample_rng(2, 0, 0), size_hw, kind)
    assert scene.shape == (*size_hw, 3)
    assert scene.dtype == np.uint8
    assert scene.flags.c_contiguous


def test_a_scene_larger_than_the_noise_tables_is_whole():
    scene = draw_scene(sample_rng(2, 0, 1), (40, 2100), "fractal_noise")
    assert scene.shape == (40, 2100, 3)
    assert scene[:, -200:].std() > 1


def test_global_random_states_are_neither_read_nor_written():
    np.random.seed(1)  # noqa: NPY002 - the legacy state is what must not matter
    cv2.setRNGSeed(1)
    before = np.random.get_state()[1].copy()  # noqa: NPY002
    first = draw_scene(sample_rng(4, 0, 0), (64, 64), "mixture")
    np.testing.assert_array_equal(np.random.get_state()[1], before)  # noqa: NPY002
    cv2.setRNGSeed(2)
    np.testing.assert_array_equal(first, draw_scene(sample_rng(4, 0, 0), (64, 64), "mixture"))


def test_all_kinds_are_drawn_and_hard_negatives_stay_a_minority():
    kinds = [draw_scene_with_kind(sample_rng(5, 0, index), (16, 16))[1] for index in range(400)]
    assert set(kinds) == set(SCENE_KINDS)
    assert 0.07 < np.mean([kind in HARD_NEGATIVE_KINDS for kind in kinds]) < 0.25


def test_kind_of_a_scene_is_the_kind_that_was_drawn():
    scene, kind = draw_scene_with_kind(sample_rng(6, 0, 2), (48, 48))
    rng = sample_rng(6, 0, 2)
    rng.random()  # the draw of the kind
    np.testing.assert_array_equal(scene, draw_scene(rng, (48, 48), kind))


def test_spectra_fall_as_those_of_photographs(scenes):
    slopes = np.array([spectrum_slope(scene) for scene in scenes])
    # 120 photographs at this size: median -2.6, 5th and 95th percentile -3.2 and -1.9 with the same estimator.
    assert -3.0 < np.median(slopes) < -2.2
    assert np.mean((slopes > -3.6) & (slopes < -1.4)) > 0.8


def test_brightness_contrast_and_colour_vary(scenes):
    means = [scene.mean() for scene in scenes]
    spreads = [scene.std() for scene in scenes]
    assert np.percentile(means, 10) < 90
    assert np.percentile(means, 90) > 130
    assert np.percentile(spreads, 10) < 45
    assert np.percentile(spreads, 90) > 55
    hues = [cv2.cvtColor(scene, cv2.COLOR_RGB2HSV)[..., 0] for scene in scenes]
    common = {int(np.bincount(hue.ravel() // 15, minlength=12).argmax()) for hue in hues}
    assert len(common) >= 5


def test_statistics_overlap_with_real_photographs(scenes):
    files = sorted(PHOTOS.glob("*.jpg"))[:40] if PHOTOS.is_dir() else []
    if not files:
        pytest.skip(f"no real photographs at {PHOTOS}")
    photos = [np.asarray(Image.open(file).convert("RGB").resize((128, 128), Image.Resampling.BOX)) for file in files]
    for measure in (spectrum_slope, np.mean, np.std, lambda x: np.abs(np.diff(x.astype(int), axis=1)).mean()):
        real, drawn = ([measure(picture) for picture in group] for group in (photos, scenes))
        low, high = np.percentile(drawn, [10, 90])
        assert low < np.median(real) < high


def test_octaves_have_zero_mean_and_the_asked_slope():
    fields = [octaves(np.random.default_rng(seed), 128, 128, roughness=0.5) for seed in range(12)]
    assert abs(np.mean(fields)) < 0.15
    assert np.std(fields) == pytest.approx(0.5, abs=0.15)
    rough = [octaves(np.random.default_rng(seed), 128, 128, roughness=1.0) for seed in range(12)]
    fine = [np.abs(np.diff(group, axis=-1)).mean() for group in (fields, rough)]
    assert fine[1] > 2 * fine[0]


def test_tints_are_dull_more_often_than_vivid():
    tints = draw_tints(np.random.default_rng(0), 2000)
    saturation = 1 - tints.min(1) / np.maximum(tints.max(1), 1)
    assert np.median(saturation) < 0.5
    assert (saturation > 0.8).mean() > 0.03


@pytest.mark.parametrize(
    ("size_hw", "kind", "message"),
    [((15, 40), "things", r"at least \(16, 16\), got \(15, 40\)"), ((40, 40), "sea", "one of dead_leaves.*got 'sea'")],
)
def test_wrong_arguments_are_named(size_hw, kind, message):
    with pytest.raises(ValueError, match=message):
        draw_scene(sample_rng(0, 0, 0), size_hw, kind)
