"""The published processing of MaskSim, replayed: draws, crops, compression and colours are equal byte for byte."""

import re

import numpy as np
import pytest

from datamodules.transforms.spectrum_crops import central_crop
from datamodules.transforms.spectrum_reference import (
    ReferenceSettings,
    aligned_offset,
    central_offset,
    process,
    rgb_to_ycbcr_truncated,
)

METHOD = "masksim"
FILE = "dataset.safetensors"
TRAINED = re.compile(r"train_(?P<webp>webp_)?s(?P<seed>\d+)_l(?P<label>\d)")
FROZEN = re.compile(r"(?P<mode>test|valid)(_q(?P<quality>\d+))?_w(?P<window>\d+)_(?P<space>RGB|YCbCr)")


def cases_like(pattern):
    return lambda folder: {key: match for key in folder.keys(FILE) if (match := pattern.fullmatch(key))}


def tables(folder):
    offsets = {"center_crop_table": aligned_offset, "preprocess_center_crop_table": central_offset}
    return {name: offset for name, offset in offsets.items() if name in folder.keys(FILE)}


def colours(folder):
    return [key for key in folder.keys(FILE) if key == "ycc_in"]


def same(got, wanted, allowed=0):
    """Whether arrays are equal; on other builds of the codecs a near-neutral colour may fall one level lower."""
    difference = np.abs(got.astype(int) - wanted)
    return difference.max() <= (1 if allowed else 0) and (difference > 0).mean() <= allowed


@pytest.mark.golden(METHOD, "training crops", cases_like(TRAINED))
def test_training_crop(golden):
    case, arrays = golden.value, golden.tensors(FILE)
    settings = ReferenceSettings(64, "train", "webp" if case["webp"] else "jpeg")
    crop, _ = process(arrays["src_small"], int(case["label"]), settings, np.random.RandomState(int(case["seed"])))
    assert same(rgb_to_ycbcr_truncated(crop), arrays[golden.id][0], allowed=1e-4)


@pytest.mark.golden(METHOD, "frozen crops", cases_like(FROZEN))
def test_validation_and_test_crops(golden):
    case, arrays = golden.value, golden.tensors(FILE)
    quality = int(case["quality"]) if case["quality"] else None
    settings = ReferenceSettings(int(case["window"]), case["mode"], "jpeg", quality)
    crop, _ = process(arrays["src_small"], 0, settings, np.random.RandomState(0))
    shown = crop if case["space"] == "RGB" else rgb_to_ycbcr_truncated(crop)
    assert same(shown, arrays[golden.id][0], allowed=1e-4)
    if case["mode"] == "test" and case["space"] == "RGB":
        np.testing.assert_array_equal(central_crop(arrays["src_small"], settings.window), crop)


@pytest.mark.golden(METHOD, "colours", colours)
def test_truncated_studio_swing(golden):
    arrays = golden.tensors(FILE)
    np.testing.assert_array_equal(rgb_to_ycbcr_truncated(arrays["ycc_in"]), arrays["ycc_out"])


@pytest.mark.golden(METHOD, "crop tables", tables)
def test_offsets_of_central_crops(golden):
    for height, width, window, top, left, rows, columns in golden.tensors(FILE)[golden.id].tolist():
        assert (golden.value(height, window), golden.value(width, window)) == (top, left)
        assert (min(height - top, window), min(width - left, window)) == (rows, columns)
