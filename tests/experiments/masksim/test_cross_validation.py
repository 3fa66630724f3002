"""Cross-validation: which pictures train, calibrate and are scored in a fold, and the figures over all folds."""

import csv

import numpy as np
import pytest

from datamodules.spectra_cache import ABOUT_FILE, COLUMNS, INDEX_FILE, SPECTRA_FILE, SpectraCacheDataModule, read_index
from experiments.masksim.cross_validation import Scored, as_table, figures, folds_of, write_fold

FACTS = {"width": 64, "blockiness": 0.5}


@pytest.fixture
def cache(tmp_path):
    """A cache of 14 real pictures and 8 of "toy": two training views and two frozen ones each."""
    folder, row = tmp_path / "cache", 0
    folder.mkdir()
    lines = []
    for split, views in (("train", ("train_0", "train_1")), ("test", ("native", "levelled"))):
        for number in range(22):
            generator = "real" if number < 14 else "toy"
            for view in views:
                known = (
                    row,
                    split,
                    view,
                    number,
                    float(number >= 14),
                    generator,
                    generator,
                    f"{number}.png",
                    "PNG",
                    "",
                )
                lines.append(dict(zip(COLUMNS, known, strict=True)) | FACTS)
                row += 1
    with (folder / INDEX_FILE).open("w", newline="") as file:
        writer = csv.DictWriter(file, list(lines[0]))
        writer.writeheader()
        writer.writerows(lines)
    np.save(folder / SPECTRA_FILE, np.zeros((row, 3, 4, 3), np.float16))
    (folder / ABOUT_FILE).write_text("{}")
    return folder


def test_each_picture_is_scored_once_by_heads_that_have_not_seen_it(cache, tmp_path):
    scored: list[str] = []
    for fold in range(5):
        rows = read_index(write_fold(cache, tmp_path / f"fold_{fold}", fold, 5, calibrating=2))
        paths = {split: {line["path"] for line in lines} for split, lines in rows.items()}
        assert sum(map(len, paths.values())) == 22
        assert not paths["train"] & (paths["val"] | paths["test"])
        assert not paths["val"] & paths["test"]
        assert {line["view"] for line in rows["train"]} == {"train_0", "train_1"}
        assert {line["view"] for line in rows["val"] + rows["test"]} == {"native", "levelled"}
        assert {line["generator"] for line in rows["train"]} == {"real", "toy"}
        scored += paths["test"]
    assert sorted(scored) == sorted({f"{number}.png" for number in range(22)})


def test_a_fold_is_a_cache_to_train_on(cache, tmp_path):
    folder = write_fold(cache, tmp_path / "fold", 1, 4, calibrating=1)
    data = SpectraCacheDataModule(str(folder), batch_size=4, num_workers=0)
    data.setup("fit")
    assert next(iter(data.train_dataloader()))["spectrum"].shape == (4, 3, 4, 3)


def test_folds_go_by_name_and_hold_equal_shares():
    lines = [{"path": f"a/{n}.png", "generator": "real" if n % 3 else "toy"} for n in range(30)]
    places = folds_of(lines, 5)
    for generator, share in (("real", 4), ("toy", 2)):
        assert (
            np.bincount([places[line["path"]] for line in lines if line["generator"] == generator]).tolist()
            == [share] * 5
        )
    assert folds_of(lines[::-1], 5) == places


def test_figures_pool_the_folds(tmp_path):
    def line(generator, width):
        return dict.fromkeys(COLUMNS, "") | {"generator": generator, "format": "PNG", "width": str(width)}

    scored = Scored(
        [line("real", 1), line("real", 2), line("toy", 9)],
        {"native": np.array([[0.0], [2.0], [1.0]])},
        {"native": np.array([0.9, 0.05, 0.01])},
    )
    other = Scored([line("toy", 8)], {"native": np.array([[3.0]])}, {"native": np.array([0.5])})
    results, alarms = figures([scored, other], ["toy"])
    assert results["toy", "native"][0] == pytest.approx(0.75)  # of four pairs, one is in the wrong order
    assert results["packaging: width", "native"][0] == 1.0
    assert "nominal 5%: 1 of 2 real pictures (50.0%" in alarms[1]
    assert "1 of 2 generated ones" in alarms[1]
    assert "| toy | 0.750 (" in as_table(results, alarms)
