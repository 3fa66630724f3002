"""SyncSeal runs that are killed or spread over processes end where an unbroken one ends, both players included."""

import os
import signal
import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest
import torch
from lightning.pytorch import Callback, Trainer, seed_everything
from lightning.pytorch.callbacks import ModelCheckpoint

from datamodules.sa1b import Sa1bDataModule
from lightning_modules.syncseal.augmentation.settings import ValueSettings
from lightning_modules.syncseal.module import SyncSealModule

ROOT = Path(__file__).parents[3]
NETWORKS = {
    "size": 32,
    "embedder_channels": (8, 16),
    "embedder_blocks": 1,
    "detector_depths": (1, 1),
    "detector_dims": (8, 16),
}
TRAINING = {
    "disc_start": 1,
    "scaling_w": 0.8,
    "scaling_schedule": "linear",
    "scaling_min": 0.2,
    "scaling_epochs": 2,
    "presence_weight": 0.1,
    "unmarked_share": 0.5,
    "finetune_detector_start": 2,
    "lr": 1e-3,
    "schedule": "cosine",
    "ema_decay": 0.5,
    "transforms": ("identity", "rotate_10"),
}
# Three epochs of 3 steps: before the discriminator's start, with it, and the detector alone.
STEPS = 9


class StoppedError(Exception):
    """Ends a run as a crash would."""


class StopAt(Callback):
    def __init__(self, step):
        self.step = step

    def on_train_batch_end(self, trainer, *_):
        if trainer.global_step == self.step:
            raise StoppedError


def fit(folder, resumed_from=None, stop_at=None):
    seed_everything(7)
    module = SyncSealModule(**NETWORKS, **TRAINING, values=ValueSettings(stages=1))
    source = "procedural://1000?size=32"
    data = Sa1bDataModule(source, size=32, train_samples=14, val_samples=2, test_samples=2, batch_size=4, num_workers=0)
    saving = ModelCheckpoint(dirpath=folder, every_n_train_steps=1, save_top_k=-1, filename="{step}")
    trainer = Trainer(
        accelerator="cpu",
        max_epochs=3,
        logger=False,
        callbacks=[saving] if stop_at is None else [StopAt(stop_at), saving],
        enable_progress_bar=False,
        enable_model_summary=False,
        limit_val_batches=0,
        default_root_dir=folder,
    )
    trainer.fit(module, data, ckpt_path=resumed_from)
    assert trainer.global_step == STEPS
    return torch.load(folder / f"step={STEPS}.ckpt", weights_only=True)


def differences(first, second, path=""):
    if isinstance(first, dict):
        assert first.keys() == second.keys()
        return [name for key in first for name in differences(first[key], second[key], f"{path}/{key}")]
    if isinstance(first, list):
        return [name for place, pair in enumerate(zip(first, second, strict=True)) for name in differences(*pair, path)]
    same = torch.equal(first, second) if torch.is_tensor(first) else first == second
    return [] if same else [path]


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory):
    return fit(tmp_path_factory.mktemp("unbroken"))


@pytest.mark.parametrize("step", [2, 5, 8])
def test_a_resumed_run_is_bit_identical(tmp_path, unbroken, step):
    with pytest.raises(StoppedError):
        fit(tmp_path, stop_at=step)
    left = tmp_path / f"step={step - 1}.ckpt"
    resumed = fit(tmp_path, resumed_from=left)
    parts = ("state_dict", "current_model_state", "averaging_state", "optimizer_states", "lr_schedulers", "calibration")
    assert len(unbroken["optimizer_states"]) == 2
    for part in parts:
        assert not differences(unbroken[part], resumed[part], part)
    before = torch.load(left, weights_only=True)["state_dict"]
    assert differences(unbroken["state_dict"], before), "the run went on"


