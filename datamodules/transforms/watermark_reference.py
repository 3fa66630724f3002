"""Engine "reference": marks composited exactly as the published watermark-segmentation data set does.

One to five logos per photo, each rotated, scaled, faded, placed and blended by draws from Python's `random`, whose
order is part of the behaviour: equal seeds give equal samples, bit for bit. The label is every pixel where a
resampled logo has any alpha at all, seen or not; engine "sealmark" is there to do better.
"""

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from datamodules.images.decoding import opened_header
from lightning_modules.functional.compositing import composite

REFERENCE_MODES = ("normal", "multiply", "overlay")

_MAX_MARKS = 5
_SHARE_ROTATED = 0.5
_DIAGONAL_SHARES = (0.05, 0.70)
_OPACITIES = (0.3, 1.0)
_MIN_OVERLAP_PX = 10


@dataclass(frozen=True)
class Placement:
    """How one mark is laid on a photo.

    Attributes:
        rotation: Degrees counter-clockwise; None skips the call, which resamples even for 0.
        scale: Factor on the rotated logo's width and height.
        opacity: Factor on the logo's alpha.
        position: x and y of the top left corner of the resized logo; may lie outside.
        mode: A blend mode; any name but those of `REFERENCE_MODES` acts as "normal".
    """

    rotation: float | None
    scale: float
    opacity: float
    position: tuple[int, int]
    mode: str


def _rotated(logo: Image.Image, rotation: float | None) -> Image.Image:
    if rotation is None:
        return logo
    return logo.rotate(rotation, resample=Image.Resampling.BICUBIC, expand=True)


def _resized(logo: Image.Image, size: tuple[int, int], opacity: float) -> NDArray[np.float32]:
    """Straight RGBA in [0, 1] with the opacity in its alpha; Pillow premultiplies while resampling."""
    resized = logo.resize(size, resample=Image.Resampling.LANCZOS)
    rgba = np.asarray(resized, dtype=np.float32) / np.float32(255)
    rgba[..., 3] *= np.float32(opacity)
    return rgba


def _scaled_size(logo: Image.Image, scale: float) -> tuple[int, int]:
    return max(1, int(logo.width * scale)), max(1, int(logo.height * scale))


def _overlap(start: int, length: int, limit: int) -> tuple[slice, slice]:
    """Where an interval lies inside [0, limit): in the canvas and in the interval itself."""
    first, last = (min(max(edge, 0), limit) for edge in (start, start + length))
    return slice(first, last), slice(first - start, last - start)


@dataclass(frozen=True)
class _Window:
    """A mark cut to the canvas: the pixels it covers and its own RGBA there."""

    canvas: tuple[slice, slice]
    rgba: NDArray[np.float32]

    @classmethod
    def cut(cls, rgba: NDArray[np.float32], position: tuple[int, int], canvas_hw: Sequence[int]) -> "_Window":
        columns, own_columns = _overlap(position[0], rgba.shape[1], canvas_hw[1])
        rows, own_rows = _overlap(position[1], rgba.shape[0], canvas_hw[0])
        return cls((rows, columns), rgba[own_rows, own_columns])

    def blend(self, image: NDArray[np.float32], mask: NDArray[np.uint8], mode: str) -> None:
        known = mode if mode in REFERENCE_MODES else "normal"
        backdrop, rgba = torch.from_numpy(image[self.canvas]), torch.from_numpy(self.rgba)
        backdrop.copy_(composite(backdrop, rgba[..., :3], rgba[..., 3:], known))
        mask[self.canvas] |= self.rgba[..., 3] > 0


def paste_mark(image: NDArray[np.float32], mask: NDArray[np.uint8], logo: Image.Image, placement: Placement) -> None:
    """Draws one mark into `image` and sets `mask` to 1 wherever its resampled alpha is above 0.

    Args:
        image: (H, W, 3) in [0, 1], changed in place.
        mask: (H, W) of 0 and 1, changed in place.
        logo: RGBA.
        placement: Where and how.
    """
    rotated = _rotated(logo, placement.rotation)
    rgba = _resized(rotated, _scaled_size(rotated, placement.scale), placement.opacity)
    _Window.cut(rgba, placement.position, mask.shape).blend(image, mask, placement.mode)


