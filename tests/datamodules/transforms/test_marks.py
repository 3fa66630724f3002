"""draw_mark: endless RGBA marks, tightly cropped, with disjoint designs for training and for judging."""

import cv2
import numpy as np
import pytest

from datamodules.images.randomness import sample_rng
from datamodules.transforms import mark_shapes, mark_text
from datamodules.transforms.fonts import emoji_paths, font_split
from datamodules.transforms.mark_layers import ERASE, Layer, Paint, draw_palette, finish, grown, outlined
from datamodules.transforms.marks import draw_mark

FAMILIES, SPLITS = ("logo", "text"), ("train", "held_out")


def marks(count, size, family=None, split="train", seed=11):
    return [draw_mark(sample_rng(seed, 0, index), size, family, split) for index in range(count)]


@pytest.mark.parametrize("family", [*FAMILIES, None])
def test_same_generator_state_draws_the_same_pixels(family):
    for first, again in zip(marks(12, 96, family), marks(12, 96, family), strict=True):
        np.testing.assert_array_equal(first, again)
    shapes = {mark.tobytes() for mark in marks(12, 96, family)}
    assert len(shapes) == 12


@pytest.mark.parametrize("split", SPLITS)
@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("size", [8, 33, 128, 300])
def test_marks_are_rgba_of_about_the_asked_size(family, split, size):
    for mark in marks(15, size, family, split):
        assert mark.dtype == np.uint8
        assert mark.ndim == 3
        assert mark.shape[2] == 4
        assert 0.75 * size - 3 <= max(mark.shape[:2]) <= 1.1 * size + 3
        assert max(mark.shape[:2]) < 14 * min(mark.shape[:2])


@pytest.mark.parametrize("family", FAMILIES)
def test_crop_is_tight_and_ink_is_there(family):
    for mark in marks(40, 100, family):
        alpha = mark[..., 3]
        for border in (alpha[0], alpha[-1], alpha[:, 0], alpha[:, -1]):
            assert border.any()
        assert alpha.max() > 25
        assert (alpha > 12).mean() > 0.01


@pytest.mark.parametrize("family", FAMILIES)
def test_edges_are_anti_aliased(family):
    shares = [((mark[..., 3] > 8) & (mark[..., 3] < 247)).mean() for mark in marks(40, 100, family)]
    assert np.median(shares) > 0.005


def test_clear_pixels_have_the_colour_of_ink_near_them():
    left, right = np.zeros((64, 128), np.uint8), np.zeros((64, 128), np.uint8)
    cv2.circle(left, (32, 32), 30, 255, -1)
    cv2.circle(right, (96, 32), 30, 255, -1)
    mark = finish([Layer(left, Paint((250.0, 0, 0))), Layer(right, Paint((0, 0, 250.0)))], 128)
    for corner, ink in (((0, 0), (250, 0, 0)), ((-1, 0), (250, 0, 0)), ((0, -1), (0, 0, 250)), ((-1, -1), (0, 0, 250))):
        assert mark[corner][3] == 0
        np.testing.assert_allclose(mark[corner][:3], ink, atol=30)


def test_stacked_paints_follow_the_over_operator():
    full, half = np.full((20, 20), 255, np.uint8), np.full((20, 20), 128, np.uint8)
    mark = finish([Layer(half, Paint((200.0, 0, 0))), Layer(half, Paint((0, 100.0, 0)))], 20)
    a = 128 / 255
    alpha = a + a * (1 - a)
    np.testing.assert_allclose(mark[5, 5, 3], alpha * 255, atol=1)
    np.testing.assert_allclose(mark[5, 5, :3], [200 * a * (1 - a) / alpha, 100 * a / alpha, 0], atol=2)
    hole = np.zeros((20, 20), np.uint8)
    hole[5:10, 5:10] = 255
    cut = finish([Layer(full, Paint((9.0, 9, 9))), Layer(hole, ERASE)], 20)
    np.testing.assert_array_equal(cut[..., 3], 255 - hole)


def test_growing_and_outlining_move_the_edge_by_the_radius():
    square = np.zeros((60, 60), np.uint8)
    square[20:40, 20:40] = 255
    wide = grown(square, 6)
    assert wide.shape == (72, 72)
    assert np.flatnonzero(wide[36] > 128)[[0, -1]].tolist() == [20, 51]
    rim = outlined(square, 4)
    assert np.flatnonzero(rim[30] > 128).tolist() == [20, 21, 22, 23, 36, 37, 38, 39]


