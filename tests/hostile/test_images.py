"""Hostile pictures: read in bounded memory and time, or refused in one line; nothing is written."""

import contextlib
import io
import os
import random
import socket
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from datamodules.images import decoding
from datamodules.images.decoding import decode_bytes, read_image, read_resized
from datamodules.images.errors import UnreadableImageError
from datamodules.images.file_facts import read_facts
from datamodules.transforms.spectrum_reference import read_plain
from datamodules.transforms.watermark_reference import ReferenceCompositor
from tests.hostile.corpus import IMAGES, deflated_bomb, hostile_image, png_chunk, png_of, whole_image
from tests.hostile.harness import run_hostile

PIXELS = 16_000_000  # the limit in these tests, a sixteenth of the default
MEGABYTES = 40 + 16 * PIXELS / 1e6  # what the docstring of `read_image` states


def make(case, folder):
    rng = random.Random(case)
    data = hostile_image(rng)[1]
    name = rng.choice(("image", "image.jpg", "image.png", "image.tif", "a\nb.png", b"\xff\xfe.webp", "x" * 255, " "))
    path = os.path.join(os.fsencode(folder), os.fsencode(name))
    with open(path, "wb") as file:
        file.write(data)
    return rng, os.fsdecode(path), data


def target(made, folder):
    rng, path, data = made
    mode, size = rng.choice(("RGB", "RGBA")), rng.choice((None, 1, 8, 64))
    turn = rng.randrange(4)
    if turn == 0:
        image = decode_bytes(data, path, size)
    elif turn == 1:
        image = read_resized(path, rng.choice((1, 16, 96)))
    elif turn == 2:
        read_facts(path)
        return
    else:
        image = read_image(path, size, mode, PIXELS)
    channels = len(mode) if turn == 3 else 3
    assert image.dtype == np.uint8
    assert image.ndim == 3
    assert image.shape[2] == channels
    assert image.flags.writeable
    assert image.shape[0] > 0
    assert image.shape[1] > 0


def fuzz(count, tmp_path, monkeypatch):
    monkeypatch.setenv("SEALMARK_MAX_PIXELS", str(PIXELS))
    run_hostile(
        target,
        range(count),
        make=make,
        seconds=20,
        megabytes=MEGABYTES,
        sandbox=tmp_path,
        allowed=(UnreadableImageError,),
    )


def test_a_few_mutated_pictures(tmp_path, monkeypatch):
    fuzz(80, tmp_path, monkeypatch)


@pytest.mark.long
@pytest.mark.parametrize("count", [30_000])
def test_many_mutated_pictures(count, tmp_path, monkeypatch):
    fuzz(count, tmp_path, monkeypatch)


def near_the_limit():
    """Pictures that may be read, each just within the limit and in the mode that takes the most memory."""
    side = 4000
    zeros = deflated_bomb((side * (side * 8 + 1) >> 20) + 1)
    yield "png", png_of(side, side, 8, 2, zeros)
    yield "png-alpha", png_of(side, side, 8, 6, zeros)
    yield "png-sixteen", png_of(side, side, 16, 0, zeros)
    yield "png-deep-alpha", png_of(side, side, 16, 6, zeros)
    yield "png-palette", png_of(side, side, 8, 3, zeros, png_chunk(b"PLTE", bytes(768)), png_chunk(b"tRNS", bytes(256)))
    yield "png-interlaced", png_of(side, side, 8, 6, zeros, interlace=1)
    turned = Image.Exif()
    turned[0x0112] = 6
    for kind, mode, options in (
        ("GIF", "P", {"transparency": 0}),
        ("WEBP", "RGBA", {"lossless": True, "method": 0, "exact": True}),
        ("JPEG", "CMYK", {"subsampling": 0}),
        ("JPEG", "RGB", {"progressive": True, "subsampling": 0}),
        ("BMP", "RGB", {}),
        ("TIFF", "F", {"compression": "tiff_lzw"}),
        ("TIFF", "I;16", {"compression": "tiff_lzw"}),
        ("TIFF", "RGBA", {"compression": "tiff_lzw"}),
    ):
        file = io.BytesIO()
        exif = {"exif": turned.tobytes()} if kind in ("JPEG", "WEBP", "TIFF") else {}
        Image.new(mode, (side, side)).save(file, kind, **options, **exif)
        yield f"{kind.lower()}-{mode}", file.getvalue()