class ReferenceCompositor:
    """Puts 1 to 5 random marks on a photo; equal states of the generator give equal samples.

    Args:
        logos: Name and picture of each logo. Their order matters to what a seed gives.
        dilate: Side of the square that grows the mask; 1 is, as in the reference, no growth.
    """

    def __init__(self, logos: Sequence[tuple[str, Image.Image]], dilate: int = 0) -> None:
        if not logos:
            raise ValueError("logos is empty: the reference engine needs at least one logo with transparency")
        if dilate < 0:
            raise ValueError(f"dilate must be 0 or more, got {dilate}")
        self.logos = [(name, logo.convert("RGBA")) for name, logo in logos]
        self.dilate = dilate

    @classmethod
    def from_folder(cls, folder: str | Path, dilate: int = 0) -> "ReferenceCompositor":
        """Reads every PNG directly inside a folder once, in order of name.

        Args:
            folder: Where the logos are; sub-folders are not entered.
            dilate: Side of the square that grows the mask.
        """
        directory = Path(folder)
        if not directory.is_dir():
            raise FileNotFoundError(f"no logo folder at {directory}: give a folder with PNG logos")
        paths = sorted(path for path in directory.iterdir() if path.suffix.lower() == ".png")
        if not paths:
            raise FileNotFoundError(f"no PNG logo in {directory}: the reference engine reads *.png only")
        return cls.from_files(paths, dilate)

    @classmethod
    def from_files(cls, paths: Sequence[str | Path], dilate: int = 0) -> "ReferenceCompositor":
        """Reads logos once, in the given order, whole: transparent borders count for their size and place.

        Args:
            paths: Images with transparency.
            dilate: Side of the square that grows the mask.
        """
        return cls([(Path(path).name, _read_logo(path)) for path in paths], dilate)

    def __call__(self, image: NDArray[np.uint8], rng: random.Random) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
        """The watermarked photo and its mask of 0 and 1, both at the photo's size.

        Args:
            image: (H, W, 3).
            rng: Source of every draw; `random.Random(s)` replays `random.seed(s)`.
        """
        canvas = image.astype(np.float32) / np.float32(255)
        mask = np.zeros(image.shape[:2], np.uint8)
        for _ in range(rng.randint(1, _MAX_MARKS)):
            self._paste_random(canvas, mask, rng)
        if self.dilate > 1:
            mask = cv2.dilate(mask, np.ones((self.dilate, self.dilate), np.uint8)).astype(np.uint8)
        # Truncation, not rounding, is the reference's way back to 8 bits.
        return (canvas * np.float32(255)).astype(np.uint8), mask

    def _paste_random(self, image: NDArray[np.float32], mask: NDArray[np.uint8], rng: random.Random) -> None:
        height, width = mask.shape
        _, logo = rng.choice(self.logos)
        rotated = _rotated(logo, rng.uniform(0, 360) if rng.random() < _SHARE_ROTATED else None)
        scale = _draw_scale(rotated, _diagonal(width, height), rng)
        opacity = rng.uniform(*_OPACITIES)
        size = _scaled_size(rotated, scale)
        x = _draw_offset(size[0], width, rng)
        y = _draw_offset(size[1], height, rng)
        window = _Window.cut(_resized(rotated, size, opacity), (x, y), mask.shape)
        # No blend mode is drawn for a mark that misses the canvas, which shifts all later draws.
        if window.rgba.size:
            window.blend(image, mask, rng.choices(REFERENCE_MODES)[0])


def _read_logo(path: str | Path) -> Image.Image:
    try:
        with opened_header(path) as logo:
            return logo.convert("RGBA")
    except Exception as error:  # a hostile file can raise anything inside Pillow
        raise ValueError(f"logo {str(path)!r} cannot be read ({error}): replace or remove it") from error


def _diagonal(width: int, height: int) -> float:
    return math.sqrt(width**2 + height**2)


def _draw_scale(logo: Image.Image, image_diagonal: float, rng: random.Random) -> float:
    diagonal = _diagonal(*logo.size)
    # Multiplying before dividing decides the last bit of the scale that a seed gives.
    return rng.uniform(*(share * image_diagonal / diagonal for share in _DIAGONAL_SHARES))


def _draw_offset(length: int, limit: int, rng: random.Random) -> int:
    lowest = -length + _MIN_OVERLAP_PX
    return rng.randint(lowest, max(lowest, limit - _MIN_OVERLAP_PX))
