"""Image files to arrays: every common format and mode, upright, 8 bits, or one precise reason why not."""

import contextlib
import io
import multiprocessing
import os
import re
import stat
import threading
import warnings
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import BinaryIO, Literal

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import (
    BmpImagePlugin,
    ExifTags,
    GifImagePlugin,
    Image,
    ImageFile,
    ImageOps,
    JpegImagePlugin,
    PngImagePlugin,
    TiffImagePlugin,
    WebPImagePlugin,
)

from datamodules.images.errors import UnreadableImageError
from datamodules.images.tiff_bounds import bound_reads, padded_size, refuse_directory

MAX_PIXELS = 250_000_000  # three times a 100-megapixel camera's back; 750 MB as an array
LIMIT = "SEALMARK_MAX_PIXELS"
BYTES_A_PIXEL = 2  # files that are read whole, against the limit on pixels; noise as JPEG takes 1.5, photos 0.3
MOST_SCANS = 100  # progressive files have about 10; each one more goes over the whole picture in a few bytes
BAND_PIXELS = 1 << 22  # converted at once, so that the copies on the way stay small

# The classes themselves, not `Image.open`: its limit on pixels is a global of the process, below ours.
_READERS: dict[str, Callable[[BinaryIO], ImageFile.ImageFile]] = {
    "JPEG": JpegImagePlugin.JpegImageFile,
    "PNG": PngImagePlugin.PngImageFile,
    "WebP": WebPImagePlugin.WebPImageFile,
    "TIFF": TiffImagePlugin.TiffImageFile,
    "BMP": BmpImagePlugin.BmpImageFile,
    "GIF": GifImagePlugin.GifImageFile,
}
_Rule = Callable[[NDArray[np.float64]], NDArray[np.float64]]
_JPEG_END = b"\xff\xd9"
_JPEG_SCAN = b"\xff\xda"
_JPEG_MARKER = re.compile(rb"\xff[^\x00\x01\xd0-\xd7\xff]")  # not stuffing, restarts and fill


def read_image(
    path: str | os.PathLike[str],
    target_size: int | None = None,
    mode: Literal["RGB", "RGBA"] = "RGB",
    max_pixels: int | None = None,
) -> NDArray[np.uint8]:
    """Returns an upright, writable uint8 array (H, W, 3) or (H, W, 4), or raises `UnreadableImageError`.

    What the file says by EXIF about its orientation is applied. For RGB, transparent pixels are laid on white and
    alpha is dropped; for RGBA, alpha is straight and 255 where the file has none. 16-bit values are divided by
    257. Float and 32-bit values are kept if they lie in [0, 255], multiplied by 255 if floats lie in [0, 1], and
    else stretched from their least to their greatest. Colour profiles are ignored. Animations give their first frame.

    Args:
        path: a JPEG, PNG, WebP, TIFF, BMP or GIF file, whatever its name.
        target_size: length of the shorter side that the caller needs. A JPEG is then decoded at 1/2, 1/4 or 1/8
            where that is not below this length; the result is often larger, and the caller resizes it. An image so
            narrow that it would have too many pixels at this length is refused.
        mode: channels of the result.
        max_pixels: an image with more pixels is refused by its header, before memory is taken for it; None takes
            `pixel_limit()`. Decoding takes up to 16 bytes a pixel, 24 where the picture is one pixel wide. Pillow
            refuses WebP and TIFF above 179 million pixels in any case.

    Raises:
        UnreadableImageError: the file is missing, forbidden, a folder, empty, no image, cut, damaged or too large.
    """
    if target_size is not None and target_size < 1:
        raise ValueError(f"target_size must be at least 1, got {target_size}; leave it out for full size")
    name, most = os.fspath(path), max_pixels or pixel_limit()
    try:
        with open_regular(name) as file, _quiet_libraries():
            return _decode(name, file, target_size, mode, most)
    except UnreadableImageError:
        raise
    except Exception as error:  # a hostile file can raise anything inside Pillow; a worker must survive it
        raise UnreadableImageError(name, _describe(error)) from error


def decode_bytes(data: bytes, name: str, target_size: int | None = None) -> NDArray[np.uint8]:
    """Returns the RGB image in the bytes of a file, as `read_image` does for a path; errors call it by `name`."""
    if not data:
        raise UnreadableImageError(name, "the file is empty")
    most = pixel_limit()
    try:
        with _quiet_libraries():
            return _decode(name, io.BytesIO(data), target_size, "RGB", most)
    except UnreadableImageError:
        raise
    except Exception as error:
        raise UnreadableImageError(name, _describe(error)) from error


