"""The forger's network changes what it may, and starts by changing nothing."""

import cv2
import numpy as np
import pytest
import torch

from lightning_modules.seal2real.forger_network import ForgerNetwork, SmallUNet, allowed_around, draw_grain

KINDS = {
    "small": {"channels": (8, 16), "noise_scales": (1, 4)},
    "smp": {"kind": "smp", "encoder": "tu-mobilenetv3_small_050", "noise_scales": (1, 4)},
    "texture": {"kind": "texture", "channels": (8, 16), "noise_scales": (1, 4, 64, 64, 64)},
}


def inputs(height=40, width=56, count=2, scales=(1, 4)):
    generator = torch.Generator().manual_seed(0)
    image = torch.rand(count, 3, height, width, generator=generator)
    ink = torch.zeros(count, 1, height, width, dtype=torch.bool)
    ink[:, :, 10:20, 12:30] = True
    return image, ink, allowed_around(ink, 2), draw_grain(count, (height, width), scales, generator)


def stirred(kind):
    """A network whose last layer is no longer zero."""
    torch.manual_seed(1)
    network = ForgerNetwork(**KINDS[kind]).eval()
    for parameter in network.parameters():
        if not parameter.any():
            torch.nn.init.normal_(parameter, std=0.3)
    return network


@pytest.mark.parametrize("kind", ["small", "smp"])
def test_an_untrained_network_changes_nothing(kind):
    image, *rest = inputs()
    assert torch.equal(ForgerNetwork(**KINDS[kind]).eval()(image, *rest), image)


@pytest.mark.parametrize("size", [(40, 56), (33, 47)])
@pytest.mark.parametrize("kind", KINDS)
def test_pixels_change_where_they_may_and_nowhere_else(kind, size):
    image, ink, allowed, noise = inputs(*size, scales=KINDS[kind]["noise_scales"])
    with torch.no_grad():
        forged = stirred(kind)(image, ink, allowed, noise)
    assert forged.shape == image.shape
    assert forged.min() >= 0
    assert forged.max() <= 1
    kept = ~allowed.expand_as(image)
    assert torch.equal(forged[kept], image[kept])
    assert (forged != image)[~kept].float().mean() > 0.9


def test_noise_and_mask_are_seen():
    image, ink, allowed, noise = inputs()
    network = stirred("small")
    with torch.no_grad():
        first = network(image, ink, allowed, noise)
        assert not torch.allclose(first, network(image, ink, allowed, noise + 1), atol=1e-4)
        assert not torch.allclose(first, network(image, ~ink, allowed, noise), atol=1e-4)


def test_no_pixel_changes_by_more_than_the_limit():
    image, ink, allowed, noise = inputs()
    network = stirred("small")
    network.limit = 0.05
    with torch.no_grad():
        change = (network(image, ink, allowed, noise) - image).abs().max()
    assert 0.04 < change <= 0.05 + 1e-6


@pytest.mark.parametrize("dilation", [0, 1, 4])
def test_the_allowed_mask_is_the_ink_grown(dilation):
    ink = np.random.default_rng(2).random((30, 41)) < 0.02
    grown = cv2.dilate(ink.astype(np.uint8), np.ones((2 * dilation + 1,) * 2, np.uint8)) > 0
    assert np.array_equal(allowed_around(torch.from_numpy(ink)[None, None], dilation)[0, 0].numpy(), grown)


def test_grain_varies_over_its_scale():
    noise = draw_grain(64, (33, 47), (1, 4, 16), torch.Generator().manual_seed(3))
    assert noise.shape == (64, 3, 33, 47)
    neighbours = [
        np.corrcoef(channel[..., 1:].flatten(), channel[..., :-1].flatten())[0, 1] for channel in noise.unbind(1)
    ]
    assert abs(neighbours[0]) < 0.02
    assert 0.5 < neighbours[1] < neighbours[2] < 1
    assert torch.equal(noise, draw_grain(64, (33, 47), (1, 4, 16), torch.Generator().manual_seed(3)))


def test_wrong_settings_are_refused():
    with pytest.raises(ValueError, match="multiples of 8"):
        SmallUNet(5, (12,))
    with pytest.raises(ValueError, match="noise_scales"):
        ForgerNetwork(noise_scales=())
    with pytest.raises(ValueError, match="limit"):
        ForgerNetwork(limit=0)
