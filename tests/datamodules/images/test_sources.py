"""open_images: files, folders, manifests and procedural addresses become one kind of thing."""

import re

import numpy as np
import pytest
from PIL import Image

from datamodules.images.errors import UnreadableImageError
from datamodules.images.randomness import sample_rng
from datamodules.images.sources import FileSource, ProceduralSource, open_images


@pytest.fixture
def folder(tmp_path):
    for name, level in (("p/b.png", 20), ("p/deep/a.PNG", 30), ("q/z.png", 40), ("q/a.png", 50), ("one.png", 60)):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (8, 6), (level, 0, 0)).save(path)
    (tmp_path / "m.csv").write_text("path\nq/z.png\nq/a.png\nq/z.png\n")
    return tmp_path


def _levels(source):
    return [int(source.read(index)[0, 0, 0]) for index in range(len(source))]


def test_single_path_and_list_of_one_are_the_same(folder):
    source = open_images(folder / "p")
    assert isinstance(source, FileSource)
    assert [source.path(0), source.path(1)] == [str(folder / "p/b.png"), str(folder / "p/deep/a.PNG")]
    assert _levels(source) == _levels(open_images([str(folder / "p")])) == [20, 30]


def test_mixed_parts_keep_their_order_and_manifests_theirs(folder):
    source = open_images([folder / "one.png", folder / "p", folder / "m.csv", folder / "q"])
    # Neighbouring files and folders are sorted together, the manifest is not.
    assert _levels(source) == [60, 20, 30, 40, 50, 40, 50, 40]


def test_read_gives_rgb_at_least_as_large_as_asked(folder):
    image = open_images(folder / "one.png").read(0, target_size=4)
    assert image.dtype == np.uint8
    assert image.shape[2] == 3
    assert min(image.shape[:2]) >= 4


def test_missing_file_of_a_manifest_is_unreadable_when_read(folder):
    (folder / "m.csv").write_text("path\ngone.png\n")
    source = open_images(folder / "m.csv")
    with pytest.raises(UnreadableImageError, match="no such file"):
        source.read(0)


def test_procedural_address_sets_count_seed_and_size():
    source = open_images("procedural://12?seed=7&size=64")
    assert isinstance(source, ProceduralSource)
    assert (len(source), source.seed, source.size) == (12, 7, 64)
    assert source.path(3) == "procedural://7/3"
    plain = open_images(["procedural://5"])
    assert isinstance(plain, ProceduralSource)
    assert (len(plain), plain.seed) == (5, 0)


def test_procedural_scene_is_drawn_from_seed_and_index_alone():
    procedural = pytest.importorskip("datamodules.images.procedural")
    source = open_images("procedural://9?seed=7&size=48")
    expected = procedural.draw_scene(sample_rng(7, 0, 4), (48, 48))
    assert np.array_equal(source.read(4), expected)
    assert source.read(4, target_size=16).shape == (48, 48, 3)
    assert not np.array_equal(source.read(3), expected)


def test_procedural_source_ends():
    source = ProceduralSource(3)
    with pytest.raises(IndexError):
        source.path(3)


@pytest.mark.parametrize(
    ("spec", "expected"),
    [
        ([], "no images were named"),
        ("", "no images were named"),
        ("procedural://", "whole numbers"),
        ("procedural://ten", "whole numbers"),
        ("procedural://-4", "whole numbers"),
        ("procedural://0", "at least 1, got 0"),
        ("procedural://4?size=0", "at least 1, got 0"),
        ("procedural://4?seed=1.5", "whole numbers"),
        ("procedural://4?sed=1", "cannot understand"),
        ("procedural://4?seed=1&seed=2", "cannot understand"),
        ("procedural://4/5", "cannot understand"),
        ("https://host/a.jpg", "cannot open"),
        (["procedural://4", "photos"], "cannot be mixed"),
    ],
)
def test_wrong_spec_is_one_line(spec, expected):
    with pytest.raises(ValueError, match=re.escape(expected)) as caught:
        open_images(spec)
    assert "\n" not in str(caught.value)


def test_missing_path_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="nowhere"):
        open_images(tmp_path / "nowhere")
    with pytest.raises(FileNotFoundError, match=r"none\.csv"):
        open_images(tmp_path / "none.csv")