def pixel_limit() -> int:
    """Returns how many pixels an image may have: what `SEALMARK_MAX_PIXELS` says, else `MAX_PIXELS`."""
    text = os.environ.get(LIMIT, "")
    if not text:
        return MAX_PIXELS
    if not (re.fullmatch("[0-9]{1,15}", text) and int(text)):
        raise ValueError(f"{LIMIT} must be a whole number of pixels above 0, got {text[:40]!r}; unset it or correct it")
    return int(text)


@contextlib.contextmanager
def opened_header(path: str | os.PathLike[str]) -> Iterator[ImageFile.ImageFile]:
    """Gives Pillow's image of a file, not decoded yet, where `read_image` would begin to decode it.

    Raises:
        UnreadableImageError: the file is none that can be read; what Pillow says of its header comes as it is.
    """
    name = os.fspath(path)
    with open_regular(name) as file:
        head = file.read(32)
        file.seek(0)
        _refuse_long(name, _kind(head), file, pixel_limit())
        with Image.open(file, formats=[kind.upper() for kind in _READERS]) as image:
            _refuse_large(name, padded_size(image), None, pixel_limit())
            bound_reads(name, image, file)
            yield image


def read_resized(path: str | os.PathLike[str], size: int) -> NDArray[np.uint8]:
    """Returns the RGB image with a shorter side of exactly `size`, averaging areas where it shrinks."""
    image = read_image(path, size)
    height, width = image.shape[:2]
    scale = size / min(height, width)
    if scale == 1:
        return image
    size_wh = (max(size, round(width * scale)), max(size, round(height * scale)))
    if scale > 1:
        return np.asarray(cv2.resize(image, size_wh, interpolation=cv2.INTER_CUBIC), np.uint8)
    if scale > 0.5:  # OpenCV averages whole factors of areas fast and others slowly: half the time, by one step
        twice_wh = (2 * size_wh[0], 2 * size_wh[1])
        image = np.asarray(cv2.resize(image, twice_wh, interpolation=cv2.INTER_LINEAR), np.uint8)
    return np.asarray(cv2.resize(image, size_wh, interpolation=cv2.INTER_AREA), np.uint8)


@contextlib.contextmanager
def _quiet_libraries() -> Iterator[None]:
    """Keeps out of the terminal what Pillow and C libraries remark about data without naming the file.

    The C libraries write to the process's standard error, which is put aside only where no other thread can be
    writing to it: in workers, and in programs of one thread.
    """
    with contextlib.ExitStack() as stack:
        stack.enter_context(warnings.catch_warnings())
        warnings.simplefilter("ignore")
        if multiprocessing.parent_process() is not None or threading.active_count() == 1:
            with contextlib.suppress(OSError):  # a daemon without a standard error
                kept = os.dup(2)
                stack.callback(os.close, kept)
                stack.callback(os.dup2, kept, 2)
                silence = os.open(os.devnull, os.O_WRONLY)
                stack.callback(os.close, silence)
                os.dup2(silence, 2)
        yield


def open_regular(path: str) -> BinaryIO:
    """Refuses what would block or fail oddly when read as a file."""
    status = os.stat(path)
    if stat.S_ISDIR(status.st_mode):
        raise UnreadableImageError(path, "it is a folder")
    if not stat.S_ISREG(status.st_mode):
        raise UnreadableImageError(path, "it is not a regular file")
    if status.st_size == 0:
        raise UnreadableImageError(path, "the file is empty")
    return Path(path).open("rb")


def _decode(
    path: str, file: BinaryIO, target_size: int | None, mode: Literal["RGB", "RGBA"], max_pixels: int
) -> NDArray[np.uint8]:
    head = file.read(32)
    file.seek(0)
    kind = _kind(head)
    if kind is None:
        what = "HEIC, AVIF or video" if head[4:8] == b"ftyp" else "not an image"
        raise UnreadableImageError(path, f"{what}; JPEG, PNG, WebP, TIFF, BMP and GIF can be read")
    try:
        _refuse_long(path, kind, file, max_pixels)
        image = _READERS[kind](file)
        _refuse_large(path, image.size, target_size, max_pixels)
        _refuse_large(path, padded_size(image), None, max_pixels)
        bound_reads(path, image, file)
        if kind == "JPEG":
            file.seek(0)
            data = file.read()
            _refuse_scans(path, data)
            return _decode_jpeg(image, data, target_size, mode)
        return _convert(image, mode)
    except UnreadableImageError:
        raise
    except Exception as error:
        raise UnreadableImageError(path, _fault(kind, head, file, error)) from error


