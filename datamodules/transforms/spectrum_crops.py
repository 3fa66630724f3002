"""Square crops for detectors that look at spectra: one policy of resizing and compression, whatever the label.

Nothing here asks whether a picture is real: what happens to one class alone is what a detector would learn.
"""

import io
import math
from dataclasses import dataclass
from typing import Literal

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from datamodules.transforms.spectrum_reference import aligned_offset

Pixels = NDArray[np.uint8]
Codec = Literal["jpeg", "webp", "none"]

KERNELS = (Image.Resampling.BILINEAR, Image.Resampling.BICUBIC, Image.Resampling.LANCZOS)
_FULL, _HALF = int(cv2.IMWRITE_JPEG_SAMPLING_FACTOR_444), int(cv2.IMWRITE_JPEG_SAMPLING_FACTOR_420)


@dataclass(frozen=True)
class CropSettings:
    """What training does to every picture, real or generated.

    Args:
        resize_probability: Share of pictures that are resized by a factor of `scale`.
        scale: Least and greatest factor.
        fit_probability: Share of pictures that are shrunk until their shorter side is `fit` windows, as the published
            code does to real pictures alone; smaller ones stay as they are.
        fit: Least and greatest shorter side, in windows.
        jpeg_probability: Share of crops that are compressed as JPEG.
        jpeg_quality: Least and greatest quality of JPEG.
        full_chroma: Share of the JPEGs without chroma subsampling; the others have 4:2:0.
        webp_probability: Share of crops that are compressed as WebP; the rest stays uncompressed.
        webp_quality: Least and greatest quality of WebP.
    """

    resize_probability: float = 0.3
    scale: tuple[float, float] = (0.75, 1.25)
    fit_probability: float = 0.0
    fit: tuple[float, float] = (1.0, 1.5)
    jpeg_probability: float = 0.75
    jpeg_quality: tuple[int, int] = (30, 100)
    full_chroma: float = 0.3
    webp_probability: float = 0.15
    webp_quality: tuple[int, int] = (50, 100)

    def __post_init__(self) -> None:
        for first, second in (("resize_probability", "fit_probability"), ("jpeg_probability", "webp_probability")):
            shares = getattr(self, first), getattr(self, second)
            if min(shares) < 0 or sum(shares) > 1:
                raise ValueError(f"{first} and {second} must be 0 or more and at most 1 together, got {shares}")
        if not 0 <= self.full_chroma <= 1:
            raise ValueError(f"full_chroma must lie in 0 to 1, got {self.full_chroma}")
        bounds = {"scale": (0.05, 8.0), "fit": (1.0, 64.0), "jpeg_quality": (1, 100), "webp_quality": (1, 100)}
        for name, (least, most) in bounds.items():
            low, high = getattr(self, name)
            if not least <= low <= high <= most:
                raise ValueError(f"{name} must be a rising pair in {least} to {most}, got {(low, high)}")


@dataclass(frozen=True)
class CropPlan:
    """One draw: the factor of resizing, its kernel, the crop's place as shares, and the compression."""

    scale: float
    kernel: Image.Resampling
    x: float
    y: float
    codec: Codec
    quality: int
    full_chroma: bool


def draw_plan(size_hw: tuple[int, int], window: int, settings: CropSettings, rng: np.random.Generator) -> CropPlan:
    """Return what happens to a picture of this size; it takes equally many draws whatever they are."""
    way, where, x, y, packing, chroma = rng.random(6).tolist()
    scale = 1.0
    if way < settings.fit_probability:
        # Only downwards: a picture smaller than that is left alone.
        scale = min(1.0, _between(settings.fit, where) * window / min(size_hw))
    elif way < settings.fit_probability + settings.resize_probability:
        scale = _between(settings.scale, where)
    jpeg = packing < settings.jpeg_probability
    webp = not jpeg and packing < settings.jpeg_probability + settings.webp_probability
    low, high = settings.webp_quality if webp else settings.jpeg_quality
    return CropPlan(
        scale=scale,
        kernel=KERNELS[int(rng.integers(len(KERNELS)))],
        x=x,
        y=y,
        codec="jpeg" if jpeg else "webp" if webp else "none",
        quality=int(rng.integers(low, high + 1)),
        full_chroma=chroma < settings.full_chroma,
    )


def target_size(size_hw: tuple[int, int], scale: float) -> int | None:
    """Return the shorter side to which a JPEG may be decoded at a reduced size; None for full size.

    Only where the picture is shrunk to that size or below afterwards: decoding at a half changes the spectrum, and
    nothing must tell of it that the shrinking would have left.
    """
    return math.ceil(min(size_hw) * scale) if scale <= 0.5 else None


