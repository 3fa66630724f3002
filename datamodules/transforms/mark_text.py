"""Words that watermarks say, and their masks in many fonts."""

import math
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from datamodules.transforms.fonts import (
    Split,
    draws,
    font_scripts,
    font_split,
    load_font,
    script_fonts,
)

Mask = NDArray[np.uint8]

_SYLLABLES = (  # noqa: SIM905 - a hundred quoted syllables would fill the page
    "a an ar ba be bo bra ca chi co cu da de di do dra el en er fa fi flo fo ga ge gi go gra ha he hi ho in is ja jo "
    "ka ke ki ko la le li lo lu ma me mi mo mu na ne ni no nu o on or pa pe pi po pra qui ra re ri ro ru sa se shi "
    "so sta su ta te ti to tri tu u un ur va ve vi vo wa we wi xo ya yo za ze zo"
).split()
_STOCK = (
    "SAMPLE",
    "STOCK",
    "PREVIEW",
    "DRAFT",
    "COPY",
    "PROOF",
    "CONFIDENTIAL",
    "WATERMARK",
    "COPYRIGHT",
    "DEMO",
    "TRIAL",
    "DO NOT COPY",
    "NOT FOR SALE",
    "UNREGISTERED",
    "PREVIEW ONLY",
    "ALL RIGHTS RESERVED",
    "VOID",
    "SPECIMEN",
    "EVALUATION",
    "LICENSED",
)
_TRADES = (
    "Photography",
    "Photo",
    "Studio",
    "Images",
    "Pictures",
    "Media",
    "Design",
    "Films",
    "Art",
    "Gallery",
    "Press",
    "Travel",
    "Weddings",
    "Stock",
)
_DOMAINS = (
    "com",
    "net",
    "org",
    "io",
    "de",
    "fr",
    "co.uk",
    "it",
    "ru",
    "jp",
    "eu",
    "studio",
    "photo",
    "art",
)
_MONTHS = (
    "JAN",
    "FEB",
    "MAR",
    "APR",
    "MAY",
    "JUN",
    "JUL",
    "AUG",
    "SEP",
    "OCT",
    "NOV",
    "DEC",
)
_ANY = list("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789#&@!?%+-*/")


def draw_word(rng: np.random.Generator) -> str:
    """A pronounceable word of two to nine letters, in one of four capitalisations."""
    word = "".join(rng.choice(_SYLLABLES, int(rng.integers(1, 5))))
    word = (word + "x" * (2 - len(word)))[:9]
    return [word.title(), word.title(), word.upper(), word][rng.integers(4)]


def _date(rng: np.random.Generator) -> str:
    day, month, year = int(rng.integers(1, 29)), int(rng.integers(1, 13)), int(rng.integers(1990, 2030))
    clock = f"{rng.integers(24):02d}:{rng.integers(60):02d}"
    forms = [
        f"{day:02d}/{month:02d}/{year}",
        f"{year}-{month:02d}-{day:02d} {clock}",
        f"'{year % 100:02d} {month} {day}",
    ]
    return [*forms, f"{day} {_MONTHS[month - 1]} {year}", f"{year}.{month:02d}.{day:02d}"][rng.integers(5)]


def _owner(rng: np.random.Generator) -> str:
    name = f"{draw_word(rng)} {draw_word(rng)}" if rng.random() < 0.5 else draw_word(rng)
    return [
        f"© {name}",
        f"© {rng.integers(1990, 2030)} {name}",
        f"{name} {rng.choice(_TRADES)}",
        f"Photo by {name}",
        f"{name}®",
    ][rng.integers(5)]


def _address(rng: np.random.Generator) -> str:
    word = draw_word(rng).lower() + draw_word(rng).lower() * int(rng.integers(2))
    return [
        f"www.{word}.{rng.choice(_DOMAINS)}",
        f"{word}.{rng.choice(_DOMAINS)}",
        f"@{word}",
        f"https://{word}.{rng.choice(_DOMAINS)}/",
        f"{word}@{draw_word(rng).lower()}.{rng.choice(_DOMAINS)}",
    ][rng.integers(5)]


def draw_line(rng: np.random.Generator) -> str:
    """One line as watermarks carry it: a notice, an owner, an address, a date, a number, a name or nonsense."""
    kind = rng.random()
    if kind < 0.22:
        return str(rng.choice(_STOCK))
    if kind < 0.40:
        return _owner(rng)
    if kind < 0.54:
        return _address(rng)
    if kind < 0.62:
        return _date(rng)
    if kind < 0.70:
        return f"{rng.choice(['#', 'ID ', 'No. ', '', 'IMG_', 'Ref: '])}{rng.integers(10 ** int(rng.integers(2, 10)))}"
    if kind < 0.82:
        return "".join(rng.choice(_ANY, int(rng.integers(2, 13))))
    return " ".join(draw_word(rng) for _ in range(int(rng.integers(1, 4))))


def draw_lines(rng: np.random.Generator, font: str) -> list[str]:
    """One to five lines that a font can draw; in a script of its own where it has one."""
    count = 1 + int(np.searchsorted((0.62, 0.82, 0.92, 0.97), rng.random()))
    if count > 1 and rng.random() < 0.2:
        return [draw_sentence(rng, font)] * count
    return [draw_sentence(rng, font) for _ in range(count)]


