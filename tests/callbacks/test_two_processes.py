"""Nine samples on two gloo processes give exactly what they give on one, although the sampler repeats one."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image


@pytest.fixture(scope="module")
def two(tmp_path_factory):
    folder = tmp_path_factory.mktemp("two")
    command = [sys.executable, str(Path(__file__).with_name("echo_run.py")), str(folder)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, timeout=240, env=environment)
    assert done.returncode == 0, done.stderr[-3000:]
    (folder / "output.txt").write_text(done.stdout + done.stderr)
    return folder


@pytest.fixture(scope="module")
def one(echo, tmp_path_factory):
    folder = tmp_path_factory.mktemp("one")
    module, run = echo.evaluate(str(folder))
    return folder, module, {name: value.item() for name, value in run.callback_metrics.items()}


@pytest.mark.parametrize("stem", ["results", "results_val"])
def test_results_are_equal(one, two, stem):
    ours = json.loads((one[0] / "version_0" / f"{stem}.json").read_text())["results"]
    theirs = json.loads((two / "version_0" / f"{stem}.json").read_text())["results"]
    assert theirs == ours
    assert len(ours) > 20


def test_every_rank_logs_the_values_and_threshold_of_one_process(one, two):
    _, module, metrics = one
    for rank in (0, 1):
        assert json.loads((two / f"rank_{rank}.json").read_text()) == {
            "threshold": module.threshold,
            "metrics": metrics,
        }
    assert module.threshold != 0.5


def test_figures_come_from_rank_zero_alone(two):
    (path,) = (two / "version_0" / "figures").glob("test_*.png")
    assert np.asarray(Image.open(path)).ndim == 3


def test_a_rank_without_rows_gets_the_rows_of_the_other(two):
    for rank in (0, 1):
        gathered = json.loads((two / f"gathered_{rank}.json").read_text())
        assert gathered["one"] == {"index": [7], "x": [float(np.float32(0.1))], "wide": [[1, 1]], "name": ["é"]}
        assert gathered["none"] == {"index": [], "x": []}


def test_the_advice_to_synchronise_is_not_printed(two):
    assert "sync_dist=True" not in (two / "output.txt").read_text()