def _refuse_long(path: str, kind: str | None, file: BinaryIO, max_pixels: int) -> None:
    """A file without end, such as one with holes, must not be read into memory."""
    if kind == "TIFF":
        refuse_directory(path, file, BYTES_A_PIXEL * max_pixels)
    if kind not in ("JPEG", "WebP"):
        return
    length = file.seek(0, os.SEEK_END)
    file.seek(0)
    if length > BYTES_A_PIXEL * max_pixels:
        most = f"{BYTES_A_PIXEL} bytes for each of the {max_pixels} pixels that {LIMIT} allows"
        raise UnreadableImageError(path, f"its {length} bytes are more than {most}")


def _refuse_large(path: str, size_wh: tuple[int, int], target_size: int | None, max_pixels: int) -> None:
    width, height = size_wh
    if width * height > max_pixels:
        limit = f"the limit of {max_pixels} pixels that {LIMIT} sets"
        raise UnreadableImageError(path, f"decompression bomb: {width}x{height} is above {limit}")
    short, long = min(size_wh), max(size_wh)
    if target_size and short and target_size * target_size * long > max_pixels * short:
        limit = f"above the limit of {max_pixels} pixels that {LIMIT} sets"
        raise UnreadableImageError(path, f"{width}x{height} with a shorter side of {target_size} would be {limit}")


def _refuse_scans(path: str, data: bytes) -> None:
    """A few bytes can make libjpeg go over the whole picture once more, a million times: hours for a small file."""
    if data.count(_JPEG_SCAN) <= MOST_SCANS:  # which counts videos and previews behind the picture too
        return
    scans, at = 0, 2
    while (marker := _JPEG_MARKER.search(data, at)) is not None and marker[0] != _JPEG_END:
        scans += marker[0] == _JPEG_SCAN
        if scans > MOST_SCANS:
            raise UnreadableImageError(path, f"more than {MOST_SCANS} scans, where a progressive JPEG has about 10")
        at = marker.end() + int.from_bytes(data[marker.end() : marker.end() + 2], "big")