def _foreign_line(rng: np.random.Generator, font: str, letters: str, most: int) -> str:
    words = ("".join(rng.choice(list(letters), int(rng.integers(2, 8)))) for _ in range(int(rng.integers(1, most + 1))))
    return _said(font, " ".join(words))


def draw_font(rng: np.random.Generator, split: Split) -> str:
    """A font of the split; one in eight draws a script other than Latin, where there is one."""
    foreign = script_fonts(split)
    if foreign and rng.random() < 0.12:
        for _ in range(3):
            path = foreign[rng.integers(len(foreign))]
            if font_scripts(path):
                return path
    fonts = font_split(split)
    path = fonts[rng.integers(len(fonts))]
    # Hairlines vanish at the size of most marks, and one font in six is a hairline.
    return fonts[rng.integers(len(fonts))] if "Thin" in path or "Light" in path else path


def _letters_of_its_own(rng: np.random.Generator, font: str) -> str:
    """Letters of a script that the font is made for; empty for a font of Latin letters."""
    scripts = font_scripts(font) if Path(font).name.startswith("Noto") else ()
    return scripts[rng.integers(len(scripts))] if scripts else ""


def _said(font: str, text: str) -> str:
    """The text without what the font would draw as an empty box."""
    return "".join(char for char in text if char == " " or draws(font, char)).strip() or "O"


def draw_name(rng: np.random.Generator, font: str) -> str:
    """A name of one word, sometimes two, that the font can draw."""
    letters = _letters_of_its_own(rng, font)
    if letters:
        return _foreign_line(rng, font, letters, 1)
    return _said(font, draw_word(rng) if rng.random() < 0.8 else f"{draw_word(rng)} {draw_word(rng)}")


def draw_sentence(rng: np.random.Generator, font: str) -> str:
    """One line as watermarks carry it, that the font can draw."""
    letters = _letters_of_its_own(rng, font)
    return _foreign_line(rng, font, letters, 3) if letters else _said(font, draw_line(rng))


def _quantised(size: float) -> int:
    """Sizes in steps of an eighth, so that few sizes of a font are ever opened."""
    step = math.floor(math.log2(max(6.0, min(size, 640.0))) * 6) / 6
    return round(2**step)


def _line_mask(text: str, font: str, px: int, spacing: float) -> Mask:
    face = load_font(font, px)
    gap = spacing * px
    length = face.getlength(text) + max(0.0, gap) * (len(text) - 1)
    # Swashes and accents reach beyond the box that a font states for its letters.
    image = Image.new("L", (round(length + px * 1.2) + 4, round(px * 2.4) + 4))
    draw, x, top = ImageDraw.Draw(image), px * 0.6, px * 0.5
    if spacing == 0:
        draw.text((x, top), text, 255, font=face)
        return np.asarray(image)
    for char in text:
        draw.text((x, top), char, 255, font=face)
        x += face.getlength(char) + gap
    return np.asarray(image)


def tight(mask: Mask, level: int = 12) -> Mask:
    """Crops away what is fainter than a level at the borders; one pixel where nothing is left."""
    x, y, w, h = cv2.boundingRect((mask > level).astype(np.uint8))
    return mask[y : y + h, x : x + w] if w else np.full((1, 1), 255, np.uint8)


def glyph_mask(text: str, font: str, n: int) -> Mask:
    """A few characters stretched as little as is needed to fill a square."""
    mask = tight(_line_mask(text, font, _quantised(n * 0.9 / max(1, len(text) * 0.6)), 0.0))
    h, w = mask.shape
    scale = 0.96 * n / max(h, w)
    mask = cv2.resize(mask, (max(1, round(w * scale)), max(1, round(h * scale))), interpolation=cv2.INTER_LINEAR)
    out = np.zeros((n, n), np.uint8)
    y, x = (n - mask.shape[0]) // 2, (n - mask.shape[1]) // 2
    out[y : y + mask.shape[0], x : x + mask.shape[1]] = mask
    return out


def text_mask(lines: list[str], font: str, width: int, *, spacing: float = 0.0, align: float = 0.5) -> Mask:
    """Lines under each other, about `width` pixels wide (less for few letters), tightly cropped."""
    probe = load_font(font, 24)
    longest = max(probe.getlength(line) + spacing * 24 * (len(line) - 1) for line in lines)
    px = _quantised(min(24 * width / max(longest, 1), width * 0.75))
    masks = [tight(_line_mask(line, font, px, spacing)) for line in lines]
    if len(masks) == 1:
        return masks[0]
    gap = max(1, round(px * 0.3))
    out = np.zeros((sum(m.shape[0] + gap for m in masks), max(m.shape[1] for m in masks)), np.uint8)
    y = 0
    for mask in masks:
        x = round((out.shape[1] - mask.shape[1]) * align)
        out[y : y + mask.shape[0], x : x + mask.shape[1]] = mask
        y += mask.shape[0] + gap
    return out[: y - gap]
