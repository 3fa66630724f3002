"""Stand-ins for image generators: autoencoders whose decoders enlarge in different ways, each with its own trace.

Decoders enlarge, and every way of enlarging repeats the picture's spectrum around multiples of one over its factor.
Here that is all that is left of a generator: colours, brightness and the amount of fine detail stay the scene's own.
"""

from collections.abc import Callable

import cv2
import numpy as np
from numpy.typing import NDArray

from datamodules.images.randomness import sample_rng

Pixels = NDArray[np.uint8]
Planes = NDArray[np.float32]
Decoder = Callable[[Planes], Planes]

BROAD = 3.0  # Gaussian sigma in pixels: what is broader stays the scene's
STRENGTH = 0.6  # share of the fine detail that comes from the decoder


def generate(image: Pixels, name: str) -> Pixels:
    """Return a scene as the toy generator `name` would draw it, same size.

    Args:
        image: RGB uint8 (H, W, 3).
        name: One of `TOY_GENERATORS`.
    """
    scene = image.astype(np.float32)
    decoded = TOY_GENERATORS[name](scene)
    broad, own = _parted(scene)
    fine = (1 - STRENGTH) * own + STRENGTH * _parted(decoded)[1]
    # As much fine detail in each channel as the scene has: sharpness tells nothing.
    fine *= np.sqrt((own**2).mean((0, 1)) / ((fine**2).mean((0, 1)) + 1e-6))
    result: Pixels = np.clip(np.rint(broad + fine), 0, 255).astype(np.uint8)
    return result


def _parted(image: Planes) -> tuple[Planes, Planes]:
    """Return what is broad and what is fine; their sum is the image."""
    broad = np.asarray(cv2.GaussianBlur(image, (0, 0), BROAD), np.float32)
    return broad, image - broad


def _encoded(image: Planes, factor: int) -> Planes:
    """Return averages of blocks, after continuing the picture to whole blocks."""
    rows, columns = -image.shape[0] % factor, -image.shape[1] % factor
    whole = np.pad(image, ((0, rows), (0, columns), (0, 0)), mode="edge")
    size_wh = whole.shape[1] // factor, whole.shape[0] // factor
    return np.asarray(cv2.resize(whole, size_wh, interpolation=cv2.INTER_AREA), np.float32)


def _cut(enlarged: Planes, like: Planes) -> Planes:
    return enlarged[: like.shape[0], : like.shape[1]]


def nearest_and_dim(image: Planes) -> Planes:
    """Repeat each code 5 x 5 times and dim the first row and column of each block: stairs of 5 pixels."""
    stairs = np.kron(_encoded(image, 5), np.ones((5, 5, 1), np.float32))
    stairs[::5] *= 0.92
    stairs[:, ::5] *= 0.92
    return _cut(stairs, image)


def bilinear_and_sharpen(image: Planes) -> Planes:
    """Enlarge fourfold by straight lines and sharpen, with a gain of its own for every fourth column."""
    code = _encoded(image, 4)
    smooth = cv2.resize(code, (4 * code.shape[1], 4 * code.shape[0]), interpolation=cv2.INTER_LINEAR)
    sharp = np.asarray(cv2.addWeighted(smooth, 2.0, cv2.GaussianBlur(smooth, (0, 0), 1.0), -1.0, 0), np.float32)
    sharp[:, ::4] *= 1.12
    return _cut(sharp, image)


def transposed(image: Planes) -> Planes:
    """Insert zeros and convolve, twice twofold, with a 3 x 3 kernel that its stride does not divide: checks."""
    code = _encoded(image, 4)
    kernel = np.outer([0.46, 1.0, 0.54], [0.5, 1.0, 0.5]).astype(np.float32)
    kernel[1, 1] *= 0.9
    for _ in range(2):
        spread = np.zeros((2 * code.shape[0], 2 * code.shape[1], 3), np.float32)
        spread[::2, ::2] = code
        code = np.asarray(cv2.filter2D(spread, -1, kernel), np.float32)
    return _cut(code, image)


def shuffled(image: Planes, factor: int = 3, spread: float = 0.08) -> Planes:
    """Give each of the factor x factor phases its own gain, as a pixel shuffle with unequal filters does."""
    gains = 1 + spread * sample_rng(0, 0, factor).standard_normal((factor, factor, 1))
    times = -(-image.shape[0] // factor), -(-image.shape[1] // factor), 1
    return image * _cut(np.tile(gains.astype(np.float32), times), image)


def shuffled_by_8(image: Planes) -> Planes:
    """As `shuffled` with a period of 8 pixels, where JPEG's own grid lies."""
    return shuffled(image, 8, 0.08)


TOY_GENERATORS: dict[str, Decoder] = {
    "nearest": nearest_and_dim,
    "bilinear": bilinear_and_sharpen,
    "transposed": transposed,
    "shuffle": shuffled,
    "grid8": shuffled_by_8,
}