def _kind(head: bytes) -> str | None:
    if head[:4] == b"RIFF" and head[8:12] == b"WEBP":
        return "WebP"
    if head[:4] in (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+"):
        return "TIFF"
    starts = {b"\xff\xd8\xff": "JPEG", b"\x89PNG\r\n\x1a\n": "PNG", b"BM": "BMP", b"GIF8": "GIF"}
    return next((kind for start, kind in starts.items() if head.startswith(start)), None)


def _decode_jpeg(
    image: ImageFile.ImageFile, data: bytes, target_size: int | None, mode: Literal["RGB", "RGBA"]
) -> NDArray[np.uint8]:
    """OpenCV where its answer can be trusted, else Pillow, which is slower and knows CMYK and cut files."""
    scale = _reduction(image.size, target_size)
    if image.mode in ("RGB", "L") and data[-64:].rstrip(b"\0\r\n ").endswith(_JPEG_END):
        orientation = _orientation(image)
        pixels = _decode_by_opencv(data, scale)
        if pixels is not None and pixels.shape[:2] == tuple(-(-side // scale) for side in image.size[::-1]):
            upright = _turn(pixels, orientation)
            return upright if mode == "RGB" else _with_opaque_alpha(upright)
    if scale > 1:
        image.draft(None, (target_size or 1, target_size or 1))
    return _convert(image, mode)


def _reduction(size_wh: tuple[int, int], target_size: int | None) -> int:
    fitting = min(size_wh) // target_size if target_size else 1
    return next((scale for scale in (8, 4, 2) if scale <= fitting), 1)


def _decode_by_opencv(data: bytes, scale: int) -> NDArray[np.uint8] | None:
    reduced = {1: 0, 2: cv2.IMREAD_REDUCED_GRAYSCALE_2, 4: cv2.IMREAD_REDUCED_GRAYSCALE_4}
    flags = reduced.get(scale, cv2.IMREAD_REDUCED_GRAYSCALE_8)  # "grayscale" only lacks the bit for BGR
    flags |= cv2.IMREAD_COLOR_RGB | cv2.IMREAD_IGNORE_ORIENTATION
    try:
        pixels = cv2.imdecode(np.frombuffer(data, np.uint8), flags)
    except cv2.error:
        return None
    return None if pixels is None else np.asarray(pixels, np.uint8)


def _orientation(image: Image.Image) -> int:
    try:
        return int(image.getexif().get(ExifTags.Base.Orientation, 1))
    except Exception:  # broken metadata of a good picture
        return 1


def _turn(pixels: NDArray[np.uint8], orientation: int) -> NDArray[np.uint8]:
    """EXIF orientations 2 to 8 to upright; anything else is upright already."""
    turns: dict[int, Callable[[], object]] = {
        2: lambda: cv2.flip(pixels, 1),
        3: lambda: cv2.flip(pixels, -1),
        4: lambda: cv2.flip(pixels, 0),
        5: lambda: cv2.transpose(pixels),
        6: lambda: cv2.rotate(pixels, cv2.ROTATE_90_CLOCKWISE),
        7: lambda: cv2.flip(cv2.transpose(pixels), -1),
        8: lambda: cv2.rotate(pixels, cv2.ROTATE_90_COUNTERCLOCKWISE),
    }
    return np.asarray(turns[orientation](), np.uint8) if orientation in turns else pixels


def _with_opaque_alpha(pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
    return np.asarray(cv2.cvtColor(pixels, cv2.COLOR_RGB2RGBA), np.uint8)


def _convert(image: Image.Image, mode: Literal["RGB", "RGBA"]) -> NDArray[np.uint8]:
    image.load()
    with contextlib.suppress(Exception):  # broken metadata of a good picture
        ImageOps.exif_transpose(image, in_place=True)
    width, height = image.size
    rows = max(1, BAND_PIXELS // width)
    if rows >= height:
        return _convert_band(image, mode, _eight_bit_rule(image, [image]))
    boxes = [(0, top, width, min(top + rows, height)) for top in range(0, height, rows)]
    rule = _eight_bit_rule(image, map(image.crop, boxes))
    pixels = np.empty((height, width, len(mode)), np.uint8)
    for box in boxes:
        pixels[box[1] : box[3]] = _convert_band(image.crop(box), mode, rule)
    return pixels


def _convert_band(image: Image.Image, mode: Literal["RGB", "RGBA"], rule: _Rule | None) -> NDArray[np.uint8]:
    if rule is not None:
        image = Image.fromarray(np.rint(rule(_numbers(image))).astype(np.uint8))
    if image.mode == "La":  # Pillow converts premultiplied grey to nothing else
        image = image.convert("LA")
    if mode == "RGBA":
        return np.array(image.convert("RGBA"))
    if image.has_transparency_data:
        transparent = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), transparent)
    return np.array(image.convert("RGB"))


def _eight_bit_rule(image: Image.Image, bands: Iterable[Image.Image]) -> _Rule | None:
    """What `read_image` does to deeper pixels, decided by all bands of an image; None where there are none."""
    if image.mode.startswith("I;16"):
        deepest = 4095.0 if _tiff_tag(image, TiffImagePlugin.BITSPERSAMPLE) == 12 else 65535.0
        if _tiff_tag(image, TiffImagePlugin.PHOTOMETRIC_INTERPRETATION) == 0:
            return lambda values: 255 - values * (255 / deepest)  # white is zero; Pillow turns only 8 bits over
        return lambda values: values * (255 / deepest)
    if image.mode[0] not in "IF":
        return None
    extremes = [(float(values.min()), float(values.max())) for values in map(_numbers, bands)]
    low, high = min(least for least, _ in extremes), max(most for _, most in extremes)
    if image.mode == "F" and low >= 0 and high <= 1:
        return lambda values: values * 255
    if low >= 0 and high <= 255:
        return lambda values: values
    return lambda values: (values - low) * (255 / (high - low) if high > low else 0)


def _numbers(image: Image.Image) -> NDArray[np.float64]:
    return np.nan_to_num(np.asarray(image).astype(np.float64))


def _tiff_tag(image: Image.Image, tag: int) -> object:
    value = getattr(image, "tag_v2", {}).get(tag)
    return value[0] if isinstance(value, tuple) and value else value


def _fault(kind: str, head: bytes, file: BinaryIO, error: Exception) -> str:
    text = _describe(error)
    if isinstance(error, Image.DecompressionBombError):  # Pillow's own limit for WebP and TIFF
        return f"decompression bomb: {text}"
    if "truncated" in text.lower() or _lacks_its_end(kind, head, file):
        return f"truncated {kind} file ({text})"
    # A TIFF does not tell its length.
    unsure = "truncated, damaged or unsupported" if kind == "TIFF" else "damaged or unsupported"
    return f"{unsure} {kind} file ({text})"


def _lacks_its_end(kind: str, head: bytes, file: BinaryIO) -> bool:
    size = file.seek(0, os.SEEK_END)
    if kind == "WebP":
        return int.from_bytes(head[4:8], "little") + 8 > size
    file.seek(max(0, size - 64))
    tail = file.read()
    ends = {"JPEG": _JPEG_END, "PNG": b"IEND", "GIF": b";"}
    return kind in ends and ends[kind] not in tail


def _describe(error: Exception) -> str:
    if isinstance(error, FileNotFoundError):
        return "no such file"
    if isinstance(error, PermissionError):
        return "no permission to read it"
    if isinstance(error, MemoryError):
        return "not enough memory to decode it"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return str(error) or type(error).__name__
