import random

import numpy as np
import pytest
from PIL import Image

from datamodules.transforms.letterbox import letterbox
from datamodules.transforms.watermark_reference import ReferenceCompositor
from experiments.benchmarks import compositing


@pytest.fixture
def files(tmp_path):
    rng = np.random.default_rng(0)
    photos, logos = tmp_path / "photos", tmp_path / "logos"
    for folder in (photos, logos):
        folder.mkdir()
    for number in range(3):
        Image.fromarray(rng.integers(0, 256, (50, 70, 3), np.uint8)).save(photos / f"{number}.png")
        Image.fromarray(rng.integers(0, 256, (30, 40 + number, 4), np.uint8)).save(logos / f"{number}.png")
    return [sorted(map(str, folder.iterdir())) for folder in (photos, logos)]


def test_the_baseline_makes_the_pixels_of_engine_reference(files):
    photos, logos = files
    compositor = ReferenceCompositor.from_files(logos)
    for seed in range(12):
        image, mask = compositing.reference_sample(photos[0], logos, random.Random(seed), 64)
        plain, plain_mask = compositor(np.asarray(Image.open(photos[0])), random.Random(seed))
        expected, expected_mask = letterbox(plain.astype(np.float32) / 255, plain_mask.astype(np.float32), 64)
        np.testing.assert_array_equal(image, expected)
        np.testing.assert_array_equal(mask, expected_mask)


def test_rows_have_both_sides_and_their_ratio(files):
    rows = compositing.measure(*files, samples=2)
    assert len(rows) == 2
    for row in rows:
        assert row["ratio"] == pytest.approx(row["reference_ms"] / row["ours_ms"], rel=0.05)
        assert row["ours_ms"] > 0
