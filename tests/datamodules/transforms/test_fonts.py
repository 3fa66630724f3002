"""Fonts and emoji: usable, and never in both splits."""

import importlib.util
from pathlib import Path

import numpy as np
import pytest
from PIL import ImageFont

from datamodules.transforms import fonts

HAS_AUGLY = importlib.util.find_spec("augly") is not None
needs_augly = pytest.mark.skipif(not HAS_AUGLY, reason="augly, which brings the fonts, is not installed")


@needs_augly
def test_available_fonts_draw_basic_latin():
    paths = fonts.available_fonts()
    assert len(paths) > 150
    assert list(paths) == sorted(paths)
    for path in paths[::25]:
        font = ImageFont.truetype(path, 24)
        drawings = {bytes(font.getmask(char)) for char in "AQgxR5"}
        assert len(drawings) == 6
        assert bytes(font.getmask("\U0010ffff")) not in drawings


@needs_augly
def test_fonts_without_latin_letters_are_left_out():
    names = {Path(path).name for path in fonts.available_fonts()}
    assert "NotoSansRunic-Regular.ttf" not in names
    assert "Entypo.ttf" not in names
    assert "Montserrat-Bold.ttf" in names


@needs_augly
def test_no_font_family_is_in_both_splits():
    families = [{fonts.font_family(path) for path in fonts.font_split(split)} for split in ("train", "held_out")]
    assert families[0].isdisjoint(families[1])
    train, held_out = (len(fonts.font_split(split)) for split in ("train", "held_out"))
    assert train + held_out == len(fonts.available_fonts())
    assert 0.1 < held_out / (train + held_out) < 0.3


@needs_augly
def test_fonts_of_scripts_and_pictures_are_split_too():
    scripts = [set(fonts.script_fonts(split)) for split in ("train", "held_out")]
    icons = [{path for path, _, _ in fonts.icon_fonts(split)} for split in ("train", "held_out")]
    assert all(scripts)
    assert all(icons)
    assert scripts[0].isdisjoint(scripts[1])
    assert icons[0].isdisjoint(icons[1])


@needs_augly
def test_scripts_are_those_that_a_font_draws():
    thai = next(path for path in fonts.font_files() if path.endswith("NotoSansThai-Regular.ttf"))
    assert [letters[0] for letters in fonts.font_scripts(thai)] == ["ก"]
    assert fonts.draws(thai, "ก")
    assert not fonts.draws(thai, "Д")


@needs_augly
def test_no_emoji_is_in_both_splits():
    train, held_out = (set(fonts.emoji_paths(split)) for split in ("train", "held_out"))
    assert train.isdisjoint(held_out)
    assert 0.1 < len(held_out) / (len(train) + len(held_out)) < 0.3
    picture = fonts.load_emoji(min(train))
    assert picture.mode == "RGBA"
    alpha = np.asarray(picture)[..., 3]
    assert alpha.min() == 0
    assert alpha[0].any()
    assert alpha[:, -1].any()


def test_without_augly_pillow_draws_and_there_are_no_emoji(monkeypatch):
    cached = (
        fonts._assets,
        fonts.font_files,
        fonts.available_fonts,
        fonts.font_split,
        fonts.emoji_files,
        fonts.emoji_paths,
    )
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    for function in cached:
        function.cache_clear()
    try:
        assert fonts.available_fonts() == (fonts.BUILT_IN,)
        assert fonts.font_split("held_out") == (fonts.BUILT_IN,)
        assert fonts.emoji_paths("train") == ()
        assert fonts.load_font(fonts.BUILT_IN, 20).getbbox("abc")[2] > 10
    finally:
        for function in cached:
            function.cache_clear()


def test_unknown_split_is_named():
    with pytest.raises(ValueError, match="'train' or 'held_out', got 'test'"):
        fonts.emoji_paths("test")
