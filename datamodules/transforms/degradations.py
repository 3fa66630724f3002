"""What happens to pictures after they were made: resizing, blur, noise, compression."""

import cv2
import numpy as np
from numpy.typing import NDArray

Pixels = NDArray[np.uint8]


def jpeg_roundtrip(image: Pixels, quality: int) -> Pixels:
    """Compress RGB as JPEG and decode it again."""
    encoded = cv2.imencode(".jpg", image[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, quality])[1]
    decoded = cv2.imdecode(encoded, cv2.IMREAD_COLOR)
    return np.ascontiguousarray(np.asarray(decoded, np.uint8)[..., ::-1])


def resize_roundtrip(image: Pixels, factor: float) -> Pixels:
    """Shrink by `factor` and enlarge back to the same size, losing fine detail."""
    height, width = image.shape[:2]
    small = cv2.resize(
        image, (max(1, round(width * factor)), max(1, round(height * factor))), interpolation=cv2.INTER_AREA
    )
    large: Pixels = cv2.resize(small, (width, height), interpolation=cv2.INTER_CUBIC)
    return large


def add_noise(image: Pixels, std: float, rng: np.random.Generator) -> Pixels:
    """Add Gaussian noise of `std` levels, independent per value."""
    noise = np.empty((len(image), image[0].size), np.int16)  # one channel: a spread is taken for the first one alone
    cv2.setRNGSeed(int(rng.integers(2**31)))  # OpenCV draws 5 times faster than NumPy, and repeats from a seed
    cv2.randn(noise, 0, std)
    noisy: Pixels = cv2.add(image, noise.reshape(image.shape), dtype=cv2.CV_8U)
    return noisy


def degrade(image: Pixels, rng: np.random.Generator) -> Pixels:
    """Apply a random chain: resize 30 %, blur 15 %, noise 25 %, JPEG 30-95 80 %."""
    if rng.random() < 0.3:
        image = resize_roundtrip(image, rng.uniform(0.5, 0.95))
    if rng.random() < 0.15:
        image = cv2.GaussianBlur(image, (0, 0), rng.uniform(0.3, 1.0))
    if rng.random() < 0.25:
        image = add_noise(image, rng.uniform(1, 8), rng)
    if rng.random() < 0.8:
        image = jpeg_roundtrip(image, int(rng.integers(30, 96)))
    return image
