"""Fonts for seals: Latin ones that augly brings, Chinese ones that the machine has."""

import os
import struct
import sys
from functools import lru_cache
from pathlib import Path

from PIL import ImageFont

from datamodules.transforms.fonts import BUILT_IN, available_fonts, load_font
from datamodules.transforms.seals.wording import HAN_LETTERS

Face = tuple[str, int]  # a font file and the place of the face in it

_LATIN = (
    "IBMPlexSans-Bold", "IBMPlexSans-SemiBold", "IBMPlexSerif-Bold", "IBMPlexSerif-SemiBold", "LeagueSpartan-Bold",
    "Montserrat-Bold", "Montserrat-SemiBold", "NotoSerif-Regular", "OpenSans-Bold", "OpenSans-Regular",
    "PlayfairDisplay-Bold", "Prata-Regular", "Quicksand-Bold", "Raleway-Bold", "SourceSansPro-Bold",
    "Titillium-Bold", "IBMPlexMono-SemiBold",
)  # fmt: skip
# It claims every character and draws a box for each.
_NOT_A_FONT = "LastResort"
_SIMPLIFIED = 2  # the place of the simplified Chinese face in the collections of Noto CJK


@lru_cache(maxsize=1)
def latin_faces() -> tuple[Face, ...]:
    """The fonts of augly that look like a stamp maker's; Pillow's own where augly is absent."""
    faces = tuple((path, 0) for path in available_fonts() if Path(path).stem in _LATIN)
    return faces or ((BUILT_IN, 0),)


def font_folders() -> tuple[Path, ...]:
    """Where systems keep their fonts."""
    home = Path.home()
    data = Path(os.environ.get("XDG_DATA_HOME") or home / ".local" / "share")
    unix = (Path("/usr/share/fonts"), Path("/usr/local/share/fonts"), data / "fonts", home / ".fonts")
    if sys.platform == "darwin":
        return (Path("/System/Library/Fonts"), Path("/Library/Fonts"), home / "Library" / "Fonts")
    return unix if os.name == "posix" else (Path(os.environ.get("WINDIR", "C:\\Windows")) / "Fonts",)


def _at(data: bytes, form: str, start: int) -> tuple[int, ...]:
    return struct.unpack_from(form, data, start)


def _spans(table: bytes) -> list[tuple[int, int]]:
    """First and last code points of a character map of format 4 or 12; none for others."""
    if _at(table, ">H", 0)[0] == 4:
        n = _at(table, ">H", 6)[0] // 2
        ends, starts = _at(table, f">{n}H", 14), _at(table, f">{n}H", 16 + 2 * n)
        return [(first, last) for first, last in zip(starts, ends, strict=True) if first != 0xFFFF]
    if _at(table, ">H", 0)[0] == 12:
        groups = range(16, 16 + 12 * _at(table, ">I", 12)[0], 12)
        return [(int(first), int(last)) for first, last in (_at(table, ">II", group) for group in groups)]
    return []


def mapped(path: str, index: int = 0) -> list[tuple[int, int]]:
    """Spans of code points that a face of a TrueType or OpenType file maps to drawings; none for other files."""
    data = Path(path).read_bytes()
    try:
        start = _at(data, ">I", 12 + 4 * index)[0] if data[:4] == b"ttcf" else 0
        tables = (_at(data, ">4sIII", start + 12 + 16 * i) for i in range(_at(data, ">H", start + 4)[0]))
        cmap = next(offset for tag, _, offset, _ in tables if tag == b"cmap")  # type: ignore[comparison-overlap]
        entries = (_at(data, ">HHI", cmap + 4 + 8 * i) for i in range(_at(data, ">H", cmap + 2)[0]))
        return [span for _, _, offset in entries for span in _spans(data[cmap + offset :])]
    except (struct.error, StopIteration):
        return []


def covers(path: str, text: str, index: int = 0) -> bool:
    """Whether a face says that it has a drawing for every character of a text."""
    if _NOT_A_FONT in Path(path).name:
        return False
    spans = mapped(path, index)
    return all(any(first <= ord(char) <= last for first, last in spans) for char in text)


def _faces_of(path: Path) -> int:
    with path.open("rb") as file:
        head = file.read(12)
    return int(struct.unpack(">I", head[8:12])[0]) if head[:4] == b"ttcf" and len(head) == 12 else 1


@lru_cache(maxsize=4)
def _chinese_in(folders: tuple[Path, ...]) -> tuple[Face, ...]:
    files = {path for folder in folders if folder.is_dir() for path in folder.rglob("*")}
    faces: list[Face] = []
    for path in sorted(files):
        if path.suffix.lower() not in (".ttf", ".otf", ".ttc"):
            continue
        # Files under a megabyte hold no Chinese; reading them all would take seconds.
        if path.stat().st_size < 1_000_000 or not covers(str(path), HAN_LETTERS):
            continue
        faces.append((str(path), _SIMPLIFIED if _faces_of(path) > _SIMPLIFIED and "CJK" in path.name else 0))
    return tuple(faces)


def chinese_faces() -> tuple[Face, ...]:
    """Faces of this machine that have every Chinese character that a seal may say; sorted, empty where there are none.

    Fonts are only looked for once in a process.
    """
    return _chinese_in(font_folders())


def script_faces(script: str) -> tuple[tuple[Face, ...], bool]:
    """The faces for a script, and whether they are Chinese; "auto" takes Chinese where there is some.

    Raises:
        FileNotFoundError: Chinese was demanded, and no font of this machine has the characters.
    """
    if script not in ("latin", "chinese", "auto"):
        raise ValueError(f"script must be 'latin', 'chinese' or 'auto', got {script!r}")
    faces = () if script == "latin" else chinese_faces()
    if script == "chinese" and not faces:
        raise FileNotFoundError(
            "script: no font with all Chinese characters of the seals was found; install one "
            "(Debian: apt install fonts-noto-cjk) or choose script latin"
        )
    return (faces, True) if faces else (latin_faces(), False)


@lru_cache(maxsize=256)
def open_face(face: Face, px: int) -> ImageFont.FreeTypeFont:
    """A face at a size in pixels."""
    path, index = face
    font = load_font(path, px) if index == 0 else _open_nth(path, index, px)
    assert isinstance(font, ImageFont.FreeTypeFont), "Pillow gives scalable fonts wherever a size is asked for"
    return font


def _open_nth(path: str, index: int, px: int) -> ImageFont.FreeTypeFont:
    return ImageFont.truetype(path, px, index=index, layout_engine=ImageFont.Layout.BASIC)
