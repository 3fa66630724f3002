"""Hostile bytes: mutations of anything, and image files that are wrong in the places where formats can be."""

import io
import random
import struct
import zlib
from collections.abc import Callable
from functools import lru_cache

import numpy as np
from PIL import Image

EDGES = (
    0,
    1,
    2,
    3,
    7,
    8,
    9,
    16,
    127,
    128,
    255,
    256,
    4096,
    32767,
    32768,
    65535,
    65536,
    2**24,
    2**31 - 1,
    2**31,
    2**32 - 1,
)
SIZES = ((1, 1), (1, 40), (40, 1), (2, 2), (17, 9), (33, 48))


def mutated(data: bytes, rng: random.Random, most: int = 6) -> bytes:
    """Return the bytes after one to `most` changes; now and then none, for what already is hostile."""
    if rng.random() < 0.05:
        return data
    body = bytearray(data)
    for _ in range(rng.randint(1, most)):
        rng.choice(CHANGES)(body, rng)
    return bytes(body)


def _place(body: bytearray, rng: random.Random) -> int:
    """Where to change: headers as often as all the rest."""
    return rng.randrange(max(1, min(len(body), 64) if rng.random() < 0.5 else len(body)))


def _flip(body: bytearray, rng: random.Random) -> None:
    if body:
        body[_place(body, rng)] ^= 1 << rng.randrange(8)


def _replace(body: bytearray, rng: random.Random) -> None:
    if body:
        body[_place(body, rng)] = rng.choice((0, 1, 0x7F, 0x80, 0xFF, rng.randrange(256)))


def _number(body: bytearray, rng: random.Random) -> None:
    place, width = _place(body, rng), rng.choice((1, 2, 4, 8))
    value = rng.choice(EDGES) & ((1 << 8 * width) - 1)
    if place + width <= len(body):
        body[place : place + width] = value.to_bytes(width, rng.choice(("little", "big")))


def _cut(body: bytearray, rng: random.Random) -> None:
    del body[_place(body, rng) :]


def _drop(body: bytearray, rng: random.Random) -> None:
    place = _place(body, rng)
    del body[place : place + rng.choice((1, 2, 4, 100))]


def _repeat(body: bytearray, rng: random.Random) -> None:
    place = _place(body, rng)
    body[place:place] = body[place : place + rng.choice((1, 4, 64, 1000))] * rng.choice((1, 2, 50))


def _swap(body: bytearray, rng: random.Random) -> None:
    a, b, width = _place(body, rng), _place(body, rng), rng.choice((1, 4, 32))
    first, second = bytes(body[a : a + width]), bytes(body[b : b + width])
    if len(first) == len(second) == width:
        body[a : a + width], body[b : b + width] = second, first


def _insert(body: bytearray, rng: random.Random) -> None:
    place = _place(body, rng)
    body[place:place] = rng.choice((b"\0" * 100, b"\xff" * 16, b"\n", b"\r", rng.randbytes(rng.choice((1, 4, 300)))))


CHANGES: tuple[Callable[[bytearray, random.Random], None], ...] = (
    *(_flip, _replace, _number, _number, _cut, _drop, _repeat, _swap, _insert),
)


# Name of a format: its modes, and the options that it is saved with.
IMAGES: dict[str, tuple[tuple[str, ...], tuple[dict[str, object], ...]]] = {
    "PNG": (("1", "L", "P", "LA", "RGB", "RGBA", "I;16"), ({}, {"icc_profile": b"junk" * 50}, {"transparency": b"\1"})),
    "JPEG": (("L", "RGB", "CMYK"), ({}, {"progressive": True}, {"subsampling": 0}, {"restart_marker_blocks": 1})),
    "WEBP": (("RGB", "RGBA"), ({}, {"lossless": True}, {"exif": b"Exif\0\0MM\0*\0\0\0\x08\0\0"})),
    "GIF": (("P", "L", "RGB"), ({}, {"transparency": 0})),
    "TIFF": (
        ("1", "L", "P", "LA", "RGB", "RGBA", "I;16", "F", "I", "CMYK", "LAB"),
        tuple({"compression": name} for name in (None, "tiff_lzw", "tiff_adobe_deflate", "packbits", "jpeg", "group4")),
    ),
    "BMP": (("1", "L", "P", "RGB", "RGBA"), ({},)),
}


