import math

import pytest
import torch

from lightning_modules.functional.compositing import BLEND_MODES, blend, composite, uncomposite

SEPARABLE = [mode for mode in BLEND_MODES if mode != "luminosity"]


def w3c(mode, b, s):
    """The W3C recommendation, one value at a time."""
    if mode == "normal":
        return s
    if mode == "multiply":
        return b * s
    if mode == "screen":
        return 1 - (1 - b) * (1 - s)
    if mode == "overlay":
        return w3c("hard_light", s, b)
    if mode == "hard_light":
        return w3c("multiply", b, 2 * s) if s <= 0.5 else w3c("screen", b, 2 * s - 1)
    if mode == "soft_light":
        if s <= 0.5:
            return b - (1 - 2 * s) * b * (1 - b)
        d = ((16 * b - 12) * b + 4) * b if b <= 0.25 else math.sqrt(b)
        return b + (2 * s - 1) * (d - b)
    if mode == "add":
        return min(1.0, b + s)
    return abs(b - s)


def luminance(color):
    return 0.3 * color[0] + 0.59 * color[1] + 0.11 * color[2]


def w3c_luminosity(b, s):
    shift = luminance(s) - luminance(b)
    color = [value + shift for value in b]
    level, low, high = luminance(color), min(color), max(color)
    if low < 0:
        color = [level + (value - level) * level / (level - low) for value in color]
    if high > 1:
        color = [level + (value - level) * (1 - level) / (high - level) for value in color]
    return color


def pair(shape=(2, 3, 9, 7), seed=0, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    values = torch.rand(2, *shape, generator=generator, dtype=dtype)
    values[:, 0, :, 0] = torch.tensor([[0.0, 0.25, 0.5, 1.0, 0.5, 0.2, 0.0]], dtype=dtype)
    values[1, 0, :, 0] = torch.tensor([[1.0, 0.5, 0.5, 0.0, 0.3, 0.75, 0.0]], dtype=dtype)
    return values[0], values[1]


@pytest.mark.parametrize("mode", SEPARABLE)
def test_separable_modes_are_the_w3c_formulas(mode):
    backdrop, source = pair()
    expected = [w3c(mode, b, s) for b, s in zip(backdrop.flatten().tolist(), source.flatten().tolist(), strict=True)]
    result = blend(backdrop, source, mode)
    torch.testing.assert_close(result, torch.tensor(expected, dtype=torch.float64).view_as(backdrop))


@pytest.mark.parametrize("channel_dim", [-3, -1])
def test_luminosity_is_the_w3c_procedure(channel_dim):
    backdrop, source = pair()
    pixels = [values.movedim(1, -1).reshape(-1, 3) for values in (backdrop, source)]
    expected = torch.tensor([w3c_luminosity(b, s) for b, s in zip(*(p.tolist() for p in pixels), strict=True)])
    if channel_dim == -1:
        backdrop, source = backdrop.movedim(1, -1), source.movedim(1, -1)
    result = blend(backdrop, source, "luminosity", channel_dim).movedim(channel_dim, -1).reshape(-1, 3)
    torch.testing.assert_close(result, expected.double(), atol=1e-6, rtol=0)
    assert result.min() >= 0
    assert result.max() <= 1 + 1e-12


def test_luminosity_of_black_white_and_grey():
    colors = torch.tensor([[0.0, 0, 0], [1, 1, 1], [0.4, 0.4, 0.4], [1, 0, 0]]).view(4, 3, 1, 1)
    for backdrop in colors:
        for source in colors:
            result = blend(backdrop, source, "luminosity").flatten()
            assert luminance(result.tolist()) == pytest.approx(luminance(source.flatten().tolist()), abs=1e-6)


@pytest.mark.parametrize("mode", BLEND_MODES)
def test_composite_interpolates_and_leaves_its_inputs_alone(mode):
    backdrop, source = pair(dtype=torch.float32)
    alpha = torch.linspace(-0.3, 1.3, 9)[:, None].expand(2, 1, 9, 7)
    copies = backdrop.clone(), source.clone(), alpha.clone()
    result = composite(backdrop, source, alpha, mode)
    clipped = alpha.clamp(0, 1)
    expected = backdrop * (1 - clipped) + blend(backdrop, source, mode) * clipped
    torch.testing.assert_close(result, expected.clamp(0, 1))
    assert torch.equal(result[..., 0, :], backdrop[..., 0, :])
    for value, copy in zip((backdrop, source, alpha), copies, strict=True):
        assert torch.equal(value, copy)


@pytest.mark.parametrize("mode", BLEND_MODES)
def test_layout_does_not_matter(mode):
    backdrop, source = pair()
    alpha = torch.rand(2, 1, 9, 7, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    last = [value.movedim(1, -1) for value in (backdrop, source, alpha)]
    torch.testing.assert_close(
        composite(*last, mode, channel_dim=-1).movedim(-1, 1), composite(backdrop, source, alpha, mode)
    )


@pytest.mark.parametrize("mode", BLEND_MODES)
def test_gradients(mode):
    generator = torch.Generator().manual_seed(2)
    backdrop, source = (torch.rand(2, 3, 2, 2, generator=generator, dtype=torch.float64) * 0.8 + 0.1 for _ in "bs")
    alpha = torch.rand(2, 1, 2, 2, generator=generator, dtype=torch.float64) * 0.8 + 0.1
    inputs = [value.requires_grad_() for value in (backdrop, source, alpha)]
    assert torch.autograd.gradcheck(lambda b, s, a: composite(b, s, a, mode), inputs)


@pytest.mark.parametrize("mode", BLEND_MODES)
@pytest.mark.parametrize("level", [0.0, 0.5, 1.0])
def test_gradients_of_flat_greys_are_finite(mode, level):
    for source_level in (0.0, 0.5, 1.0):
        backdrop = torch.full((1, 3, 1, 1), level, requires_grad=True)
        source = torch.full((1, 3, 1, 1), source_level, requires_grad=True)
        composite(backdrop, source, torch.tensor(0.5), mode).sum().backward()
        assert torch.isfinite(backdrop.grad).all()
        assert torch.isfinite(source.grad).all()


def test_uncomposite_undoes_normal_below_full_opacity():
    backdrop, source = pair()
    alpha = torch.rand(2, 1, 9, 7, generator=torch.Generator().manual_seed(1), dtype=torch.float64) * 0.95
    watermarked = composite(backdrop, source, alpha, "normal")
    torch.testing.assert_close(uncomposite(watermarked, source, alpha), backdrop)
    opaque = uncomposite(watermarked, source, torch.ones_like(alpha))
    assert torch.isfinite(opaque).all()
    assert (opaque.min() >= 0) & (opaque.max() <= 1)


def test_unknown_modes_and_wrong_layouts_are_named():
    values = torch.zeros(4, 5, 3)
    with pytest.raises(ValueError, match=r"unknown blend mode 'burn'; use one of normal, .*luminosity"):
        blend(values, values, "burn")
    with pytest.raises(ValueError, match=r"3 channels in dimension -3, got shapes \(4, 5, 3\).*channel_dim"):
        blend(values, values, "luminosity")
