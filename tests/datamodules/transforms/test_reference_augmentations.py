import cv2
import numpy as np
import pytest

from datamodules.transforms import reference_augmentations as ra

OPERATIONS = sorted({operation for _, operations in ra.STEPS for operation in operations}, key=lambda op: op.__name__)
MOVING = {ra.flip, ra.shift_scale, ra.perspective}


def smooth_image(height=48, width=64, seed=0):
    rng = np.random.default_rng(seed)
    return cv2.resize(rng.random((6, 8, 3), np.float32), (width, height), interpolation=cv2.INTER_CUBIC).clip(0, 1)


def disc(height=48, width=64, radius=12):
    rows, columns = np.ogrid[:height, :width]
    return ((rows - height / 2) ** 2 + (columns - width / 2) ** 2 < radius**2).astype(np.uint8)


@pytest.mark.parametrize("operation", OPERATIONS, ids=lambda op: op.__name__)
def test_every_operation_keeps_shape_range_type_and_its_inputs(operation):
    image, mask = smooth_image(), disc()
    originals = image.copy(), mask.copy()
    changed = 0
    for seed in range(10):
        result, result_mask = operation(image, mask, np.random.default_rng(seed))
        again, _ = operation(image, mask, np.random.default_rng(seed))
        np.testing.assert_array_equal(result, again)
        assert (result.shape, result.dtype) == (image.shape, np.float32)
        assert (result_mask.shape, result_mask.dtype) == (mask.shape, np.uint8)
        assert result.min() >= 0
        assert result.max() <= 1
        assert set(np.unique(result_mask)) <= {0, 1}
        changed += not np.array_equal(result, image)
        if operation not in MOVING:
            np.testing.assert_array_equal(result_mask, mask)
    assert changed == 10
    np.testing.assert_array_equal(image, originals[0])
    np.testing.assert_array_equal(mask, originals[1])


@pytest.mark.parametrize("operation", sorted(MOVING, key=lambda op: op.__name__), ids=lambda op: op.__name__)
def test_the_mask_moves_with_the_image(operation):
    """Painting the mask into the image, the mask equals the thresholded picture except on the disc's rim."""
    mask = disc()
    image = np.repeat(mask[..., None], 3, 2).astype(np.float32)
    for seed in range(20):
        result, result_mask = operation(image, mask, np.random.default_rng(seed))
        assert ((result[..., 0] > 0.5) != (result_mask > 0)).sum() <= 0.15 * 2 * np.pi * 12 * 1.5 + 4


def test_flip_is_numpys():
    image, mask = smooth_image(), disc()
    mask[:, :20] = 0
    flipped, flipped_mask = ra.flip(image, mask, np.random.default_rng(0))
    np.testing.assert_array_equal(flipped, np.fliplr(image))
    np.testing.assert_array_equal(flipped_mask, np.fliplr(mask))


def test_shift_scale_covers_its_ranges_and_no_more():
    mask = disc(200, 200, 30)
    image = np.repeat(mask[..., None], 3, 2).astype(np.float32)
    scales, centres = [], []
    for seed in range(200):
        _, moved = ra.shift_scale(image, mask, np.random.default_rng(seed))
        scales.append(np.sqrt(moved.sum() / mask.sum()))
        centres.append([np.mean(axis) - 99.5 for axis in np.nonzero(moved)])
    assert 0.48 < min(scales) < 0.55
    assert 1.45 < max(scales) < 1.52
    assert 18 < np.abs(centres).max() < 21.5


def test_noise_has_the_stated_deviation():
    grey = np.full((64, 64, 3), 0.5, np.float32)
    drawn = [np.random.default_rng(seed).uniform(0.2, 0.44) for seed in range(20)]
    for seed, sigma in enumerate(drawn):
        noisy, _ = ra.gauss_noise(grey, disc(64, 64), np.random.default_rng(seed))
        # These quantiles lie inside [0, 1] for every deviation, so clipping does not move them.
        lower, upper = np.quantile(noisy, [0.35, 0.65])
        assert (upper - lower) / (2 * 0.38532) == pytest.approx(sigma, rel=0.08)
        assert np.corrcoef(noisy.reshape(-1, 3).T)[0, 1] == pytest.approx(0, abs=0.06)


