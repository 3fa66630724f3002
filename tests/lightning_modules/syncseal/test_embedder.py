import numpy as np
import pytest
import torch

from lightning_modules.syncseal.embedder import ChannelNorm, Embedder, RGBToYUV


def test_colours_are_multiplied_by_the_matrix():
    image = torch.rand(2, 3, 5, 7)
    yuv = RGBToYUV()
    wanted = np.einsum("kc,bchw->bkhw", yuv.M.double().numpy(), image.double().numpy())
    np.testing.assert_allclose(yuv(image).numpy(), wanted, atol=1e-6)
    assert torch.equal(yuv.luma(image), yuv(image)[:, :1])
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(yuv(image), yuv(image).float())
        assert yuv.luma(image).dtype == torch.float32


def test_each_pixel_is_normalised_over_its_channels():
    norm = ChannelNorm(6)
    torch.nn.init.normal_(norm.weight)
    torch.nn.init.normal_(norm.bias)
    features = torch.randn(2, 6, 3, 4)
    found = norm(features).detach().numpy()
    numbers = features.double().numpy()
    scaled = (numbers - numbers.mean(1, keepdims=True)) / np.sqrt(numbers.var(1, keepdims=True) + 1e-6)
    wanted = scaled * norm.weight.detach().numpy()[:, None, None] + norm.bias.detach().numpy()[:, None, None]
    np.testing.assert_allclose(found, wanted, atol=1e-5)


@pytest.mark.parametrize("variant", ["gelu_group", "relu_batch"])
def test_patterns_have_the_sides_of_their_luminance_and_stay_within_one(variant):
    torch.manual_seed(0)
    embedder = Embedder(variant, (8, 16, 24), blocks=2)
    torch.nn.init.normal_(embedder.unet.outc.weight, std=50.0)
    pattern = embedder(torch.rand(2, 1, 24, 40))
    assert pattern.shape == (2, 1, 24, 40)
    assert pattern.abs().max() <= 1
    assert pattern.abs().max() > 0.99
    kinds = {type(layer).__name__ for layer in embedder.modules()}
    assert {"gelu_group": {"GELU", "GroupNorm"}, "relu_batch": {"ReLU", "BatchNorm2d"}}[variant] <= kinds
    assert not {"gelu_group": {"ReLU", "BatchNorm2d"}, "relu_batch": {"GELU", "GroupNorm"}}[variant] & kinds
    assert embedder.stride == 4


def test_the_finest_features_are_not_skipped_and_the_coarsest_are():
    torch.manual_seed(0)
    embedder = Embedder(channels=(8, 16, 16), blocks=0)
    seen = []
    for up in embedder.unet.ups:
        up.register_forward_hook(lambda _module, inputs, _output: seen.append(inputs[1]))
    outputs = []
    for down in embedder.unet.downs:
        down.register_forward_hook(lambda _module, _inputs, output: outputs.append(output))
    embedder(torch.rand(1, 1, 16, 16))
    assert [id(skipped) for skipped in seen] == [id(output) for output in reversed(outputs)]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"variant": "gelu"}, "`embedder` must be gelu_group or relu_batch, got 'gelu'"),
        ({"channels": (12, 24)}, r"`embedder_channels` must be multiples of 8 for group norm, got \[12, 24\]"),
        ({"channels": (8,)}, r"`embedder_channels` must be two or more numbers above 0, got \[8\]"),
    ],
)
def test_what_cannot_be_built_is_said(arguments, message):
    with pytest.raises(ValueError, match=message):
        Embedder(**arguments)
    assert Embedder("relu_batch", (12, 24), 1)
