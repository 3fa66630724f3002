import numpy as np
import pytest
import torch

from lightning_modules.functional.geometry import apply_homography, frame_corners_px, homography_from_quads
from lightning_modules.functional.sample_draws import SampleDraws
from lightning_modules.syncseal.augmentation.attack import attack
from lightning_modules.syncseal.augmentation.settings import (
    FILL_NAMES,
    GEOMETRIC_NAMES,
    VALUE_NAMES,
    GeometricSettings,
    ValueSettings,
)
from lightning_modules.syncseal.augmentation.values import attack_values

STILL = GeometricSettings({"identity": 1}, stages=1)
UNCHANGED = ValueSettings(stages=0)
EVERYTHING = (
    GeometricSettings(dict.fromkeys(GEOMETRIC_NAMES, 1.0), fills=dict.fromkeys(FILL_NAMES, 1.0)),
    ValueSettings(dict.fromkeys(VALUE_NAMES, 1.0), after_geometry=0.5),
)
HEIGHT, WIDTH = 48, 64
MARKERS = torch.tensor([[20.0, 16.0], [44.0, 15.0], [42.0, 33.0], [21.0, 30.0]], dtype=torch.float64)


def of(index, seed=1, epoch=0):
    return SampleDraws.of_samples(seed, epoch, torch.as_tensor(index))


def pictures(count, seed=0):
    rng = torch.Generator().manual_seed(seed)
    coarse = torch.rand(count, 3, 12, 16, generator=rng)
    return torch.nn.functional.interpolate(coarse, (HEIGHT, WIDTH), mode="bilinear")


def spot(x_px, y_px):
    y, x = torch.meshgrid(torch.arange(HEIGHT), torch.arange(WIDTH), indexing="ij")
    return torch.exp(-((x - x_px) ** 2 + (y - y_px) ** 2) / (2 * 1.5**2))


def centre_px(image):
    """The centre of mass, (x, y)."""
    weights = image / image.sum()
    places = (
        torch.arange(HEIGHT).double() @ weights.sum(1).double(),
        weights.sum(0).double() @ torch.arange(WIDTH).double(),
    )
    return torch.stack(places[::-1])


@pytest.mark.parametrize("move", [name for name in GEOMETRIC_NAMES if name != "crop"])
def test_labels_say_where_markers_went(move):
    """A spot drawn in the original is found where the inverse of the label's homography puts it."""
    count = 12
    settings = GeometricSettings({move: 1}, stages=1, max_distortion=0.15)
    found = 0
    for marker in MARKERS:
        images = spot(*marker).expand(count, 1, HEIGHT, WIDTH)
        attacked = attack(images, settings, UNCHANGED, of(range(count)))
        frame = frame_corners_px(HEIGHT, WIDTH).expand(count, 4, 2)
        back = homography_from_quads(attacked.quads_px.double(), frame)
        expected = apply_homography(back, marker.expand(count, 1, 2))[:, 0]
        for image, place in zip(attacked.images[:, 0], expected, strict=True):
            if ((place > 6) & (place < torch.tensor([WIDTH - 7.0, HEIGHT - 7.0]))).all():
                assert (centre_px(image) - place).norm() < 0.3
                found += 1
    assert found >= count


def test_labels_of_crops_say_where_markers_went():
    settings = GeometricSettings({"crop": 1}, stages=1, crop_area=(0.5, 0.9))
    test_found = 0
    for marker in MARKERS:
        attacked = attack(spot(*marker).expand(12, 1, HEIGHT, WIDTH), settings, UNCHANGED, of(range(12)))
        low, high = attacked.quads_px[:, 0].double(), attacked.quads_px[:, 2].double()
        expected = (marker - low) / (high - low) * torch.tensor([WIDTH - 1.0, HEIGHT - 1.0])
        for image, place in zip(attacked.images[:, 0], expected, strict=True):
            if ((place > 8) & (place < torch.tensor([WIDTH - 9.0, HEIGHT - 9.0]))).all():
                assert (centre_px(image) - place).norm() < 0.1
                test_found += 1
    assert test_found >= 12


def test_a_sample_does_not_depend_on_its_batch():
    images = pictures(40)
    together = attack(images, *EVERYTHING, of(range(40)))
    order = torch.randperm(40, generator=torch.Generator().manual_seed(0))
    shuffled = attack(images[order], *EVERYTHING, of(order))
    assert (shuffled.images - together.images[order]).abs().max() < 1e-5
    assert shuffled.values == [together.values[row] for row in order.tolist()]
    for row in range(40):
        alone = attack(images[row : row + 1], *EVERYTHING, of([row]))
        assert (alone.images[0] - together.images[row]).abs().max() < 1e-5
        assert (alone.geometry, alone.values) == ([together.geometry[row]], [together.values[row]])
    assert len({name for names in together.values for name in names.split("+")}) > 7


def test_another_epoch_is_another_attack_and_the_same_is_the_same():
    images = pictures(8)
    first, same = (attack(images, *EVERYTHING, of(range(8))) for _ in range(2))
    other = attack(images, *EVERYTHING, of(range(8), epoch=1))
    assert torch.equal(first.images, same.images)
    assert not torch.equal(first.quads_px, other.quads_px)


