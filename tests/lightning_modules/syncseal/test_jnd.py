import numpy as np
import pytest
import torch
from scipy import ndimage

from lightning_modules.syncseal.jnd import JND

SOBEL = np.array([[-1.0, 0, 1], [-2, 0, 2], [-1, 0, 1]])
SURROUND = np.array([[1.0, 1, 1, 1, 1], [1, 2, 2, 2, 1], [1, 2, 0, 2, 1], [1, 2, 2, 2, 1], [1, 1, 1, 1, 1]])


def seen_by_scipy(levels, mode):
    """The map of one channel in grey levels, in float64."""
    around = ndimage.correlate(levels, SURROUND, mode=mode) / 32
    edge = np.hypot(ndimage.correlate(levels, SOBEL, mode=mode), ndimage.correlate(levels, SOBEL.T, mode=mode))
    dark = 17 * (1 - np.sqrt(around / 127 + 1e-5))
    adaptation = np.where(around <= 127, dark, 3 / 128 * (around - 127) + 3)
    masking = 0.117 * 16 * edge**2.4 / (edge**2 + 26**2)
    return np.maximum(adaptation + masking - 0.3 * np.minimum(adaptation, masking), 0)


@pytest.mark.parametrize(("border", "mode"), [("zero", "constant"), ("reflect", "mirror")])
@pytest.mark.parametrize(("inputs", "outputs"), [(1, 1), (3, 3), (3, 1), (1, 3)])
def test_the_map_equals_scipys(border, mode, inputs, outputs):
    torch.manual_seed(0)
    image = torch.rand(2, 3, 13, 17)
    # A flat half, where the two branches of adaptation and the square root at nought are met.
    image[:, :, :, 9:] = image[:, :, :1, :1].clone()
    found = JND(inputs, outputs, border)(image)
    levels = image.double().numpy() * 255
    if inputs == 1:
        levels = np.tensordot([0.299, 0.587, 0.114], levels, axes=([0], [1]))[:, None]
    wanted = np.stack([[seen_by_scipy(channel, mode) for channel in picture] for picture in levels])
    wanted = wanted.mean(1, keepdims=True) if (inputs, outputs) == (3, 1) else wanted.repeat(outputs // inputs or 1, 1)
    np.testing.assert_allclose(found.numpy(), wanted[:, :outputs] / 255, atol=2e-7)


def test_flat_pictures_have_the_specified_values():
    flat = torch.tensor([0.0, 126, 128, 255]).view(4, 1, 1, 1).expand(4, 3, 12, 12) / 255
    levels = JND()(flat)[:, 0] * 255
    assert levels[:, 6, 6].tolist() == pytest.approx([16.95, 0.07, 3.02, 6.0], abs=0.01)
    assert float(levels[2, 0, 0]) == pytest.approx(28, abs=0.5), "zeros beyond the border look like an edge"
    mirrored = JND(border="reflect")(flat)[:, 0] * 255
    assert float(mirrored[2, 0, 0]) == pytest.approx(3.02, abs=0.01)
    assert float(mirrored[2].std()) < 1e-5


@pytest.mark.parametrize("border", ["zero", "reflect"])
@pytest.mark.parametrize("rows", [1, 2, 7, 16, 40, 41, 100])
def test_strips_have_no_seams(border, rows):
    torch.manual_seed(0)
    image, jnd = torch.rand(2, 3, 40, 23), JND(border=border)
    with torch.no_grad():
        whole, strips = jnd(image), jnd.in_strips(image, rows)
    # Convolutions of other heights may round a last digit differently.
    torch.testing.assert_close(strips, whole, rtol=0, atol=1e-7)


@pytest.mark.parametrize("inputs", [1, 3])
def test_sixteen_bits_around_it_change_nothing(inputs):
    image, jnd = torch.rand(1, 3, 16, 16), JND(inputs)
    with torch.autocast("cpu", torch.bfloat16):
        found, strips = jnd(image), jnd.in_strips(image, 5)
    assert found.dtype == strips.dtype == torch.float32
    assert torch.equal(found, jnd(image))
    assert torch.isfinite(jnd(torch.rand(1, 3, 8, 8).half())).all()


def test_gradients_are_finite_where_nothing_changes():
    image = torch.full((1, 3, 9, 9), 0.3, requires_grad=True)
    JND()(image).sum().backward()
    assert torch.isfinite(image.grad).all()
    assert image.grad.abs().max() > 0


def test_changes_are_scaled_or_held_within_the_map():
    image, marked = torch.rand(1, 3, 8, 8), torch.rand(1, 3, 8, 8)
    jnd = JND()
    heat = jnd(image)
    torch.testing.assert_close(jnd.attenuate(image, marked), image + heat * (marked - image))
    held = jnd.attenuate(image, marked, "clamp") - image
    assert (held.abs() <= heat + 1e-6).all()
    assert (held.sign() == (marked - image).sign()).all()


def test_kernels_are_in_the_state_and_not_trained():
    jnd = JND(3, 3)
    assert {key: tuple(value.shape) for key, value in jnd.state_dict().items()} == {
        "conv_x.weight": (3, 1, 3, 3), "conv_y.weight": (3, 1, 3, 3), "conv_lum.weight": (3, 1, 5, 5),
    }  # fmt: skip
    assert not any(parameter.requires_grad for parameter in jnd.parameters())


def test_what_cannot_be_built_is_said():
    with pytest.raises(ValueError, match="takes and gives 1 or 3 channels, got 2 and 1"):
        JND(2, 1)
    with pytest.raises(ValueError, match="`jnd_border` must be zero or reflect, got 'wrap'"):
        JND(border="wrap")