@lru_cache(maxsize=4096)
def whole_image(kind: str, mode: str, variant: int, size_wh: tuple[int, int], frames: int, orientation: int) -> bytes:
    """Return an image file that is as it should be; one in plain RGB where the format has no such variant."""
    levels = np.random.default_rng(variant).integers(0, 256, (size_wh[1], size_wh[0], 3), np.uint8)
    image = Image.fromarray(levels)
    if mode in ("I;16", "F", "I"):
        image = Image.fromarray(levels[..., 0].astype({"I;16": np.uint16, "F": np.float32, "I": np.int32}[mode]) * 200)
    elif mode == "LAB":
        image = Image.frombytes("LAB", size_wh, levels.tobytes())
    else:
        image = image.convert(mode)
    options = dict(IMAGES[kind][1][variant % len(IMAGES[kind][1])])
    if frames > 1 and kind in ("GIF", "WEBP", "PNG", "TIFF"):
        options |= {"save_all": True, "append_images": [image.rotate(90 * turn) for turn in range(1, frames)]}
    if orientation:
        exif = Image.Exif()
        exif[0x0112] = orientation
        options.setdefault("exif", exif.tobytes())
    file = io.BytesIO()
    try:
        image.save(file, kind, **options)
    except (OSError, ValueError, KeyError, TypeError, SystemError, RuntimeError):
        file = io.BytesIO()
        Image.fromarray(levels).save(file, kind)
    return file.getvalue()


def seed_image(rng: random.Random) -> tuple[str, bytes]:
    """Return a format and a whole file of it."""
    kind = rng.choice(list(IMAGES))
    frames, orientation = rng.choice((1, 1, 1, 3)), rng.choice((0, 0, 1, 6, 8, 9, 65535))
    mode = rng.choice(IMAGES[kind][0])
    return kind, whole_image(kind, mode, rng.randrange(6), rng.choice(SIZES), frames, orientation)


def hostile_image(rng: random.Random) -> tuple[str, bytes]:
    """Return a format and a file of it that is broken blindly, or in its own terms, or both."""
    kind, data = seed_image(rng)
    breaker = {"PNG": broken_png, "JPEG": broken_jpeg, "TIFF": broken_tiff, "GIF": broken_gif}.get(kind)
    if breaker is not None and rng.random() < 0.6:
        data = breaker(data, rng)
    if rng.random() < 0.6:
        data = mutated(data, rng)
    return kind, data


def png_chunk(name: bytes, data: bytes) -> bytes:
    """Return a chunk with its true checksum, so that readers go on to what is in it."""
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


@lru_cache(maxsize=8)
def deflated_bomb(megabytes: int) -> bytes:
    """Return a thousandth of the size in zeros, compressed."""
    packer = zlib.compressobj(9)
    return b"".join(packer.compress(bytes(1 << 20)) for _ in range(megabytes)) + packer.flush()


