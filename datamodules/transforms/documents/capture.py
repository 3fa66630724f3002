"""How a page becomes a picture file: paper tooth, light, optics, sensor, sharpening, JPEG."""

from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

import cv2
import numpy as np
from numpy.typing import NDArray

from datamodules.images.randomness import sample_rng
from datamodules.transforms.documents.composing import Pixels

CaptureKind = Literal["scan", "fax", "phone"]
CAPTURE_KINDS: tuple[CaptureKind, ...] = ("scan", "fax", "phone")
MOIRE_SHARE = 0.12  # of phone pictures
REACH = 10  # no step but JPEG lets a pixel change another that is farther away
BLOCK = 16  # of JPEG with colours at half the resolution

_TILE = 1024
_TILE_SPREAD = 24.0  # standard deviation of the kept tiles, in bytes around 128
_FULL_GAIN = 200.0  # byte of the light plane that leaves a value as it is


@dataclass(frozen=True)
class Capture:
    """One way through a device; everything is decided, so that two pages can go the same way.

    Attributes:
        kind: scan, fax or phone.
        light: Exposure and tint, a factor for each channel of the paper.
        gain: (H, W) light over the page with the paper's tooth in it, as bytes.
        blur: Sigma of the optics in pixels.
        noise: Standard deviation of the sensor in bytes.
        noise_at: Row and column of the kept noise that the first pixel takes.
        sharpen: Strength of the unsharp mask.
        quality: Of the JPEG file.
        threshold: Grey value that a fax cuts at.
    """

    kind: CaptureKind
    light: tuple[float, float, float]
    gain: Pixels
    blur: float
    noise: float
    noise_at: tuple[int, int]
    sharpen: float
    quality: int
    threshold: float


def draw_capture(rng: np.random.Generator, kind: CaptureKind, size_hw: tuple[int, int], tooth: float = 1.0) -> Capture:
    """Draw what a device does to a page of a size.

    Args:
        rng: The only source of chance.
        kind: The device.
        size_hw: Height and width of the picture.
        tooth: Factor of the paper's roughness.
    """
    phone = kind == "phone"
    exposure = rng.uniform(0.5, 0.98) if phone else rng.uniform(0.9, 1.04)
    tint = 1 + (0.05 if phone else 0.015) * rng.standard_normal() * np.array([1.0, 0.15, -1.0])
    light = tuple(float(value) for value in np.clip(exposure * tint, 0.3, 1.06))
    gain = _lit(rng, size_hw, 0.22 if phone else 0.05, shadow=phone and rng.random() < 0.6)
    rough = tooth * rng.uniform(0.8, 4.0) / _TILE_SPREAD
    grain = _window(tooth_tile(), _place(rng, size_hw), size_hw)
    gain = cv2.addWeighted(gain, 1, grain, rough, -128 * rough)
    if phone and rng.random() < MOIRE_SHARE:
        gain = _with_moire(rng, np.asarray(gain, np.uint8))
    return Capture(
        kind=kind,
        light=(light[0], light[1], light[2]),
        gain=np.asarray(gain, np.uint8),
        blur=float(rng.uniform(0.5, 1.15) if phone else rng.uniform(0.35, 0.9)),
        noise=float(rng.uniform(1.5, 5.0) if phone else rng.uniform(0.8, 3.5)),
        noise_at=_place(rng, size_hw),
        sharpen=float(rng.uniform(0, 0.6) if phone else rng.uniform(0, 1.1)),
        quality=int(rng.integers(60, 98)),
        threshold=float(rng.uniform(140, 205)),
    )


def developed(pixels: Pixels, capture: Capture, top: int = 0, left: int = 0) -> Pixels:
    """Return what the device makes of a part of the page (h, w, 3) that begins at a row and a column.

    A part gives what the whole gives, but for its outer `REACH` pixels and, by JPEG, the blocks these lie in.
    """
    height, width = pixels.shape[:2]
    gain = capture.gain[top : top + height, left : left + width]
    result = cv2.multiply(pixels, cv2.merge([gain, gain, gain]), scale=1 / _FULL_GAIN)
    result = cv2.GaussianBlur(result, (0, 0), capture.blur)
    share = capture.noise / _TILE_SPREAD
    place = (capture.noise_at[0] + top, capture.noise_at[1] + left)
    result = cv2.addWeighted(result, 1, _window(noise_tile(), place, (height, width)), share, -128 * share)
    if capture.kind == "fax":
        result = _faxed(result, capture.threshold)
    elif capture.sharpen > 0.05:
        soft = cv2.GaussianBlur(result, (5, 5), 1.0)
        result = cv2.addWeighted(result, 1 + capture.sharpen, soft, -capture.sharpen, 0)
    return _through_jpeg(np.asarray(result, np.uint8), capture.quality)