def apply_plan(image: Pixels, window: int, plan: CropPlan, full_hw: tuple[int, int] | None = None) -> Pixels:
    """Return the crop (window, window, 3) of a plan.

    Args:
        image: RGB, perhaps decoded at a reduced size.
        window: Side of the crop.
        plan: What `draw_plan` drew.
        full_hw: Height and width of the picture at full size; None means those of `image`.
    """
    height, width = image.shape[:2]
    scale = plan.scale * (1.0 if full_hw is None else min(full_hw) / min(height, width))
    side_hw = _source_side(height, window, scale), _source_side(width, window, scale)
    top, left = int(plan.y * (height - side_hw[0] + 1)), int(plan.x * (width - side_hw[1] + 1))
    part = image[top : top + side_hw[0], left : left + side_hw[1]]
    if scale != 1:
        part = resize(
            part, (min(window, round(side_hw[0] * scale)), min(window, round(side_hw[1] * scale))), plan.kernel
        )
    return compress(fill_window(part, window), plan.codec, plan.quality, plan.full_chroma)


def central_crop(image: Pixels, window: int) -> Pixels:
    """Return the central crop, on the picture's 8-px grid; a smaller picture is continued to fill it."""
    top, left = (aligned_offset(side, window) for side in image.shape[:2])
    return fill_window(image[top : top + window, left : left + window], window)


def resized_central_crop(image: Pixels, window: int, scale: float) -> Pixels:
    """Return the centre of the picture resized by `scale`, of which only the part that is seen is made."""
    sides = [_source_side(side, window, scale) for side in image.shape[:2]]
    top, left = ((whole - side) // 2 for whole, side in zip(image.shape[:2], sides, strict=True))
    part = image[top : top + sides[0], left : left + sides[1]]
    size_hw = min(window, round(sides[0] * scale)), min(window, round(sides[1] * scale))
    return fill_window(resize(part, size_hw, Image.Resampling.BICUBIC), window)


def fill_window(image: Pixels, window: int) -> Pixels:
    """Return a picture of window x window: one that is smaller is continued by its mirror image.

    Mirrored whole, edge pixels repeated, it is continuous at the seams and keeps every frequency where it was. Tiling
    would put a jump at each seam, which is a cross through the spectrum, and enlarging would move all frequencies.
    """
    height, width = image.shape[:2]
    if height >= window and width >= window:
        return np.ascontiguousarray(image[:window, :window])
    rows, columns = max(0, window - height), max(0, window - width)
    filled: Pixels = np.pad(image, ((0, rows), (0, columns), (0, 0)), mode="symmetric")[:window, :window]
    return np.ascontiguousarray(filled)


def resize(image: Pixels, size_hw: tuple[int, int], kernel: Image.Resampling) -> Pixels:
    """Return the picture resized by Pillow, which widens the kernel when it shrinks: nothing is aliased."""
    size_hw = max(1, size_hw[0]), max(1, size_hw[1])
    return np.asarray(Image.fromarray(np.ascontiguousarray(image)).resize(size_hw[::-1], kernel))


def compress(crop: Pixels, codec: Codec, quality: int, full_chroma: bool = False) -> Pixels:
    """Compress RGB and decode it again.

    Args:
        crop: RGB (H, W, 3).
        codec: `jpeg`, `webp` or `none`, which returns the crop.
        quality: 1 to 100 of the codec's own scale.
        full_chroma: JPEG only: no chroma subsampling, else 4:2:0.
    """
    if codec == "none":
        return crop
    if codec == "webp":
        packed = io.BytesIO()
        Image.fromarray(crop).save(packed, "WEBP", quality=quality)
        return np.array(Image.open(packed).convert("RGB"))
    options = [cv2.IMWRITE_JPEG_QUALITY, quality, cv2.IMWRITE_JPEG_SAMPLING_FACTOR, _FULL if full_chroma else _HALF]
    encoded = cv2.imencode(".jpg", cv2.cvtColor(crop, cv2.COLOR_RGB2BGR), options)[1]
    return np.asarray(cv2.imdecode(encoded, cv2.IMREAD_COLOR_RGB), np.uint8)


def _source_side(side: int, window: int, scale: float) -> int:
    """Return how many pixels of a side the window shows."""
    return min(side, max(1, math.ceil(window / scale - 1e-9)))


def _between(bounds: tuple[float, float], share: float) -> float:
    return bounds[0] + (bounds[1] - bounds[0]) * share
