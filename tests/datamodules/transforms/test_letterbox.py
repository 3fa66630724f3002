import numpy as np
import pytest

from datamodules.transforms.letterbox import fitted_size, letterbox


@pytest.mark.parametrize("shape", [(30, 50), (50, 30), (7, 64), (64, 64), (100, 33), (1, 300), (20, 21)])
def test_content_is_centred_and_the_rest_is_zero(shape):
    image, mask = np.ones((*shape, 3), np.float32), np.ones(shape, np.uint8)
    square, square_mask = letterbox(image, mask, 64)
    height, width = fitted_size(*shape, 64)
    assert square.shape == (64, 64, 3)
    assert square_mask.shape == (64, 64)
    assert max(height, width) == 64
    np.testing.assert_array_equal(square_mask, (square[..., 0] > 0.5).astype(np.uint8))
    rows, columns = np.nonzero(square_mask)
    assert (rows.min(), rows.max() + 1) == ((64 - height) // 2, (64 - height) // 2 + height)
    assert (columns.min(), columns.max() + 1) == ((64 - width) // 2, (64 - width) // 2 + width)


def test_equal_size_is_untouched_and_mask_values_survive():
    rng = np.random.default_rng(0)
    image = rng.random((32, 32, 3), np.float32)
    mask = rng.integers(0, 5, (32, 32), np.uint8)
    square, square_mask = letterbox(image, mask, 32)
    np.testing.assert_array_equal(square, image)
    np.testing.assert_array_equal(square_mask, mask)
    enlarged_mask = letterbox(image, mask, 64)[1]
    np.testing.assert_array_equal(enlarged_mask, mask.repeat(2, 0).repeat(2, 1))


def test_an_integer_enlargement_is_the_bilinear_formula():
    ramp = np.repeat(np.arange(4, dtype=np.float32)[None, :, None], 4, 0).repeat(3, 2)
    square, _ = letterbox(ramp, np.zeros((4, 4), np.uint8), 8)
    np.testing.assert_allclose(square[3, :, 0], [0, 0.25, 0.75, 1.25, 1.75, 2.25, 2.75, 3], atol=1e-6)


def test_size_must_be_positive():
    with pytest.raises(ValueError, match="size must be at least 1, got 0"):
        letterbox(np.zeros((4, 4, 3), np.float32), np.zeros((4, 4), np.uint8), 0)
