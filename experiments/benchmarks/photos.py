"""Files that cost a decoder what photographs cost it."""

import math
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image


def write_photos(folder: Path, files: int, size_hw: tuple[int, int], grain: float = 6.0) -> list[str]:
    """Write JPEGs of quality 90 and return their paths.

    Args:
        folder: Where.
        files: How many.
        size_hw: Height and width.
        grain: Deviation of the noise in levels; 6 gives 0.35 bytes a pixel at 2000x3000.
    """
    paths = [str(folder / f"{number:02}.jpg") for number in range(files)]
    for number, path in enumerate(paths):
        photo = Image.fromarray(_photo_like(np.random.default_rng(number), size_hw, grain))
        photo.save(path, "JPEG", quality=90, subsampling="4:2:0")
    return paths


def _photo_like(rng: np.random.Generator, size_hw: tuple[int, int], grain: float) -> NDArray[np.uint8]:
    """Octaves of noise, and grain."""
    height, width = size_hw
    unit = math.gcd(height, width)
    total = np.full((height, width, 3), 118, np.float32)
    for cells in (2, 8, 32, 128, 512):
        noise_hw = height // unit * cells, width // unit * cells
        noise = rng.normal(0, 60 / cells**0.35, (*noise_hw, 3)).astype(np.float32)
        total += cv2.resize(noise, (width, height), interpolation=cv2.INTER_CUBIC)
    total += rng.normal(0, grain, (height, width, 1)).astype(np.float32)
    return np.clip(total, 0, 255).astype(np.uint8)
