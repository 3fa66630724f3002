"""The lines that a run begins with say what it is, once."""

from pathlib import Path

import pytest
import torch
from jsonargparse import Namespace
from lightning import LightningModule, Trainer
from lightning.pytorch.cli import SaveConfigCallback
from lightning.pytorch.loggers import CSVLogger

from callbacks.start_report import StartReport, places_in
from datamodules.image_files import ImageFilesDataModule


class Counts(LightningModule):
    def training_step(self, batch: object, batch_idx: int) -> None:
        return None

    def predict_step(self, batch: dict, batch_idx: int) -> None:
        return None

    def configure_optimizers(self) -> None:
        return None


class Drawn(ImageFilesDataModule):
    def setup(self, stage: str) -> None:
        pass

    def train_dataloader(self) -> torch.utils.data.DataLoader:
        return torch.utils.data.DataLoader([{"value": 0.0}] * 4)


class GivenConfig(SaveConfigCallback):
    """Holds the settings of a run without the parser that writes them down."""

    def __init__(self, **settings: object) -> None:
        self.config = Namespace(data=Namespace(class_path="any", init_args=Namespace(**settings)))

    def setup(self, *_: object, **__: object) -> None:
        pass


def trainer_in(folder: Path, *callbacks: object, **options: object) -> Trainer:
    quiet = {"enable_progress_bar": False, "enable_model_summary": False, "enable_checkpointing": False}
    logger = CSVLogger(folder, name="runs", version="mine")
    return Trainer(accelerator="cpu", devices=1, logger=logger, callbacks=list(callbacks), **quiet, **options)


def test_training_is_told_in_a_block(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    given = GivenConfig(photos=str(tmp_path), logos=None, resize="short_288", size=64)
    trainer = trainer_in(tmp_path, StartReport(), given, max_steps=1, accumulate_grad_batches=2)
    trainer.fit(Counts(), datamodule=Drawn(batch_size=3, eval_batch_size=5, num_workers=0))
    told = capsys.readouterr().err.splitlines()
    assert told[told.index("sealmark fit") :][:6] == [
        "sealmark fit",
        "  processes  1 on 1 machine, SingleDeviceStrategy, cpu",
        "  precision  32-true",
        "  batch      3 x 1 processes x 2 accumulated = 6 a step",
        f"  data       Drawn: photos {tmp_path}",
        f"  run        {tmp_path}/runs/mine",
    ]


def test_prediction_is_told_with_its_own_batch(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = ImageFilesDataModule(paths="procedural://2?size=16", batch_size=3, eval_batch_size=5, num_workers=0)
    trainer_in(tmp_path, StartReport()).predict(Counts(), datamodule=data, return_predictions=False)
    told = capsys.readouterr().err.splitlines()
    assert told[0] == "sealmark predict"
    assert "  batch      5 x 1 processes = 5" in told
    assert "  data       ImageFilesDataModule" in told


def test_without_a_datamodule_nothing_is_made_up(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    loader = torch.utils.data.DataLoader([0.0])
    trainer_in(tmp_path, StartReport()).predict(Counts(), loader, return_predictions=False)
    told = capsys.readouterr().err
    assert "batch      not said by the data\n" in told


def test_places_are_addresses_and_what_is_there(tmp_path: Path) -> None:
    settings = {
        "photos": ["s3://bucket/shards", str(tmp_path)],
        "split": "degraded",
        "missing": str(tmp_path / "missing"),
        "settings": {"masks": tmp_path},
        "size": 4,
    }
    wanted = [("photos", "s3://bucket/shards"), ("photos", str(tmp_path)), ("settings.masks", str(tmp_path))]
    assert list(places_in(settings)) == wanted
