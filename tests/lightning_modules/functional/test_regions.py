import numpy as np
import pytest
from scipy import ndimage

from lightning_modules.functional import regions

EIGHT = np.ones((3, 3))


def blobs(seed, shape=(70, 90)):
    noise = ndimage.gaussian_filter(np.random.default_rng(seed).random(shape), 1.5)
    return ((noise - noise.min()) / np.ptp(noise)).astype(np.float32)


@pytest.mark.parametrize("seed", range(5))
def test_hysteresis_keeps_what_a_propagation_of_the_high_pixels_reaches(seed):
    values = blobs(seed)
    expected = ndimage.binary_propagation(values > 0.7, structure=EIGHT, mask=values > 0.5)
    np.testing.assert_array_equal(regions.hysteresis(values, 0.5, 0.7), expected)
    assert not regions.hysteresis(values, 0.5, 2.0).any()


def test_hysteresis_refuses_swapped_thresholds():
    with pytest.raises(ValueError, match=r"`low` must not be above `high`, got 0\.7 and 0\.5"):
        regions.hysteresis(blobs(0), 0.7, 0.5)


@pytest.mark.parametrize("seed", range(5))
def test_small_regions_go_and_the_others_stay(seed):
    mask = blobs(seed) > 0.55
    labels, count = ndimage.label(mask, structure=EIGHT)
    areas = ndimage.sum_labels(mask, labels, np.arange(count + 1))
    assert len(set(areas)) > 3
    np.testing.assert_array_equal(regions.drop_small_regions(mask, 20), mask & (areas >= 20)[labels])
    assert regions.drop_small_regions(mask, 0) is mask


@pytest.mark.parametrize("seed", range(5))
def test_holes_of_any_size_are_those_of_scipy(seed):
    mask = blobs(seed) > 0.45
    filled = ndimage.binary_fill_holes(mask)
    assert filled.sum() > mask.sum()
    np.testing.assert_array_equal(regions.fill_small_holes(mask, mask.size), filled)


def test_only_small_holes_are_filled():
    mask = np.ones((40, 40), bool)
    mask[5:7, 5:7] = False
    mask[15:30, 15:30] = False
    mask[0, 20] = False
    filled = regions.fill_small_holes(mask, 4)
    assert filled[5:7, 5:7].all()
    assert not filled[15:30, 15:30].any()
    assert not filled[0, 20]


def test_labels_count_from_one_with_boxes_and_areas():
    mask = np.zeros((20, 30), bool)
    mask[2:5, 3:9] = True
    mask[10:12, 20:30] = True
    count, labels, stats = regions.label_regions(mask)
    assert count == 2
    assert stats[1].tolist() == [3, 2, 6, 3, 18]
    assert stats[2].tolist() == [20, 10, 10, 2, 20]
    assert (labels > 0).sum() == 38
