"""The published tables and the figures by set-ups, on one process and on two."""

import csv
import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from callbacks.sync_setups import QUALITY_HEADER, SYNC_HEADER, SetUpEvaluation

PROGRAM = Path(__file__).with_name("setups_run.py")


@pytest.fixture(scope="module")
def program():
    spec = importlib.util.spec_from_file_location("setups_run", PROGRAM)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def one(program, tmp_path_factory):
    folder = tmp_path_factory.mktemp("one")
    run = program.evaluate(str(folder))
    return folder / "version_0", {name: value.item() for name, value in run.callback_metrics.items()}


def results_of(folder):
    content = json.loads((folder / "results.json").read_text())
    return {(row["metric"], row["group"]): row["value"] for row in content["results"]}, content


def test_the_table_of_errors_has_the_published_form(one, program):
    lines = (one[0] / "sync_metrics.csv").read_text().splitlines()
    assert (
        lines[0]
        == SYNC_HEADER
        == "index,geom_aug,geom_strength,val_aug,val_strength,avg_pixel_diff,detect_time,unwrap_time"
    )
    assert len(lines) == 1 + 9 * 4
    assert lines[1] == "0,identity_0,0.0,Identity_0,0,0.0000,0.001000,0.000500"
    assert lines[1 + 4 * 5 + 3] == "5,rotate_5,5.0,JPEG_20,20,35.0000,0.004000,0.002000"


def test_the_table_of_quality_says_what_was_not_measured(one):
    text = (one[0] / "image_quality_metrics.csv").read_text()
    assert text.splitlines()[0] == QUALITY_HEADER
    rows = list(csv.DictReader(text.splitlines()))
    assert rows[2] == {
        "index": "2",
        "psnr": "42.0000",
        "ssim": "0.9920",
        "lpips": "not measured",
        "embed_time": "0.250000",
    }
    assert rows[3]["psnr"] == "inf"


def test_figures_are_means_over_pictures_and_set_ups(one):
    values, content = results_of(one[0])
    index = np.arange(9)
    assert values["corner_error_px", ""] == pytest.approx(4 + 15)
    assert values["corner_error_px", "rotate_5"] == pytest.approx(4 + 25)
    assert values["corner_error_px", "JPEG_20"] == pytest.approx(4 + 20)
    assert values["identity_error_px", "rotate_5"] == pytest.approx(8 + 20)
    assert values["error_to_identity", ""] == pytest.approx(19 / 18)
    errors = index[:, None] + 10 * np.arange(4)
    assert values["within_3_px", ""] == pytest.approx((errors <= 3).mean())
    # The picture that equals its original has no finite ratio.
    assert values["psnr_db", ""] == pytest.approx((40 + index[index != 3]).mean())
    assert ("lpips", "") not in values
    assert "not measured" in content["settings"]["lpips"] if "settings" in content else "not measured" in str(content)


def test_two_processes_give_what_one_gives(one, tmp_path):
    done = subprocess.run(
        [sys.executable, str(PROGRAM), str(tmp_path)],
        capture_output=True,
        text=True,
        timeout=240,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr[-3000:]
    for name in ("sync_metrics.csv", "image_quality_metrics.csv"):
        assert (tmp_path / "version_0" / name).read_text() == (one[0] / name).read_text()
    assert results_of(tmp_path / "version_0")[0] == results_of(one[0])[0]
    for rank in (0, 1):
        assert json.loads((tmp_path / f"rank_{rank}.json").read_text()) == one[1]


def test_a_module_without_set_ups_is_told_what_to_set(program):
    module = program.Synchronised()
    module.setup_labels = None
    with pytest.raises(ValueError, match=r"set --model\.setups to published or wibe"):
        SetUpEvaluation()._start("test", None, module)
