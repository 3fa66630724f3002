"""Fonts and emoji that came with the installed augly package, split so that no design is in both splits."""

import hashlib
import importlib.util
import re
from functools import lru_cache
from pathlib import Path
from typing import Literal

from PIL import Image, ImageFont

Split = Literal["train", "held_out"]
AnyFont = ImageFont.FreeTypeFont | ImageFont.ImageFont

BUILT_IN = ""  # stands for Pillow's own font where augly is absent
_HELD_OUT_PERCENT = 20
_SALT = "9"  # chosen so that the held-out fifth has sans, serif, script and non-Latin designs in it
_BASIC_LATIN = "AQagxR58&"
_NOT_A_CHARACTER = "\U0010ffff"

# First and last code point of letters that stand alone well; a font that draws the probes draws most of them.
_SCRIPTS = {
    "accents": (0xC0, 0xFF), "greek": (0x391, 0x3C9), "cyrillic": (0x410, 0x44F), "armenian": (0x531, 0x556),
    "hebrew": (0x5D0, 0x5EA), "arabic": (0x627, 0x64A), "devanagari": (0x905, 0x939), "bengali": (0x985, 0x9B9),
    "gurmukhi": (0xA05, 0xA39), "gujarati": (0xA85, 0xAB9), "tamil": (0xB85, 0xBB9), "telugu": (0xC05, 0xC39),
    "kannada": (0xC85, 0xCB9), "malayalam": (0xD05, 0xD39), "sinhala": (0xD85, 0xDC6), "thai": (0xE01, 0xE2E),
    "lao": (0xE81, 0xEAE), "tibetan": (0xF40, 0xF6C), "myanmar": (0x1000, 0x1021), "georgian": (0x10D0, 0x10F0),
    "ethiopic": (0x1200, 0x1357), "cherokee": (0x13A0, 0x13F4), "syllabics": (0x1401, 0x1676),
    "runic": (0x16A0, 0x16EA), "khmer": (0x1780, 0x17B3), "tifinagh": (0x2D30, 0x2D67),
    "kana": (0x30A1, 0x30FA), "han": (0x4E00, 0x9FA5), "yi": (0xA000, 0xA48C), "vai": (0xA500, 0xA60C),
    "hangul": (0xAC00, 0xD7A3),
}  # fmt: skip

# Fonts of pictures: where their pictures are, and in which split they are.
_ICON_FONTS: dict[str, tuple[Split, int, int]] = {
    "Entypo": ("train", 0x21, 0x7E),
    "DavysDingbats": ("train", 0x41, 0x7A),
    "heydings_icons": ("held_out", 0x41, 0x7A),
    "heydings_controls": ("train", 0x41, 0x7A),
    "NotoEmoji-Regular": ("train", 0x1F300, 0x1F5FF),
    "NotoSansSymbols-Regular": ("train", 0x2600, 0x26FF),
    "NotoSansSymbols2-Regular": ("held_out", 0x2700, 0x27BF),
    "NotoSansEgyptianHieroglyphs-Regular": ("train", 0x13000, 0x1342E),
    "NotoSansAnatolianHieroglyphs-Regular": ("held_out", 0x14400, 0x14646),
    "NotoSansLinearB-Regular": ("train", 0x10080, 0x100FA),
    "NotoSansCuneiform-Regular": ("train", 0x12000, 0x1236E),
}
_NOT_LETTERS = ("DavysDingbats", "Entypo", "heydings_icons", "heydings_controls", "TypeMyMusic_1.1")


@lru_cache(maxsize=1)
def _assets() -> Path | None:
    # find_spec locates the package without running it: augly's import is slow.
    spec = importlib.util.find_spec("augly")
    if spec is None or not spec.submodule_search_locations:
        return None
    folder = Path(next(iter(spec.submodule_search_locations))) / "assets"
    return folder if folder.is_dir() else None


def _in_split(name: str, split: Split) -> bool:
    if split not in ("train", "held_out"):
        raise ValueError(f"split must be 'train' or 'held_out', got {split!r}")
    digest = hashlib.sha256((_SALT + name).encode()).digest()
    held_out = int.from_bytes(digest[:4], "big") % 100 < _HELD_OUT_PERCENT
    return held_out == (split == "held_out")


