"""Bounds on TIFF and BMP files whose layout would make Pillow take far more memory or time than their pixels."""

import os
import struct
from typing import BinaryIO

from PIL import BmpImagePlugin, Image, TiffImagePlugin

from datamodules.images.errors import UnreadableImageError

MOST_ENTRIES = 65_535  # of a directory; all that a classic TIFF can count
MOST_NUMBERS = 1 << 18  # in an entry; 250 million pixels are as many tiles of 32 x 32; Pillow makes objects of each
MOST_COVERS = 8  # how often strips may cover the picture: once for each channel where these are kept apart
BLOCK = 1 << 16  # what Pillow reads at once
WIDEST = 8  # bytes of a pixel
_BYTES_AS_THEY_ARE = (1, 2, 6, 7)  # types of entries that Pillow does not make numbers of
_SIZES = {1: 1, 2: 1, 3: 2, 4: 4, 5: 8, 6: 1, 7: 1, 8: 2, 9: 4, 10: 8, 11: 4, 12: 8, 13: 4, 16: 8}


def refuse_directory(path: str, file: BinaryIO, most_bytes: int) -> None:
    """Refuse a TIFF whose header has more numbers or bytes than one of a picture; Pillow makes objects of all."""
    total = 0
    for kind, count in _entries(path, file):
        if count > MOST_NUMBERS and kind not in _BYTES_AS_THEY_ARE:
            raise UnreadableImageError(path, f"damaged TIFF file (an entry of {count} numbers)")
        total += count * _SIZES.get(kind, 0)
    length = file.seek(0, os.SEEK_END)
    file.seek(0)
    if min(total, length) > most_bytes:
        raise UnreadableImageError(path, f"the header of the TIFF file is above the limit of {most_bytes} bytes")


def _entries(path: str, file: BinaryIO) -> list[tuple[int, int]]:
    """The type and the count of each entry in the first directory; less where the file ends."""
    head = file.read(16)
    order = "<" if head[:2] == b"II" else ">"
    big = head[2:4] in (b"+\0", b"\0+")
    offset, number, entry = ("Q", "Q", "HHQ8x") if big else ("L", "H", "HHL4x")
    try:
        (start,) = struct.unpack_from(order + offset, head, 8 if big else 4)
        file.seek(start)
        (count,) = struct.unpack(order + number, file.read(struct.calcsize(order + number)))
        if count > MOST_ENTRIES:
            raise UnreadableImageError(path, f"damaged TIFF file (a directory of {count} entries)")
        entries = file.read(count * struct.calcsize(order + entry))
    except (struct.error, OverflowError, ValueError):  # Pillow has its words for what is cut
        return []
    whole = len(entries) // struct.calcsize(order + entry) * struct.calcsize(order + entry)
    return [(kind, number) for _, kind, number in struct.iter_unpack(order + entry, entries[:whole])]


def padded_size(image: Image.Image) -> tuple[int, int]:
    """Return the width and height that are decoded: a TIFF's with its tiles whole, and any other image's own."""
    tags = getattr(image, "tag_v2", {})
    across, down = tags.get(TiffImagePlugin.TILEWIDTH), tags.get(TiffImagePlugin.TILELENGTH)
    if not (isinstance(across, int) and isinstance(down, int) and across > 0 and down > 0):
        return image.size
    # As stored, where the size is that of the picture turned upright.
    width, height = tags[TiffImagePlugin.IMAGEWIDTH], tags[TiffImagePlugin.IMAGELENGTH]
    return -(-width // across) * across, -(-height // down) * down


def bound_reads(path: str, image: Image.Image, file: BinaryIO) -> None:
    """Make Pillow read uncompressed pixels a few rows at a time, and refuse strips that lie over each other.

    Left alone it asks at once for all that lies before the next strip, be it a terabyte, and puts a long row together
    from small blocks, copying all that it has for each.
    """
    if not isinstance(image, TiffImagePlugin.TiffImageFile | BmpImagePlugin.BmpImageFile):
        return
    boxes = [tile.extents or (0, 0, *image.size) for tile in image.tile]
    covered = sum((right - left) * (bottom - top) for left, top, right, bottom in boxes)
    if covered > MOST_COVERS * image.width * image.height:
        raise UnreadableImageError(path, f"damaged {image.format} file (its strips cover the picture again and again)")
    length = file.seek(0, os.SEEK_END)
    # As stored; a picture that is to be turned has its sides exchanged already.
    row: int = getattr(image, "tag_v2", {}).get(TiffImagePlugin.IMAGEWIDTH, image.width)
    block = max(BLOCK, WIDEST * row)

    def load_read(count: int) -> bytes:
        return file.read(max(0, min(count, block, length - file.tell())))

    image.decodermaxblock = block
    image.load_read = load_read  # type: ignore[union-attr]  # which Pillow looks for
