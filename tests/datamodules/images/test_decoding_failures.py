"""Files that read_image must refuse: each kind by its own reason, none by a crash or a line on the terminal."""

import contextlib
import io
import os
import struct
import subprocess
import sys
import zlib

import cv2
import numpy as np
import pytest
from PIL import Image

from datamodules.images.decoding import MAX_PIXELS, read_image
from datamodules.images.errors import UnreadableImageError

LOSSLESS = [
    ("PNG", {}),
    ("WEBP", {"lossless": True}),
    ("TIFF", {}),
    ("TIFF", {"compression": "tiff_lzw"}),
    ("BMP", {}),
]
LOSSY = [("JPEG", {}), ("JPEG", {"progressive": True}), ("WEBP", {"quality": 80}), ("TIFF", {"compression": "jpeg"})]
ALL_FORMATS = [*LOSSLESS, *LOSSY, ("GIF", {})]


def _photo(height=60, width=90, seed=0):
    """Smooth colours with some grain; no symmetry, so that every wrong turn shows."""
    rng = np.random.default_rng(seed)
    coarse = rng.integers(0, 256, (5, 7, 3), np.uint8)
    smooth = cv2.resize(coarse, (width, height), interpolation=cv2.INTER_CUBIC).astype(int)
    return np.clip(smooth + rng.integers(-6, 7, smooth.shape), 0, 255).astype(np.uint8)


def _save(folder, image, kind, name="image", **options):
    path = folder / name
    (Image.fromarray(image) if isinstance(image, np.ndarray) else image).save(path, kind, **options)
    return path


def _reason(path, **options):
    with pytest.raises(UnreadableImageError) as caught:
        read_image(path, **options)
    assert caught.value.path == str(path)
    assert "\n" not in str(caught.value)
    return caught.value.reason


def _png_header(width, height):
    def chunk(name, data):
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0" * 99)) + chunk(b"IEND", b"")
    )