def font_family(path: str) -> str:
    """The part of a font's file name before its weight and slant."""
    return re.split(r"[-_.]", Path(path).name)[0]


@lru_cache(maxsize=1)
def font_files() -> tuple[str, ...]:
    """Every font file of augly, sorted; empty where augly is absent."""
    assets = _assets()
    files = (assets / "fonts").rglob("*") if assets else ()
    return tuple(sorted(str(path) for path in files if path.suffix.lower() in (".ttf", ".otf")))


def _drawings(path: str, text: str) -> list[bytes]:
    """The pixels of each character; empty bytes for one that the font lacks."""
    font = load_font(path, 12)
    if not isinstance(font, ImageFont.FreeTypeFont):
        return [char.encode("ascii", "ignore") for char in text]
    missing = bytes(font.getmask(_NOT_A_CHARACTER))
    drawings = [bytes(font.getmask(char)) for char in text]
    return [pixels if any(pixels) and pixels != missing else b"" for pixels in drawings]


@lru_cache(maxsize=8192)
def draws(path: str, text: str) -> bool:
    """Whether a font has a drawing for every character of a text, and not the same one for all."""
    try:
        drawings = _drawings(path, text)
    except OSError:
        return False
    return all(drawings) and (len(text) == 1 or len(set(drawings)) > 1)


@lru_cache(maxsize=1)
def available_fonts() -> tuple[str, ...]:
    """Every path returned loads in Pillow and draws basic Latin; sorted, never empty."""
    files = (path for path in font_files() if Path(path).stem not in _NOT_LETTERS)
    return tuple(path for path in files if draws(path, _BASIC_LATIN)) or (BUILT_IN,)


@lru_cache(maxsize=2)
def font_split(split: Split) -> tuple[str, ...]:
    """The fonts of one split; no family is in both, unless only Pillow's own font exists."""
    fonts = available_fonts()
    return tuple(path for path in fonts if _in_split(font_family(path), split)) or fonts


@lru_cache(maxsize=2)
def script_fonts(split: Split) -> tuple[str, ...]:
    """Font files of one split that are made for more than Latin, to be asked with `font_scripts`."""
    noto = (path for path in font_files() if font_family(path).startswith("Noto"))
    return tuple(path for path in noto if _in_split(font_family(path), split))


@lru_cache(maxsize=512)
def font_scripts(path: str) -> tuple[str, ...]:
    """The letters that a font draws beside basic Latin, one string of candidates a script."""
    spans = ("".join(map(chr, range(first, last + 1))) for first, last in _SCRIPTS.values())
    return tuple(letters for letters in spans if draws(path, letters[2]) and draws(path, letters[9]))


@lru_cache(maxsize=2)
def icon_fonts(split: Split) -> tuple[tuple[str, int, int], ...]:
    """Fonts of pictures in one split, with the first and last code point of their pictures."""
    return tuple(
        (path, first, last)
        for path in font_files()
        for of_split, first, last in [_ICON_FONTS.get(Path(path).stem, ("", 0, 0))]
        if of_split == split
    )


def _open_font(path: str, size: int) -> AnyFont:
    if path == BUILT_IN:
        return ImageFont.load_default(size)
    # The basic layout engine is in every build of Pillow, so the same string has the same pixels everywhere.
    return ImageFont.truetype(path, size, layout_engine=ImageFont.Layout.BASIC)


@lru_cache(maxsize=256)
def load_font(path: str, size: int) -> AnyFont:
    """The font at a size in pixels; a path of "" is Pillow's own font."""
    return _open_font(path, size)


@lru_cache(maxsize=1)
def emoji_files() -> tuple[str, ...]:
    """Every emoji picture of augly, sorted; empty where augly is absent."""
    assets = _assets()
    return tuple(sorted(str(path) for path in (assets / "twemojis").rglob("*.png"))) if assets else ()


@lru_cache(maxsize=2)
def emoji_paths(split: Split) -> tuple[str, ...]:
    """Emoji pictures of one split, sorted."""
    return tuple(path for path in emoji_files() if _in_split(Path(path).name, split))


@lru_cache(maxsize=256)
def load_emoji(path: str) -> Image.Image:
    """The emoji as an RGBA picture without empty borders, whatever mode its file has."""
    with Image.open(path) as picture:
        emoji = picture.convert("RGBA")
    return emoji.crop(emoji.getchannel("A").getbbox())
