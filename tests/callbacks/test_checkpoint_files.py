"""Checkpoints are there entirely or not at all, a full disk keeps the last good one, damaged ones are never taken."""

import errno
import os
import resource
import signal
import subprocess
import zipfile
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint

from callbacks.checkpoint_files import (
    AtomicCheckpointIO,
    SameCheckpoint,
    WrittenBest,
    batches_done,
    choose_checkpoint,
    is_whole,
    newest_checkpoint,
    write_checkpoint,
)
from callbacks.run_safety import GracefulStop

STATE = {"loops": {"fit_loop": {"epoch_loop.state_dict": {"_batches_that_stepped": 7}}}, "lr_schedulers": []}


class Line(LightningModule):
    """Learns one number; logs it, so that a checkpoint can be chosen by it."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = torch.nn.Linear(1, 1)
        self.saved: list[str] = []

    def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
        self.log("falling", -float(self.global_step))
        return self.layer(batch).mean()

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)


class Executed:
    """Would fail a test where it is unpickled."""

    def __reduce__(self) -> tuple[Any, ...]:
        return (pytest.fail, ("executed",))


class FullDisk:
    """Writes checkpoints and fails for the writes that it is told to."""

    def __init__(self, failing: set[int]) -> None:
        self.failing = failing
        self.writes = 0

    def __call__(self, checkpoint: dict[str, Any], target: Path) -> None:
        self.writes += 1
        if self.writes in self.failing:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(target))
        write_checkpoint(checkpoint, target)


def checkpoint(step: int = 0) -> dict[str, Any]:
    weights = {"weight": torch.arange(1000.0) + step}
    return {"state_dict": weights, "global_step": step, "optimizer_states": [{}], **STATE}


def in_a_fork(program: Callable[[], int]) -> int:
    """Return what a function gives (0 to 254) in a process whose limits and memory are its own."""
    child = os.fork()
    if not child:
        result = 255
        try:
            result = min(254, program())
        finally:
            os._exit(result)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def fit(
    folder: Path, io: AtomicCheckpointIO, *callbacks: Any, steps: int = 6, module: LightningModule | None = None
) -> Trainer:
    quiet = {"enable_progress_bar": False, "enable_model_summary": False, "logger": False, "devices": 1}
    trainer = Trainer(
        accelerator="cpu", default_root_dir=folder, callbacks=list(callbacks), max_steps=steps, plugins=[io], **quiet
    )
    trainer.fit(module or Line(), torch.utils.data.DataLoader(torch.ones(20, 1)))
    return trainer


def test_a_file_is_replaced_as_a_whole(tmp_path: Path) -> None:
    target = tmp_path / "folder" / "last.ckpt"
    io = AtomicCheckpointIO()
    for step in (1, 2):
        io.save_checkpoint(checkpoint(step), target)
        assert [path.name for path in target.parent.iterdir()] == ["last.ckpt"]
        loaded = io.load_checkpoint(target, weights_only=True)
        assert loaded.pop("saved_ns") > 1.7e18
        torch.testing.assert_close(loaded, checkpoint(step))
        assert is_whole(target)


def test_lightning_is_asked_for_remote_paths(tmp_path: Path) -> None:
    AtomicCheckpointIO().save_checkpoint(checkpoint(), "memory://checkpoints/last.ckpt")
    loaded = AtomicCheckpointIO().load_checkpoint("memory://checkpoints/last.ckpt", weights_only=True)
    torch.testing.assert_close(loaded, checkpoint())


@pytest.mark.parametrize("damage", ["each length", "zeros within", "zeros", "folder", "empty", "other file"])
def test_damaged_checkpoints_are_never_taken(damage: str, tmp_path: Path) -> None:
    good, bad = tmp_path / "a.ckpt", tmp_path / "b.ckpt"
    write_checkpoint(checkpoint(), good)
    data = good.read_bytes()
    damaged = {
        "each length": [data[:length] for length in range(0, len(data), 97)],
        "zeros within": [data[:at] + bytes(64) + data[at + 64 :] for at in (1200, len(data) // 2)],
        "zeros": [bytes(len(data))],
        "empty": [b""],
        "other file": [b"not a checkpoint" * 100],
        "folder": [None],
    }[damage]
    for content in damaged:
        if content is None:
            bad.mkdir()
        else:
            bad.write_bytes(content)
        os.utime(bad, ns=(2**62, 2**62))
        assert not is_whole(bad)
        choice = choose_checkpoint([tmp_path])
        assert choice.path == good
        assert [path for path, _ in choice.passed_over] == [bad]


def test_compressed_parts_are_refused_unread(tmp_path: Path) -> None:
    path = tmp_path / "bomb.ckpt"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data.pkl", bytes(1 << 20))
    assert not is_whole(path)


def test_the_newest_is_taken_whatever_its_name(tmp_path: Path) -> None:
    for age, name in enumerate(("interrupted-step9.ckpt", "last.ckpt", "step12.ckpt")):
        write_checkpoint(checkpoint(), tmp_path / name)
        os.utime(tmp_path / name, ns=(100 - age, 100 - age))
    assert newest_checkpoint(tmp_path) == tmp_path / "interrupted-step9.ckpt"
    (tmp_path / "interrupted-step9.ckpt").unlink()
    assert newest_checkpoint(tmp_path) == tmp_path / "last.ckpt"
    assert newest_checkpoint(tmp_path / "nothing") is None


def test_weights_alone_and_half_written_files_are_passed_over(tmp_path: Path) -> None:
    write_checkpoint({"state_dict": {"weight": torch.ones(2)}}, tmp_path / "weights.ckpt")
    write_checkpoint(checkpoint() | {"optimizer_states": []}, tmp_path / "calibrated.ckpt")
    (tmp_path / "last.ckpt.part").write_bytes(b"half")
    choice = choose_checkpoint([tmp_path])
    assert choice.path is None
    assert dict(choice.passed_over) == {
        tmp_path / "weights.ckpt": "without loops, optimizer_states, lr_schedulers",
        tmp_path / "calibrated.ckpt": "without optimizer_states",
    }


def test_a_checkpoint_that_executes_is_not_run_and_not_fallen_back_behind(tmp_path: Path) -> None:
    write_checkpoint(checkpoint(), tmp_path / "old.ckpt")
    write_checkpoint(checkpoint() | {"callbacks": {"mine": Executed()}}, tmp_path / "new.ckpt")
    os.utime(tmp_path / "new.ckpt", ns=(2**62, 2**62))
    assert newest_checkpoint(tmp_path) == tmp_path / "new.ckpt"
    with pytest.raises(ValueError, match="refused: loading it would execute"):
        AtomicCheckpointIO().load_checkpoint(tmp_path / "new.ckpt", weights_only=True)


def test_the_last_batch_is_read_without_the_tensors(tmp_path: Path) -> None:
    write_checkpoint(checkpoint(), tmp_path / "last.ckpt")
    assert batches_done(tmp_path / "last.ckpt") == 7


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    target = tmp_path / "last.ckpt"
    write_checkpoint({"small": torch.zeros(10)}, target)

    def write_too_much() -> int:
        # A limit on the size of files fails in the middle of a write, as a full disk does.
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
        try:
            write_checkpoint({"large": torch.zeros(1_000_000)}, target)
        except OSError as error:
            return error.errno
        return 0

    assert in_a_fork(write_too_much) == errno.EFBIG
    assert [path.name for path in tmp_path.iterdir()] == ["last.ckpt"]
    assert torch.load(tmp_path / "last.ckpt")["small"].shape == (10,)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root mounts")
def test_a_full_file_system_leaves_the_last_good_one(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(disk)], check=False).returncode:
        pytest.skip("this machine allows no mounts")
    try:
        io = AtomicCheckpointIO()
        io.save_checkpoint(checkpoint(1), disk / "last.ckpt")
        large = checkpoint(2) | {"more": torch.zeros(1 << 20)}
        io.save_checkpoint(large, disk / "last.ckpt")
        assert "last.ckpt stays, training goes on: free some" in capsys.readouterr().err
        assert [path.name for path in disk.iterdir()] == ["last.ckpt"]
        assert io.load_checkpoint(disk / "last.ckpt")["global_step"] == 1
        assert "no space left" in io.failure
        io.save_checkpoint(checkpoint(3), disk / "last.ckpt")
        assert not io.failure
    finally:
        subprocess.run(["umount", str(disk)], check=True)


@pytest.mark.parametrize(
    "options",
    [
        {"save_top_k": 1, "filename": "only{step}"},
        {"save_top_k": 2, "monitor": "falling", "filename": "best{step}", "save_last": True},
        {"save_top_k": 1, "filename": "only{step}", "save_last": "link"},
    ],
    ids=["newest", "best and last", "link"],
)
def test_a_full_disk_never_leaves_a_run_without_a_checkpoint(
    options: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    disk = FullDisk(failing=set(range(3, 9)))
    monkeypatch.setattr("callbacks.checkpoint_files.write_checkpoint", disk)
    io, seen = AtomicCheckpointIO(), []

    class Watch(GracefulStop):
        def on_train_batch_start(self, trainer: Trainer, *_: Any) -> None:
            if disk.writes:
                seen.append(newest_checkpoint(tmp_path / "checkpoints"))

    saver = ModelCheckpoint(dirpath=tmp_path / "checkpoints", every_n_train_steps=1, **options)
    fit(tmp_path, io, saver, Watch(), steps=12)
    assert disk.writes > 10
    assert None not in seen
    assert not io.failure
    last = newest_checkpoint(tmp_path / "checkpoints")
    assert torch.load(last, weights_only=True)["global_step"] == 12
    # What was kept while there was no space is gone again.
    names = sorted(path.name for path in (tmp_path / "checkpoints").iterdir())
    assert len(names) == options["save_top_k"] + ("save_last" in options), names


class Scored(Line):
    """Its score at each step is given."""

    def __init__(self, scores: list[float]) -> None:
        super().__init__()
        self.scores = scores

    def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
        self.log("score", self.scores[self.global_step])
        loss: torch.Tensor = super().training_step(batch, batch_idx)
        return loss


@pytest.mark.parametrize(
    ("scores", "best", "fails"),
    [
        ([3.0, 2.0, 1.0, 2.5, 2.7], ["b2"], True),  # worse ones follow: the one before stays
        ([3.0, 2.0, 1.0, 1.5, 2.7], ["b4"], False),  # one better than that follows
        ([3.0, 2.0, 1.0, 1.5, 1.25], ["b5"], False),
    ],
)
def test_a_best_that_was_not_written_replaces_nothing(
    scores: list[float], best: list[str], fails: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def write(content: dict[str, Any], target: Path) -> None:
        if target.stem == "b3":  # then there is space again, for last.ckpt too
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(target))
        write_checkpoint(content, target)

    monkeypatch.setattr("callbacks.checkpoint_files.write_checkpoint", write)
    io = AtomicCheckpointIO()
    saver = ModelCheckpoint(
        tmp_path, "b{step}", "score", mode="min", save_last=True, every_n_train_steps=1, auto_insert_metric_name=False
    )
    fit(tmp_path, io, saver, WrittenBest(io), steps=len(scores), module=Scored(scores))
    assert sorted(path.stem for path in tmp_path.glob("*.ckpt")) == [*best, "last"]
    assert [Path(path).stem for path in saver.best_k_models] == best
    assert Path(saver.best_model_path).stem == best[0]
    assert float(saver.best_model_score) == scores[int(best[0][1]) - 1]
    assert bool(io.failure) is fails


def test_a_checkpoint_is_as_old_as_its_save_also_when_it_was_copied(tmp_path: Path) -> None:
    for step in (1, 2):
        AtomicCheckpointIO().save_checkpoint(checkpoint(step), tmp_path / f"{step}.ckpt")
        os.utime(tmp_path / f"{step}.ckpt", ns=(100 - step, 100 - step))
    assert newest_checkpoint(tmp_path) == tmp_path / "2.ckpt"


def test_a_failed_last_save_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("callbacks.checkpoint_files.write_checkpoint", FullDisk(failing={2, 3}))
    io = AtomicCheckpointIO()
    fit(tmp_path, io, ModelCheckpoint(dirpath=tmp_path, every_n_train_steps=2, filename="{step}"))
    first = tmp_path / "step=2.ckpt"
    assert io.failure.endswith(f"free some, then go on with --ckpt_path {first}")
    assert capsys.readouterr().err.count("training goes on: free some before the next one") == 2
    assert newest_checkpoint(tmp_path) == first


def test_other_errors_end_the_run(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match="file"):
        AtomicCheckpointIO().save_checkpoint(checkpoint(), tmp_path / "file" / "last.ckpt")


def test_what_a_killed_run_left_half_written_is_swept(tmp_path: Path) -> None:
    (tmp_path / "step4.ckpt.part").write_bytes(b"half")
    (tmp_path / "notes.part").write_bytes(b"of somebody")
    AtomicCheckpointIO().save_checkpoint(checkpoint(), tmp_path / "last.ckpt")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["last.ckpt", "notes.part"]


def test_a_checkpoint_is_not_copied_in_memory(tmp_path: Path) -> None:
    large = {"weight": torch.ones(25_000_000)}

    def write_and_measure() -> int:
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        write_checkpoint(large, tmp_path / "last.ckpt")
        return (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // 1024

    assert in_a_fork(write_and_measure) < 40, "MiB more for a checkpoint of 95 MiB"


@pytest.mark.parametrize(
    ("mine", "others_agree", "ends"), [("a", True, False), ("b", False, True), (None, False, True)]
)
def test_processes_that_chose_differently_end_all(mine: str | None, others_agree: bool, ends: bool) -> None:
    asked = []

    def agree(mine_is_the_same: bool) -> bool:
        asked.append(mine_is_the_same)
        return mine_is_the_same and others_agree

    strategy = SimpleNamespace(broadcast=lambda path: "a", reduce_boolean_decision=agree)
    trainer = SimpleNamespace(world_size=2, global_rank=1, strategy=strategy)
    with pytest.raises(ValueError, match=r"rank 1 found .* and rank 0 a") if ends else nullcontext():
        SameCheckpoint(mine).setup(trainer, None, "fit")
    assert asked == [mine == "a"], "every process asks, or the others would wait"