@pytest.mark.parametrize("percent", [10, 50, 90, 99])
@pytest.mark.parametrize(("kind", "options"), ALL_FORMATS)
@pytest.mark.parametrize("target_size", [None, 20])
def test_cut_file_is_called_truncated(tmp_path, capfd, percent, kind, options, target_size):
    path = _save(tmp_path, _photo(120, 180), kind, **options)
    data = path.read_bytes()
    path.write_bytes(data[: len(data) * percent // 100])
    assert _reason(path, target_size=target_size).startswith("truncated")
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("progressive", [False, True])
@pytest.mark.parametrize("percent", [30, 90])
def test_zeros_in_place_of_the_end_are_called_truncated(tmp_path, percent, progressive):
    path = _save(tmp_path, _photo(120, 180), "JPEG", progressive=progressive)
    data = path.read_bytes()
    kept = len(data) * percent // 100
    path.write_bytes(data[:kept] + bytes(len(data) - kept))
    assert _reason(path).startswith("truncated JPEG")


def test_opencv_is_not_asked_about_a_jpeg_without_its_end(tmp_path, monkeypatch):
    # Older ones answer with a picture whose rest is grey.
    path = _save(tmp_path, _photo(120, 180), "JPEG")
    path.write_bytes(path.read_bytes()[:-2])
    monkeypatch.setattr(cv2, "imdecode", lambda *_: pytest.fail("asked OpenCV"))
    with contextlib.suppress(UnreadableImageError):
        read_image(path)


def test_jpeg_with_a_trailer_is_whole(tmp_path):
    path = _save(tmp_path, _photo(120, 180), "JPEG")
    plain = read_image(path)
    for trailer in (b"\0" * 40, b"\r\n", b"some camera's own data" * 50):
        path.write_bytes(path.read_bytes() + trailer)
        assert np.array_equal(read_image(path), plain)


def test_cut_jpeg_with_a_whole_thumbnail_inside_is_truncated(tmp_path):
    thumbnail = io.BytesIO()
    Image.fromarray(_photo(16, 24)).save(thumbnail, "JPEG")
    path = _save(tmp_path, _photo(120, 180), "JPEG")
    data = path.read_bytes()
    segment = b"\xff\xe5" + struct.pack(">H", 2 + len(thumbnail.getvalue())) + thumbnail.getvalue()
    whole = data[:2] + segment + data[2:]
    path.write_bytes(whole)
    read_image(path)
    path.write_bytes(whole[: len(whole) // 2])
    assert _reason(path).startswith("truncated JPEG")


def test_damaged_data_with_an_end_stays_silent(tmp_path):
    path = _save(tmp_path, _photo(120, 180), "JPEG")
    data = path.read_bytes()
    path.write_bytes(data[: len(data) // 2] + data[-2:])
    # A process of its own: pytest's capture may hold other threads and other ends of the standard streams.
    code = f"from datamodules.images.decoding import read_image; print(read_image({str(path)!r}).shape)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert (done.stdout, done.stderr) == ("(120, 180, 3)\n", "")


def test_damaged_png_is_named_so(tmp_path):
    path = _save(tmp_path, _photo(), "PNG")
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 0xFF
    path.write_bytes(data)
    assert _reason(path).startswith("damaged or unsupported PNG")


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b"", "the file is empty"),
        (b"<html>404</html>", "not an image"),
        (b"%PDF-1.7 \xff\xd8\xff", "not an image"),
        (b"\0\0\0\x1cftypheic\0\0\0\0", "HEIC"),
        (b"B", "not an image"),
        (b"BM not a bitmap at all, only two letters", "BMP file"),
        (b"\xff\xd8\xff", "JPEG file"),
        (b"\x89PNG\r\n\x1a\n", "truncated PNG"),
        (b"GIF89a", "truncated GIF"),
        (b"RIFF\x99\0\0\0WEBPVP8 ", "truncated WebP"),
        (b"II*\0\x08\0\0\0", "truncated, damaged or unsupported TIFF"),
    ],
)
def test_what_is_no_image(tmp_path, content, expected):
    path = tmp_path / "photo.jpg"
    path.write_bytes(content)
    assert expected in _reason(path)


def test_bomb_is_refused_by_its_header(tmp_path):
    path = tmp_path / "bomb.png"
    path.write_bytes(_png_header(30_000, 30_000))
    assert (
        _reason(path)
        == f"decompression bomb: 30000x30000 is above the limit of {MAX_PIXELS} pixels that SEALMARK_MAX_PIXELS sets"
    )


@pytest.mark.parametrize(("kind", "options"), ALL_FORMATS)
def test_limit_on_pixels_is_a_parameter_and_inclusive(tmp_path, kind, options):
    path = _save(tmp_path, _photo(60, 90), kind, **options)
    assert _reason(path, max_pixels=60 * 90 - 1, target_size=8).startswith("decompression bomb: 90x60")
    read_image(path, max_pixels=60 * 90)


@pytest.mark.parametrize(("kind", "options"), [case for case in ALL_FORMATS if case[0] not in ("WEBP", "TIFF")])
def test_pillows_own_limit_neither_stops_nor_warns(tmp_path, monkeypatch, recwarn, kind, options):
    path = _save(tmp_path, _photo(), kind, **options)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    assert read_image(path).shape == (60, 90, 3)
    assert len(recwarn) == 0


@pytest.mark.parametrize("kind", ["WEBP", "TIFF"])
def test_where_pillows_limit_holds_it_is_called_a_bomb(tmp_path, monkeypatch, kind):
    path = _save(tmp_path, _photo(), kind)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    assert _reason(path).startswith("decompression bomb")


def test_folder_pipe_and_missing_file(tmp_path):
    assert _reason(tmp_path) == "it is a folder"
    assert _reason(tmp_path / "gone.png") == "no such file"
    os.mkfifo(tmp_path / "pipe.png")
    assert _reason(tmp_path / "pipe.png") == "it is not a regular file"


def test_forbidden_file(tmp_path, monkeypatch):
    path = _save(tmp_path, _photo(), "PNG")
    if os.geteuid() == 0:  # nothing is forbidden to root

        def refuse(*_):
            raise PermissionError(13, "Permission denied", str(path))

        monkeypatch.setattr(type(path), "open", refuse)
    else:
        path.chmod(0)
    assert _reason(path) == "no permission to read it"


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF", "GIF", "BMP"])
def test_random_damage_gives_an_image_or_our_error(tmp_path, kind, capfd):
    path = _save(tmp_path, _photo(), kind)
    data = np.frombuffer(path.read_bytes(), np.uint8)
    for seed in range(40):
        rng = np.random.default_rng(seed)
        damaged = data.copy()
        places = rng.integers(12, min(len(data), 400 if seed % 2 else len(data)), 4)
        damaged[places] = rng.integers(0, 256, 4)
        path.write_bytes(damaged.tobytes())
        image = None
        with contextlib.suppress(UnreadableImageError):
            image = read_image(path, 30 if seed % 3 else None, max_pixels=10**6)
        assert image is None or (image.shape[2] == 3 and image.dtype == np.uint8)