def start(folder, command, *words):
    """Run the command in a process of its own, on tiny networks."""
    tiny = [
        word
        for name, value in NETWORKS.items()
        for word in (f"--model.{name}", str(value).replace("(", "[").replace(")", "]"))
    ]
    environment = os.environ | {
        "PYTHONPATH": os.pathsep.join((str(ROOT), str(ROOT / "tests/experiments"))),
        "OMP_NUM_THREADS": "1",
    }
    recipe = (
        *("--config", ROOT / "configs/syncseal/quickstart.yaml", "--config", ROOT / "configs/env/smoke.yaml", *tiny),
        *("--data.photos", "procedural://1000?size=32", "--data.size", "32", "--data.train_samples", "12"),
        *("--data.val_samples", "2", "--data.test_samples", "5", "--data.batch_size", "4"),
        *(
            "--model.scaling_start_epoch",
            "0",
            "--model.scaling_epochs",
            "2",
            "--model.disc_weight",
            "0.1",
            "--model.disc_start",
            "1",
        ),
        *("--model.finetune_detector_start", "2", "--model.ema_decay", "0.5", "--model.lr", "1e-4"),
        *("--trainer.max_steps", "9", "--trainer.max_epochs", "3", "--trainer.limit_train_batches", "1.0"),
        *("--trainer.callbacks+", "lightning.pytorch.callbacks.ModelCheckpoint"),
        *("--trainer.callbacks.every_n_train_steps", "1", "--trainer.callbacks.save_top_k", "-1"),
        *("--trainer.callbacks.filename", "every{step}"),
    )
    return subprocess.Popen(
        [sys.executable, "-m", "experiments", command, *map(str, recipe), *map(str, words)],
        cwd=folder,
        env=environment,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )


def weights_after(folder, step):
    paths = folder.glob(f"runs/**/every*step={step}.ckpt")
    return torch.load(max(paths, key=lambda path: path.stat().st_mtime_ns), weights_only=True)["state_dict"]


@pytest.mark.slow
def test_a_run_killed_by_the_system_resumes_to_the_same_weights(tmp_path):
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    for folder in (whole, broken):
        folder.mkdir()
    run = start(whole, "fit")
    assert run.wait(250) == 0, run.stdout.read()
    killed = start(broken, "fit", "--trainer.callbacks+", "run_watchers.KillAt", "--trainer.callbacks.step", 5)
    assert killed.wait(250) == -signal.SIGKILL
    left = max(broken.glob("runs/**/every*.ckpt"), key=lambda path: path.stat().st_mtime_ns)
    assert "step=5" in left.name, "the kill came in the middle of an epoch"
    resumed = start(broken, "fit", "--ckpt_path", left)
    assert resumed.wait(250) == 0, resumed.stdout.read()
    assert not differences(weights_after(whole, 9), weights_after(broken, 9))


@pytest.mark.slow
def test_two_processes_train_and_test_as_one(tmp_path):
    spread = ("--trainer.devices", "2", "--trainer.strategy", "ddp")
    folders = (tmp_path / "one", tmp_path / "two")
    recipes = (("--data.batch_size", "4"), ("--data.batch_size", "2", *spread))
    for folder, words in zip(folders, recipes, strict=True):
        folder.mkdir()
        run = start(folder, "fit", *words)
        assert run.wait(250) == 0, run.stdout.read()
    for step in (3, 6, 9):  # of each phase
        one, two = (weights_after(folder, step) for folder in folders)
        gap = torch.cat([(one[key] - value).abs().flatten() for key, value in two.items()])
        # Adam makes a step of the rounding of a vanishing gradient: few weights may differ by steps of 1e-4.
        assert gap.max() < 2e-4 * step
        assert (gap > 1e-5).float().mean() < 0.03
    results = []
    last = partial(max, key=lambda path: path.stat().st_mtime_ns)
    checkpoint = last(folders[0].glob("runs/**/every*step=9.ckpt"))
    for folder, words in zip(folders, ((), spread), strict=True):
        run = start(folder, "test", "--ckpt_path", checkpoint, "--trainer.limit_test_batches", "1.0", *words)
        assert run.wait(250) == 0, run.stdout.read()
        results.append(last(folder.glob("runs/**/results.json")).read_text().split('"results"')[1])
    assert results[0] == results[1], "not a bit of a number differs"
