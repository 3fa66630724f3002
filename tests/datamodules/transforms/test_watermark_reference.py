import random

import cv2
import numpy as np
import pytest
from PIL import Image

from datamodules.transforms.watermark_reference import Placement, ReferenceCompositor, paste_mark


def square_logo(color=(255, 0, 0, 255), side=20):
    return Image.new("RGBA", (side, side), color)


def photo(height=60, width=80, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)


def pasted(image, placement, logo=None):
    canvas, mask = image.astype(np.float32) / 255, np.zeros(image.shape[:2], np.uint8)
    paste_mark(canvas, mask, logo or square_logo(), placement)
    return canvas, mask


def test_an_unscaled_mark_is_the_blend_formula_and_its_mask_the_square():
    image = photo()
    canvas, mask = pasted(image, Placement(None, 1.0, 0.25, (5, 7), "normal"))
    expected = image / 255
    expected[7:27, 5:25] = 0.75 * expected[7:27, 5:25] + 0.25 * np.array([1, 0, 0])
    np.testing.assert_allclose(canvas, expected, atol=1e-6)
    assert mask.sum() == 400
    assert mask[7:27, 5:25].all()


@pytest.mark.parametrize("position", [(80, 0), (200, 10), (-20, 0), (-500, 3), (0, 60), (0, -90), (300, 300)])
def test_a_mark_outside_changes_nothing(position):
    image = photo()
    canvas, mask = pasted(image, Placement(None, 1.0, 1.0, position, "normal"), square_logo(side=100).resize((20, 20)))
    np.testing.assert_array_equal(canvas, image.astype(np.float32) / 255)
    assert not mask.any()
    large, _ = pasted(image, Placement(None, 5.0, 1.0, (80, 60), "normal"))
    np.testing.assert_array_equal(large, image.astype(np.float32) / 255)


def test_a_name_that_the_reference_does_not_know_acts_as_normal():
    image = photo()
    results = [pasted(image, Placement(30.0, 1.0, 0.7, (5, 7), mode))[0] for mode in ("screen", "normal", "multiply")]
    np.testing.assert_array_equal(results[0], results[1])
    assert not np.array_equal(results[0], results[2])


def test_an_invisible_mark_is_labelled_all_the_same():
    """White in multiply: the halo labels that the spec lists as a weakness are part of this engine."""
    image = photo()
    canvas, mask = pasted(image, Placement(None, 1.0, 1.0, (5, 7), "multiply"), square_logo((255, 255, 255, 255)))
    np.testing.assert_allclose(canvas, image / 255, atol=1e-6)
    assert mask.sum() == 400


def test_equal_generators_give_equal_samples_and_nothing_outside_the_mask_changes():
    compositor = ReferenceCompositor([("a", square_logo()), ("b", square_logo((0, 90, 255, 120), 33))])
    image = photo()
    original = image.copy()
    marked = set()
    for seed in range(20):
        result, mask = compositor(image, random.Random(seed))
        again = compositor(image, random.Random(seed))
        np.testing.assert_array_equal(result, again[0])
        np.testing.assert_array_equal(mask, again[1])
        np.testing.assert_array_equal(result[mask == 0], image[mask == 0])
        marked.add(int(mask.sum()))
    np.testing.assert_array_equal(image, original)
    assert len(marked) > 10


@pytest.mark.parametrize("shape", [(1, 1), (3, 200), (12, 5)])
def test_tiny_photos_do_not_break_it(shape):
    compositor = ReferenceCompositor([("a", square_logo())])
    for seed in range(30):
        result, mask = compositor(photo(*shape), random.Random(seed))
        assert result.shape == (*shape, 3)
        assert mask.shape == shape


def test_no_blend_mode_is_drawn_for_a_mark_that_misses_the_photo():
    """A 5-pixel photo lets x and y be as large as 10 less the mark's size, which is beyond it for small marks."""
    compositor = ReferenceCompositor([("a", square_logo())])
    missed = 0
    for seed in range(40):
        rng, draws = random.Random(seed), []

        class Recorder:
            def __getattr__(self, name, rng=rng, draws=draws):
                def draw(*args):
                    draws.append((name, getattr(rng, name)(*args)))
                    return draws[-1][1]

                return draw

        compositor(photo(5, 5), Recorder())
        placed = [at for at, (name, _) in enumerate(draws) if name == "randint"][1::2]
        for at in placed:
            inside = draws[at][1] < 5 and draws[at + 1][1] < 5
            assert (draws[at + 2 :][:1] != [] and draws[at + 2][0] == "choices") == inside
            missed += not inside
    assert missed > 10


@pytest.mark.parametrize("dilate", [0, 1, 2, 5])
def test_dilation_is_opencvs_square(dilate):
    logos = [("a", square_logo())]
    _, plain = ReferenceCompositor(logos)(photo(), random.Random(4))
    _, mask = ReferenceCompositor(logos, dilate)(photo(), random.Random(4))
    expected = cv2.dilate(plain * 255, np.ones((dilate, dilate), np.uint8)) // 255 if dilate else plain
    np.testing.assert_array_equal(mask, expected)


def test_folder_is_read_once_and_in_order_of_name(tmp_path):
    for name, color in (("b.PNG", (0, 0, 0, 255)), ("a.png", (9, 9, 9, 255))):
        square_logo(color).save(tmp_path / name)
    square_logo().quantize(4).save(tmp_path / "c.png")  # a palette with transparency
    (tmp_path / "notes.txt").write_text("no logo")
    compositor = ReferenceCompositor.from_folder(tmp_path)
    chosen = ReferenceCompositor.from_files([str(tmp_path / "c.png"), tmp_path / "a.png"], dilate=3)
    assert [name for name, _ in chosen.logos] == ["c.png", "a.png"]
    assert chosen.dilate == 3
    for path in tmp_path.iterdir():
        path.unlink()
    assert [name for name, _ in compositor.logos] == ["a.png", "b.PNG", "c.png"]
    assert {logo.mode for _, logo in compositor.logos} == {"RGBA"}
    compositor(photo(), random.Random(0))


def test_errors_name_the_place(tmp_path):
    with pytest.raises(FileNotFoundError, match="nowhere"):
        ReferenceCompositor.from_folder(tmp_path / "nowhere")
    with pytest.raises(FileNotFoundError, match=r"no PNG logo in .*reads \*\.png only"):
        ReferenceCompositor.from_folder(tmp_path)
    (tmp_path / "broken.png").write_bytes(b"\x89PNG no more")
    with pytest.raises(ValueError, match=r"broken\.png' cannot be read"):
        ReferenceCompositor.from_folder(tmp_path)
    with pytest.raises(ValueError, match="logos is empty"):
        ReferenceCompositor([])
    with pytest.raises(ValueError, match="dilate must be 0 or more, got -1"):
        ReferenceCompositor([("a", square_logo())], -1)
