import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.transforms import Resize

from lightning_modules.functional.resizing import resize, resized_hw


@pytest.mark.parametrize("size_hw", [(301, 450), (450, 301), (288, 288), (97, 1000), (7, 5)])
def test_short_edge_gives_the_size_of_torchvision(size_hw):
    image = Image.fromarray(np.zeros((*size_hw, 3), np.uint8))
    width, height = Resize(288)(image).size
    assert resized_hw(*size_hw, "short_288") == (height, width)


@pytest.mark.parametrize(
    ("size_hw", "expected"),
    [((600, 800), (600, 800)), ((3, 1600), (2, 800)), ((1000, 333), (800, 266)), ((1, 9999), (1, 800))],
)
def test_long_edge_rounds_halves_up(size_hw, expected):
    assert resized_hw(*size_hw, "long_800") == expected


@pytest.mark.parametrize("mode", ["short_48", "skew_64", "long_100", "skew_200"])
@pytest.mark.parametrize("size_hw", [(90, 130), (131, 77)])
def test_bytes_are_pillows_within_a_level(mode, size_hw):
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (*size_hw, 3), dtype=np.uint8)
    ours = resize(torch.from_numpy(pixels).permute(2, 0, 1), mode).permute(1, 2, 0).numpy()
    height, width = resized_hw(*size_hw, mode)
    theirs = np.asarray(Image.fromarray(pixels).resize((width, height), Image.Resampling.BILINEAR))
    assert np.abs(ours.astype(int) - theirs).max() <= 1
    assert (ours != theirs).mean() < 0.25  # of tall images Pillow does the rows first, torch the columns


@pytest.mark.parametrize("mode", ["short", "short_0", "skew_-3", "crop_224", "288"])
def test_unknown_modes_name_the_known(mode):
    with pytest.raises(ValueError, match="short_N"):
        resized_hw(10, 10, mode)
