"""read_image against Pillow and numpy: formats, modes, orientation and reduced scale."""

import struct

import cv2
import numpy as np
import pytest
from PIL import Image, ImageOps

from datamodules.images import decoding
from datamodules.images.decoding import read_image, read_resized

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


class TestFormatsAndModes:
    @pytest.mark.parametrize(("kind", "options"), LOSSLESS)
    def test_lossless_formats_are_exact(self, tmp_path, kind, options):
        pixels = _photo()
        image = read_image(_save(tmp_path, pixels, kind, **options))
        assert np.array_equal(image, pixels)
        assert image.flags.writeable
        assert image.flags.c_contiguous

    @pytest.mark.parametrize(("kind", "options"), ALL_FORMATS)
    @pytest.mark.parametrize("mode", ["RGB", "RGBA"])
    def test_every_format_equals_pillow(self, tmp_path, kind, options, mode):
        path = _save(tmp_path, _photo(), kind, **options)
        with Image.open(path) as file:
            expected = np.asarray(file.convert(mode))
        image = read_image(path, mode=mode)
        assert image.dtype == np.uint8
        assert np.array_equal(image, expected)

    @pytest.mark.parametrize("kind", ["PNG", "JPEG", "TIFF", "BMP"])
    def test_grey_is_repeated_in_three_channels(self, tmp_path, kind):
        path = _save(tmp_path, _photo()[..., 0], kind)
        image = read_image(path)
        assert np.array_equal(image, np.repeat(np.asarray(Image.open(path))[..., None], 3, axis=2))

    def test_one_bit_is_black_and_white(self, tmp_path):
        bits = _photo()[..., 0] > 128
        image = read_image(_save(tmp_path, Image.fromarray(bits), "PNG"))
        assert np.array_equal(image, np.repeat(bits[..., None] * np.uint8(255), 3, axis=2))

    def test_first_frame_of_an_animation(self, tmp_path):
        frames = [Image.new("RGB", (8, 8), color) for color in ("red", "lime", "blue")]
        for kind in ("GIF", "WEBP", "PNG"):
            path = _save(tmp_path, frames[0], kind, save_all=True, append_images=frames[1:], lossless=True)
            assert read_image(path)[4, 4].tolist() == [255, 0, 0], kind

    @pytest.mark.parametrize("kind", ["PNG", "WEBP", "TIFF"])
    def test_alpha_is_laid_on_white_for_rgb_and_straight_for_rgba(self, tmp_path, kind):
        rgba = np.dstack([_photo(), np.linspace(0, 255, 60 * 90).astype(np.uint8).reshape(60, 90)])
        options = {"lossless": True, "exact": True} if kind == "WEBP" else {}
        path = _save(tmp_path, rgba, kind, **options)
        assert np.array_equal(read_image(path, mode="RGBA"), rgba)
        weight = rgba[..., 3:] / 255
        expected = rgba[..., :3] * weight + 255 * (1 - weight)
        assert np.abs(read_image(path) - expected).max() <= 1

    def test_grey_with_alpha_is_laid_on_white(self, tmp_path):
        path = _save(tmp_path, Image.fromarray(np.uint8([[[0, 255], [0, 0], [100, 51]]]), "LA"), "PNG")
        assert read_image(path)[0, :, 0].tolist() == [0, 255, 224]
        assert read_image(path, mode="RGBA")[0].tolist() == [[0, 0, 0, 255], [0, 0, 0, 0], [100, 100, 100, 51]]

    @pytest.mark.parametrize("kind", ["PNG", "GIF"])
    def test_palette_with_a_transparent_entry(self, tmp_path, kind):
        image = Image.fromarray(np.uint8([[0, 1, 2]]), "P")
        image.putpalette([10, 20, 30, 200, 100, 50, 7, 8, 9])
        path = _save(tmp_path, image, kind, transparency=1)
        assert read_image(path)[0].tolist() == [[10, 20, 30], [255, 255, 255], [7, 8, 9]]
        assert read_image(path, mode="RGBA")[0, :, 3].tolist() == [255, 0, 255]

    def test_palette_with_alphas_and_without(self, tmp_path):
        image = Image.fromarray(np.uint8([[0, 1, 2]]), "P")
        image.putpalette([10, 20, 30, 200, 100, 50, 7, 8, 9])
        assert read_image(_save(tmp_path, image, "PNG"))[0, 1].tolist() == [200, 100, 50]
        path = _save(tmp_path, image, "PNG", transparency=bytes([255, 51, 0]))
        assert read_image(path, mode="RGBA")[0, :, 3].tolist() == [255, 51, 0]
        assert read_image(path)[0].tolist() == [[10, 20, 30], [244, 224, 214], [255, 255, 255]]

    @pytest.mark.parametrize(("mode", "color"), [("RGB", (9, 9, 9)), ("L", 9), ("1", 0)])
    def test_transparent_colour_of_a_png_without_alpha(self, tmp_path, mode, color):
        image = Image.new(mode, (2, 1), "white")
        image.putpixel((0, 0), color)
        path = _save(tmp_path, image, "PNG", transparency=color)
        assert read_image(path, mode="RGBA")[0, :, 3].tolist() == [0, 255]
        assert read_image(path)[0, 0].tolist() == [255, 255, 255]

    @pytest.mark.parametrize("target_size", [None, 20])
    def test_cmyk_jpeg_of_adobe_is_not_inverted(self, tmp_path, target_size):
        # Pillow writes CMYK as Adobe does: inverted, with an Adobe marker.
        path = _save(tmp_path, Image.new("CMYK", (64, 48), (0, 255, 255, 0)), "JPEG", quality=95)
        assert b"Adobe" in path.read_bytes()
        assert np.abs(read_image(path, target_size) - np.array([255, 0, 0])).max() <= 4

    def test_cmyk_tiff(self, tmp_path):
        path = _save(tmp_path, Image.new("CMYK", (4, 4), (255, 0, 255, 0)), "TIFF")
        assert read_image(path)[0, 0].tolist() == [0, 255, 0]

    @pytest.mark.parametrize("kind", ["PNG", "TIFF"])
    def test_sixteen_bits_are_scaled_not_clipped(self, tmp_path, kind):
        deep = np.uint16([[0, 1, 128, 129, 257, 30_000, 65_407, 65_535]])
        image = read_image(_save(tmp_path, Image.fromarray(deep), kind))
        assert image[0, :, 0].tolist() == np.rint(deep[0] / 257).astype(int).tolist()
        assert image[0, :, 2].tolist() == image[0, :, 0].tolist()

    def test_sixteen_bit_colour_keeps_the_high_byte_within_one(self, tmp_path):
        deep = np.random.default_rng(0).integers(0, 65536, (5, 7, 3), np.uint16)
        path = tmp_path / "deep.png"
        cv2.imwrite(str(path), deep[..., ::-1])
        assert np.abs(read_image(path) - deep / 257).max() <= 1

    def test_big_endian_and_white_is_zero_sixteen_bit_tiffs(self, tmp_path):
        deep = np.uint16([[0, 257, 65_535]])
        for big_endian, white_is_zero in ((True, False), (False, True)):
            path = tmp_path / "deep.tif"
            path.write_bytes(_grey_tiff(deep, ">" if big_endian else "<", 0 if white_is_zero else 1))
            expected = [255, 254, 0] if white_is_zero else [0, 1, 255]
            assert read_image(path)[0, :, 1].tolist() == expected, (big_endian, white_is_zero)

    @pytest.mark.parametrize(
        ("values", "expected"),
        [
            ([0.0, 0.5, 1.0], [0, 128, 255]),
            ([0.0, 100.4, 255.0], [0, 100, 255]),
            ([-1.0, 0.0, 1.0], [0, 128, 255]),
            ([1000.0, 2000.0, 3000.0], [0, 128, 255]),
            ([np.nan, 0.0, 1.0], [0, 0, 255]),
            ([300.0, 300.0, 300.0], [0, 0, 0]),
        ],
    )
    def test_float_tiff_follows_the_documented_rule(self, tmp_path, values, expected):
        path = _save(tmp_path, Image.fromarray(np.float32([values])), "TIFF")
        assert read_image(path)[0, :, 0].tolist() == expected

    def test_integer_tiff_of_32_bits(self, tmp_path):
        for values, expected in (([0, 1, 255], [0, 1, 255]), ([0, 50_000, 100_000], [0, 128, 255])):
            path = _save(tmp_path, Image.fromarray(np.int32([values])), "TIFF")
            assert read_image(path)[0, :, 0].tolist() == expected

    def test_content_counts_not_the_name(self, tmp_path):
        path = _save(tmp_path, _photo(), "PNG", name="really_a_png.jpg")
        assert np.array_equal(read_image(path), _photo())


