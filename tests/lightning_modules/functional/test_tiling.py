import itertools

import numpy as np
import pytest
import torch
from scipy.signal import windows

from lightning_modules.functional.tiling import hann_window, tile_grid, tile_starts


@pytest.mark.parametrize("length", [1, 2, 31, 32, 33, 100, 1000])
@pytest.mark.parametrize("tile", [1, 2, 32, 50])
@pytest.mark.parametrize("overlap", [0.0, 0.25, 0.5, 0.9])
def test_starts_cover_every_pixel_and_nothing_else(length, tile, overlap):
    starts = tile_starts(length, tile, overlap)
    size = min(tile, length)
    seen = np.zeros(length, int)
    for start in starts:
        assert 0 <= start <= length - size
        seen[start : start + size] += 1
    assert (seen > 0).all()
    assert starts[-1] + size == length
    gaps = np.diff(starts)
    assert (gaps >= 1).all()
    assert (gaps <= max(1, int(tile * (1 - overlap)))).all()
    assert len(starts) == 1 or gaps.max() - gaps.min() <= 1


@pytest.mark.parametrize("length", [1, 2, 5, 512])
def test_the_window_is_a_hann_window_between_its_zeros(length):
    window = hann_window(length)
    # SciPy's window of twice the length and one has our points at its odd places.
    torch.testing.assert_close(window, torch.from_numpy(windows.hann(2 * length + 1)[1::2]))
    assert (window > 0).all()


@pytest.mark.parametrize(
    ("height", "width", "tile", "overlap"),
    [(1, 1, 32, 0.25), (7, 300, 32, 0.25), (64, 64, 32, 0.0), (65, 97, 32, 0.5), (40, 33, 32, 0.9), (50, 20, 7, 0.3)],
)
def test_weights_are_positive_and_sum_to_one(height, width, tile, overlap):
    total = torch.zeros(height, width)
    for part in tile_grid(height, width, tile, overlap):
        assert part.weight.shape == (min(tile, height), min(tile, width))
        assert (part.weight > 0).all()
        total[part.window] += part.weight
    torch.testing.assert_close(total, torch.ones(height, width), atol=1e-6, rtol=0)


def test_shares_change_smoothly():
    total = torch.zeros(3, 300)
    first = tile_grid(3, 300, 128, 0.5)[1]
    total[first.window] = first.weight
    steps = total[0].diff().abs()
    assert steps.max() < 0.05, "a seam would show"


def test_the_grid_of_a_shifted_image_is_the_shifted_grid():
    grid = tile_grid(96, 96, 32, 0.5)
    longer = tile_grid(96, 112, 32, 0.5)
    tops = {tile.left for tile in grid}
    assert {left + 16 for left in tops} <= {tile.left for tile in longer}
    inner = [tile for tile in grid if 32 <= tile.left <= 48]
    for a, b in itertools.pairwise(inner[:2]):
        torch.testing.assert_close(a.columns, b.columns)


@pytest.mark.parametrize(("length", "tile", "overlap"), [(0, 8, 0.1), (8, 0, 0.1), (8, 8, 1.0), (8, 8, -0.1)])
def test_impossible_grids_are_refused(length, tile, overlap):
    with pytest.raises(ValueError, match="got"):
        tile_starts(length, tile, overlap)