def test_perspective_brings_nothing_black_in():
    """Its corners only go inward."""
    white = np.ones((60, 80, 3), np.float32)
    for seed in range(30):
        result, mask = ra.perspective(white, np.ones((60, 80), np.uint8), np.random.default_rng(seed))
        assert result[1:-1, 1:-1].min() > 0.99
        assert mask[1:-1, 1:-1].all()


def test_linear_tone_and_gamma_are_their_formulas():
    image, mask = smooth_image(), disc()
    for seed in range(5):
        rng = np.random.default_rng(seed)
        contrast, brightness = rng.uniform(0.8, 1.2), rng.uniform(-0.2, 0.2)
        result, _ = ra.brightness_contrast(image, mask, np.random.default_rng(seed))
        np.testing.assert_allclose(result, np.clip(image * contrast + brightness, 0, 1), atol=1e-6)
        exponent = np.random.default_rng(seed).uniform(0.8, 1.2)
        result, _ = ra.gamma(image, mask, np.random.default_rng(seed))
        np.testing.assert_allclose(result, image**exponent, atol=1e-6)


@pytest.mark.parametrize(
    ("operation", "lowest", "highest"), [(ra.blur, 1, 1), (ra.motion_blur, 1, 1), (ra.sharpen, 0.75, 1)]
)
def test_filters_have_their_gain_on_a_flat_area(operation, lowest, highest):
    """The sharpening kernel sums to 1 + amount * (lightness - 1), between 0.75 and 1; blurs sum to 1."""
    flat = np.full((20, 20, 3), 0.4, np.float32)
    gains = [operation(flat, disc(20, 20), np.random.default_rng(seed))[0][10, 10, 0] / 0.4 for seed in range(50)]
    assert lowest - 1e-4 <= min(gains) <= lowest + 0.05
    assert highest - 0.05 <= max(gains) <= highest + 1e-4


def test_motion_blur_draws_all_four_lines_alike():
    dot = np.zeros((9, 9, 3), np.float32)
    dot[4, 4] = 1
    lines = [ra.motion_blur(dot, disc(9, 9), np.random.default_rng(seed))[0][..., 0] for seed in range(400)]
    for line in lines:
        assert line.sum() == pytest.approx(1, abs=1e-5)
        assert (line > 0).sum() == 3
    counts = np.unique([np.flatnonzero(line)[0] for line in lines], return_counts=True)[1]
    assert len(counts) == 4
    assert counts.min() > 60


def test_hue_saturation_and_value_stay_within_their_limits():
    red = np.zeros((8, 8, 3), np.float32)
    red[..., 0] = 0.6
    hues = []
    for seed in range(100):
        result, _ = ra.hue_saturation_value(red, disc(8, 8), np.random.default_rng(seed))
        hue, saturation, value = cv2.cvtColor(result, cv2.COLOR_RGB2HSV)[0, 0]
        hues.append((hue + 180) % 360 - 180)
        assert saturation >= 1 - 30 / 255 - 1e-3
        assert abs(value - 0.6) <= 20 / 255 + 1e-4
    assert 35 < np.abs(hues).max() <= 40.1


def test_augment_draws_each_step_as_often_as_it_says(monkeypatch):
    calls = []

    def counting(operation):
        return lambda image, mask, rng: (calls.append(operation.__name__), (image, mask))[1]

    steps = tuple((share, tuple(map(counting, operations))) for share, operations in ra.STEPS)
    monkeypatch.setattr(ra, "STEPS", steps)
    rng = np.random.default_rng(3)
    for _ in range(4000):
        ra.augment(smooth_image(4, 4), disc(4, 4), rng)
    expected = {
        "flip": 0.5,
        "shift_scale": 1,
        "gauss_noise": 0.1,
        "perspective": 0.5,
        "clahe": 0.3,
        "gamma": 0.3,
        "sharpen": 0.3,
        "blur": 0.3,
        "motion_blur": 0.3,
        "hue_saturation_value": 0.45,
        "brightness_contrast": 0.75,
    }
    assert set(calls) == set(expected)
    for name, share in expected.items():
        assert calls.count(name) / 4000 == pytest.approx(share, abs=0.035), name
