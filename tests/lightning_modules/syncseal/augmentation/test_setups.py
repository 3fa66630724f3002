import pytest
import torch

from lightning_modules.functional.geometry import frame_corners_px, is_usable_quad
from lightning_modules.syncseal.augmentation.setups import (
    GEOMETRIC_SETUPS,
    VALUE_SETUPS,
    named_attack,
    named_quads,
    named_values,
)

IMAGES = torch.nn.functional.interpolate(torch.rand(2, 3, 8, 8), 32, mode="bilinear")


def rng():
    return torch.Generator().manual_seed(0)


def test_there_are_21_of_each_and_all_can_be_made():
    assert (len(GEOMETRIC_SETUPS), len(VALUE_SETUPS)) == (21, 21)
    for setup in GEOMETRIC_SETUPS:
        assert is_usable_quad(named_quads(setup.name, 5, 32, 40, rng())).all()
    changed = [named_values(IMAGES, setup.name) for setup in VALUE_SETUPS]
    assert torch.equal(changed[0], IMAGES)
    for image in changed[1:]:
        assert image.shape == IMAGES.shape
        assert (image - IMAGES).abs().max() > 1e-3


def test_crops_and_perspectives_have_the_named_strength():
    quads = named_quads("crop_0.3", 20, 41, 61, rng())
    kept = (quads[:, 2] - quads[:, 0]).prod(1)
    assert torch.allclose(kept, torch.full_like(kept, 0.3 * 40 * 60))
    small, large = (named_quads(f"perspective_{scale}", 50, 41, 61, rng()) for scale in (0.1, 0.5))
    frame = frame_corners_px(41, 61)
    assert (small - frame).abs().max() < (large - frame).abs().max() / 3


def test_rotation_beyond_45_degrees_relabels_first():
    """On a frame that is not square this is another thing than turning on."""
    quads = named_quads("rotate_90", 1, 41, 61, rng())[0]
    assert torch.equal(quads, frame_corners_px(41, 61).roll(-1, 0))
    assert torch.allclose(named_quads("rotate_-90", 1, 41, 61, rng())[0], frame_corners_px(41, 61).roll(1, 0))


def test_a_pair_is_done_in_the_order_of_its_name():
    pair = named_values(IMAGES, "(JPEG_Brightness)_(40_2.0)")
    assert torch.equal(pair, named_values(named_values(IMAGES, "JPEG_40"), "Brightness_2.0"))
    assert not torch.equal(pair, named_values(named_values(IMAGES, "Brightness_2.0"), "JPEG_40"))


def test_named_attack_moves_then_changes():
    both = named_attack(IMAGES, "hflip+Brightness_0.5", rng())
    assert (both.images - IMAGES.flip(-1) / 2).abs().max() < 1e-5
    assert both.quads_px[0].tolist() == [[31, 0], [0, 0], [0, 31], [31, 31]]
    only = named_attack(IMAGES, "(JPEG_Brightness)_(40_2.0)", rng())
    assert torch.equal(only.images, named_values(IMAGES, "(JPEG_Brightness)_(40_2.0)"))
    assert torch.equal(named_attack(IMAGES, "identity_0", rng()).images, IMAGES)
    for name in ("rotate_180", "vflip", "rotate_inner_20"):
        assert is_usable_quad(named_attack(IMAGES, name, rng()).quads_px).all()


@pytest.mark.parametrize("name", ["shear_3", "rotate", "rotate_x", "rotate_20+Sharpen_2", ""])
def test_unknown_names_are_errors_that_list_the_known(name):
    with pytest.raises(ValueError, match="write a kind and a strength"):
        named_attack(IMAGES, name, rng())