def test_values_stay_in_range_and_gradients_reach_every_sample():
    images = pictures(64).requires_grad_()
    attacked = attack(images, *EVERYTHING, of(range(64)))
    assert attacked.images.min() >= -1e-5
    assert attacked.images.max() <= 1 + 1e-5
    attacked.images.sum().backward()
    assert images.grad.isfinite().all()
    assert (images.grad.abs().amax((1, 2, 3)) > 0).all()


def test_frequencies_of_value_changes():
    small = torch.rand(3000, 3, 18, 18)
    weights = {"brightness": 1.0, "contrast": 1.0, "saturation": 2.0}
    _, names = attack_values(small, ValueSettings(weights), of(range(3000)))
    drawn = [name for pair in names for name in pair.split("+")]
    assert len(drawn) == 6000
    assert abs(drawn.count("saturation") / 6000 - 0.5) < 4 * (0.25 / 6000) ** 0.5
    same = sum(name == "saturation+saturation" for name in names) / 3000
    assert abs(same - 0.25) < 4 * (0.1875 / 3000) ** 0.5


def test_both_orders():
    """Darkening after the warp also darkens what lies outside the picture, darkening before does not."""
    images = torch.full((200, 3, HEIGHT, WIDTH), 0.5)
    geometric = GeometricSettings({"pad": 1}, stages=1, fills={"colour": 1})
    dark = {"weights": {"brightness": 1.0}, "stages": 1, "brightness": (0.0, 0.0)}
    before = attack(images, geometric, ValueSettings(**dark), of(range(200))).images
    after = attack(images, geometric, ValueSettings(**dark, after_geometry=1.0), of(range(200))).images
    either = attack(images, geometric, ValueSettings(**dark, after_geometry=0.5), of(range(200)))
    assert before.amax((1, 2, 3)).min() > 0
    assert after.max() == 0
    share = (either.images.amax((1, 2, 3)) == 0).float().mean()
    assert 0.35 < share < 0.65
    assert set(either.values) == {"brightness"}


def test_what_lies_outside():
    images = torch.full((400, 3, HEIGHT, WIDTH), 0.5)
    moved = {"weights": {"translate": 1.0}, "stages": 1}
    kinds = {}
    for fill in FILL_NAMES:
        attacked = attack(images, GeometricSettings(**moved, fills={fill: 1}), UNCHANGED, of(range(400)))
        outside = attacked.images[(attacked.quads_px[:, 0] < -2).all(1)][..., 0, 0]
        kinds[fill] = outside.flatten(1)
    assert kinds["black"].max() == 0
    np.testing.assert_allclose(kinds["reflect"], 0.5, atol=1e-5)
    assert kinds["colour"].std(0).min() > 0.2
    assert kinds["noise"].std() > 0.15
    mixed = attack(images, GeometricSettings(**moved, fills={"black": 1, "reflect": 3}), UNCHANGED, of(range(400)))
    corner = mixed.images[(mixed.quads_px[:, 0] < -2).all(1)][:, 0, 0, 0]
    assert 0.1 < (corner == 0).float().mean() < 0.45


def test_nothing_asked_is_nothing_done():
    images = pictures(3)
    attacked = attack(images, STILL, UNCHANGED, torch.Generator().manual_seed(0))
    assert (attacked.images - images).abs().max() < 1e-4
    assert attacked.values == [""] * 3
    assert torch.equal(attacked.quads_px, frame_corners_px(HEIGHT, WIDTH).float().expand(3, 4, 2))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"weights": {"sharpen": 1}}, "values.weights has sharpen"),
        ({"jpeg_quality": (0, 50)}, "values.jpeg_quality"),
        ({"hue": (-0.6, 0.1)}, "values.hue"),
        ({"after_geometry": 2}, "values.after_geometry"),
        ({"stages": -1}, "values.stages"),
        ({"jpeg_engine": "nvjpeg"}, "values.jpeg_engine"),
    ],
)
def test_wrong_settings_are_named(change, message):
    with pytest.raises(ValueError, match=message):
        ValueSettings(**change)


def test_threads_change_nothing():
    threads = torch.get_num_threads()
    results = []
    try:
        for number in (1, 2):
            torch.set_num_threads(number)
            images = pictures(9).requires_grad_()
            attacked = attack(images, *EVERYTHING, of(range(9))).images
            attacked.square().sum().backward()
            results.append((attacked.detach(), images.grad))
            with torch.no_grad():
                assert not attack(images, *EVERYTHING, of(range(9))).images.requires_grad
            assert torch.get_num_threads() == number
    finally:
        torch.set_num_threads(threads)
    for first, second in zip(*results, strict=True):
        assert torch.equal(first, second)


def test_half_precision_around_it_does_not_reach_the_values():
    images = pictures(16)
    expected = attack(images, *EVERYTHING, of(range(16))).images
    with torch.autocast("cpu", torch.bfloat16):
        inside = attack(images, *EVERYTHING, of(range(16))).images
    assert torch.equal(inside, expected)
