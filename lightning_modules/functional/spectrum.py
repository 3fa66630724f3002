"""Log-magnitude spectra of real images: the whole plane with its zero frequency in the middle, and half of it.

The spectrum of a real image is point-symmetric, |F(-f)| = |F(f)|. The half plane holds what `torch.fft.rfft2` does,
rows and columns from frequency zero on: (…, H, W // 2 + 1).
"""

import torch
from torch import Tensor

SMALLEST_MAGNITUDE = 1e-10


def log_magnitude(image: Tensor) -> Tensor:
    """Return log(|F| + 1e-10) of real images (…, H, W), orthonormal, zero frequency at (H // 2, W // 2)."""
    spectrum = torch.fft.fftshift(torch.fft.fft2(image, norm="ortho"), dim=(-2, -1))
    magnitude: Tensor = spectrum.abs()
    return (magnitude + SMALLEST_MAGNITUDE).log()


def half_log_magnitude(image: Tensor, relative_floor: float = 0.0) -> Tensor:
    """Return log(|F| + floor) of real images (…, H, W) on the half plane (…, H, W // 2 + 1), orthonormal.

    Args:
        image: Real images.
        relative_floor: The floor as a share of the image's median magnitude. It bounds the gradient, which is
            1 / (|F| + floor) and else belongs to the few frequencies next to nothing. 0 for a floor of 1e-10.
    """
    magnitude: Tensor = torch.fft.rfft2(image, norm="ortho").abs()
    return (magnitude + magnitude_floor(magnitude, relative_floor)).log()


def magnitude_floor(magnitude: Tensor, relative_floor: float) -> Tensor | float:
    """Return what to add to magnitudes (…, H, W // 2 + 1) before their logarithm, without gradient."""
    if relative_floor == 0.0:
        return SMALLEST_MAGNITUDE
    median = magnitude.detach().flatten(-2).median(dim=-1).values[..., None, None]
    return (relative_floor * median).clamp_min(SMALLEST_MAGNITUDE)


def mirrored(plane: Tensor) -> Tensor:
    """Return the value at -f for each frequency f of whole planes (…, H, W)."""
    flipped = plane.flip(-2, -1)
    # An even side has a highest frequency that is its own mirror, in the first row or column.
    height, width = plane.shape[-2:]
    return flipped.roll(((height + 1) % 2, (width + 1) % 2), dims=(-2, -1))


def to_half(plane: Tensor) -> Tensor:
    """Return the values that whole planes (…, H, W) have at the frequencies of the half plane."""
    unshifted: Tensor = torch.fft.ifftshift(plane, dim=(-2, -1))
    return unshifted[..., : plane.shape[-1] // 2 + 1]


def to_full(half: Tensor, width: int) -> Tensor:
    """Return whole planes (…, H, ``width``) of half planes; a frequency that the half lacks has its mirror's value."""
    columns = half[..., 1 : (width + 1) // 2]
    rest = columns.flip(-2, -1).roll(1, dims=-2)
    plane: Tensor = torch.fft.fftshift(torch.cat([half, rest], dim=-1), dim=(-2, -1))
    return plane


def half_sums(plane: Tensor) -> Tensor:
    """Return half planes by which Σ over the half plane of spectrum × map is Σ over the whole plane.

    Args:
        plane: Any maps (…, H, W) of the whole plane; they need not be symmetric.
    """
    own, other = to_half(plane), to_half(mirrored(plane))
    return own + other * _has_mirror_elsewhere(plane.shape[-1], plane.device)


def half_counts(width: int) -> Tensor:
    """Return how many frequencies of the whole plane a column of the half plane stands for, float32 (W // 2 + 1,)."""
    return 1.0 + _has_mirror_elsewhere(width, torch.device("cpu"))


def frequency_axes(height: int, width: int) -> tuple[Tensor, Tensor]:
    """Return the frequencies of rows and of columns of the whole plane, in cycles a pixel, float64."""
    rows, columns = (torch.fft.fftfreq(side, dtype=torch.float64) for side in (height, width))
    return torch.fft.fftshift(rows), torch.fft.fftshift(columns)


def _has_mirror_elsewhere(width: int, device: torch.device) -> Tensor:
    """Return 1 for the columns of the half plane whose mirrors lie outside of it, else 0."""
    column = torch.arange(width // 2 + 1, device=device)
    return ((column > 0) & (2 * column != width)).float()
