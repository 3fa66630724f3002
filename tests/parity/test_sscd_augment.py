"""Single operations of SSCD's views equal the reference's pictures, and the pipelines its statistics."""

import numpy as np
import pytest
from PIL import Image, features

from datamodules.transforms import copy_operations as operations
from datamodules.transforms.copy_overlays import (
    EmojiOverlay,
    TextOverlay,
    _load_font,
    emoji_stamp,
    fitting_length,
    lay,
    text_fonts,
    text_stamp,
)
from datamodules.transforms.copy_views import ViewSettings, make_view
from datamodules.transforms.degradations import jpeg_roundtrip
from datamodules.transforms.fonts import emoji_files

METHOD = "sscd"
FACTS = "augment_manifest.json"
MEAN, STD = np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225])
PIPELINES = {"SIMCLR": "simclr", "STRONG_BLUR": "blur", "ADVANCED": "advanced"}


def operation_cases(folder):
    facts = folder.json(FACTS) if folder.has(FACTS) else {"ops": {}}
    return {name: case for name, case in facts["ops"].items() if folder.has(case["file"])}


def pipeline_cases(folder):
    return folder.json(FACTS)["pipeline_statistics"] if folder.has(FACTS) else {}


def picture(folder, file):
    folder._verify(file)
    return np.array(Image.open(folder.path / file).convert("RGB"))


def font_named(name):
    return next(path for path in text_fonts() if path.endswith("/" + name))


def emoji_named(name):
    return next(path for path in emoji_files() if path.endswith("/" + name))


def replay_text(source, case):
    if not features.check("raqm"):
        pytest.skip("Pillow was built without raqm, which set the reference's text")
    font, size_wh, longest = font_named(case["font"]), source.shape[1::-1], case["max_length_that_fits"]
    assert fitting_length(_load_font(font, case["font_size_px"]), case["string_100"], size_wh) == longest
    share = (case["font_size_px"] + 0.5) / min(size_wh)
    length = (longest - 1.5) / longest  # one less than what fits
    color = tuple(case["color"])
    overlay = TextOverlay(font, case["string_100"], share, length, color, case["opacity"], case["fx"], case["fy"])
    lay(source, text_stamp(overlay, size_wh))
    return source


def replay_emoji(source, case, legacy=True):
    overlay = EmojiOverlay(emoji_named(case["emoji"]), case["emoji_size"], case["opacity"], case["fx"], case["fy"])
    lay(source, emoji_stamp(overlay, source.shape[1::-1], legacy))
    return source


def replay(source, case):
    kind = case["op"]
    if kind == "gaussian blur":
        return operations.gaussian_blur(source, case["radius"])
    if kind.startswith("rotate"):
        degrees = case["degrees_ccw"]
        return operations.rotate(source, degrees) if degrees % 90 else operations.quarter_turn(source, degrees)
    if kind == "jpeg":
        return jpeg_roundtrip(source, case["quality"])
    if kind == "resize long edge":
        return operations.resize(source, tuple(case["size_wh"]))
    return replay_emoji(source, case) if kind == "emoji overlay" else replay_text(source, case)


@pytest.mark.golden(METHOD, "augment", operation_cases)
def test_operation_equals_the_recorded_picture(golden):
    case = golden.value
    expected = picture(golden.folder, case["file"]).astype(int)
    answer = replay(picture(golden.folder, "augment/input.png"), case)
    error = np.abs(answer - expected)
    if case["op"] == "gaussian blur":  # Pillow continues its boxes beyond the border otherwise
        assert error.mean() < 0.55
        assert error[20:-20, 20:-20].max() <= 3
    elif case["op"].startswith("rotate") and case["degrees_ccw"] % 90:  # Pillow cuts fractions off, the seam is hard
        assert error.mean() < 0.8
        assert np.median(error) <= 1
        assert (error.max(axis=2) > 2).mean() < 0.015
    elif case["op"] == "resize long edge":
        assert error.max() <= 1
        assert (error > 0).mean() < 0.01
    else:
        assert error.max() == 0


def palette_cases(folder):
    return {name: case for name, case in operation_cases(folder).items() if case.get("source_mode") == "P"}


@pytest.mark.golden(METHOD, "augment", palette_cases)
def test_palette_emoji_is_transparent_unless_asked_for_the_reference_s_rectangle(golden):
    source = picture(golden.folder, "augment/input.png")
    changed = [
        (replay_emoji(source.copy(), golden.value, legacy) != source).any(axis=2).sum() for legacy in (False, True)
    ]
    assert changed[1] == 75 * 75  # a rectangle of half the picture's height
    assert 0.2 * changed[1] < changed[0] < 0.8 * changed[1]


@pytest.mark.golden(METHOD, "augment", pipeline_cases)
def test_pipeline_has_the_recorded_statistics(golden):
    facts = golden.value
    settings = ViewSettings(PIPELINES[golden.id], facts["size"], legacy_emoji=True, legacy_text=True)
    source = picture(golden.folder, "augment/input.png")
    rng = np.random.default_rng(0)
    views = np.stack([make_view(source, settings, rng) for _ in range(facts["n"])]) / 255
    scaled = (views - MEAN) / STD
    measured = {
        "channel_mean": scaled.mean((1, 2)),
        "channel_std": scaled.std((1, 2)),
        "abs_horizontal_gradient": np.abs(np.diff(views, axis=2)).mean((1, 2, 3)),
    }
    for name, values in measured.items():
        allowed = 3 * np.hypot(facts[f"{name}_sem"], values.std(0) / np.sqrt(len(values)))
        np.testing.assert_array_less(np.abs(values.mean(0) - facts[name]), allowed, err_msg=name)
    grey = np.ptp(views, axis=3).max((1, 2)) < 0.01
    assert abs(grey.mean() - facts["fraction_gray"]) < 3 * np.sqrt(2 * 0.22 * 0.78 / facts["n"])
