"""Periodic noise tiles, made once in a process, and random windows of them."""

import math
from functools import lru_cache

import cv2
import numpy as np
from numpy.typing import NDArray

Noise = NDArray[np.float32]

_PERIOD = 512
_ANGLES = 6  # directions of paper fibres that tiles exist for


def _wrapped_blur(field: Noise, sigma_x: float, sigma_y: float) -> Noise:
    pad = min(_PERIOD, math.ceil(3.5 * max(sigma_x, sigma_y)) + 1)
    wide = np.pad(field, pad, mode="wrap")
    blurred = cv2.GaussianBlur(wide, (0, 0), sigmaX=sigma_x, sigmaY=sigma_y)[pad:-pad, pad:-pad]
    result: Noise = ((blurred - blurred.mean()) / blurred.std()).astype(np.float32)
    return np.tile(result, (2, 2))


@lru_cache(maxsize=24)
def _tile(octave: int, stream: int) -> Noise:
    """Gaussian noise of mean 0 and deviation 1, blurred by a deviation of 2 ** (octave / 2) pixels, twice a side."""
    white = np.random.default_rng((17, stream)).standard_normal((_PERIOD, _PERIOD), dtype=np.float32)
    sigma = 2 ** (octave / 2)
    return _wrapped_blur(white, sigma, sigma)


@lru_cache(maxsize=_ANGLES)
def _fibres(angle: int) -> Noise:
    """Noise of short threads in one direction."""
    white = np.random.default_rng((18, angle)).standard_normal((_PERIOD, _PERIOD), dtype=np.float32)
    length = 13
    kernel = np.zeros((length, length), np.float32)
    turn, middle = math.pi * angle / _ANGLES, (length - 1) / 2
    for step in np.linspace(-middle, middle, 4 * length):
        kernel[round(middle + step * math.sin(turn)), round(middle + step * math.cos(turn))] = 1
    wide = np.pad(white, length, mode="wrap")
    threads = cv2.filter2D(wide, -1, cv2.GaussianBlur(kernel, (0, 0), 0.7))[length:-length, length:-length]
    return np.tile(((threads - threads.mean()) / threads.std()).astype(np.float32), (2, 2))


def _window(tile: Noise, size_hw: tuple[int, int], rng: np.random.Generator) -> Noise:
    """A part of a tile at a random place, mirrored or not; the tile is repeated under larger windows."""
    h, w = size_hw
    if max(h, w) > _PERIOD:
        tile = np.tile(tile, (math.ceil(h / _PERIOD), math.ceil(w / _PERIOD)))
    y, x, flip_y, flip_x = (int(v) for v in rng.integers(0, (_PERIOD, _PERIOD, 2, 2)))
    return tile[y : y + h, x : x + w][:: 1 - 2 * flip_y, :: 1 - 2 * flip_x]


def smooth_noise(size_hw: tuple[int, int], sigma: float, rng: np.random.Generator) -> Noise:
    """A view of isotropic noise of mean 0 and deviation 1 whose grain is `sigma` pixels, to the nearest half octave."""
    octave = min(12, max(-2, round(2 * math.log2(max(sigma, 1e-3)))))
    return _window(_tile(octave, int(rng.integers(2))), size_hw, rng)


def fibre_noise(size_hw: tuple[int, int], rng: np.random.Generator) -> Noise:
    """A view of noise drawn out in one random direction, as ink creeps along the threads of paper."""
    return _window(_fibres(int(rng.integers(_ANGLES))), size_hw, rng)
