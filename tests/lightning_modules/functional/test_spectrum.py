import numpy as np
import pytest
import torch

from lightning_modules.functional.spectrum import (
    frequency_axes,
    half_counts,
    half_log_magnitude,
    half_sums,
    log_magnitude,
    mirrored,
    to_full,
    to_half,
)

SIZES = [(8, 8), (7, 7), (8, 7), (7, 10), (1, 2), (6, 1)]
sized = pytest.mark.parametrize("size", SIZES, ids=lambda size: f"{size[0]}x{size[1]}")


def noise(*shape):
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


@sized
def test_whole_plane_equals_numpy(size):
    image = noise(2, 3, *size)
    expected = np.abs(np.fft.fftshift(np.fft.fft2(image.numpy(), norm="ortho"), axes=(-2, -1)))
    np.testing.assert_allclose(log_magnitude(image).exp() - 1e-10, expected, atol=1e-12)


@sized
def test_half_plane_is_half_of_the_whole_and_gives_it_back(size):
    image = noise(2, *size)
    whole, half = log_magnitude(image), half_log_magnitude(image)
    assert half.shape == (2, size[0], size[1] // 2 + 1)
    torch.testing.assert_close(to_half(whole), half)
    torch.testing.assert_close(to_full(half, size[1]), whole)
    torch.testing.assert_close(mirrored(whole), whole)


@sized
def test_mirror_is_the_opposite_frequency(size):
    plane = noise(*size)
    rows, columns = (np.rint(np.fft.fftshift(np.fft.fftfreq(side)) * side).astype(int) for side in size)
    place = {(int(y) % size[0], int(x) % size[1]): (i, j) for i, y in enumerate(rows) for j, x in enumerate(columns)}
    for i, y in enumerate(rows):
        for j, x in enumerate(columns):
            assert mirrored(plane)[i, j] == plane[place[-int(y) % size[0], -int(x) % size[1]]]


@sized
def test_sums_over_the_half_plane_are_those_over_the_whole(size):
    spectrum = log_magnitude(noise(4, *size))
    maps = torch.rand(4, *size, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    whole = (spectrum.square() * maps).sum(dim=(-2, -1))
    torch.testing.assert_close((to_half(spectrum).square() * half_sums(maps)).sum(dim=(-2, -1)), whole)
    ones = half_sums(torch.ones(size))
    torch.testing.assert_close(ones, half_counts(size[1]).expand_as(ones))
    assert float(ones.sum()) == size[0] * size[1]


def test_relative_floor_bounds_the_gradient():
    image = noise(3, 16, 16)
    image = image - image.mean(dim=(-2, -1), keepdim=True) + 1e-9  # a zero frequency next to nothing
    magnitude = torch.fft.rfft2(image, norm="ortho").abs()
    floor = 1e-3 * np.quantile(magnitude.flatten(1), 0.5, axis=1, method="lower")
    expected = (magnitude + torch.from_numpy(floor)[:, None, None]).log()
    torch.testing.assert_close(half_log_magnitude(image, 1e-3), expected)
    gradients = []
    for relative in (0.0, 1e-3):
        leaf = image.clone().requires_grad_()
        half_log_magnitude(leaf, relative)[:, 0, 0].sum().backward()
        gradients.append(float(leaf.grad.abs().max()))
    # The mean's gradient is 1 / (sqrt(HW) (|F| + floor)), |F| = 1.6e-8 here.
    assert gradients[0] > 1e5
    assert gradients[1] <= 1 / (16 * floor.min())


def test_floor_of_an_empty_image_is_not_zero():
    assert torch.isfinite(half_log_magnitude(torch.zeros(1, 8, 8), 1e-3)).all()


@sized
def test_axes_are_cycles_a_pixel_with_zero_where_the_spectrum_has_it(size):
    rows, columns = frequency_axes(*size)
    assert rows[size[0] // 2] == columns[size[1] // 2] == 0
    wave = torch.cos(2 * torch.pi * columns[-1] * torch.arange(size[1]))[None].expand(size[0], -1)
    peak = log_magnitude(wave.double())[size[0] // 2]
    assert peak[-1] == pytest.approx(float(peak.max()))
