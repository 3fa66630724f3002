"""TIFF and BMP files whose layout asks for far more than their pixels: read within bounds, or refused in one line."""

import io
import os
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from datamodules.images.decoding import opened_header, read_image
from datamodules.images.errors import UnreadableImageError
from datamodules.images.tiff_bounds import MOST_NUMBERS
from tests.hostile.harness import run_hostile

BYTE, SHORT, LONG = 1, 3, 4
TILE = 4000  # a side of zeros in 4 channels: 64 MB from 62 kB


def tiff(entries, tail=b"", order="<"):
    """A TIFF file of one directory; `entries` are by tag their type and values, and `tail` lies behind all of them."""
    place, table, behind = 8 + 2 + 12 * len(entries) + 4, b"", b""
    for tag, (kind, values) in sorted(entries.items()):
        data = struct.pack(f"{order}{len(values)}{({BYTE: 'B', SHORT: 'H', LONG: 'I'})[kind]}", *values)
        table += struct.pack(order + "HHI", tag, kind, len(values))
        table += data.ljust(4, b"\0") if len(data) <= 4 else struct.pack(order + "I", place + len(behind))
        behind += data if len(data) > 4 else b""
    start = (b"II*\0" if order == "<" else b"MM\0*") + struct.pack(order + "IH", 8, len(entries))
    return start + table + bytes(4) + behind + tail


def grey(width, height, **entries):
    """Entries of an uncompressed picture of one channel."""
    tags = {256: (LONG, [width]), 257: (LONG, [height]), 258: (SHORT, [8]), 259: (SHORT, [1]), 262: (SHORT, [1])}
    return tags | {277: (SHORT, [1])} | {int(name[3:]): value for name, value in entries.items()}


def strips(width, height, rows, offsets):
    return grey(width, height, tag273=(LONG, offsets), tag278=(LONG, [rows]), tag279=(LONG, [rows * width]))


def in_one_huge_tile():
    packer = zlib.compressobj(9)
    data = b"".join(packer.compress(bytes(4 * TILE)) for _ in range(TILE)) + packer.flush()
    entries = grey(10, 10, tag322=(LONG, [TILE]), tag323=(LONG, [TILE]), tag324=(LONG, [8]), tag325=(LONG, [len(data)]))
    entries |= {258: (SHORT, [8] * 4), 259: (SHORT, [8]), 262: (SHORT, [2]), 277: (SHORT, [4]), 338: (SHORT, [2])}
    entries[324] = (LONG, [len(tiff(entries))])
    return tiff(entries, data)


# Name: the file, its length if holes follow, and why it is refused.
REFUSED = {
    "a tile of 16 million pixels around ten": (in_one_huge_tile(), 0, "decompression bomb: 4000x4000 is above the"),
    "strips beyond the end": (
        # Seed 23408 of tests/hostile/test_images.py: Pillow asked at once for what lies between two of them.
        tiff(strips(17, 34712, 9, [2881021352, 3457461230, 97294837, 3470079269, 2013703616])),
        0,
        "truncated TIFF file",
    ),
    "strips over each other": (
        tiff(strips(60, 60, 59, [0, 8] * 1000), bytes(3600)),
        0,
        r"damaged TIFF file \(its strips cover the picture again and again\)",
    ),
    "more numbers than strips": (
        tiff(strips(17, 9, 1, [8] * (MOST_NUMBERS + 1))),
        0,
        r"damaged TIFF file \(an entry of 262145 numbers\)",
    ),
    "a note of gigabytes": (
        tiff(strips(8, 8, 8, [300])).replace(
            struct.pack("<HHI", 277, SHORT, 1), struct.pack("<HHI", 277, BYTE, 2**32 - 1)
        ),
        1 << 40,
        "the header of the TIFF file is above the limit of 2000000 bytes",
    ),
    "entries without end": (
        b"II+\0" + struct.pack("<HHQ", 8, 0, 16) + struct.pack("<Q", 2**50),
        1 << 40,
        r"damaged TIFF file \(a directory of 1125899906842624 entries\)",
    ),
}


def written(name, folder):
    data, length, _ = REFUSED[name]
    path = folder / "image.tif"
    path.write_bytes(data)
    if length:
        os.truncate(path, length)
    return path


