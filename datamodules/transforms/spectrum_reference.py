"""The published detector's processing of pictures, step by step, with its draws in their order.

The draws come from a `RandomState` that is passed in, so that nothing global is read: with the state of
`np.random.seed(s)` they are those of the published code. Pixels are equal to the goldens byte for byte.
"""

import io
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from scipy import ndimage

from datamodules.images.decoding import opened_header

Pixels = NDArray[np.uint8]
Mode = Literal["train", "valid", "test"]
Compression = Literal["jpeg", "webp"]

JPEG_SHARE = 0.95
LEAST_QUALITY, TOP_QUALITY = 65, 100
STUDIO_SWING = np.array(
    [[65.481, 128.553, 24.966], [-37.797, -74.203, 112.0], [112.0, -93.786, -18.214]], dtype=np.float64
)
STUDIO_OFFSET = np.array([16.0, 128.0, 128.0])


@dataclass(frozen=True)
class ReferenceSettings:
    """What the published data set takes.

    Args:
        window: Side of the crop.
        mode: Its mode: draws are made in training, and compression in training and validation.
        compression: How crops of training and validation are compressed; None leaves them.
        quality: A fixed JPEG quality, then always applied; None draws it. WebP always draws, as published.
    """

    window: int = 512
    mode: Mode = "train"
    compression: Compression | None = "jpeg"
    quality: int | None = None


def read_plain(path: str) -> Pixels | None:
    """Return the stored pixels with alpha dropped and orientation ignored; None for what the published code refuses.

    Raises:
        OSError: The file cannot be decoded.
    """
    with opened_header(path) as file:
        image = file.convert("RGB") if file.mode in ("P", "CMYK", "YCbCr") else file
        pixels = np.asarray(image)
    grey = pixels.ndim == 2 or pixels.shape[2] < 3 or pixels.dtype != np.uint8
    return None if grey else np.ascontiguousarray(pixels[..., :3])


def process(
    image: Pixels, label: int, settings: ReferenceSettings, draws: np.random.RandomState
) -> tuple[Pixels, int | None] | None:
    """Return the RGB crop (window, window, 3) and its quality; None for pictures smaller than the window.

    Args:
        image: RGB or RGBA.
        label: 0 for a real picture, which training may shrink; 1 for a generated one, which is never resized.
        settings: The data set's.
        draws: Read in the published order; untouched outside training where nothing is compressed.
    """
    window, training = settings.window, settings.mode == "train"
    image = image[..., :3]
    if min(image.shape[:2]) < window:
        return None
    if training and label == 0:
        image = shrink_at_random(image, window, draws)
    if training:
        left = int(draws.randint(0, image.shape[1] - window + 1))
        top = int(draws.randint(0, image.shape[0] - window + 1))
    else:
        top, left = (aligned_offset(side, window) for side in image.shape[:2])
    crop = np.ascontiguousarray(image[top : top + window, left : left + window])
    if settings.mode == "test" or settings.compression is None:
        return crop, None
    return compress_at_random(crop, settings.compression, settings.quality, draws)


def shrink_at_random(image: Pixels, window: int, draws: np.random.RandomState) -> Pixels:
    """Resize half of the pictures to a shorter side of 1 to 1.5 windows, without anti-aliasing."""
    if draws.rand() >= 0.5:
        return image
    ratio = window / min(image.shape[:2]) * draws.uniform(1, 1.5)
    return resize_bilinear(image, (int(ratio * image.shape[0]), int(ratio * image.shape[1])))


def resize_bilinear(image: Pixels, size_hw: tuple[int, int]) -> Pixels:
    """Return the bilinear resize of scikit-image without anti-aliasing, cut off to whole levels."""
    zoom = (size_hw[0] / image.shape[0], size_hw[1] / image.shape[1], 1)
    values = ndimage.zoom(image.astype(np.float64), zoom, order=1, mode="mirror", grid_mode=True)
    resized: Pixels = np.clip(values, 0, 255).astype(np.uint8)
    return resized


def aligned_offset(side: int, window: int) -> int:
    """Return where the central window begins, moved back to a multiple of 8."""
    return max(0, side // 2 - window // 2) // 8 * 8


def central_offset(side: int, window: int) -> int:
    """Return where the central window of the offline test sets begins: the 8-px grid is not heeded."""
    return max(0, side // 2 - window // 2)


def compress_at_random(
    crop: Pixels, compression: Compression, quality: int | None, draws: np.random.RandomState
) -> tuple[Pixels, int | None]:
    """Compress a crop by a quality of 65 to 100, JPEG in 95 % of all cases; return it and the quality."""
    if compression == "jpeg" and quality is not None:
        return encode(crop, "JPEG", quality), quality
    # WebP draws the share too and does not heed it, nor a fixed quality.
    if draws.rand() >= JPEG_SHARE and compression == "jpeg":
        return crop, None
    drawn = int(draws.randint(LEAST_QUALITY, TOP_QUALITY + 1))
    return encode(crop, "JPEG" if compression == "jpeg" else "WEBP", drawn), drawn


def encode(crop: Pixels, kind: Literal["JPEG", "WEBP"], quality: int) -> Pixels:
    """Compress RGB by Pillow with its defaults, and decode it again."""
    packed = io.BytesIO()
    Image.fromarray(crop).save(packed, kind, quality=quality)
    return np.array(Image.open(packed).convert("RGB"))


def rgb_to_ycbcr_truncated(image: Pixels) -> Pixels:
    """Return studio-swing YCbCr (…, 3) cut off to whole levels, in the order of products that decides ties."""
    values = (image * (1 / 255)) @ STUDIO_SWING.T
    values += STUDIO_OFFSET
    return values.astype(np.uint8)