def png_of(width: int, height: int, depth: int, colour: int, data: bytes, *chunks: bytes, interlace: int = 0) -> bytes:
    """Return a PNG file that claims what it is told to."""
    header = struct.pack(">IIBBBBB", width % 2**32, height % 2**32, depth, colour, 0, 0, interlace)
    parts = (png_chunk(b"IHDR", header), *chunks, png_chunk(b"IDAT", data), png_chunk(b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


def broken_png(data: bytes, rng: random.Random) -> bytes:
    """Chunks changed, added, dropped and shuffled, with true checksums."""
    chunks, at = [], 8
    while at + 12 <= len(data):
        (length,) = struct.unpack_from(">I", data, at)
        chunks.append((data[at + 4 : at + 8], data[at + 8 : at + 8 + length]))
        at += 12 + length
    for _ in range(rng.randint(1, 3)):
        turn, place = rng.randrange(6), rng.randrange(len(chunks))
        name, body = chunks[place]
        if turn == 0:
            fields = [
                rng.choice(EDGES),
                rng.choice((1, 20000, 60000)),
                rng.choice((1, 2, 4, 8, 16, 3)),
                rng.randrange(8),
            ]
            chunks[0] = (b"IHDR", struct.pack(">IIBBBBB", *fields, 0, 0, rng.randrange(3)))
        elif turn == 1:
            chunks[place] = (name, mutated(body, rng))
        elif turn == 2:
            chunks.insert(place, _odd_png_chunk(rng))
        elif turn == 3:
            del chunks[place]
        elif turn == 4:
            chunks.insert(rng.randrange(len(chunks)), chunks[place])
        else:
            rng.shuffle(chunks)
        chunks = chunks or [(b"IEND", b"")]
    return data[:8] + b"".join(png_chunk(*chunk) for chunk in chunks)


def _odd_png_chunk(rng: random.Random) -> tuple[bytes, bytes]:
    junk = rng.randbytes(rng.choice((0, 1, 3, 12, 26, 700)))
    packed = rng.choice((junk, deflated_bomb(80), zlib.compress(junk)))
    choices = [
        (name, junk) for name in (b"tRNS", b"PLTE", b"gAMA", b"cHRM", b"sRGB", b"pHYs", b"eXIf", b"acTL", b"fcTL")
    ]
    choices += [(name, junk) for name in (b"fdAT", b"tIME", b"bKGD", b"IDAT", b"IEND", b"iTXt", b"\0\0\0\0", b"caNv")]
    packings = [b"iCCPicc\0\0", b"zTXtkey\0\0", b"iTXtkey\0\1\0en\0key\0", b"iCCP\0\0", b"zTXtkey\0\7"]
    choices += [(start[:4], start[4:] + packed) for start in packings]
    choices.append((b"acTL", struct.pack(">II", rng.choice(EDGES), 0)))
    return rng.choice(choices)


def broken_jpeg(data: bytes, rng: random.Random) -> bytes:
    """Segments changed, added, dropped and repeated; sizes, tables and scans that contradict each other."""
    segments, at = [data[:2]], 2
    while at + 4 <= len(data) and data[at + 1] != 0xDA:
        end = at + 2 + int.from_bytes(data[at + 2 : at + 4], "big")
        segments.append(data[at:end])
        at = end
    scan = data[at:]
    for _ in range(rng.randint(1, 3)):
        turn, place = rng.randrange(6), rng.randrange(1, max(2, len(segments)))
        if turn == 0:
            size = struct.pack(">HH", rng.choice(EDGES) % 65536, rng.choice((0, 1, 8, 9, 20000, 65535)))
            segments = [s[:5] + size + s[9:] if s[1:2] in (b"\xc0", b"\xc2") else s for s in segments]
        elif turn == 1 and place < len(segments):
            segments[place] = segments[place][:4] + mutated(segments[place][4:], rng)
        elif turn == 2:
            body = rng.choice(
                (b"Exif\0\0", b"ICC_PROFILE\0\1\2", b"MPF\0", b"Adobe", b"JFIF\0", b"Photoshop 3.0\0", b"")
            )
            body += rng.choice((b"II*\0\x08\0\0\0", b"MM\0*\0\0\0\x08", b"")) + rng.randbytes(
                rng.choice((0, 5, 40, 60000))
            )
            segments.insert(place, b"\xff" + bytes([rng.choice((0xE0, 0xE1, 0xE2, 0xED, 0xEE, 0xFE, 0xDD, 0xDC))]))
            segments[place] += struct.pack(">H", len(body) + 2) + body
        elif turn == 3 and place < len(segments):
            del segments[place]
        elif turn == 4:
            segments += segments[place : place + 2]
        else:
            scan = scan.removesuffix(b"\xff\xd9") * rng.choice((2, 30)) + b"\xff\xd9"
    return b"".join(segments) + scan


TIFF_TAGS = (256, 257, 258, 259, 262, 273, 277, 278, 279, 320, 322, 330, 339)
TIFF_CODINGS = (1, 2, 3, 4, 5, 6, 7, 8, 32773, 32946, 34712, 50001)


def broken_tiff(data: bytes, rng: random.Random) -> bytes:
    """Entries of the first directory changed: tags, types, counts, values, and where the next one lies."""
    order = "<" if data[:2] == b"II" else ">"
    body = bytearray(data)
    (start,) = struct.unpack_from(order + "I", body, 4)
    (count,) = struct.unpack_from(order + "H", body, start)
    for _ in range(rng.randint(1, 4)):
        entry = start + 2 + 12 * rng.randrange(count)
        turn = rng.randrange(6)
        if turn == 0:
            struct.pack_into(
                order + "H", body, entry, rng.choice((256, 257, 258, 259, 262, 273, 277, 278, 279, 320, 339, 322, 330))
            )
        elif turn == 1:
            struct.pack_into(order + "H", body, entry + 2, rng.randrange(20))
        elif turn == 2:
            struct.pack_into(order + "I", body, entry + 4, rng.choice(EDGES))
        elif turn == 3:
            struct.pack_into(order + "I", body, entry + 8, rng.choice(EDGES))
        elif turn == 4:
            struct.pack_into(
                order + "I", body, entry + 8, rng.choice((1, 2, 3, 4, 5, 6, 7, 8, 32773, 32946, 34712, 50001))
            )
        else:
            struct.pack_into(order + "I", body, start + 2 + 12 * count, rng.choice((start, 8, 0, rng.choice(EDGES))))
    return bytes(body)


def broken_gif(data: bytes, rng: random.Random) -> bytes:
    """Screen and frame sizes, colour tables, and blocks that go on and on."""
    body = bytearray(data)
    turn = rng.randrange(4)
    if turn == 0:
        struct.pack_into("<HH", body, 6, rng.choice(EDGES) % 65536, rng.choice((0, 1, 4000, 65535)))
    elif turn == 1 and (frame := body.find(b",", 13)) >= 0 and frame + 9 <= len(body):
        sizes = [rng.choice((0, 1, 30, 4000, 65535)) for _ in range(4)]
        struct.pack_into("<HHHH", body, frame + 1, *sizes)
    elif turn == 2:
        body[13:13] = (
            rng.choice((b"!\xfe\xff" + b"x" * 255 + b"\0", b"!\xf9\4\1\0\0\0\0", b"!\xff\x0bNETSCAPE2.0\3\1\0\0\0"))
            * 500
        )
    else:
        body[-1:] = body[13:-1] * 20 + b";"
    return bytes(body)
