"""Facts of a file: qualities and sizes by round trip, the grid by pictures whose grid is known."""

import io
import math
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image

from datamodules.images.errors import UnreadableImageError
from datamodules.images.file_facts import blockiness, drawn_facts, grid_phase, jpeg_quality, read_facts
from datamodules.images.procedural import draw_scene


def scene(seed: int = 0, side: int = 128) -> np.ndarray:
    return draw_scene(np.random.default_rng(seed), (side, side), "landscape")


def packed(image: np.ndarray, quality: int, **options: object) -> Image.Image:
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "JPEG", quality=quality, **options)
    return Image.open(buffer)


@pytest.mark.parametrize("subsampling", [0, 2])
def test_every_quality_of_libjpeg_is_found(subsampling: int) -> None:
    found = [jpeg_quality(packed(scene(side=16), q, subsampling=subsampling).quantization) for q in range(1, 101)]
    assert found == list(range(1, 101))


def test_qualities_of_opencv_are_found_in_the_file(tmp_path: Path) -> None:
    for quality in (30, 75, 92):
        path = tmp_path / f"{quality}.jpg"
        cv2.imwrite(str(path), scene(), [cv2.IMWRITE_JPEG_QUALITY, quality])
        facts = read_facts(path)
        assert (facts.format, facts.width, facts.height, facts.jpeg_quality) == ("JPEG", 128, 128, quality)
        assert facts.bytes_per_pixel == path.stat().st_size / 128**2


def test_other_formats_have_no_quality(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    Image.fromarray(scene()[:, :100]).save(path)
    facts = read_facts(path)
    assert (facts.format, facts.width, facts.height) == ("PNG", 100, 128)
    assert math.isnan(facts.jpeg_quality)
    assert math.isnan(drawn_facts((4, 5)).bytes_per_pixel)


def test_a_broken_header_names_the_file(tmp_path: Path) -> None:
    path = tmp_path / "a.jpg"
    path.write_bytes(b"no picture")
    with pytest.raises(UnreadableImageError, match=r"a\.jpg"):
        read_facts(path)


@pytest.mark.parametrize("shift", [(0, 0), (3, 5), (7, 1)])
def test_the_grid_is_found_where_it_lies(shift: tuple[int, int]) -> None:
    decoded = np.asarray(packed(scene(1, 160), 40))
    cut = decoded[8 - shift[0] :, 8 - shift[1] :]
    assert grid_phase(cut) == shift
    assert blockiness(cut) == pytest.approx(blockiness(decoded), abs=0.1)


def test_blockiness_falls_with_quality_and_is_small_without_jpeg() -> None:
    means = [np.mean([blockiness(np.asarray(packed(scene(s), q))) for s in range(6)]) for q in (20, 50, 80)]
    clean = np.mean([blockiness(scene(s)) for s in range(6)])
    assert means[0] > means[1] > means[2] > clean
    assert means[0] > 3 * clean
