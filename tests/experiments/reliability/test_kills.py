"""Runs that are killed at random moments end as unbroken ones do, and the comparison would see if not."""

import os
import random
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from callbacks.checkpoint_files import is_whole
from experiments.reliability.kill_recipes import RECIPES, recipes_of
from experiments.reliability.kills import damage
from experiments.reliability.run_states import compare_runs, differences

ROOT = Path(__file__).parents[3]


@pytest.mark.parametrize(
    ("first", "second", "same"),
    [
        (torch.tensor([1.0, float("nan")]), torch.tensor([1.0, float("nan")]), True),
        (torch.tensor(0.0), torch.tensor(-0.0), False),
        (torch.tensor(1.0), torch.tensor(1.0 + 2**-23), False),
        (torch.tensor([1]), torch.tensor([1.0]), False),
        (torch.ones(2, 1), torch.ones(1, 2), False),
        (torch.empty(0), torch.empty(0), True),
        (float("nan"), float("nan"), True),
        ({"a": [1, (2, 3)]}, {"a": [1, (2, 3)]}, True),
        ({"a": [1, (2, 3)]}, {"a": [1, (2, 4)]}, False),
        ({"a": 1}, {"b": 1}, False),
        ([1], [1, 2], False),
        (1, True, False),
    ],
)
def test_differences_sees_single_bits(first, second, same):
    assert (not differences(first, second)) is same


def test_a_damaged_checkpoint_is_never_whole(tmp_path):
    content = {"weights": torch.zeros(1000), "step": 3, "names": ["a", "b"]}
    for seed in range(200):
        path = tmp_path / f"{seed}.ckpt"
        torch.save(content, path)
        assert is_whole(path)
        damage(path, random.Random(seed))
        assert not is_whole(path)


def write_run(folder, weight, loss, metric):
    """Write what a run leaves: two checkpoints, of which the last counts, rows and another file."""
    (folder / "checkpoints").mkdir(parents=True)
    for step, value in ((1, 0.5), (2, weight)):
        path = f"runs/{folder.name}/checkpoints/step={step}.ckpt"
        state = {"global_step": step, "state_dict": {"w": torch.tensor(value)}, "callbacks": {"best": path}}
        state["saved_ns"] = time.time_ns()
        torch.save(state, folder / "checkpoints" / f"step={step}.ckpt")
    (folder / "metrics.csv").write_text(f"step,loss\n1,0.5\n2,{loss}\n")
    (folder / "results.json").write_text(f'{{"checkpoint": "{folder.name}", "results": [{metric}]}}')
    return folder


@pytest.mark.parametrize(
    ("changed", "told"), [({}, 0), ({"weight": 0.2501}, 1), ({"loss": 0.8}, 1), ({"metric": 0.9}, 1)]
)
def test_runs_are_compared_by_checkpoint_rows_and_files(tmp_path, changed, told):
    whole = write_run(tmp_path / "whole", weight=0.25, loss=0.7, metric=0.3)
    killed = write_run(tmp_path / "killed0", **({"weight": 0.25, "loss": 0.7, "metric": 0.3} | changed))
    assert len(compare_runs(whole, killed)) == told
    next(killed.glob("checkpoints/step=2.ckpt")).rename(killed / "checkpoints" / "step=2-v1.ckpt")
    assert len(compare_runs(whole, killed)) == told, "a version that is counted up is the same checkpoint"


def test_runs_are_compared_by_their_newest_checkpoints(tmp_path):
    same = {"weight": 0.25, "loss": 0.7, "metric": 0.3}
    whole, killed = write_run(tmp_path / "whole", **same), write_run(tmp_path / "killed0", **same)
    newest, before = (killed / "checkpoints" / f"step={step}.ckpt" for step in (2, 1))
    # A kill came after this file and before last.ckpt.
    (whole / "checkpoints" / "last.ckpt").write_bytes((whole / "checkpoints" / "step=2.ckpt").read_bytes())
    (killed / "checkpoints" / "last.ckpt").write_bytes(before.read_bytes())
    assert not compare_runs(whole, killed)
    damage(newest, random.Random(0))
    assert compare_runs(whole, killed)[0].startswith("step=2: not of the last step")


def test_every_method_is_killed():
    methods = {path.name for path in (ROOT / "configs").iterdir() if path.is_dir()} - {"env"}
    assert sorted(name for method in methods for name in recipes_of(method)) == sorted(RECIPES)
    with pytest.raises(ValueError, match="no recipe is named"):
        recipes_of("mask")


def kill(folder, recipe, kills, steps):
    """Return the table's row and what was told of differences."""
    words = ["--method", recipe, "--kills", kills, "--steps", steps, "--folder", folder]
    done = subprocess.run(
        [sys.executable, "-m", "experiments.reliability.kills", *map(str, words)],
        cwd=ROOT,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        text=True,
        capture_output=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return [cell.strip() for cell in done.stdout.splitlines()[-1].strip("|").split("|")]


def assert_identical(row, recipe, kills):
    name, _, killed, *_ = row
    assert (name, int(killed)) == (recipe, kills)
    assert re.fullmatch(r"yes", row[8])


@pytest.mark.slow
def test_two_kills_end_bit_identical(tmp_path):
    assert_identical(kill(tmp_path, "masksim_cache", kills=2, steps=8), "masksim_cache", 2)


@pytest.mark.long
@pytest.mark.parametrize("recipe", RECIPES)
def test_twenty_kills_end_bit_identical(tmp_path, recipe):
    assert_identical(kill(tmp_path, recipe, kills=20, steps=30), recipe, 20)
