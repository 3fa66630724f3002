"""A killed run of the forger goes on to the weights of an unbroken one, bit for bit; two processes train it, too."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parents[3]
STEPS, KILLED_AT = 8, 5
RECIPE = (
    *("--config", str(ROOT / "configs/seal2real/forger.yaml"), "--trainer.accelerator", "cpu"),
    *("--trainer.max_steps", str(STEPS), "--trainer.limit_val_batches", "0", "--data.num_workers", "0"),
    *("--data.size", "32", "--data.train_samples", "20", "--data.batch_size", "4", "--model.channels", "[8,16]"),
    *("--trainer.callbacks+", "lightning.pytorch.callbacks.ModelCheckpoint"),
    *("--trainer.callbacks.every_n_train_steps", "2", "--trainer.callbacks.save_top_k", "-1"),
    *("--trainer.callbacks.filename", "every{step}"),
)
KILL = ("--trainer.callbacks+", "run_watchers.KillAt", "--trainer.callbacks.step", str(KILLED_AT))


def fit(folder, *words):
    paths = (ROOT, ROOT / "tests" / "experiments")
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(map(str, paths)), "OMP_NUM_THREADS": "1"}
    folder.mkdir(exist_ok=True)
    done = subprocess.run(
        [sys.executable, "-m", "experiments", "fit", *RECIPE, *map(str, words)],
        cwd=folder,
        env=environment,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        check=False,
    )
    return done.returncode, done.stdout


def last_of(folder, step):
    found = folder.glob(f"runs/**/every*step={step}.ckpt")
    return max(found, key=lambda path: path.stat().st_mtime_ns)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["dds", "vsd"])
def test_killed_run_resumes_to_the_weights_of_an_unbroken_one(kind, tmp_path):
    prior = ("--model.prior.kind", kind)
    code, told = fit(tmp_path / "whole", *prior)
    assert code == 0, told
    code, told = fit(tmp_path / "broken", *prior, *KILL)
    assert code == -signal.SIGKILL, told
    left = last_of(tmp_path / "broken", KILLED_AT - 1)
    code, told = fit(tmp_path / "broken", *prior, "--ckpt_path", left)
    assert code == 0, told
    whole, resumed, halfway = (
        torch.load(path, weights_only=True)["state_dict"]
        for path in (last_of(tmp_path / "whole", STEPS), last_of(tmp_path / "broken", STEPS), left)
    )
    assert any(key.startswith("fake.") for key in whole) == (kind == "vsd")
    assert all(torch.equal(whole[key], resumed[key]) for key in whole)
    assert any(not torch.equal(whole[key], halfway[key]) for key in whole), "the kill came before the end"


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["dds", "vsd"])
def test_two_processes_train_without_a_search_for_unused_parameters(kind, tmp_path):
    # Lightning's `ddp` does not search: a parameter without a gradient would stop the run.
    spread = ("--trainer.devices", "2", "--trainer.strategy", "ddp", "--model.prior.kind", kind)
    code, told = fit(tmp_path / "spread", *spread, "--data.batch_size", "2")
    assert code == 0, told
    state = torch.load(last_of(tmp_path / "spread", STEPS), weights_only=True)["state_dict"]
    assert state["network.generator.head.weight"].abs().max() > 0