def test_no_leading_shape_is_in_both_splits():
    train, held_out = (set(mark_shapes.shape_names(split)) for split in SPLITS)
    assert train.isdisjoint(held_out)
    assert 0.2 <= len(held_out) / (len(train) + len(held_out)) <= 0.25


def test_held_out_logos_never_use_fonts_or_emoji_of_training(monkeypatch):
    opened = set()
    for module in (mark_text, mark_shapes):
        for name in ("load_font", "draws"):
            if hasattr(module, name):
                original = getattr(module, name)
                spy = lambda path, rest, original=original: (opened.add(path), original(path, rest))[1]  # noqa: E731
                monkeypatch.setattr(module, name, spy)
    marks(60, 40, None, "held_out")
    assert opened
    assert opened.isdisjoint(font_split("train")) or font_split("train") == font_split("held_out")
    assert set(emoji_paths("held_out")).isdisjoint(emoji_paths("train"))


@pytest.mark.parametrize("name", [*mark_shapes.TRAIN_SHAPES, *mark_shapes.HELD_OUT_SHAPES])
def test_every_shape_fills_its_square_and_varies(name):
    draw = {**mark_shapes.TRAIN_SHAPES, **mark_shapes.HELD_OUT_SHAPES}[name]
    drawn = [draw(np.random.default_rng(seed), 64, "train") for seed in range(12)]
    assert all(mask.shape == (64, 64) and mask.dtype == np.uint8 for mask in drawn)
    assert np.median([(mask > 127).mean() for mask in drawn]) > 0.04
    rows = [np.flatnonzero((mask > 60).any(1)) for mask in drawn]
    columns = [np.flatnonzero((mask > 60).any(0)) for mask in drawn]
    assert all(len(r) and len(c) for r, c in zip(rows, columns, strict=True))
    reach = [max(np.ptp(r), np.ptp(c)) for r, c in zip(rows, columns, strict=True)]
    assert np.median(reach) > 40
    assert len({mask.tobytes() for mask in drawn}) >= 3


def test_palettes_have_the_stated_shares():
    palettes = [draw_palette(np.random.default_rng(seed)) for seed in range(1000)]
    only = np.array([palette[0].colour for palette in palettes if palette[1].erase])
    assert np.mean(only.min(1) > 220) * len(only) / 1000 == pytest.approx(0.35, abs=0.06)
    assert np.mean(only.max(1) < 41) * len(only) / 1000 == pytest.approx(0.10, abs=0.05)
    gradients = np.mean([palette[0].to is not None for palette in palettes])
    assert gradients == pytest.approx(0.37 * 0.35, abs=0.05)


def test_lines_of_text_are_of_many_kinds():
    lines = [mark_text.draw_line(np.random.default_rng(seed)) for seed in range(400)]
    assert len(set(lines)) > 300
    for part in ("©", "www.", "SAMPLE", "@", "20"):
        assert any(part in line for line in lines)
    assert all(line.strip() and "\n" not in line for line in lines)


def test_text_is_of_letters_that_its_font_draws():
    for seed in range(40):
        rng = np.random.default_rng(seed)
        font = mark_text.draw_font(rng, "train")
        for line in mark_text.draw_lines(rng, font):
            assert all(char == " " or mark_text.draws(font, char) for char in line) or line == "O"


def test_letters_have_the_same_pixels_as_pillows_own_drawing():
    from PIL import Image, ImageDraw, ImageFont

    font = font_split("train")[0]
    if not font:
        pytest.skip("augly, which brings the fonts, is not installed")
    mask = mark_text.tight(mark_text._line_mask("Hag8", font, 40, 0.0), 0)
    image = Image.new("L", (300, 120))
    face = ImageFont.truetype(font, 40, layout_engine=ImageFont.Layout.BASIC)
    ImageDraw.Draw(image).text((40, 20), "Hag8", 255, font=face)
    left, top, right, bottom = image.getbbox()
    np.testing.assert_array_equal(mask, np.asarray(image)[top:bottom, left:right])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [((7,), "at least 8 pixels, got 7"), ((64, "photo"), "'logo', 'text' or None, got 'photo'")],
)
def test_wrong_arguments_are_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        draw_mark(sample_rng(0, 0, 0), *arguments)
