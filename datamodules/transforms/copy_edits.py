"""Edits that make evaluation queries of photos, by kind: untouched, mild and strong.

An edit takes a photo (H, W, 3) and a generator and returns a picture of any size; equal states of the generator give
equal pixels. Captions use held-out fonts; emoji and text of overlays are those of training. A photo of one pixel is
enough for each.
"""

from collections.abc import Callable

import cv2
import numpy as np
from numpy.random import Generator
from PIL import Image, ImageDraw

from datamodules.images.procedural import draw_scene
from datamodules.transforms import copy_operations as operations
from datamodules.transforms.copy_operations import Pixels
from datamodules.transforms.copy_overlays import draw_emoji, draw_text, emoji_stamp, lay, text_stamp
from datamodules.transforms.degradations import jpeg_roundtrip
from datamodules.transforms.fonts import font_split, load_font

Edit = Callable[[Pixels, Generator, Pixels | None], Pixels]


def edit(photo: Pixels, name: str, rng: Generator, background: Pixels | None = None) -> Pixels:
    """Apply one of `EDITS`; the photo is left as it is.

    Args:
        photo: RGB (H, W, 3).
        name: as in `EDITS`, such as "mild/jpeg".
        rng: source of every draw.
        background: another photo, for the edits that lay this one on it; a drawn scene if left out.
    """
    if name not in EDITS:
        raise ValueError(f"`name` must be one of {', '.join(EDITS)}, got {name!r}")
    return np.ascontiguousarray(EDITS[name](photo, rng, background))


def edit_group(name: str) -> str:
    """The kind of an edit: untouched, mild or strong."""
    return name.split("/")[0]


def _untouched(photo: Pixels, rng: Generator, background: Pixels | None) -> Pixels:
    del rng, background
    return photo.copy()


def _mild_jpeg(photo: Pixels, rng: Generator, background: Pixels | None) -> Pixels:
    del background
    return jpeg_roundtrip(photo, int(rng.integers(60, 91)))


def _mild_resize(photo: Pixels, rng: Generator, background: Pixels | None) -> Pixels:
    del background
    return _scaled(photo, rng.uniform(0.6, 0.9))


def _mild_crop(photo: Pixels, rng: Generator, background: Pixels | None) -> Pixels:
    del background
    return _cropped(photo, rng.uniform(0.85, 0.95), 1, rng)


def _mild_light(photo: Pixels, rng: Generator, background: Pixels | None) -> Pixels:
    del background
    brightness, contrast = rng.uniform(0.85, 1.15, 2)
    return operations.change_contrast(operations.brighten(photo, brightness), contrast)


