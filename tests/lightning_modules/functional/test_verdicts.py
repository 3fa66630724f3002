import numpy as np
import pytest

from lightning_modules.functional.verdicts import WORDS, ReferenceTables, verdict_codes

HEADS = ("sd1", "sd2")


def write(path, scores, header="image_filename,class_label,score", extra=()):
    rows = [",".join([f"img_{i}.png", *row, repr(float(score))]) for i, (*row, score) in enumerate(scores)]
    path.write_text("\n".join([header, *rows]) + "\n")


@pytest.fixture
def folder(tmp_path):
    rng = np.random.default_rng(0)
    scores = {head: rng.random(90) ** 2 for head in HEADS}
    for head, values in scores.items():
        write(tmp_path / f"coco_unlabled_2017_to_{head}.csv", [("0", v) for v in values[:40]])
        write(tmp_path / f"FlickrFace_to_{head}.csv", [("0", v) for v in values[40:]])
    return tmp_path, scores


def raw_maximum(folder, scores):
    both = np.stack(list(scores.values()), axis=1)
    rows = [(repr(float(a)), repr(float(b)), max(a, b)) for a, b in both]
    write(folder / "all_to_max.csv", rows, "image_filename,sd1,sd2,score")


def calibrated_maximum(folder, scores):
    ranks = [np.searchsorted(np.sort(s), s) / len(s) for s in scores.values()]
    write(folder / "all_to_max.csv", [("0", v) for v in np.max(ranks, axis=0)])


def test_files_are_pooled_and_rates_counted(folder):
    path, scores = folder
    calibrated_maximum(path, scores)
    tables = ReferenceTables.read(path, HEADS)
    query = {"sd1": np.array([0.0, 0.3, scores["sd1"][3], 2.0]), "sd2": np.array([0.9, 0.0, 0.5, 2.0])}
    found = tables.false_positive_rates(query)
    for head in HEADS:
        np.testing.assert_allclose(found[head], [np.mean(scores[head] >= q) for q in query[head]], atol=1e-12)
    assert found["sd1"][3] == 0
    for head in HEADS:
        np.testing.assert_array_equal(tables.thresholds()[head], np.quantile(scores[head], [0.99, 0.95, 0.9]))


def test_both_versions_of_the_maximum_give_right_rates(folder):
    path, scores = folder
    raw_maximum(path, scores)
    raw = ReferenceTables.read(path, HEADS)
    calibrated_maximum(path, scores)
    calibrated = ReferenceTables.read(path, HEADS)
    assert (raw.maximum_of, calibrated.maximum_of) == ("raw", "calibrated")
    for tables in (raw, calibrated):
        # Over the table itself, the share of pictures with a rate of at most a is a.
        rates = tables.generic_rate(scores)
        for nominal in (0.1, 0.5):
            assert np.mean(rates <= nominal) == pytest.approx(nominal, abs=0.02)
    # What the reference did with the older file.
    published = raw.generic_rate(scores, as_published=True)
    best = np.max([raw.calibrated(head, scores[head]) for head in HEADS], axis=0)
    np.testing.assert_array_equal(published, 1 - np.searchsorted(raw.maximum, best) / 90)
    assert np.abs(published - raw.generic_rate(scores)).max() > 0.05


def test_verdicts_change_at_the_rates_themselves():
    rates = [0.0, 0.00999, 0.01, 0.0499, 0.05, 0.0999, 0.1, 1.0]
    words = [WORDS[code].split()[0] for code in verdict_codes(rates)]
    assert words == ["VERY", "VERY", "LIKELY", "LIKELY", "POSSIBLE", "POSSIBLE", "no", "no"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("filename,score\na,0.1\n", "its first line must name image_filename and score, got 'filename,score'"),
        ("image_filename,class_label,score\na,0,high\n", "line 2: score must be a probability, got 'high'"),
        ("image_filename,class_label,score\na,0,0.1\nb,0\n", "line 3: score must be a probability, got ''"),
        ("image_filename,class_label,score\na,0,1.5\n", "line 2: score must be a probability, got '1.5'"),
        ("image_filename,class_label,score\n", "has no scores below its first line"),
    ],
)
def test_a_wrong_file_is_one_line(folder, text, message):
    path, _ = folder
    (path / "all_to_max.csv").write_text(text)
    with pytest.raises(ValueError, match=message) as error:
        ReferenceTables.read(path, HEADS)
    assert "all_to_max.csv" in str(error.value)
    assert "\n" not in str(error.value)


def test_missing_files_are_named(folder):
    path, _ = folder
    with pytest.raises(FileNotFoundError, match=r"has no calibration file \*_to_sdxl.csv"):
        ReferenceTables.read(path, ["sdxl"])
    with pytest.raises(FileNotFoundError, match=r"no calibration file .*all_to_max.csv"):
        ReferenceTables.read(path, HEADS)
