"""Runs that are killed, stopped or spread over processes end where an unbroken one ends."""

import json
import os
import re
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parents[2]
# Two epochs of 7 steps, with a checkpoint every second step.
TRAINING = (
    *("--trainer.max_steps", "14", "--trainer.max_epochs", "2", "--trainer.limit_train_batches", "1.0"),
    *("--data.train_samples", "28", "--data.batch_size", "4", "--model.ema_decay", "0.5", "--trainer.callbacks+"),
    *("lightning.pytorch.callbacks.ModelCheckpoint", "--trainer.callbacks.every_n_train_steps", "2"),
    *("--trainer.callbacks.save_top_k", "-1", "--trainer.callbacks.filename", "every{step}"),
)


@pytest.fixture
def start(tmp_path: Path) -> Callable[..., subprocess.Popen[str]]:
    """Return a function that starts `python -m experiments` in a process of its own, on the small recipe."""

    return partial(start_in, tmp_path)


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory: pytest.TempPathFactory) -> dict[str, torch.Tensor]:
    """Return the weights that a run ends with when nothing happens to it."""
    folder = tmp_path_factory.mktemp("unbroken")
    whole = start_in(folder, "fit", *TRAINING)
    assert whole.wait(250) == 0, whole.stdout.read()
    return weights_of(newest(folder, "runs/**/every*step=14.ckpt"))


def start_in(folder: Path, command: str, *words: object) -> subprocess.Popen[str]:
    paths = (ROOT, Path(__file__).parent)
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(map(str, paths)), "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        [sys.executable, "-m", "experiments", command, *small_recipe(), *map(str, words)],
        cwd=folder,
        env=environment,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        start_new_session=True,  # a group of its own, for signals to a whole group
    )


def small_recipe() -> tuple[str, ...]:
    namespace: dict[str, object] = {"__file__": str(Path(__file__).with_name("conftest.py"))}
    exec(Path(__file__).with_name("conftest.py").read_text(), namespace)
    return namespace["SMALL"]  # type: ignore[return-value]


def newest(folder: Path, pattern: str) -> Path:
    return max(folder.glob(pattern), key=lambda path: path.stat().st_mtime_ns)


def weights_of(checkpoint: Path) -> dict[str, torch.Tensor]:
    return torch.load(checkpoint, weights_only=True)["state_dict"]


def assert_same(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]) -> None:
    assert first.keys() == second.keys()
    different = [key for key in first if not torch.equal(first[key], second[key])]
    assert not different


@pytest.mark.slow
@pytest.mark.parametrize("killed_at", [5, 11])
def test_killed_run_resumes_to_the_weights_of_an_unbroken_one(
    start: Callable[..., subprocess.Popen[str]], tmp_path: Path, killed_at: int, unbroken: dict[str, torch.Tensor]
) -> None:
    killer = ("--trainer.callbacks+", "run_watchers.KillAt", "--trainer.callbacks.step", killed_at)
    killed = start("fit", *TRAINING, *killer)
    assert killed.wait(250) == -signal.SIGKILL
    left = newest(tmp_path, "runs/**/every*.ckpt")
    assert f"step={killed_at - 1}" in left.name, "the kill came in the middle of an epoch"
    assert any(not torch.equal(unbroken[key], value) for key, value in weights_of(left).items())

    resumed = start("fit", *TRAINING, "--ckpt_path", left)
    assert resumed.wait(250) == 0, resumed.stdout.read()
    assert_same(unbroken, weights_of(newest(tmp_path, "runs/**/every*step=14.ckpt")))


@pytest.mark.parametrize(
    ("number", "send"),
    [
        pytest.param(signal.SIGINT, os.kill, id="Ctrl-C", marks=pytest.mark.slow),
        pytest.param(signal.SIGTERM, os.kill, id="SIGTERM", marks=pytest.mark.slow),
        pytest.param(signal.SIGTERM, os.killpg, id="SIGTERM to the workers too", marks=pytest.mark.slow),
    ],
)
def test_signal_leaves_a_checkpoint_and_says_how_to_go_on(
    start: Callable[..., subprocess.Popen[str]],
    tmp_path: Path,
    number: signal.Signals,
    send: Callable[[int, int], None],
    unbroken: dict[str, torch.Tensor],
) -> None:
    workers = ("--data.num_workers", "2" if send is os.killpg else "0")
    run = start("fit", *TRAINING, *workers, "--trainer.callbacks+", "run_watchers.TellStep")
    deadline = time.monotonic() + 200
    while not (tmp_path / "training").exists():
        assert run.poll() is None, run.stdout.read()
        assert time.monotonic() < deadline
        time.sleep(0.1)
    send(run.pid, number)
    told = run.communicate(timeout=100)[0]
    assert run.returncode == 128 + number, told
    assert "Traceback" not in told
    command = re.search(r"sealmark (fit --config \S+ --ckpt_path \S+)", told)
    assert command is not None, told
    words = shlex.split(command.group(1))
    assert 0 < torch.load(tmp_path / words[-1], weights_only=True)["global_step"] < 14

    resumed = start(*words)
    assert resumed.wait(250) == 0, resumed.stdout.read()
    assert_same(unbroken, weights_of(newest(tmp_path, "runs/**/every*step=14.ckpt")))


@pytest.mark.slow
def test_two_processes_train_and_evaluate_as_one(
    start: Callable[..., subprocess.Popen[str]], sealmark: Callable[..., int], tmp_path: Path
) -> None:
    # Without norms over the batch, which two processes on the CPU cannot share, training itself must agree; with SGD,
    # since Adam turns the rounding of a vanishing gradient into a full step.
    network = ("--model.encoder", "tu-convnext_atto", "--model.decoder_norm", "identity")
    plain = (*network, "--model.optimizer", "sgd", "--model.lr", "0.01", "--model.ema_decay", "0")
    spread = ("--trainer.devices", "2", "--trainer.strategy", "ddp")
    recipes = ((*plain, "--data.batch_size", "4"), (*plain, "--data.batch_size", "2", *spread))
    checkpoints = []
    for recipe in recipes:
        run = start("fit", *TRAINING, *recipe)
        assert run.wait(250) == 0, run.stdout.read()
        checkpoints.append(newest(tmp_path, "runs/**/every*step=14.ckpt"))
    one, two = map(weights_of, checkpoints)
    untrained = weights_of(next(tmp_path.glob("runs/**/version_0/checkpoints/every*step=2.ckpt")))
    assert any((one[key] - value).abs().max() > 1e-3 for key, value in untrained.items()), "training moved"
    for key, value in one.items():
        torch.testing.assert_close(two[key], value, rtol=1e-4, atol=1e-6, msg=key)

    scored = (
        *network,
        "--ckpt_path",
        checkpoints[0],
        "--data.test_samples",
        "5",
        "--trainer.limit_test_batches",
        "1.0",
    )
    assert sealmark("test", *scored) == 0
    run = start("test", *scored, *spread)
    assert run.wait(250) == 0, run.stdout.read()
    results = [json.loads(path.read_text())["results"] for path in sorted(tmp_path.glob("runs/**/results.json"))]
    assert len(results) == 2
    assert str(results[0]) == str(results[1]), "not a bit of a number differs, NaN included"