def _mild_caption(photo: Pixels, rng: Generator, background: Pixels | None) -> Pixels:
    """A word of a twentieth of the picture's height in a lower corner."""
    del background
    height, width = photo.shape[:2]
    canvas = Image.fromarray(photo)
    font = load_font(_latin_font(rng), max(6, min(height, width) // 20))
    x, anchor = ((0.02 * width, "ls"), (0.98 * width, "rs"))[rng.integers(2)]
    ImageDraw.Draw(canvas).text((x, 0.97 * height), _word(rng), fill=_ink(rng), font=font, anchor=anchor)
    return np.asarray(canvas)


def _strong_jpeg(photo: Pixels, rng: Generator, background: Pixels | None) -> Pixels:
    del background
    blurred = operations.gaussian_blur(photo, rng.uniform(0.004, 0.012) * min(photo.shape[:2]))
    return jpeg_roundtrip(blurred, int(rng.integers(5, 21)))


def _strong_crop(photo: Pixels, rng: Generator, background: Pixels | None) -> Pixels:
    del background
    return _cropped(photo, rng.uniform(0.25, 0.6), rng.uniform(0.75, 4 / 3), rng)


def _strong_rotation(photo: Pixels, rng: Generator, background: Pixels | None) -> Pixels:
    del background
    return operations.rotate(photo, rng.uniform(10, 350))


def _strong_colour(photo: Pixels, rng: Generator, background: Pixels | None) -> Pixels:
    """Mirrored, with other light, saturation and hue."""
    del background
    light, contrast, saturation = rng.choice([0.5, 0.7, 1.3, 1.5], 3)
    mirrored = np.asarray(cv2.flip(photo, 1), np.uint8)
    changed = operations.change_contrast(operations.brighten(mirrored, light), contrast)
    return operations.shift_hue(operations.saturate(changed, saturation), rng.choice([-1, 1]) * rng.uniform(0.05, 0.2))


def _strong_overlay(photo: Pixels, rng: Generator, background: Pixels | None) -> Pixels:
    """Two to four emoji and one or two lines of text, as large as in training."""
    del background
    picture, size_wh = photo.copy(), photo.shape[1::-1]
    for emoji in [draw_emoji(rng) for _ in range(rng.integers(2, 5))]:
        if emoji:
            lay(picture, emoji_stamp(emoji, size_wh))
    for text in [draw_text(rng) for _ in range(rng.integers(1, 3))]:
        if text and (stamp := text_stamp(text, size_wh)):
            lay(picture, stamp)
    return picture


def _strong_pixels(photo: Pixels, rng: Generator, background: Pixels | None) -> Pixels:
    """Squares of one colour, 32 to 64 along the shorter side."""
    del background
    height, width = photo.shape[:2]
    factor = min(1, rng.integers(32, 65) / min(height, width))
    small = cv2.resize(photo, _scaled_wh(photo, factor), interpolation=cv2.INTER_AREA)
    return np.asarray(cv2.resize(small, (width, height), interpolation=cv2.INTER_NEAREST), np.uint8)


def _strong_shuffle(photo: Pixels, rng: Generator, background: Pixels | None) -> Pixels:
    """The tiles of a grid of 2 to 4 by 2 to 4 in another order; what does not fill a tile is cut off."""
    del background
    rows, columns = (int(min(rng.integers(2, 5), side)) for side in photo.shape[:2])
    height, width = photo.shape[0] // rows, photo.shape[1] // columns
    tiles = photo[: rows * height, : columns * width].reshape(rows, height, columns, width, 3).swapaxes(1, 2)
    shuffled = rng.permutation(tiles.reshape(-1, height, width, 3))
    return shuffled.reshape(rows, columns, height, width, 3).swapaxes(1, 2).reshape(rows * height, columns * width, 3)


def _strong_background(photo: Pixels, rng: Generator, background: Pixels | None) -> Pixels:
    """On another photo of the same size, a fifth to a half of its area, anywhere, at 0.8 to 1 opacity."""
    height, width = photo.shape[:2]
    canvas = _fitting_background(background, (height, width), rng)
    small = _scaled(photo, float(np.sqrt(rng.uniform(0.2, 0.5))))
    opacity = rng.uniform(0.8, 1)
    top, left = (int(rng.integers(room + 1)) for room in (height - small.shape[0], width - small.shape[1]))
    place = (slice(top, top + small.shape[0]), slice(left, left + small.shape[1]))
    canvas[place] = cv2.addWeighted(small, opacity, canvas[place], 1 - opacity, 0)
    return canvas


def _strong_screenshot(photo: Pixels, rng: Generator, background: Pixels | None) -> Pixels:
    """In an upright or a lying page of one colour with a title bar, lines of text below and a photo-wide margin."""
    del background
    small = _scaled(photo, min(1, 640 / max(photo.shape[:2])))
    height, width = small.shape[:2]
    margin, bar, foot = (max(1, int(width * share)) for share in rng.uniform((0.02, 0.08, 0.1), (0.15, 0.15, 0.5)))
    dark = bool(rng.random() < 0.4)
    page = Image.new("RGB", (width + 2 * margin, height + bar + foot), (24, 26, 30) if dark else (248, 248, 250))
    pen = ImageDraw.Draw(page)
    pen.rectangle((0, 0, page.width, bar * 2 // 3), fill=(45, 48, 56) if dark else (222, 225, 230))
    ink = (225, 225, 225) if dark else (30, 30, 30)
    font = load_font(_latin_font(rng), max(6, bar // 3))
    pen.text((margin, bar // 6), _word(rng), fill=ink, font=font)
    line = max(8, bar // 2)
    for y in range(bar + height + line // 4, page.height - line, line):
        pen.text((margin, y), " ".join(_word(rng) for _ in range(rng.integers(2, 6))), fill=ink, font=font)
    page.paste(Image.fromarray(small), (margin, bar))
    return np.asarray(page)


def _strong_perspective(photo: Pixels, rng: Generator, background: Pixels | None) -> Pixels:
    """Every corner moves inward by up to a quarter of its sides; black around."""
    del background
    height, width = photo.shape[:2]
    corners = np.array([[0, 0], [1, 0], [1, 1], [0, 1]], np.float32)
    moved = np.abs(corners - rng.uniform(0.02, 0.25, (4, 2)).astype(np.float32))
    size = np.array([width, height], np.float32)
    matrix = cv2.getPerspectiveTransform(corners * size, moved * size)
    return np.asarray(cv2.warpPerspective(photo, matrix, (width, height), flags=cv2.INTER_AREA), np.uint8)


def _strong_combination(photo: Pixels, rng: Generator, background: Pixels | None) -> Pixels:
    """Three different ones: one that moves pixels, one that covers or colours them and one that loses detail."""
    for names in _COMBINED:
        photo = EDITS[names[rng.integers(len(names))]](photo, rng, background)
    return photo


EDITS: dict[str, Edit] = {
    "untouched": _untouched,
    "mild/jpeg": _mild_jpeg,
    "mild/resize": _mild_resize,
    "mild/crop": _mild_crop,
    "mild/light": _mild_light,
    "mild/caption": _mild_caption,
    "strong/jpeg": _strong_jpeg,
    "strong/crop": _strong_crop,
    "strong/rotation": _strong_rotation,
    "strong/colour": _strong_colour,
    "strong/overlay": _strong_overlay,
    "strong/pixels": _strong_pixels,
    "strong/shuffle": _strong_shuffle,
    "strong/background": _strong_background,
    "strong/screenshot": _strong_screenshot,
    "strong/perspective": _strong_perspective,
    "strong/combination": _strong_combination,
}
"""Edits by name; the part of a name before the slash is its group."""

_COMBINED = (
    ("strong/crop", "strong/rotation", "strong/perspective", "mild/crop"),
    ("strong/colour", "strong/overlay", "strong/background", "strong/screenshot"),
    ("strong/jpeg", "mild/jpeg", "mild/resize", "strong/pixels"),
)
_WORDS = ("today", "photo", "by", "the", "north", "wind", "market", "copy", "summer", "2026", "town", "river")


def _scaled_wh(photo: Pixels, factor: float) -> tuple[int, int]:
    return max(1, round(photo.shape[1] * factor)), max(1, round(photo.shape[0] * factor))


def _scaled(photo: Pixels, factor: float) -> Pixels:
    return operations.resize(photo, _scaled_wh(photo, factor))


def _cropped(photo: Pixels, area: float, ratio: float, rng: Generator) -> Pixels:
    """A box of a share of the area anywhere, its proportions those of the photo by `ratio` as far as they fit."""
    height, width = photo.shape[:2]
    share_w = min(1.0, float(np.sqrt(area * ratio)))
    w, h = max(1, round(width * share_w)), max(1, round(height * min(1.0, area / share_w)))
    top, left = int(rng.integers(height - h + 1)), int(rng.integers(width - w + 1))
    return photo[top : top + h, left : left + w]


def _fitting_background(background: Pixels | None, size_hw: tuple[int, int], rng: Generator) -> Pixels:
    """A copy that fills the size."""
    height, width = size_hw
    if background is None:
        background = draw_scene(rng, (max(16, min(height, 512)), max(16, min(width, 512))))
    return operations.resize(background, (width, height)).copy()


def _latin_font(rng: Generator) -> str:
    fonts = font_split("held_out")
    return fonts[rng.integers(len(fonts))]


def _word(rng: Generator) -> str:
    return str(_WORDS[rng.integers(len(_WORDS))])


def _ink(rng: Generator) -> tuple[int, int, int]:
    red, green, blue = rng.integers(256, size=3).tolist()
    return red, green, blue
