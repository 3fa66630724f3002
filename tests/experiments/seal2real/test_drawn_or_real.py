"""Drawn or real: files stay together, easy domains are told, and the sheet holds what it should."""

import numpy as np
import pytest
from PIL import Image

from callbacks.metrics.domain_classifier import JudgeSettings
from datamodules.images.sources import open_images
from datamodules.transforms.documents.samples import DocumentSettings
from experiments.seal2real.drawn_or_real import (
    FoldedScores,
    Views,
    contact_sheet,
    drawn_views,
    judged,
    main,
    real_views,
)

QUICK = JudgeSettings(steps=25, width=4, batch_size=16, folds=2)
SMALL = DocumentSettings(size=128, sheets=3, seals=(1, 1))


@pytest.fixture
def photos(tmp_path):
    folder = tmp_path / "real"
    folder.mkdir()
    rng = np.random.default_rng(0)
    for number in range(6):
        pixels = rng.integers(120, 255, (70 + number, 90, 3), np.uint8)
        Image.fromarray(pixels).save(folder / f"{number}.png")
    return folder


def noise(count, scale, seed):
    rng = np.random.default_rng(seed)
    tone = rng.uniform(90, 200, (count, 3, 1, 1))
    return (tone + scale * rng.normal(size=(count, 3, 20, 20))).clip(0, 255).astype(np.uint8)


def test_different_looks_are_told_and_views_of_a_file_are_one_score():
    real = Views(noise(40, 14, 0), [f"photo{number // 4}" for number in range(40)])
    drawn = Views(noise(30, 0, 1), [str(number) for number in range(30)])
    value, low, high = judged(real, drawn, QUICK)
    assert value > 0.9
    assert low <= value <= high


def test_scores_are_compared_within_their_part():
    rng = np.random.default_rng(0)
    scores, labels, folds = rng.normal(size=30), rng.random(30) < 0.4, rng.integers(0, 3, 30)
    wanted = []
    for fold in range(3):
        ours, theirs = scores[(folds == fold) & labels], scores[(folds == fold) & ~labels]
        wanted.append((ours[:, None] > theirs).mean())
    found = FoldedScores(scores + 10 * folds, labels, folds)
    assert found(np.ones((1, 30)))[0] == pytest.approx(np.mean(wanted))
    without = np.ones((1, 30))
    without[0, (folds == 0) & labels] = 0
    assert found(without)[0] == pytest.approx(np.mean(wanted[1:]))


def test_views_are_squares_of_their_files(photos):
    views = real_views(open_images(str(photos)), 3, 32, seed=1)
    assert views.crops.shape == (18, 3, 32, 32)
    assert [views.sources.count(name) for name in sorted(set(views.sources))] == [3] * 6
    drawn = drawn_views(SMALL, 4, 32, seed=1)
    assert drawn.crops.shape == (4, 3, 32, 32)
    assert np.array_equal(drawn.crops, drawn_views(SMALL, 4, 32, seed=1).crops)
    inked = (drawn.crops.max(1).astype(int) - drawn.crops.min(1)) > 40
    assert inked.mean(axis=(1, 2)).max() > 0.02


def test_the_program_writes_a_table_and_a_sheet(photos, tmp_path, capsys):
    words = ["--drawn", "6", "--views", "2", "--size", "24", "--steps", "4", "--folds", "2", "--document-size", "128"]
    assert main(["--real", str(photos), "--output", str(tmp_path / "out"), "--scripts", "latin", *words]) == 0
    table = (tmp_path / "out/drawn_or_real.md").read_text()
    assert "flat ink" in table
    assert "6 real files, 6 drawn seals" in table
    with Image.open(tmp_path / "out/drawn_or_real.png") as sheet:
        assert sheet.width == 8 * 164 - 4


def test_the_sheet_has_real_seals_above_drawn_ones(photos):
    sheet = contact_sheet(open_images(str(photos)), SMALL, 0)
    assert sheet.shape == (160 + 12 + 5 * 164 - 4, 8 * 164 - 4, 3)
    first = np.asarray(Image.open(photos / "0.png").resize((160, 124), Image.Resampling.BOX)).mean()
    assert sheet[30:130, 5:155].mean() == pytest.approx(first, abs=6)
