"""Engine "reference" against composites, seeded runs and the validation transform of the reference."""

import random

import numpy as np
import PIL
import pytest
from PIL import Image

from datamodules.transforms.letterbox import letterbox
from datamodules.transforms.watermark_reference import Placement, ReferenceCompositor, paste_mark

METHOD = "watermark_segmentation"
LOGOS = "composite.safetensors"


def by_id(file, key="id"):
    return lambda folder: {str(case[key]): case for case in folder.meta(file).get("cases", [])}


class RecordingRandom:
    """Notes every draw of a `random.Random`; a subclass would change how Python draws integers."""

    def __init__(self, seed):
        self.rng = random.Random(seed)
        self.draws = []

    def __getattr__(self, name):
        def draw(*args):
            value = getattr(self.rng, name)(*args)
            noted = value[0] if name in ("choice", "choices") else value
            self.draws.append([name, noted])
            return value

        return draw


def assert_same_picture(golden, image, mask, expected_image, expected_mask):
    """Bit-exact with the goldens' Pillow; within the stated tolerance with others."""
    exact = PIL.__version__ == golden.folder.manifest["versions"]["pillow"]
    largest, share = (0, 0.0) if exact else (2, 1e-3)
    difference = np.abs(image.astype(int) - expected_image)
    assert difference.max() <= largest
    assert (difference > 0).mean() <= share
    assert ((mask > 0) != (expected_mask > 0)).mean() <= share


@pytest.mark.golden(METHOD, "composite", by_id(LOGOS))
def test_scripted_composites(golden):
    arrays, case = golden.tensors(LOGOS), golden.value
    image = arrays[f"background.{case['background']}"].astype(np.float32) / np.float32(255)
    mask = np.zeros(image.shape[:2], np.uint8)
    for mark in case["watermarks"]:
        logo = Image.fromarray(arrays[f"logo.{mark['logo'].removesuffix('.png')}"], "RGBA")
        keys = ("rotation", "scale", "opacity", "pos", "mode")
        paste_mark(image, mask, logo, Placement(*(mark[key] for key in keys)))
    expected = [arrays[f"case{case['id']:02d}.{name}"] for name in ("image", "mask")]
    assert_same_picture(golden, (image * np.float32(255)).astype(np.uint8), mask, *expected)
    assert int(mask.sum()) == case["mask_pixels"]


@pytest.mark.golden(METHOD, "seeded_runs", by_id("seeded_runs.safetensors", "run"))
def test_seeded_runs(golden):
    logos, arrays, case = golden.tensors(LOGOS), golden.tensors("seeded_runs.safetensors"), golden.value
    names = sorted(key.removeprefix("logo.") for key in logos if key.startswith("logo."))
    compositor = ReferenceCompositor(
        [(f"{name}.png", Image.fromarray(logos[f"logo.{name}"], "RGBA")) for name in names]
    )
    prefix, seed = f"run{case['run']}", case["python_random_seed"]
    expected = [arrays[f"{prefix}.{name}"] for name in ("image", "mask")]
    assert_same_picture(golden, *compositor(arrays[f"{prefix}.background"], random.Random(seed)), *expected)
    recorder = RecordingRandom(seed)
    compositor(arrays[f"{prefix}.background"], recorder)
    assert recorder.draws == case["draws"]


@pytest.mark.golden(METHOD, "val_transform", by_id("val_transform.safetensors"))
def test_validation_transform(golden):
    arrays, case = golden.tensors("val_transform.safetensors"), golden.value
    names = ("in_image", "in_mask", "out_image", "out_mask")
    image, mask, expected, expected_mask = (arrays[f"c{case['id']}.{name}"] for name in names)
    image, mask = letterbox(image.astype(np.float32) / np.float32(255), mask, case["max_size"])
    assert np.abs(image - expected / 65535).max() <= 2 / 255
    np.testing.assert_array_equal(mask > 0, expected_mask > 0)
