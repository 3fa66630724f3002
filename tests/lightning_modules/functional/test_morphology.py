import cv2
import numpy as np
import pytest
import torch
from scipy.ndimage import binary_dilation

from lightning_modules.functional.morphology import dilate_cross, dilate_square

SHAPES = [(23, 31), (1, 9), (3, 2), (16, 16)]


def random_mask(shape, density=0.04, seed=0):
    return (np.random.default_rng(seed).random(shape) < density).astype(np.float32)


@pytest.mark.parametrize("size", [-1, 0, 1, 2, 3, 4, 7, 8, 15, 40])
@pytest.mark.parametrize("shape", SHAPES)
def test_square_equals_opencv(shape, size):
    masks = np.stack([random_mask(shape, seed=seed) for seed in range(3)])
    result = dilate_square(torch.from_numpy(masks)[:, None], size)[:, 0].numpy()
    kernel = np.ones((max(size, 1), max(size, 1)), np.uint8)
    expected = np.stack([cv2.dilate(mask, kernel).reshape(shape) for mask in masks])
    np.testing.assert_array_equal(result, expected)


@pytest.mark.parametrize("iterations", [0, 1, 2, 3, 5, 10])
@pytest.mark.parametrize("shape", SHAPES)
def test_cross_equals_scipy(shape, iterations):
    mask = random_mask(shape)
    result = dilate_cross(torch.from_numpy(mask)[None, None], iterations)[0, 0].numpy()
    expected = binary_dilation(mask > 0, iterations=iterations) if iterations else mask > 0
    np.testing.assert_array_equal(result > 0, expected)


@pytest.mark.parametrize("dtype", [torch.bool, torch.uint8, torch.float32, torch.float64, torch.int64])
def test_type_is_kept(dtype):
    mask = torch.from_numpy(random_mask((9, 9), 0.2))[None, None].to(dtype)
    for result in (dilate_square(mask, 3), dilate_cross(mask, 2)):
        assert result.dtype == dtype
        assert result.bool().sum() > mask.bool().sum()


def test_soft_values_dilate_as_in_opencv():
    values = np.random.default_rng(1).random((12, 14), np.float32)
    result = dilate_square(torch.from_numpy(values)[None, None], 4)[0, 0].numpy()
    np.testing.assert_array_equal(result, cv2.dilate(values, np.ones((4, 4), np.uint8)))