@pytest.mark.slow
def test_pictures_just_within_the_limit_take_the_stated_memory(tmp_path, monkeypatch):
    monkeypatch.setenv("SEALMARK_MAX_PIXELS", str(PIXELS))
    large = dict(near_the_limit())

    def reader(case, folder):
        name, mode = case
        (folder / "image").write_bytes(large[name])
        assert read_image(folder / "image", mode=mode).shape == (4000, 4000, len(mode))

    cases = [(name, mode) for name in large for mode in ("RGB", "RGBA")]
    report = run_hostile(reader, cases, seconds=60, megabytes=MEGABYTES, sandbox=tmp_path)
    assert report.taken == len(cases)


def bombs():
    """Small files that ask for much: what they are, and what the line about them must say."""
    for width, height in ((60000, 60000), (2**31 - 1, 1), (16_000_001, 1)):
        yield png_of(width, height, 8, 2, zlib.compress(b"\0" * 99)), "decompression bomb"
    yield (
        b"GIF89a" + struct.pack("<HH", 65535, 65535) + b"\0\0\0,\0\0\0\0\xff\xff\xff\xff\0\2\2D\1\0;",
        "decompression bomb",
    )
    header = struct.pack("<IiiHHIIiiII", 40, 60000, 60000, 1, 24, 0, 0, 0, 0, 0, 0)
    yield b"BM" + struct.pack("<IHHI", 54 + 99, 0, 0, 54) + header + bytes(99), "decompression bomb"
    file = io.BytesIO()
    Image.new("L", (8, 8)).save(file, "TIFF")
    tiff = bytearray(file.getvalue())
    for tag in (256, 257):
        entry = tiff.index(struct.pack("<H", tag), int.from_bytes(tiff[4:8], "little"))
        struct.pack_into("<HHII", tiff, entry, tag, 4, 1, 60000)
    yield bytes(tiff), "decompression bomb"
    file = io.BytesIO()
    Image.new("RGB", (8, 8)).save(file, "JPEG")
    at = file.getvalue().index(b"\xff\xc0")
    yield file.getvalue()[: at + 5] + struct.pack(">HH", 65500, 65500) + file.getvalue()[at + 9 :], "decompression bomb"
    file = io.BytesIO()
    Image.new("RGBA", (8, 8)).save(file, "WEBP", lossless=True)
    webp = file.getvalue()
    canvas = b"VP8X" + struct.pack("<I", 10) + b"\x10\0\0\0" + struct.pack("<I", 16382)[:3] * 2
    yield b"RIFF" + struct.pack("<I", len(webp) + 10) + b"WEBP" + canvas + webp[12:], ""
    for name in (b"iCCP", b"zTXt"):
        yield (
            png_of(8, 8, 8, 2, zlib.compress(bytes(8 * 25)), png_chunk(name, b"key\0\0" + deflated_bomb(500))),
            "too large",
        )


BOMBS = list(bombs())


def test_bombs_are_refused_before_memory_is_taken(tmp_path, monkeypatch):
    monkeypatch.setenv("SEALMARK_MAX_PIXELS", str(PIXELS))

    def reader(number, folder):
        data, wanted = BOMBS[number]
        (folder / "image").write_bytes(data)
        with pytest.raises(UnreadableImageError, match=wanted):
            read_image(folder / "image")

    report = run_hostile(reader, range(len(BOMBS)), seconds=20, megabytes=100, sandbox=tmp_path)
    assert report.taken == len(BOMBS)


def test_a_jpeg_of_a_million_scans_is_refused_at_once(tmp_path):
    file = io.BytesIO()
    Image.new("L", (2000, 2000)).save(file, "JPEG", progressive=True)
    data = file.getvalue()
    at = data.rindex(b"\xff\xda")
    bomb = data[:at] + data[at:-2] * 100_000 + b"\xff\xd9"

    def reader(case, folder):
        decode_bytes({"whole": data, "bomb": bomb}[case], "a picture")

    report = run_hostile(reader, ["whole", "bomb"], seconds=20, megabytes=200, sandbox=tmp_path)
    assert (report.taken, report.reasons.total()) == (1, 1)