def _grey_tiff(deep, order, photometric):
    """A one-strip 16-bit TIFF, written by hand since Pillow writes neither kind."""
    data = deep.astype(order + "u2").tobytes()
    height, width = deep.shape
    entries = [(256, width), (257, height), (258, 16), (259, 1), (262, photometric), (273, 8), (277, 1), (278, height)]
    entries.append((279, len(data)))
    table = struct.pack(order + "H", len(entries))
    for tag, value in entries:
        table += struct.pack(order + "HHIHH", tag, 3, 1, value, 0)
    start = b"II*\0" if order == "<" else b"MM\0*"
    return start + struct.pack(order + "I", 8 + len(data)) + data + table + b"\0\0\0\0"


class TestOrientation:
    @pytest.mark.parametrize("orientation", range(1, 9))
    @pytest.mark.parametrize(
        ("kind", "options"), [("JPEG", {}), ("JPEG", {"progressive": True}), ("PNG", {}), ("WEBP", {}), ("TIFF", {})]
    )
    def test_every_orientation_equals_pillows_transposition(self, tmp_path, orientation, kind, options):
        exif = Image.Exif()
        exif[0x0112] = orientation
        path = _save(tmp_path, _photo(), kind, exif=exif, **options)
        with Image.open(path) as file:
            expected = np.asarray(ImageOps.exif_transpose(file).convert("RGB"))
        assert expected.shape[:2] == ((60, 90) if orientation < 5 else (90, 60))
        assert np.array_equal(read_image(path), expected)

    @pytest.mark.parametrize("orientation", range(1, 9))
    @pytest.mark.parametrize("mode", ["RGB", "L", "CMYK"])
    def test_reduced_jpeg_is_upright_too(self, tmp_path, orientation, mode):
        exif = Image.Exif()
        exif[0x0112] = orientation
        path = _save(tmp_path, Image.fromarray(_photo(120, 200)).convert(mode), "JPEG", exif=exif, quality=95)
        full = read_image(path)
        half = read_image(path, 60)
        assert half.shape[:2] == (full.shape[0] // 2, full.shape[1] // 2)
        small = cv2.resize(full, half.shape[1::-1], interpolation=cv2.INTER_AREA)
        assert np.abs(small.astype(int) - half).mean() < 3

    def test_nonsense_in_exif_does_not_cost_the_picture(self, tmp_path):
        plain = read_image(_save(tmp_path, _photo(), "JPEG"))
        for exif in (b"Exif\0\0garbage", b"Exif\0\0MM\0*\0\0\0\x08\0\x09", b""):
            path = _save(tmp_path, _photo(), "JPEG", exif=exif)
            assert np.array_equal(read_image(path), plain)


class TestReducedScale:
    @pytest.mark.parametrize("target_size", [1, 24, 25, 49, 50, 51, 99, 100, 101, 200, 201, 500])
    @pytest.mark.parametrize(("height", "width"), [(200, 303), (301, 200)])
    def test_never_below_the_target_and_as_small_as_may_be(self, tmp_path, target_size, height, width):
        image = read_image(_save(tmp_path, _photo(height, width), "JPEG"), target_size)
        shorter = min(image.shape[:2])
        assert shorter >= min(target_size, 200)
        allowed = [scale for scale in (1, 2, 4, 8) if 200 // scale >= target_size] or [1]
        assert image.shape[:2] == tuple(-(-side // max(allowed)) for side in (height, width))

    def test_equals_pillows_draft(self, tmp_path):
        path = _save(tmp_path, _photo(400, 600), "JPEG", quality=90)
        for target_size in (50, 100, 200):
            with Image.open(path) as file:
                file.draft(None, (target_size, target_size))
                expected = np.asarray(file)
            assert np.array_equal(read_image(path, target_size), expected)

    def test_fast_path_is_taken(self, tmp_path, monkeypatch):
        path = _save(tmp_path, _photo(), "JPEG")
        monkeypatch.setattr(decoding, "_convert", lambda *_: pytest.fail("went through Pillow"))
        read_image(path)

    def test_wrong_target_is_the_callers_fault(self, tmp_path):
        with pytest.raises(ValueError, match="at least 1, got 0"):
            read_image(tmp_path / "any.jpg", 0)

    @pytest.mark.parametrize(("height", "width", "size"), [(200, 301, 64), (301, 200, 130), (40, 60, 64), (64, 64, 64)])
    def test_read_resized_has_the_shorter_side_and_the_shape(self, tmp_path, height, width, size):
        image = read_resized(_save(tmp_path, _photo(height, width), "JPEG"), size)
        assert min(image.shape[:2]) == size
        assert abs(max(image.shape[:2]) - max(height, width) * size / min(height, width)) <= 1

    @pytest.mark.parametrize("size", [55, 70, 99, 100])
    def test_read_resized_averages_areas(self, tmp_path, size):
        pixels = _photo(100, 100)
        image = read_resized(_save(tmp_path, pixels, "PNG"), size)
        expected = cv2.resize(pixels, (size, size), interpolation=cv2.INTER_AREA)
        assert np.abs(image.astype(int) - expected).mean() < 1.5
        assert abs(image.mean() - pixels.mean()) < 0.5