def test_what_asks_for_more_than_its_pixels_is_refused_in_little_memory(tmp_path, monkeypatch):
    monkeypatch.setenv("SEALMARK_MAX_PIXELS", "1000000")

    def reader(made, folder):
        path, reason = made
        with pytest.raises(UnreadableImageError, match=reason):
            read_image(path)

    report = run_hostile(
        reader,
        list(REFUSED),
        make=lambda name, folder: (written(name, folder), REFUSED[name][2]),
        seconds=20,
        megabytes=16,
        sandbox=tmp_path,
    )
    assert report.taken == len(REFUSED)


@pytest.mark.parametrize(
    "name", ["a tile of 16 million pixels around ten", "strips over each other", "a note of gigabytes"]
)
def test_headers_are_refused_alike(name, tmp_path, monkeypatch):
    monkeypatch.setenv("SEALMARK_MAX_PIXELS", "1000000")
    with pytest.raises(UnreadableImageError, match=REFUSED[name][2]), opened_header(written(name, tmp_path)):
        pass


def test_a_gap_of_gigabytes_between_strips_is_not_read(tmp_path):
    pixels = np.arange(64, dtype=np.uint8)
    entries = strips(8, 8, 4, [200, 2**32 - 32])
    path = tmp_path / "gap.tif"
    path.write_bytes(tiff(entries).ljust(200, b"\0") + pixels[:32].tobytes())
    with path.open("r+b") as file:
        file.seek(2**32 - 32)
        file.write(pixels[32:].tobytes())

    def reader(case, folder):
        np.testing.assert_array_equal(read_image(path)[..., 0], pixels.reshape(8, 8))

    assert run_hostile(reader, [0], seconds=20, megabytes=16, sandbox=tmp_path).taken == 1


@pytest.mark.parametrize("kind", ["TIFF", "BMP"])
@pytest.mark.parametrize("size_wh", [(300_000, 2), (2, 300_000), (70_001, 1)])
def test_long_rows_are_read_as_others_are(kind, size_wh, tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (*size_wh[::-1], 3), np.uint8)
    Image.fromarray(pixels).save(tmp_path / "image", kind)
    np.testing.assert_array_equal(read_image(tmp_path / "image"), pixels)


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("side", [16, 32, 256])
def test_ordinary_tiles_are_read(order, side, tmp_path, monkeypatch):
    monkeypatch.setenv("SEALMARK_MAX_PIXELS", str(256 * 256))
    pixels = np.random.default_rng(side).integers(0, 256, (40, 70), np.uint8)
    across, down = -(-70 // side), -(-40 // side)
    whole = np.zeros((down * side, across * side), np.uint8)
    whole[:40, :70] = pixels
    tiles = whole.reshape(down, side, across, side).swapaxes(1, 2).reshape(-1, side * side)
    entries = grey(70, 40, tag322=(LONG, [side]), tag323=(LONG, [side]), tag325=(LONG, [side * side] * len(tiles)))
    entries[324] = (LONG, [0] * len(tiles))
    start = len(tiff(entries))
    entries[324] = (LONG, [start + side * side * place for place in range(len(tiles))])
    (tmp_path / "image").write_bytes(tiff(entries, tiles.tobytes(), order))
    np.testing.assert_array_equal(read_image(tmp_path / "image")[..., 0], pixels)


def test_channels_in_planes_of_their_own_are_read(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (9, 17, 3), np.uint8)
    entries = strips(17, 9, 9, [0, 0, 0]) | {258: (SHORT, [8] * 3), 262: (SHORT, [2]), 277: (SHORT, [3])}
    entries |= {284: (SHORT, [2]), 279: (LONG, [17 * 9] * 3)}
    start = len(tiff(entries))
    entries[273] = (LONG, [start, start + 153, start + 306])
    (tmp_path / "image").write_bytes(tiff(entries, pixels.transpose(2, 0, 1).tobytes()))
    np.testing.assert_array_equal(read_image(tmp_path / "image"), pixels)


def test_a_large_profile_is_no_mistake(tmp_path):
    file = io.BytesIO()
    Image.new("RGB", (8, 8)).save(file, "TIFF", icc_profile=bytes(500_000))
    (tmp_path / "image").write_bytes(file.getvalue())
    assert read_image(tmp_path / "image").shape == (8, 8, 3)
