"""Marked pictures as files: what the originals say beside their pixels stays, and lossless is lossless."""

import cv2
import numpy as np
import pytest
from PIL import Image, JpegImagePlugin, PngImagePlugin

from callbacks.marked_files import save_marked

PROFILE = b"\0" * 36 + b"acsp" + b"\0" * 100


def picture(seed=0, height=40, width=56):
    rng = np.random.default_rng(seed)
    return cv2.resize(rng.integers(40, 216, (5, 7, 3), np.uint8), (width, height), interpolation=cv2.INTER_CUBIC)


def shifted(pixels, by=3):
    return (pixels.astype(int) + by).clip(0, 255).astype(np.uint8)


def jpeg(path, **options):
    exif = Image.Exif()
    exif[0x010F] = "a maker"
    exif[0x0112] = 6
    Image.fromarray(picture()).save(path, exif=exif, icc_profile=PROFILE, dpi=(300, 300), **options)
    return path


def test_lossless_keeps_every_pixel_and_what_the_file_says(tmp_path):
    source = jpeg(tmp_path / "a.jpg", quality=70)
    marked = shifted(picture(1, 56, 40))
    written = save_marked(str(source), marked, tmp_path / "out" / "a.jpg")
    assert written == tmp_path / "out" / "a.jpg.png"
    with Image.open(written) as image:
        assert np.array_equal(np.asarray(image), marked)
        assert image.info["icc_profile"] == PROFILE
        assert image.getexif()[0x010F] == "a maker"
        assert 0x0112 not in image.getexif(), "pixels are upright already"
        assert image.info["dpi"][0] == pytest.approx(300, abs=0.1)
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["a.jpg.png"]


@pytest.mark.parametrize(("quality", "subsampling"), [(62, 0), (90, 2), (75, 1)])
def test_jpeg_keeps_tables_and_subsampling(tmp_path, quality, subsampling):
    source = jpeg(tmp_path / "a.jpeg", quality=quality, subsampling=subsampling)
    written = save_marked(str(source), shifted(picture()), tmp_path / "out" / "a.jpeg", "same")
    assert written.name == "a.jpeg"
    with Image.open(source) as before, Image.open(written) as after:
        assert after.format == "JPEG"
        assert after.quantization == before.quantization
        assert JpegImagePlugin.get_sampling(after) == subsampling
        assert after.info["icc_profile"] == PROFILE
        assert np.abs(np.asarray(after).astype(int) - shifted(picture())).mean() < 5


def test_transparency_is_carried_over(tmp_path):
    rgba = np.dstack([picture(), np.tile(np.array([0, 80, 255, 200], np.uint8), (40, 14))])
    text = PngImagePlugin.PngInfo()
    text.add_text("Author", "someone")
    Image.fromarray(rgba).save(tmp_path / "a.png", pnginfo=text)
    white = Image.new("RGBA", (56, 40), "white")
    seen = np.asarray(Image.alpha_composite(white, Image.fromarray(rgba)).convert("RGB"))
    written = save_marked(str(tmp_path / "a.png"), np.where(seen < 255, seen - 1, seen), tmp_path / "out" / "a.png")
    with Image.open(written) as image:
        after = np.asarray(image)
        assert np.array_equal(after[..., 3], rgba[..., 3])
        assert np.array_equal(after[rgba[..., 3] == 255][:, :3], rgba[rgba[..., 3] == 255][:, :3] - 1)
        assert image.text["Author"] == "someone"


def test_grey_stays_grey_and_other_formats_are_written_as_they_were(tmp_path):
    grey = picture()[..., :1].repeat(3, 2)
    Image.fromarray(grey[..., 0]).save(tmp_path / "g.png")
    with Image.open(save_marked(str(tmp_path / "g.png"), grey, tmp_path / "out" / "g.png")) as image:
        assert image.mode == "L"
        assert np.array_equal(np.asarray(image), grey[..., 0])
    for name, options in (("w.webp", {"lossless": True}), ("t.tif", {}), ("b.bmp", {})):
        Image.fromarray(picture()).save(tmp_path / name, **options)
        written = save_marked(str(tmp_path / name), shifted(picture()), tmp_path / "out" / name, "same")
        assert written.name == name
        with Image.open(written) as image:
            assert np.array_equal(np.asarray(image), shifted(picture()))
    Image.fromarray(picture()).save(tmp_path / "l.webp", quality=50)
    written = save_marked(str(tmp_path / "l.webp"), shifted(picture()), tmp_path / "out" / "l.webp", "same")
    assert Image.open(written).format == "WEBP"
    Image.fromarray(picture()).save(tmp_path / "a.gif")
    assert save_marked(str(tmp_path / "a.gif"), picture(), tmp_path / "out" / "a.gif", "same").name == "a.gif.png"


def test_a_drawn_scene_has_no_file(tmp_path):
    written = save_marked("procedural://0/3", picture(), tmp_path / "000003_3")
    assert np.array_equal(np.asarray(Image.open(written)), picture())
