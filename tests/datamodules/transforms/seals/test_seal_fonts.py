"""Fonts of seals: what a face covers, which files are Chinese ones, and what is left out."""

import struct
from pathlib import Path

import pytest
from PIL import ImageFont

from datamodules.transforms.fonts import BUILT_IN, draws, font_files
from datamodules.transforms.seals import seal_fonts, wording
from datamodules.transforms.seals.seal_fonts import chinese_faces, covers, latin_faces, mapped, open_face, script_faces


def cmap_table(spans: list[tuple[int, int]], form: int) -> bytes:
    """A character map with one table, of format 4 or 12, that maps whole spans."""
    if form == 12:
        groups = b"".join(struct.pack(">III", first, last, 1) for first, last in spans)
        table = struct.pack(">HHIII", 12, 0, 16 + len(groups), 0, len(spans)) + groups
    else:
        ends = [*(last for _, last in spans), 0xFFFF]
        starts = [*(first for first, _ in spans), 0xFFFF]
        n = len(ends)
        body = struct.pack(f">{n}HH{n}H", *ends, 0, *starts) + bytes(4 * n)
        table = struct.pack(">HHHHHHH", 4, 14 + len(body), 0, 2 * n, 0, 0, 0) + body
    return struct.pack(">HHHHI", 0, 1, 3, 1, 12) + table


def font_file(path: Path, spans: list[tuple[int, int]], *, form: int = 12, faces: int = 1, size: int = 0) -> Path:
    """A file with the directory and the character map of a font, and no drawings."""
    head = struct.pack(f">4sHHI{faces}I", b"ttcf", 2, 0, faces, *[12 + 4 * faces] * faces) if faces > 1 else b""
    start = len(head) + 12 + 16
    cmap = cmap_table(spans, form)
    directory = struct.pack(">IHHHH", 0x10000, 1, 16, 0, 0) + struct.pack(">4sIII", b"cmap", 0, start, len(cmap))
    path.write_bytes((head + directory + cmap).ljust(size, b"\0"))
    return path


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A machine whose only font folder is this one."""
    monkeypatch.setattr(seal_fonts, "font_folders", lambda: (tmp_path,))
    return tmp_path


@pytest.mark.parametrize("form", [4, 12])
@pytest.mark.parametrize("faces", [1, 3])
def test_character_maps_are_read(tmp_path: Path, form: int, faces: int) -> None:
    path = font_file(tmp_path / "a.ttf", [(0x41, 0x5A), (0x4E00, 0x9FA5)], form=form, faces=faces)
    assert mapped(str(path), faces - 1) == [(0x41, 0x5A), (0x4E00, 0x9FA5)]
    assert covers(str(path), "AZ中国", faces - 1)
    assert not covers(str(path), "a", faces - 1)


@pytest.mark.skipif(not font_files(), reason="augly, which brings the fonts, is not installed")
def test_character_maps_agree_with_what_pillow_draws() -> None:
    for path in [path for path in font_files() if "Noto" in path or "Plex" in path][::12]:
        for char in "AzÄЖλא中":
            if draws(path, char):
                assert covers(path, char), (path, char)
        assert not covers(path, wording.HAN_LETTERS)


def test_files_that_are_no_fonts_cover_nothing(tmp_path: Path) -> None:
    for i, content in enumerate((b"", b"not a font", b"ttcf", bytes(40))):
        path = tmp_path / f"{i}.ttf"
        path.write_bytes(content)
        assert mapped(str(path)) == []
        assert not covers(str(path), "A")


def test_chinese_fonts_are_found_and_last_resort_is_not_one(machine: Path) -> None:
    (machine / "deep").mkdir()
    han = [(0x20, 0x7E), (0x4E00, 0x9FA5)]
    good = font_file(machine / "deep" / "b.ttf", han, size=1_200_000)
    cjk = font_file(machine / "NotoSerifCJK-Bold.ttc", han, faces=5, size=1_200_000)
    font_file(machine / "LastResortHE-Regular.ttf", [(0, 0x10FFFF)], size=1_200_000)
    font_file(machine / "latin.ttf", [(0x20, 0x24F)], size=1_200_000)
    font_file(
        machine / "lacks_the_last.ttf", [(0x20, 0x7E), (0x4E00, ord(max(wording.HAN_LETTERS)) - 1)], size=1_200_000
    )
    (machine / "notes.txt").write_text("no font")
    assert chinese_faces() == ((str(cjk), 2), (str(good), 0))
    assert script_faces("auto") == (chinese_faces(), True)
    assert script_faces("chinese") == (chinese_faces(), True)
    assert script_faces("latin") == (latin_faces(), False)


def test_without_chinese_fonts_auto_is_latin_and_chinese_an_error(machine: Path) -> None:
    assert script_faces("auto") == (latin_faces(), False)
    with pytest.raises(FileNotFoundError, match="apt install fonts-noto-cjk"):
        script_faces("chinese")


def test_latin_faces_draw_all_that_latin_seals_say() -> None:
    said = "ABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789&.,-o"
    for path, index in latin_faces():
        assert index == 0
        assert path == BUILT_IN or draws(path, said)
        assert isinstance(open_face((path, index), 20), ImageFont.FreeTypeFont)


def test_pillows_own_font_serves_where_augly_is_absent(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(seal_fonts, "available_fonts", lambda: (BUILT_IN,))
    assert latin_faces.__wrapped__() == ((BUILT_IN, 0),)
    assert open_face((BUILT_IN, 0), 30).getlength("HH") > 20


def test_font_folders_are_absolute() -> None:
    assert all(folder.is_absolute() for folder in seal_fonts.font_folders())
