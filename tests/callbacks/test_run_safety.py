"""Signals end every stage as documented; skipped files are listed once; progress lines tell rate and remaining time."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from lightning import LightningModule, Trainer
from PIL import Image

from callbacks.prediction_writers import PredictionWriter
from callbacks.progress import PlainProgress
from callbacks.run_safety import SIGNALS, GracefulStop, SkippedFiles
from datamodules.image_files import ImageFilesDataModule

# Both ranks validate two batches and rank 1 alone meets a bad file. A fork, as in echo_run.py, imports torch once.
TWO_RANKS = """
import os, socket, sys
import torch
from lightning import LightningModule, Trainer
from lightning.pytorch.loggers import CSVLogger
from callbacks.run_safety import SkippedFiles

class Module(LightningModule):
    def validation_step(self, batch, batch_idx):
        batch["skipped"] = [{"path": f"{batch_idx}.png"}] if self.global_rank else []

with socket.socket() as free:
    free.bind(("127.0.0.1", 0))
    port = free.getsockname()[1]
child = os.fork()
place = {"LOCAL_RANK": 0 if child else 1, "NODE_RANK": 0, "WORLD_SIZE": 2, "MASTER_ADDR": "127.0.0.1"}
os.environ.update({key: str(value) for key, value in (place | {"MASTER_PORT": port}).items()})
quiet = {"enable_progress_bar": False, "enable_model_summary": False, "enable_checkpointing": False}
logger = CSVLogger(sys.argv[1], name="")
run = Trainer(accelerator="cpu", devices=2, strategy="ddp", callbacks=[SkippedFiles()], logger=logger, **quiet)
run.validate(Module(), torch.utils.data.DataLoader([{"x": 0.0}] * 4, batch_size=1), verbose=False)
torch.distributed.destroy_process_group()
if not child:
    os._exit(0)
sys.exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""


class SignalsItself(LightningModule):
    """Gets a signal in the middle of its second batch, unless it is to be left alone."""

    def __init__(self, number: int | None) -> None:
        super().__init__()
        self.number = number

    def validation_step(self, batch: object, batch_idx: int) -> None:
        if batch_idx == 1 and self.number is not None:
            os.kill(os.getpid(), self.number)

    test_step = validation_step

    def predict_step(self, batch: dict, batch_idx: int) -> dict:
        self.validation_step(batch, batch_idx)
        indices = batch["index"].tolist()
        return {"records": [{"index": i, "path": path} for i, path in zip(indices, batch["path"], strict=True)]}


def quiet_trainer(folder: Path, *callbacks: object) -> Trainer:
    options = {"enable_progress_bar": False, "enable_model_summary": False, "logger": False, "devices": 1}
    return Trainer(accelerator="cpu", callbacks=list(callbacks), default_root_dir=folder, **options)


