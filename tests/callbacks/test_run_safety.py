"""Signals end every stage as documented; skipped files are listed once; progress lines tell rate and remaining time."""

import errno
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

from callbacks.checkpoint_files import AtomicCheckpointIO, write_checkpoint
from callbacks.prediction_writers import PredictionWriter
from callbacks.progress import PlainProgress
from callbacks.run_folder import RunFolderLogger
from callbacks.run_safety import SIGNALS, GracefulStop, SkippedFiles, heed_early_signal
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


def test_a_run_that_is_taken_up_lists_no_file_again(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for paths, told in ((("a.png",), "1 unreadable"), (("a.png", "b.png"), "1 unreadable"), (("b.png",), "")):
        callback, trainer = SkippedFiles(), trainer_in(tmp_path)
        callback.setup(trainer, None, "fit")
        batch = {"skipped": [{"path": path, "reason": "torn"} for path in paths]}
        callback.on_train_batch_end(trainer, None, None, batch, 0)
        callback.teardown(trainer, None, "fit")
        err = capsys.readouterr().err
        assert err.startswith(told)
        assert bool(err) == bool(told)
    with (tmp_path / "skipped.jsonl").open("a") as file:
        file.write('{"path": "to')  # torn by a kill
    SkippedFiles().setup(trainer_in(tmp_path), None, "fit")
    listed = [json.loads(line)["path"] for line in (tmp_path / "skipped.jsonl").read_text().splitlines()]
    assert listed == ["a.png", "b.png"]


class Fits(LightningModule):
    """Is sent SIGTERM in its third batch."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = torch.nn.Linear(1, 1)

    def training_step(self, batch: torch.Tensor, batch_idx: int) -> torch.Tensor:
        if batch_idx == 2:
            os.kill(os.getpid(), signal.SIGTERM)
        return self.layer(batch.float()[:, None]).mean()

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)


@pytest.mark.parametrize("full", [False, True], ids=["space", "full disk"])
@pytest.mark.parametrize("name", [None, "job-1"])
def test_a_stopped_training_says_how_to_go_on(
    name: str | None, full: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    logger = RunFolderLogger("recipe", str(tmp_path), version=name)
    saved = Path(logger.log_dir) / "checkpoints"
    saved.mkdir(parents=True)
    write_checkpoint({"global_step": 1}, saved / "interrupted-step1.ckpt")
    if full:

        def refuse(checkpoint: object, target: Path) -> None:
            raise OSError(errno.ENOSPC, "No space left on device", str(target))

        monkeypatch.setattr("callbacks.checkpoint_files.write_checkpoint", refuse)
    options = {"enable_progress_bar": False, "enable_model_summary": False, "enable_checkpointing": False}
    trainer = Trainer(
        accelerator="cpu",
        devices=1,
        callbacks=[GracefulStop()],
        logger=logger,
        plugins=[AtomicCheckpointIO()],
        **options,
    )
    with pytest.raises(SystemExit) as ended:
        trainer.fit(Fits(), torch.utils.data.DataLoader([0.0] * 9))
    assert ended.value.code == 128 + signal.SIGTERM
    told = capsys.readouterr().err
    path = saved / "interrupted-step3.ckpt"
    if full:
        assert f"step 3 without a checkpoint: no space left to write {path}" in told
    elif name:
        assert f"step 3; the same command goes on where --ckpt_path last is part of it (checkpoint {path})" in told
    else:
        assert f"--config {logger.log_dir}/config.yaml --ckpt_path {path}" in told
    assert [each.name for each in saved.iterdir()] == [f"interrupted-step{1 if full else 3}.ckpt"], "one at a time"


def test_a_step_of_several_batches_is_ended_before_the_stop(tmp_path: Path) -> None:
    quiet = {"enable_progress_bar": False, "enable_model_summary": False, "enable_checkpointing": False}
    place = {"accelerator": "cpu", "devices": 1, "logger": False, "default_root_dir": tmp_path}
    trainer = Trainer(callbacks=[GracefulStop()], accumulate_grad_batches=4, **place, **quiet)
    with pytest.raises(SystemExit):
        trainer.fit(Fits(), torch.utils.data.DataLoader([0.0] * 9))
    (left,) = (tmp_path / "checkpoints").iterdir()
    checkpoint = torch.load(left, weights_only=True)
    done = checkpoint["loops"]["fit_loop"]["epoch_loop.batch_progress"]["current"]["processed"]
    assert (checkpoint["global_step"], done) == (1, 4), "the signal came in the third batch of four"


def test_a_rank_that_the_signal_has_not_reached_ends_as_the_others(tmp_path: Path) -> None:
    strategy = SimpleNamespace(root_device=torch.device("cpu"))
    strategy.reduce = lambda number, reduce_op: number.clamp(min=int(signal.SIGUSR1))  # as another rank's
    stop, ended = GracefulStop(), []
    stop._save_and_leave = lambda trainer, received: ended.append(received)  # type: ignore[method-assign]
    trainer = SimpleNamespace(world_size=2, strategy=strategy, accumulate_grad_batches=1, is_last_batch=False)
    stop.on_train_batch_end(trainer, None, None, None, 0)
    assert ended == [signal.SIGUSR1]


def test_a_signal_before_the_start_ends_with_its_code() -> None:
    before = signal.getsignal(signal.SIGUSR1)
    try:
        heed_early_signal()
        with pytest.raises(SystemExit) as ended:
            os.kill(os.getpid(), signal.SIGUSR1)
    finally:
        signal.signal(signal.SIGUSR1, before)
    assert ended.value.code == 128 + signal.SIGUSR1


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
