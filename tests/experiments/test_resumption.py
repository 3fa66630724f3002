"""One command line, started again and again: the newest whole checkpoint of the run's own folder, or afresh."""

import csv
import os
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import yaml
from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint

from callbacks.checkpoint_files import write_checkpoint
from callbacks.prediction_files import FolderLock
from callbacks.run_folder import RunFolderLogger
from experiments.resumption import FollowLock, find_checkpoint, first_difference, take_folder

TRAINING = (
    *("--trainer.max_steps", "4", "--trainer.max_epochs", "-1", "--trainer.limit_train_batches", "1.0"),
    *("--trainer.val_check_interval", "6", "--trainer.check_val_every_n_epoch", "null"),
    *("--data.train_samples", "28", "--data.batch_size", "4", "--trainer.callbacks+"),
    *("lightning.pytorch.callbacks.ModelCheckpoint", "--trainer.callbacks.every_n_train_steps", "2"),
    *("--trainer.callbacks.save_top_k", "-1", "--trainer.callbacks.filename", "every{step}"),
    *("--run_name", "job-1"),
)
LAST = ("--ckpt_path", "last")
Sealmark = Callable[..., int]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "runs/watermark_segmentation/quickstart/job-1"


def rows_of(folder: Path) -> list[dict[str, str]]:
    with (folder / "metrics.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def test_the_same_command_goes_on_behind_damaged_checkpoints(
    sealmark: Sealmark, folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("experiments.resumption.LOCK_SECONDS", 0)
    assert sealmark("fit", *TRAINING, *LAST) == 0
    assert "no checkpoint to go on from in runs/" in capsys.readouterr().err
    kept = rows_of(folder)
    assert [row["step"] for row in kept] == ["0", "1", "2", "3"]
    saved = yaml.safe_load((folder / "config.yaml").read_text())
    assert saved["run_name"] is None
    assert saved["trainer"]["logger"][0]["init_args"]["version"] is None
    # A power cut.
    for path in folder.glob("checkpoints/*.ckpt"):
        if "step=2" not in path.name:
            os.truncate(path, path.stat().st_size - 1000)

    assert sealmark("fit", *TRAINING, *LAST, "--trainer.max_steps", "6") == 0
    told = capsys.readouterr().err
    assert "/checkpoints/everystep=4.ckpt: not whole" in told
    assert "going on from runs/watermark_segmentation/quickstart/job-1/checkpoints/everystep=2.ckpt" in told
    rows = rows_of(folder)
    assert [row["step"] for row in rows if row["train/loss"]] == ["0", "1", "2", "3", "4", "5"]
    assert [row["train/loss"] for row in rows[:4]] == [row["train/loss"] for row in kept], "the same losses, once"
    assert yaml.safe_load((folder / "config.yaml").read_text())["trainer"]["max_steps"] == 6
    assert not list(folder.glob("**/*.part"))

    # What such a folder refuses.
    held = FolderLock()
    assert held.take(folder, 0)
    refused = {
        (): "holds checkpoints of an earlier start: add --ckpt_path last",
        (*LAST, "--model.lr", "0.5"): "begun with another model (model.init_args.lr was 0.003, is 0.5)",
        ("--ckpt_path", tmp_checkpoint(folder)): "holds checkpoints of an earlier start",
    }
    assert sealmark("fit", *TRAINING, *LAST) == 2
    assert "another run is at work in" in capsys.readouterr().err
    held.release()
    for words, reason in refused.items():
        assert sealmark("fit", *TRAINING, *words) == 2
        assert reason in capsys.readouterr().err


@pytest.mark.parametrize("elsewhere", [False, True])
def test_rows_before_the_checkpoint_stay_wherever_it_lies(elsewhere: bool, tmp_path: Path) -> None:
    class Module(LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.layer = torch.nn.Linear(1, 1)

        def training_step(self, batch: torch.Tensor, batch_idx: int) -> torch.Tensor:
            loss: torch.Tensor = self.layer(batch).mean()
            self.log("train/loss", loss)
            return loss

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return torch.optim.SGD(self.parameters(), lr=0.1)

    def start(steps: int, width: int) -> None:
        saver = ModelCheckpoint(tmp_path / "elsewhere" if elsewhere else None, every_n_train_steps=2)
        trainer = Trainer(
            accelerator="cpu",
            max_steps=steps,
            callbacks=[saver],
            logger=RunFolderLogger("recipe", save_dir=str(tmp_path / "runs"), version="job-1"),
            log_every_n_steps=1,
            enable_progress_bar=False,
        )
        lock = FolderLock()
        try:
            config = {"ckpt_path": "last", "model": {"width": width}}
            checkpoint = find_checkpoint(trainer, "last")
            take_folder(trainer, config, checkpoint, lock)
            (tmp_path / "runs/recipe/job-1/config.yaml").write_text(yaml.safe_dump(config))
            trainer.fit(Module(), torch.utils.data.DataLoader(torch.ones(20, 1)), ckpt_path=checkpoint)
        finally:
            lock.release()

    start(4, 8)
    start(6, 8)
    assert [row["step"] for row in rows_of(tmp_path / "runs/recipe/job-1")] == list("012345")
    with pytest.raises(ValueError, match="was begun with another model"):
        start(8, 9)


def tmp_checkpoint(folder: Path) -> Path:
    path = folder.parents[2] / "elsewhere.ckpt"
    path.write_bytes(next(folder.glob("checkpoints/everystep=2.ckpt")).read_bytes())
    return path


def test_last_needs_a_named_run_and_training(
    sealmark: Sealmark, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert sealmark("test", *LAST) == 2
    assert "--ckpt_path last is for fit" in capsys.readouterr().err
    assert sealmark("fit", "--trainer.logger", "false", "--run_name", "job-1") == 2
    assert "needs callbacks.run_folder.RunFolderLogger" in capsys.readouterr().err


def test_a_checkpoint_of_validate_is_no_start_for_training(
    sealmark: Sealmark, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    # As callbacks.detection_calibration saves it: Lightning would take it and begin with a fresh optimiser.
    state = {"state_dict": {"weight": torch.ones(1)}, "loops": {}, "optimizer_states": [], "lr_schedulers": []}
    write_checkpoint(state, tmp_path / "calibrated.ckpt")
    assert sealmark("fit", "--ckpt_path", tmp_path / "calibrated.ckpt") == 2
    assert "has no state of an optimiser to go on from, as `validate` saves it" in capsys.readouterr().err


def test_a_full_disk_at_the_end_is_an_error(
    sealmark: Sealmark, folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def full(checkpoint: dict, target: Path) -> None:
        raise OSError(28, "No space left on device", str(target))

    monkeypatch.setattr("callbacks.checkpoint_files.write_checkpoint", full)
    assert sealmark("fit", *TRAINING, *LAST) == 2
    told = capsys.readouterr().err
    assert "training goes on: free some before the next one" in told
    assert told.strip().splitlines()[-1].startswith("sealmark: error: no space left to write runs/")


def test_a_second_rank_locks_once_the_first_has_the_folder(tmp_path: Path) -> None:
    first, second, stranger = FolderLock(), FolderLock(), FolderLock()
    assert first.take(tmp_path, 0)
    FollowLock(tmp_path, second).setup(SimpleNamespace(global_rank=1), None, "fit")
    first.release()
    assert not stranger.take(tmp_path, 0), "rank 1 has outlived its run"
    second.release()
    assert stranger.take(tmp_path, 0)
    stranger.release()


def test_the_first_difference_is_named() -> None:
    old = {"class_path": "A", "init_args": {"lr": 0.1, "gone": 1, "scales": [1, 2]}}
    assert first_difference(old, {"class_path": "A", "init_args": {"lr": 0.1, "new": 3, "scales": [1, 2]}}) == ""
    changed = {"class_path": "A", "init_args": {"lr": 0.1, "scales": [1, 3]}}
    assert first_difference(old, changed, ".model") == "model.init_args.scales was [1, 2], is [1, 3]"