@pytest.mark.parametrize("number", SIGNALS)
@pytest.mark.parametrize("stage", ["validate", "test"])
def test_signal_ends_an_evaluation_with_its_exit_code(
    stage: str, number: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = [signal.getsignal(each) for each in SIGNALS]
    loader = torch.utils.data.DataLoader([0.0] * 3)
    trainer = quiet_trainer(tmp_path, GracefulStop())
    with pytest.raises(SystemExit) as ended:
        getattr(trainer, stage)(SignalsItself(number), loader, verbose=False)
    assert ended.value.code == 128 + number
    assert f"the same command {stage}s again" in capsys.readouterr().err
    assert [signal.getsignal(each) for each in SIGNALS] == before
    getattr(trainer, stage)(SignalsItself(None), loader, verbose=False)
    assert [signal.getsignal(each) for each in SIGNALS] == before


@pytest.mark.parametrize("number", SIGNALS)
def test_signal_ends_prediction_and_the_same_command_goes_on(
    number: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "photos").mkdir()
    for index in range(4):
        Image.fromarray(np.full((8, 8, 3), index, np.uint8)).save(tmp_path / "photos" / f"{index}.png")
    lines = tmp_path / "out" / "predictions.rank0.jsonl"
    before = [signal.getsignal(each) for each in SIGNALS]

    def predict(signalled: int | None) -> None:
        data = ImageFilesDataModule(paths=str(tmp_path / "photos"), batch_size=1, num_workers=0)
        trainer = quiet_trainer(tmp_path, GracefulStop(), PredictionWriter(str(tmp_path / "out")))
        trainer.predict(SignalsItself(signalled), datamodule=data, return_predictions=False)

    with pytest.raises(SystemExit) as ended:
        predict(number)
    assert ended.value.code == 128 + number
    assert "the same command goes on where it stopped" in capsys.readouterr().err
    assert [json.loads(line)["index"] for line in lines.read_text().splitlines()] == [0, 1]
    assert [signal.getsignal(each) for each in SIGNALS] == before
    predict(None)
    assert [json.loads(line)["index"] for line in lines.read_text().splitlines()] == [0, 1, 2, 3]
    assert [signal.getsignal(each) for each in SIGNALS] == before


def test_without_a_folder_of_its_own_prediction_is_told_where_it_is(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    stop = GracefulStop()
    stop.on_predict_start(trainer_in(tmp_path, callbacks=[PredictionWriter()]), None)
    os.kill(os.getpid(), signal.SIGTERM)
    assert f"--predictions.output_dir {tmp_path / 'predictions'}" in capsys.readouterr().err
    with pytest.raises(SystemExit, match="130"):  # a second one acts at once
        os.kill(os.getpid(), signal.SIGINT)


def test_one_rank_alone_may_meet_bad_files(tmp_path: Path) -> None:
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(__file__).parents[2])}
    command = [sys.executable, "-c", TWO_RANKS, str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, env=environment)
    assert done.returncode == 0, done.stderr[-3000:]
    (path,) = tmp_path.glob("**/skipped*")
    assert path == tmp_path / "version_0" / "skipped.rank1.jsonl"
    assert [json.loads(line)["path"] for line in path.read_text().splitlines()] == ["0.png", "1.png"]


def trainer_in(folder: Path, **more: object) -> SimpleNamespace:
    return SimpleNamespace(log_dir=str(folder), default_root_dir=str(folder), world_size=1, global_rank=0, **more)


def test_each_skipped_file_is_listed_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    callback, trainer = SkippedFiles(), trainer_in(tmp_path)
    callback.setup(trainer, None, "fit")
    entry = {"path": "a.png", "reason": "truncated", "index": 4}
    for _ in range(3):
        callback.on_train_batch_end(trainer, None, None, {"skipped": [entry]}, 0)
    callback.on_validation_batch_end(trainer, None, None, {"skipped": [entry | {"path": "b.png"}]}, 0)
    callback.on_test_batch_end(trainer, None, None, {"skipped": []}, 0)
    callback.teardown(trainer, None, "fit")
    listed = [json.loads(line) for line in (tmp_path / "skipped.jsonl").read_text().splitlines()]
    assert [item["path"] for item in listed] == ["a.png", "b.png"]
    assert "2 unreadable files were left out" in capsys.readouterr().err


def test_nothing_is_written_where_all_was_readable(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    callback, trainer = SkippedFiles(), trainer_in(tmp_path)
    callback.setup(trainer, None, "fit")
    callback.on_train_batch_end(trainer, None, None, {"skipped": []}, 0)
    callback.teardown(trainer, None, "fit")
    assert not list(tmp_path.iterdir())
    assert capsys.readouterr().err == ""


def test_plain_progress_tells_rate_and_remaining_time(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    clock = [100.0]
    monkeypatch.setattr("callbacks.progress.time.monotonic", lambda: clock[0])
    bar = PlainProgress(seconds=10)
    trainer = SimpleNamespace(num_test_batches=[50])
    bar.on_test_start(trainer)
    for done, now in ((1, 101.0), (20, 110.0), (21, 111.0), (50, 125.0)):
        clock[0] = now
        bar.on_test_batch_end(trainer, None, None, None, done - 1)
    lines = capsys.readouterr().out.splitlines()
    assert lines == ["test: 20/50, 15 s left, 2.00 it/s", "test: 50/50, 0 s left, 2.00 it/s"]


def test_disabled_progress_is_silent(capsys: pytest.CaptureFixture[str]) -> None:
    bar = PlainProgress(seconds=0)
    bar.disable()
    trainer = SimpleNamespace(num_test_batches=[1])
    bar.on_test_start(trainer)
    bar.on_test_batch_end(trainer, None, None, None, 0)
    assert capsys.readouterr().out == ""
