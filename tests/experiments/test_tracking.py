"""A run that is taken up again goes on in its trackers."""

import os
from collections.abc import Callable
from pathlib import Path

import pytest
from jsonargparse import Namespace
from lightning import Trainer
from lightning.pytorch.loggers import TensorBoardLogger

from experiments.tracking import name_run, purge_after, without_run_name

CONFIGS = Path(__file__).parents[2] / "configs"
LOGGERS = "lightning.pytorch.loggers."


def config(run_name: str | None, folder: Path, **own: str) -> Namespace:
    """Return the part of a parsed config that names loggers."""
    first = Namespace(name="recipe", save_dir=str(folder), version=None)
    trackers = [
        Namespace(class_path=LOGGERS + "WandbLogger", init_args=Namespace(id=own.get("id"), version=None)),
        Namespace(class_path=LOGGERS + "TensorBoardLogger", init_args=Namespace(version=own.get("version"))),
    ]
    loggers = [Namespace(class_path="callbacks.run_folder.RunFolderLogger", init_args=first), *trackers]
    return Namespace(run_name=run_name, trainer=Namespace(logger=loggers))


def named(found: Namespace) -> tuple[str | None, ...]:
    folder, wandb, board = (logger.init_args for logger in found.trainer.logger)
    return folder.version, wandb.id, board.version


def test_a_name_gives_every_start_the_same_folder_and_ids(tmp_path: Path) -> None:
    first, second, other = (config(name, tmp_path) for name in ("job-1", "job-1", "job-2"))
    for each in (first, second, other):
        name_run(each)
    assert named(first) == named(second)
    assert named(first)[0] == named(first)[2] == "job-1"
    assert named(first)[1] != named(other)[1]
    assert (tmp_path / "recipe/job-1/wandb_run_id.txt").read_text() == named(first)[1]
    # What is written down begins other runs.
    assert named(without_run_name(first)) == (None, None, None)
    assert without_run_name(first).run_name is None
    assert named(first)[0] == "job-1", "the original stays"


def test_own_names_stay(tmp_path: Path) -> None:
    own = config("job-1", tmp_path, id="mine", version="board")
    name_run(own)
    assert named(own) == ("job-1", "mine", "board")
    assert named(without_run_name(own)) == (None, "mine", "board")


def test_without_a_name_nothing_is_named(tmp_path: Path) -> None:
    plain = config(None, tmp_path)
    name_run(plain)
    assert named(plain) == (None, None, None)
    assert not list(tmp_path.iterdir())


def test_only_rank_zero_opens_a_run_in_wandb(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RANK", "1")
    second = config("job-1", tmp_path)
    name_run(second)
    assert named(second) == ("job-1", None, "job-1")
    assert not list(tmp_path.iterdir())


def test_tensorboard_leaves_out_what_is_logged_again(tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    for start, steps, value in ((None, range(6), 0.0), (3, range(4, 8), 1.0)):
        logger = TensorBoardLogger(tmp_path, name="board", version="job-1")
        trainer = Trainer(logger=logger, accelerator="cpu", enable_progress_bar=False, default_root_dir=tmp_path)
        if start is not None:
            purge_after(trainer, start)
        for step in steps:
            logger.log_metrics({"loss": value}, step)
        logger.finalize("success")
    events = EventAccumulator(str(tmp_path / "board/job-1")).Reload().Scalars("loss")
    assert [(event.step, event.value) for event in events] == [(step, float(step > 3)) for step in range(8)]


@pytest.mark.slow
def test_wandb_goes_on_offline_under_one_id(sealmark: Callable[..., int], tmp_path: Path) -> None:
    training = ("--config", CONFIGS / "env" / "offline.yaml", "--run_name", "job-1", "--ckpt_path", "last")
    for steps in (2, 4):
        # Within one process, W&B keeps its run.
        child = os.fork()
        if not child:
            code = 1
            try:
                code = sealmark("fit", *training, "--trainer.max_steps", steps, "--trainer.max_epochs", "-1")
            finally:
                os._exit(code)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    runs = [path.name for path in tmp_path.glob("runs/wandb/offline-run-*")]
    kept = next(tmp_path.glob("runs/**/job-1/wandb_run_id.txt")).read_text()
    assert len(runs) == 2
    assert all(name.endswith(f"-{kept}") for name in runs)