def _lit(rng: np.random.Generator, size_hw: tuple[int, int], fall: float, shadow: bool) -> Pixels:
    """Light that falls off to one side, and the soft shadow of a hand or a phone."""
    y, x = np.mgrid[-1:1:33j, -1:1:33j]
    turn = rng.uniform(0, 2 * np.pi)
    field = 1 - fall * rng.random() * (0.5 + 0.5 * (x * np.cos(turn) + y * np.sin(turn))) ** 2
    field -= 0.5 * fall * rng.random() * (x**2 + y**2) / 2
    if shadow:
        turn, soft, bend = rng.uniform(0, 2 * np.pi), rng.uniform(0.04, 0.35), rng.uniform(-0.5, 0.5)
        along, across = x * np.cos(turn) + y * np.sin(turn), y * np.cos(turn) - x * np.sin(turn)
        beyond = along + bend * across**2 - rng.uniform(-0.4, 0.8)
        field *= 1 - rng.uniform(0.12, 0.45) / (1 + np.exp(-beyond / soft))
    small = np.clip(_FULL_GAIN * field, 0, 255).astype(np.uint8)
    return np.asarray(cv2.resize(small, size_hw[::-1], interpolation=cv2.INTER_CUBIC), np.uint8)


def _with_moire(rng: np.random.Generator, gain: Pixels) -> Pixels:
    """Faint even stripes, where the print's screen and the sensor's lattice nearly agree."""
    turn, period = rng.uniform(0, np.pi), rng.uniform(4, 14)
    y, x = (np.arange(side, dtype=np.float32) * (2 * np.pi / period) for side in gain.shape)
    y, x = y * np.float32(np.sin(turn)), x * np.float32(np.cos(turn))
    # The cosine of a sum, from products of rows and columns.
    stripes = np.outer(np.cos(y), np.cos(x)) - np.outer(np.sin(y), np.sin(x))
    return np.asarray(np.clip(gain + stripes * rng.uniform(1.5, 5), 0, 255), np.uint8)


def _faxed(pixels: Pixels, threshold: float) -> Pixels:
    """Two tones with ragged edges, lines of half the height."""
    gray = cv2.cvtColor(pixels, cv2.COLOR_RGB2GRAY)
    low = cv2.resize(gray, None, fx=1, fy=0.5, interpolation=cv2.INTER_AREA) if gray.shape[0] % 2 == 0 else gray
    hard = cv2.convertScaleAbs(cv2.subtract(low, threshold - 14), alpha=255 / 28)
    tall = cv2.resize(hard, gray.shape[::-1], interpolation=cv2.INTER_LINEAR)
    return np.asarray(cv2.cvtColor(tall, cv2.COLOR_GRAY2RGB), np.uint8)


def _through_jpeg(pixels: Pixels, quality: int) -> Pixels:
    _, data = cv2.imencode(".jpg", cv2.cvtColor(pixels, cv2.COLOR_RGB2BGR), [cv2.IMWRITE_JPEG_QUALITY, quality])
    return np.asarray(cv2.imdecode(data, cv2.IMREAD_COLOR_RGB), np.uint8)


@lru_cache(maxsize=1)
def noise_tile() -> Pixels:
    """Noise of a sensor, kept: (1024, 1024, 3), mean 128; mostly grey, a little soft, as after demosaicing."""
    rng = sample_rng(0, 0, 0, 611)
    gray = rng.standard_normal((_TILE, _TILE, 1), np.float32)
    color = cv2.GaussianBlur(rng.standard_normal((_TILE, _TILE, 3), np.float32), (0, 0), 0.7)
    return _as_tile(cv2.GaussianBlur(gray, (0, 0), 0.45)[..., None] + 0.8 * color)


@lru_cache(maxsize=1)
def tooth_tile() -> Pixels:
    """Roughness of paper, kept: (1024, 1024), mean 128; fibres of three sizes, longer along one direction."""
    rng = sample_rng(0, 0, 0, 612)
    planes = [rng.standard_normal((_TILE, _TILE), np.float32) for _ in range(3)]
    tile = np.zeros((_TILE, _TILE), np.float32)
    sizes, shares = ((0.8, 0.6), (2.6, 1.3), (9.0, 7.0)), (0.7, 0.5, 0.15)
    for plane, (along, across), share in zip(planes, sizes, shares, strict=True):
        soft = cv2.GaussianBlur(plane, (0, 0), sigmaX=along, sigmaY=across)
        tile += share * soft / float(soft.std())
    return _as_tile(tile)


def _as_tile(values: NDArray[np.float32]) -> Pixels:
    tile = np.asarray(np.clip(128 + _TILE_SPREAD * (values - values.mean()) / values.std(), 0, 255).round(), np.uint8)
    tile.flags.writeable = False
    return tile


def _place(rng: np.random.Generator, size_hw: tuple[int, int]) -> tuple[int, int]:
    """Draw a row and a column of a tile, within it where the picture fits."""
    top, left = rng.integers(0, [max(1, _TILE - side + 1) for side in size_hw]).tolist()
    return top, left


def _window(tile: Pixels, place: tuple[int, int], size_hw: tuple[int, int]) -> Pixels:
    """Return a part of a tile, which goes on from its beginning where it ends."""
    top, left = (value % _TILE for value in place)
    height, width = size_hw
    if top + height <= _TILE and left + width <= _TILE:
        return tile[top : top + height, left : left + width]
    rows = np.arange(top, top + height) % _TILE
    columns = np.arange(left, left + width) % _TILE
    return np.ascontiguousarray(tile[rows][:, columns])
