import pytest
import torch
from torch.nn import functional as F

from lightning_modules.syncseal.network import SyncNetwork, resized, to_levels

TINY = {
    "embedder_channels": (8, 16), "embedder_blocks": 1, "detector_depths": (1, 1), "detector_dims": (8, 12), "size": 32,
}  # fmt: skip


def tiny(**changes):
    torch.manual_seed(0)
    network = SyncNetwork(**TINY | changes)
    torch.nn.init.normal_(network.embedder.unet.outc.weight, std=2.0)
    return network.eval()


@pytest.mark.parametrize("size_hw", [(32, 32), (20, 51), (90, 33)])
@pytest.mark.parametrize("lowres", [False, True])
def test_embedding_is_what_it_is_made_of(size_hw, lowres):
    network, image = tiny(), torch.rand(2, 3, *size_hw)
    given = image.clone()
    with torch.no_grad():
        embedded = network.embed(image, lowres_attenuation=lowres)
        small = F.interpolate(image, size=(32, 32), mode="bilinear", antialias=True)
        pattern = network.embedder(network.rgb2yuv.luma(small))
        if lowres:
            pattern = pattern * network.attenuation(small)
        pattern = F.interpolate(pattern, size=size_hw, mode="bilinear", antialias=True)
        if not lowres:
            pattern = pattern * network.attenuation(image)
    torch.testing.assert_close(embedded.pattern, pattern, rtol=0, atol=1e-6)
    levels = embedded.marked * 255
    assert (levels - levels.round()).abs().max() < 1e-4
    assert ((image + 0.2 * pattern).clamp(0, 1) - embedded.marked).abs().max() <= 0.5 / 255 + 1e-6
    assert torch.equal(image, given), "the input was written to"


def test_with_and_without_gradients_the_same_picture():
    network, image = tiny(), torch.rand(1, 3, 700, 800)  # several strips
    with torch.no_grad():
        without = network.embed(image)
    embedded = network.embed(image)
    torch.testing.assert_close(without.pattern, embedded.pattern, rtol=0, atol=1e-6)
    difference = (without.marked - embedded.marked).abs() * 255
    assert difference.max() < 1.01
    assert (difference > 0.5).float().mean() < 1e-3


def test_training_marks_as_embedding_does_and_returns_the_bare_pattern():
    network, image = tiny(), 0.2 + 0.6 * torch.rand(2, 3, 40, 36)
    trained, embedded = network.mark(image), network.embed(image)
    torch.testing.assert_close(trained.marked, embedded.marked, rtol=0, atol=1.01 / 255)
    torch.testing.assert_close(trained.pattern * network.attenuation(image), embedded.pattern, rtol=0, atol=1e-6)
    half = tiny(scaling_i=0.5)
    wanted = image + half.attenuation(image) * (0.5 * image + 0.2 * half.mark(image).pattern - image)
    torch.testing.assert_close(half.mark(image).marked, to_levels(wanted), rtol=0, atol=1.01 / 255)


def test_the_gradient_passes_the_rounding():
    network, image = tiny(), 0.3 + 0.4 * torch.rand(1, 3, 32, 32)
    weight = torch.rand(1, 3, 32, 32)
    (network.mark(image).marked * weight).sum().backward()
    found = network.embedder.unet.outc.weight.grad.clone()
    network.zero_grad()
    blended = network.attenuation.attenuate(image, network.blend(image, network.pattern(image)))
    (blended * weight).sum().backward()
    torch.testing.assert_close(found, network.embedder.unet.outc.weight.grad)
    assert found.abs().max() > 0


def test_strength_is_read_when_it_is_used():
    network, image = tiny(), 0.3 + 0.4 * torch.rand(1, 3, 32, 32)
    strong = (network.embed(image).marked - image).abs().mean()
    network.scaling_w = 0.0
    torch.testing.assert_close(network.embed(image).marked, to_levels(image.clone()), rtol=0, atol=0)
    assert strong > 2 / 255
    assert network.arguments["scaling_w"] == 0.0


def test_without_attenuation_the_pattern_is_bare():
    network, image = tiny(attenuation="none"), torch.rand(1, 3, 32, 32)
    assert torch.equal(network.embed(image).pattern, network.pattern(image))
    assert torch.equal(network.mark(image).marked, network.embed(image).marked)
    assert not [key for key in network.state_dict() if key.startswith("attenuation")]


def test_patterns_of_three_channels_colour_the_picture():
    embedded = tiny(attenuation="jnd_3_3").embed(torch.rand(1, 3, 40, 40))
    assert embedded.pattern.shape == (1, 3, 40, 40)


def test_detection_takes_any_sides_and_each_picture_by_itself():
    network, images = tiny(), torch.rand(3, 3, 47, 90)
    found = network.detect(images)
    assert found.shape == (3, 9)
    torch.testing.assert_close(found[1:2], network.detect(images[1:2]), rtol=0, atol=1e-5)
    assert torch.equal(network(images), found)
    assert tiny(detector_outputs=17).detect(images).shape == (3, 17)


@pytest.mark.parametrize("variant", ["gelu_group", "relu_batch"])
def test_sixteen_bits_change_the_picture_little(variant):
    network, image = tiny(embedder=variant), torch.rand(1, 3, 40, 40)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        found = network.embed(image)
        trained = network.mark(image)
    assert found.pattern.dtype == found.marked.dtype == trained.marked.dtype == torch.float32
    wanted = network.embed(image)
    assert (found.marked - wanted.marked).abs().max() <= 2.01 / 255
    torch.testing.assert_close(trained.marked, found.marked, rtol=0, atol=1.01 / 255)


def test_another_like_it_takes_its_weights():
    network = tiny(embedder="relu_batch", jnd_border="reflect", scaling_w=0.3)
    again = SyncNetwork(**network.arguments)
    again.load_state_dict(network.state_dict())
    assert again.arguments == network.arguments


def test_resizing_leaves_what_fits():
    image = torch.rand(1, 3, 8, 9)
    assert resized(image, (8, 9)) is image
    assert resized(image, (4, 20)).shape == (1, 3, 4, 20)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"size": 33}, "`size` must be a multiple of 2 and 8 or more for these networks, got 33"),
        ({"size": 4}, "`size` must be a multiple of 2 and 8 or more"),
        ({"attenuation": "jnd"}, "`attenuation` must be jnd_1_1, jnd_3_3, jnd_1_3, jnd_3_1 or none, got 'jnd'"),
    ],
)
def test_what_cannot_be_built_is_said(changes, message):
    with pytest.raises(ValueError, match=message):
        tiny(**changes)
