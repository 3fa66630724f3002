from contextlib import contextmanager, suppress
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from lightning_modules.masksim.denoiser import DnCNN, full_precision, recognise_denoiser
from lightning_modules.masksim.folding import FoldedDenoiser
from lightning_modules.masksim.published import load_denoiser

WEIGHTS = Path(__file__).resolve().parents[4] / "shared" / "weights" / "masksim_denoiser.th"
PICTURE = Path(__file__).resolve().parents[2] / "goldens" / "sscd" / "images" / "camera_gray.small_288.png"


def ill_conditioned(depth=6, width=8):
    """A denoiser with nearly constant channels of value 15 that a later norm cancels, as published weights have."""
    torch.manual_seed(1)
    denoiser = DnCNN(3, depth, width).eval()
    image = torch.rand(4, 3, 32, 32)
    for place, layer in enumerate(denoiser.model):
        if isinstance(layer, nn.BatchNorm2d):
            if place > 3:
                denoiser.model[place - 1].weight.data[:, ::2] *= 300
            with torch.no_grad():
                features = denoiser.model[:place](image)
            layer.running_mean.copy_(features.mean(dim=(0, 2, 3)))
            layer.running_var.copy_(features.var(dim=(0, 2, 3)).clamp_min(1e-3))
            nn.init.uniform_(layer.weight, 0.02, 0.5)
            nn.init.uniform_(layer.bias, -0.2, 0.4)
            with torch.no_grad():
                layer.bias[::2] = 15.0
                layer.weight[::2] = 1e-3
    return denoiser


def natural(side=64):
    """The middle of a photograph in three shades, with noise."""
    import cv2

    grey = cv2.imread(str(PICTURE), cv2.IMREAD_GRAYSCALE)[64 : 64 + side, 64 : 64 + side].astype(np.float32) / 255
    image = torch.from_numpy(np.stack([0.9 * grey, 0.5 + 0.1 * grey, 0.5 - 0.1 * grey]))[None]
    return image + 0.01 * torch.randn(image.shape, generator=torch.Generator().manual_seed(0))


def rounded(values, bits):
    """Keep so many bits of the mantissa, as TF32 (10), float16 (10) and bfloat16 (7) do with operands."""
    mantissa, exponent = torch.frexp(values.double())
    return torch.ldexp((mantissa * 2 ** (bits + 1)).round() / 2 ** (bits + 1), exponent)


@contextmanager
def rounded_operands(network, bits):
    """Round what convolutions multiply; sums stay exact."""
    hooks = []
    for layer in network.modules():
        if isinstance(layer, nn.Conv2d):
            layer.weight.data = rounded(layer.weight.data, bits)
            hooks.append(layer.register_forward_pre_hook(lambda _, inputs, bits=bits: (rounded(inputs[0], bits),)))
    yield
    for hook in hooks:
        hook.remove()


def rms(values):
    return float(values.square().mean().sqrt())


def test_folded_is_the_same_function():
    denoiser = ill_conditioned().double()
    image = torch.rand(2, 3, 24, 29, dtype=torch.float64)
    folded = FoldedDenoiser(denoiser)
    assert not any(p.requires_grad for p in folded.parameters())
    assert any((floor < 0).any() for floor in folded.floors), "no channel was shifted"
    with torch.no_grad():
        expected = denoiser(image)
        torch.testing.assert_close(folded(image), expected, rtol=1e-10, atol=1e-10)
    assert expected.shape == (2, 3, 12, 17)


def test_made_up_weights_lose_less_when_folded():
    denoiser = ill_conditioned()
    image = torch.rand(1, 3, 40, 40)
    with torch.no_grad():
        exact = ill_conditioned().double()(image.double())
        plain, folded = rms(denoiser(image) - exact), rms(FoldedDenoiser(denoiser)(image) - exact)
    assert folded < plain / 10


needs_weights = pytest.mark.skipif(not WEIGHTS.is_file(), reason=f"the authors' denoiser weights are not at {WEIGHTS}")


@needs_weights
@pytest.mark.parametrize(
    ("bits", "plain_at_least", "folded_at_most"), [(10, 0.08, 0.04), (7, 0.5, 0.2)], ids=["tf32", "bfloat16"]
)
def test_published_weights_need_folding_in_low_precision(bits, plain_at_least, folded_at_most):
    denoiser = DnCNN().double().eval()
    load_denoiser(denoiser, WEIGHTS)
    image = natural().double()
    folded = FoldedDenoiser(denoiser)
    with torch.no_grad():
        exact = denoiser(image)
        with rounded_operands(folded, bits):
            of_folded = rms(folded(image) - exact)
        with rounded_operands(denoiser, bits):
            of_plain = rms(denoiser(image) - exact)
    assert 0.3 < rms(exact) < 1.5
    assert of_plain > plain_at_least
    assert of_folded < folded_at_most


@needs_weights
def test_published_weights_in_single_and_half_precision():
    denoiser = DnCNN().eval()
    load_denoiser(denoiser, WEIGHTS)
    image = natural()
    with torch.no_grad():
        exact = FoldedDenoiser(denoiser.double())(image.double())
        denoiser.float()
        plain, folded = rms(denoiser(image) - exact), rms(FoldedDenoiser(denoiser)(image) - exact)
        half = FoldedDenoiser(denoiser).half()(image)
    assert half.dtype == torch.float32
    assert folded < 2e-5
    assert folded < plain / 10
    assert rms(half - exact) < 0.05


def test_autocast_does_not_reach_the_denoiser():
    denoiser, image = ill_conditioned(), torch.rand(1, 3, 20, 20)
    with torch.no_grad():
        expected = denoiser(image)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            assert torch.equal(denoiser(image), expected)
            assert torch.equal(denoiser(image.bfloat16()), denoiser(image.bfloat16().float()))
            with full_precision("cpu"):
                assert not torch.is_autocast_enabled("cpu")
            assert torch.is_autocast_enabled("cpu")


@pytest.mark.parametrize("before", ["tf32", "ieee"])
def test_tf32_is_off_inside_and_put_back(before):
    convolution, product = torch.backends.cudnn.conv, torch.backends.cuda.matmul
    kept = convolution.fp32_precision, product.fp32_precision
    try:
        convolution.fp32_precision = product.fp32_precision = before
        with suppress(KeyError), full_precision("cuda"):
            inside = convolution.fp32_precision, product.fp32_precision
            raise KeyError
        assert inside == ("ieee", "ieee")
        assert (convolution.fp32_precision, product.fp32_precision) == (before, before)
    finally:
        convolution.fp32_precision, product.fp32_precision = kept


def test_a_denoiser_is_recognised_by_its_shapes():
    assert recognise_denoiser(DnCNN(3, 5, 7).model.state_dict()) == (3, 5, 7)
    with pytest.raises(ValueError, match=r"first convolution would be 0\.weight"):
        recognise_denoiser({"a": torch.zeros(1)})
    with pytest.raises(ValueError, match="a depth of 2"):
        DnCNN(depth=1)
