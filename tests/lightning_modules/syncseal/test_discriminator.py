import pytest
import torch
from torch import nn

from lightning_modules.syncseal.discriminator import PatchDiscriminator


@pytest.mark.parametrize(("layers", "side"), [(1, 126), (2, 62), (3, 30)])
def test_a_logit_a_patch(layers, side):
    discriminator = PatchDiscriminator(layers)
    assert discriminator(torch.rand(1, 3, 256, 256)).shape == (1, 1, side, side)
    convolutions = [layer for layer in discriminator.main if isinstance(layer, nn.Conv2d)]
    assert [conv.stride[0] for conv in convolutions] == [2] * layers + [1, 1]
    assert all(conv.bias is not None for conv in convolutions)


def test_widths_stop_growing():
    widths = [layer.out_channels for layer in PatchDiscriminator(5).main if isinstance(layer, nn.Conv2d)]
    assert widths == [32, 64, 128, 256, 256, 256, 1]


def test_it_looks_at_luminance_alone():
    discriminator = PatchDiscriminator()
    image = torch.rand(1, 3, 64, 64)
    grey = discriminator.rgb2yuv.luma(image)
    torch.testing.assert_close(discriminator(image), discriminator.main(grey), rtol=0, atol=0)
    recoloured = image + torch.tensor([0.114, 0.0, -0.299]).view(3, 1, 1) * 0.5  # the same luminance
    torch.testing.assert_close(discriminator(recoloured), discriminator(image), rtol=0, atol=1e-5)
    assert (PatchDiscriminator(inputs=3)(image) - PatchDiscriminator(inputs=3)(recoloured)).abs().max() > 1e-3


def test_convolutions_start_small():
    torch.manual_seed(0)
    weight = PatchDiscriminator().main[5].weight.detach()
    assert float(weight.std()) == pytest.approx(0.02, rel=0.05)


def test_what_cannot_be_built_is_said():
    with pytest.raises(ValueError, match="takes 1 or 3 channels in 1 or more layers, got 2 and 0"):
        PatchDiscriminator(0, 2)