def test_markers_of_scans_behind_the_picture_do_not_count():
    file = io.BytesIO()
    Image.new("RGB", (20, 20)).save(file, "JPEG", comment=b"\xff\xda" * 200, progressive=True)
    video = random.Random(0).randbytes(1000) + b"\xff\xda" * 1000
    assert decode_bytes(file.getvalue() + video, "motion photo").shape == (20, 20, 3)


def test_a_line_of_pixels_is_not_blown_up_to_a_square_one(tmp_path):
    path = tmp_path / "line.png"
    Image.new("RGB", (1, 40_000)).save(path)
    assert read_image(path).shape == (40_000, 1, 3)
    with pytest.raises(UnreadableImageError, match="1x40000 with a shorter side of 512 would be above the limit"):
        read_resized(path, 512)


@pytest.mark.parametrize("start", [b"\xff\xd8\xff\xe0\0\4\0\0", b"RIFF\xff\xff\xff\x7fWEBPVP8X"])
def test_a_file_of_a_terabyte_of_holes_is_not_read(tmp_path, start):
    path = tmp_path / "holes.jpg"
    path.write_bytes(start)
    os.truncate(path, 1 << 40)
    for reader in (read_image, read_facts):
        with pytest.raises(UnreadableImageError, match="its 1099511627776 bytes are more than 2 bytes for each of the"):
            reader(path)


@pytest.mark.parametrize("mode", ["1", "L", "P", "LA", "RGB", "RGBA", "I;16", "F", "I", "CMYK", "LAB"])
def test_large_pictures_come_in_bands_as_they_would_at_once(mode, tmp_path, monkeypatch):
    for kind, (modes, _) in IMAGES.items():
        for variant in range(2 * (mode in modes)):
            path = tmp_path / f"{kind}-{variant}"
            path.write_bytes(whole_image(kind, mode, variant, (33, 48), 1, 6))
            for channels in ("RGB", "RGBA"):
                monkeypatch.setattr(decoding, "BAND_PIXELS", 1 << 22)
                at_once = read_image(path, mode=channels)
                monkeypatch.setattr(decoding, "BAND_PIXELS", 700)
                np.testing.assert_array_equal(read_image(path, mode=channels), at_once)


@pytest.mark.parametrize("text", ["0", "-1", "many", "1e6", "9" * 5000])
def test_a_limit_that_is_no_number_is_refused(text, tmp_path, monkeypatch):
    monkeypatch.setenv("SEALMARK_MAX_PIXELS", text)
    with pytest.raises(ValueError, match="SEALMARK_MAX_PIXELS must be a whole number of pixels above 0"):
        read_image(tmp_path / "any.png")


def special_files(folder):
    """What can lie in a folder of pictures without being one."""
    os.mkfifo(folder / "fifo.jpg")
    (folder / "folder.png").mkdir()
    (folder / "zero.jpg").symlink_to("/dev/zero")
    (folder / "loop.png").symlink_to("loop.png")
    (folder / "dangling.png").symlink_to("nothing")
    (folder / "proc.png").symlink_to("/proc/self/mem")
    (folder / "empty.gif").touch()
    with socket.socket(socket.AF_UNIX) as bound, contextlib.chdir(folder):
        bound.bind("socket.webp")
    return [folder / name for name in ("missing.png", "nul\0.png", "x" * 300, *sorted(os.listdir(folder)))]


READERS = {
    "image": read_image,
    "resized": lambda path: read_resized(path, 64),
    "facts": read_facts,
    "published spectra": read_plain,
    "published logos": lambda path: ReferenceCompositor.from_files([path]),
}


def test_what_is_no_file_is_refused_at_once_by_every_reader(tmp_path):
    cases = [(reader, number) for reader in READERS for number in range(11)]
    report = run_hostile(
        lambda made, folder: READERS[made[0]](made[1]),
        cases,
        make=lambda case, folder: (case[0], special_files(folder)[case[1]]),
        seconds=10,
        megabytes=50,
        sandbox=tmp_path,
    )
    assert report.taken == 0
