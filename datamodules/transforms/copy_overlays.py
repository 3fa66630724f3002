"""Emoji and text laid on pictures, with the assets of the installed augly package.

A stamp is made for a whole picture and laid on any part of it: only the pixels in that part are touched, and they are
the same as if the whole picture had been painted and cut.
"""

import pickle
from bisect import bisect_left
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from datamodules.transforms.fonts import emoji_files, font_files

Pixels = NDArray[np.uint8]

_CHARACTERS = 100  # drawn for a text, of which at most all but one are used
_LONGEST = _CHARACTERS - 1


@dataclass(frozen=True)
class EmojiOverlay:
    """Which emoji, how large and where, as shares of any picture."""

    path: str
    size: float
    opacity: float
    x: float
    y: float


@dataclass(frozen=True)
class TextOverlay:
    """Which characters in which font, how large and where, as shares of any picture.

    `length` is the share, in [0, 1), of the characters that fit.
    """

    font: str
    characters: str
    size: float
    length: float
    color: tuple[int, int, int]
    opacity: float
    x: float
    y: float


@dataclass(frozen=True)
class Stamp:
    """A small picture and its place; without a mask its own alpha counts."""

    picture: Image.Image
    left: int
    top: int
    mask: Image.Image | None = None


def draw_emoji(rng: Generator) -> EmojiOverlay | None:
    """A uniform emoji of 0.1 to 0.5 of the picture, opacity 0.7 to 1; nothing where augly is absent."""
    paths = emoji_files()
    if not paths:
        return None
    size, opacity, x, y = rng.uniform((0.1, 0.7, 0, 0), (0.5, 1, 1, 1)).tolist()
    return EmojiOverlay(paths[rng.integers(len(paths))], size, opacity, x, y)


def draw_text(rng: Generator) -> TextOverlay | None:
    """Uniform font, characters and colour, 0.1 to 0.3 of the picture high; nothing where augly is absent."""
    fonts = text_fonts()
    if not fonts:
        return None
    font = fonts[rng.integers(len(fonts))]
    points = _code_points(font)
    characters = "".join(map(chr, points[rng.integers(len(points), size=_CHARACTERS)].tolist()))
    size, length, opacity, x, y = rng.uniform((0.1, 0, 0.1, 0, 0), (0.3, 1, 1, 1, 1)).tolist()
    red, green, blue = rng.integers(256, size=3).tolist()
    return TextOverlay(font, characters, size, length, (red, green, blue), opacity, x, y)


def emoji_stamp(overlay: EmojiOverlay, size_wh: tuple[int, int], legacy: bool = False) -> Stamp:
    """The emoji for a picture of a size.

    Args:
        overlay: what to lay.
        size_wh: size of the whole picture.
        legacy: paste palette emoji, which most are, as the reference does: as opaque rectangles, scaled by nearest
            pixels, with the palette's colour where they should be transparent.
    """
    emoji = _open_emoji(overlay.path, legacy)
    factor = min(size_wh[0] / emoji.width, size_wh[1] / emoji.height) * overlay.size
    emoji = emoji.resize((max(1, int(emoji.width * factor)), max(1, int(emoji.height * factor))), _BILINEAR)
    if "A" in emoji.getbands():
        mask = emoji.getchannel("A").point([int(alpha * overlay.opacity) for alpha in range(256)])
    else:
        mask = Image.new("L", emoji.size, int(255 * overlay.opacity))
    left, top = int(overlay.x * (size_wh[0] - emoji.width)), int(overlay.y * (size_wh[1] - emoji.height))
    return Stamp(emoji.convert("RGB"), left, top, mask)


def text_stamp(overlay: TextOverlay, size_wh: tuple[int, int], legacy: bool = False) -> Stamp | None:
    """The text for a picture of a size, or nothing if no character fits or the font fails.

    Args:
        overlay: what to write.
        size_wh: size of the whole picture.
        legacy: write nothing if all characters fit, as the reference does.
    """
    try:
        font = _load_font(overlay.font, max(1, int(min(size_wh) * overlay.size)))
        fitting = fitting_length(font, overlay.characters, size_wh)
        if fitting == 0 or (legacy and fitting == _LONGEST):
            return None
        return _write(font, overlay.characters[: 1 + int(overlay.length * fitting)], overlay, size_wh)
    except (OSError, RuntimeError):  # a broken file, or a mixture of scripts that the layout engine gives up on
        return None


