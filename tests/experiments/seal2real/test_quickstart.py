"""What the quickstart shows, without its training."""

import json
from dataclasses import replace

import numpy as np
from PIL import Image

from datamodules.seal_predictions import PREDICT_FROM
from datamodules.transforms.documents.samples import DocumentSettings, draw_document
from datamodules.transforms.documents.views import Square
from experiments.seal2real.quickstart import SIDE, TITLES, as_table, draw_picture, within

SETTINGS = DocumentSettings(size=96, seals=(1, 1))
TEST_SEED = 2  # of the documents that predict draws where the frozen sets have seed 0


def test_table_has_the_figures_of_both_stages_and_says_what_was_not_measured():
    separated = {("auroc", ""): (0.83, 0.8, 0.86)}
    forged = {("domain_auc", "realised"): (0.7, 0.65, 0.75), ("domain_auc_drop", ""): (0.2, 0.15, 0.25)}
    lines = as_table(separated, forged).splitlines()
    assert "by the prompts alone | 0.830 (0.800 to 0.860) |" in lines[2]
    assert "judge's AUC, realised against real | 0.700 (0.650 to 0.750) |" in lines[4]
    assert "lower by | 0.200 (0.150 to 0.250) |" in lines[5]
    assert all(line.endswith("| not measured |") for line in lines[6:])


def test_picture_shows_each_seal_before_after_and_as_it_would_be_degraded(tmp_path):
    (tmp_path / "predictions").mkdir()
    (tmp_path / "realised" / "images").mkdir(parents=True)
    records = []
    for index in (1, 0):
        document = draw_document(TEST_SEED, PREDICT_FROM + index, replace(SETTINGS, domain="clean"))
        made = np.clip(document.image.astype(int) - 10, 0, 255).astype(np.uint8)
        Image.fromarray(made).save(tmp_path / "realised" / "images" / f"{index:06d}.png")
        records.append({"index": index, "boxes": [list(document.seals[0].box_xyxy)]})
    lines = "".join(json.dumps(record) + "\n" for record in records)
    (tmp_path / "predictions" / "predictions.rank0.jsonl").write_text(lines)
    picture = draw_picture(tmp_path, SETTINGS, seed=0)
    assert picture.shape[1] >= len(TITLES) * SIDE
    half = SIDE // 2
    for row in range(2):
        top = picture.shape[0] - (2 - row) * (SIDE + 4)
        drawn, made, change, degraded = (
            picture[top + half - 40 : top + half + 40, left + half - 40 : left + half + 40].astype(int)
            for left in range(0, 4 * (SIDE + 4), SIDE + 4)
        )
        bright = drawn > 20
        assert np.abs(drawn - made - 10)[bright].max() <= 1, "the realised picture is ten levels darker"
        assert np.abs(change - (128 - 40))[bright].max() <= 4
        assert 2 < np.abs(drawn - degraded).mean() < 80, "the same document by another device"


def test_squares_are_moved_into_the_picture():
    assert within(Square(-5, 70, 40), 96) == Square(0, 56, 40)
    assert within(Square(-5, 3, 120), 96) == Square(0, 0, 96)
