import csv
import json

import pytest

from callbacks.results import COLUMNS, Provenance, Result, as_terminal_table, save_results

RESULTS = [
    Result("iou_image", "", 0.123456789, 0.1, 0.2, 5),
    Result("iou_image", "text, tiled", 0.5, float("nan"), float("nan"), 1),
]
PROVENANCE = Provenance("test", 7, "ab" * 32, "runs/x/last.ckpt", 3, 120, 1000, 0, {"threshold": 0.4})


def test_files_hold_every_number(tmp_path):
    paths = save_results(RESULTS, PROVENANCE, tmp_path / "new" / "folder")
    assert [path.name for path in paths] == ["results.csv", "results.json", "results.md", "results.npz"]
    rows = list(csv.DictReader(paths[0].open()))
    assert tuple(rows[0]) == COLUMNS
    assert [float(row["value"]) for row in rows] == [0.123456789, 0.5]
    assert rows[1]["group"] == "text, tiled"
    assert {row["config_sha256"] for row in rows} == {"ab" * 32}
    assert {row["seed"] for row in rows} == {"7"}


def test_json_is_strict_and_complete(tmp_path):
    path = save_results(RESULTS, PROVENANCE, tmp_path)[1]
    document = json.loads(path.read_text(), parse_constant=lambda name: pytest.fail(f"{name} is not JSON"))
    assert document["results"][0] == {
        "metric": "iou_image",
        "group": "",
        "value": 0.123456789,
        "low": 0.1,
        "high": 0.2,
        "n": 5,
    }
    assert document["results"][1]["low"] is None
    assert document["provenance"]["checkpoint"] == "runs/x/last.ckpt"
    assert document["provenance"]["settings"] == {"threshold": 0.4}


def test_markdown_has_a_row_for_each_result(tmp_path):
    text = save_results(RESULTS, PROVENANCE, tmp_path)[2].read_text()
    rows = [line for line in text.splitlines() if line.startswith("| ")]
    assert rows[1:] == [
        "| iou_image | all | 0.1235 | 0.1000 – 0.2000 | 5 |",
        "| iou_image | text, tiled | 0.5000 | – – – | 1 |",
    ]
    assert "threshold 0.4" in text
    assert "seed 7" in text


def test_a_failed_write_leaves_the_old_file_and_no_part(tmp_path, monkeypatch):
    save_results(RESULTS[:1], PROVENANCE, tmp_path)
    before = (tmp_path / "results.csv").read_text()

    def full(self, target):
        raise OSError(28, "No space left on device", str(target))

    monkeypatch.setattr("pathlib.Path.replace", full)
    with pytest.raises(OSError, match="No space left"):
        save_results(RESULTS, PROVENANCE, tmp_path)
    assert (tmp_path / "results.csv").read_text() == before
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "results.csv",
        "results.json",
        "results.md",
        "results.npz",
    ]


def test_the_terminal_table_has_a_row_for_each_result():
    assert as_terminal_table(RESULTS, PROVENANCE).row_count == 2
    many = [Result("tpr", f"group {n}", 0.5, 0.4, 0.6, 9) for n in range(100)] + RESULTS
    table = as_terminal_table(many, PROVENANCE)
    assert table.row_count == 60
    names = list(table.columns[0].cells)
    assert names[0] == "tpr/group 0"
    assert names[-1] == "iou_image"  # figures of all samples are never left out
    assert "42 more results are in the files" in str(table.caption)
