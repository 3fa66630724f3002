"""Stage 1 that is killed or spread over processes: it goes on bit for bit, with no search for unused parameters."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parents[3]


def start(folder, *words):
    """Run stage 1 in a process of its own, with the tiny model: three epochs of three steps."""
    environment = os.environ | {
        "PYTHONPATH": os.pathsep.join((str(ROOT), str(ROOT / "tests/experiments"))),
        "OMP_NUM_THREADS": "1",
    }
    recipe = (
        *("--config", ROOT / "configs/seal2real/prompts.yaml", "--config", ROOT / "configs/env/smoke.yaml"),
        *("--model.backbone", "tiny", "--model.contrast_weight", "0.5", "--model.schedule", "cosine"),
        *("--data.train_samples", "6", "--data.val_samples", "2", "--data.test_samples", "2"),
        *("--trainer.max_steps", "9", "--trainer.max_epochs", "3", "--trainer.limit_train_batches", "1.0"),
        *("--trainer.callbacks+", "lightning.pytorch.callbacks.ModelCheckpoint"),
        *("--trainer.callbacks.every_n_train_steps", "1", "--trainer.callbacks.save_top_k", "-1"),
        *("--trainer.callbacks.filename", "every{step}"),
    )
    folder.mkdir(exist_ok=True)
    return subprocess.Popen(
        [sys.executable, "-m", "experiments", "fit", *map(str, recipe), *map(str, words)],
        cwd=folder,
        env=environment,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )


def newest(folder, pattern):
    return max(folder.glob(f"runs/**/{pattern}"), key=lambda path: path.stat().st_mtime_ns)


def state_after(folder, step):
    content = torch.load(newest(folder, f"every*step={step}.ckpt"), weights_only=True)
    moments = content["optimizer_states"][0]["state"]
    return content["state_dict"] | {f"{i}.{name}": value for i, row in moments.items() for name, value in row.items()}


@pytest.mark.slow
@pytest.mark.parametrize("words", [(), ("--model.cache_latents", "true", "--data.redraw", "false")])
def test_a_killed_run_resumes_to_the_same_prompts(tmp_path, words):
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    run = start(whole, *words)
    assert run.wait(250) == 0, run.stdout.read()
    killed = start(broken, *words, "--trainer.callbacks+", "run_watchers.KillAt", "--trainer.callbacks.step", 5)
    assert killed.wait(250) == -signal.SIGKILL
    left = newest(broken, "every*.ckpt")
    assert "step=5" in left.name, "the kill came in the middle of an epoch"
    resumed = start(broken, *words, "--ckpt_path", left)
    assert resumed.wait(250) == 0, resumed.stdout.read()
    wanted, found = state_after(whole, 9), state_after(broken, 9)
    assert {"real_prompt.values", "fake_prompt.values"} < wanted.keys()
    assert wanted.keys() == found.keys()
    assert not [name for name in wanted if not torch.equal(wanted[name], found[name])]
    assert not torch.equal(wanted["real_prompt.values"], state_after(whole, 5)["real_prompt.values"])
    assert left.stat().st_size < 4 * 2 * 77 * 32 * 4 + 30_000
    assert newest(broken, "prompts.safetensors").stat().st_size < 1e6


@pytest.mark.slow
def test_two_processes_train_together(tmp_path):
    run = start(tmp_path / "two", "--trainer.devices", "2", "--trainer.strategy", "ddp", "--data.batch_size", "1")
    assert run.wait(280) == 0, run.stdout.read()
    state = state_after(tmp_path / "two", 9)
    assert all(torch.isfinite(value).all() for value in state.values())