def fitting_length(font: ImageFont.FreeTypeFont, characters: str, size_wh: tuple[int, int]) -> int:
    """How many of the first 99 characters can be written in one line without leaving a picture of this size."""

    def overflows(length: int) -> bool:
        left, _, right, bottom = font.getbbox(characters[:length])
        return right - left > size_wh[0] or bottom > size_wh[1]

    longest = min(_LONGEST, len(characters))
    # Mostly a dozen fit, and a long text takes long to measure.
    beyond = next((length for length in (8, 16, 32, 64) if length <= longest and overflows(length)), longest + 1)
    return bisect_left(range(1, beyond), True, key=overflows)


def lay(picture: Pixels, stamp: Stamp, left: int = 0, top: int = 0) -> None:
    """Lay a stamp, in place, on the part of its picture that begins at `left` and `top`."""
    height, width = picture.shape[:2]
    x, y = stamp.left - left, stamp.top - top
    x0, x1 = max(0, x), min(width, x + stamp.picture.width)
    y0, y1 = max(0, y), min(height, y + stamp.picture.height)
    if x0 >= x1 or y0 >= y1:
        return
    seen = (x0 - x, y0 - y, x1 - x, y1 - y)
    under = Image.fromarray(picture[y0:y1, x0:x1])
    over = stamp.picture.crop(seen)
    if stamp.mask is None:
        under = Image.alpha_composite(under.convert("RGBA"), over).convert("RGB")
    else:
        under.paste(over, (0, 0), stamp.mask.crop(seen))
    picture[y0:y1, x0:x1] = np.asarray(under)


@lru_cache(maxsize=1)
def text_fonts() -> tuple[str, ...]:
    """Every font of augly that has a list of its code points, sorted; empty where augly is absent."""
    return tuple(path for path in font_files() if path.endswith(".ttf") and Path(path).with_suffix(".pkl").is_file())


_BILINEAR = Image.Resampling.BILINEAR


def _write(font: ImageFont.FreeTypeFont, text: str, overlay: TextOverlay, size_wh: tuple[int, int]) -> Stamp:
    left, _, right, bottom = font.getbbox(text)
    x, y = overlay.x * (size_wh[0] - (right - left)), overlay.y * (size_wh[1] - bottom)
    before = max(0, -int(left)) + 1  # ink may begin left of the pen
    layer = Image.new("RGBA", (int(right) + before + 2, int(bottom) + 2))
    ink = (*overlay.color, int(255 * overlay.opacity + 0.5))
    # The fraction of a pixel moves the ink, the rest only the stamp.
    ImageDraw.Draw(layer).text((before + x % 1, y % 1), text, fill=ink, font=font)
    return Stamp(layer, int(x) - before, int(y))


@lru_cache(maxsize=1024)  # all of them: 20 kB each
def _open_emoji(path: str, legacy: bool) -> Image.Image:
    with Image.open(path) as picture:
        if not legacy:
            return picture.convert("RGBA")
        emoji = picture.copy()
    emoji.info.pop("transparency", None)  # plays no part, and Pillow warns of it
    return emoji


@lru_cache(maxsize=64)
def _load_font(path: str, size: int) -> ImageFont.FreeTypeFont:
    return ImageFont.truetype(path, size)  # with the layout engine of Pillow's wheels, as the reference


@lru_cache(maxsize=512)
def _code_points(font: str) -> NDArray[np.int32]:
    with Path(font).with_suffix(".pkl").open("rb") as file:
        points = np.asarray(pickle.load(file), np.int32)  # noqa: S301 (a file of the installed package)
    # A break of line or paragraph is no ink, and some fonts and the layout engine fail on it.
    return np.setdiff1d(points, [0x0A, 0x0D, 0x2029])
