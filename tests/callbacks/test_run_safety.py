"""Skipped files are listed once; progress lines tell rate and remaining time."""

import json
from pathlib import Path
from types import SimpleNamespace

import pytest

from callbacks.progress import PlainProgress
from callbacks.run_safety import SkippedFiles


def trainer_in(folder: Path, **more: object) -> SimpleNamespace:
    return SimpleNamespace(log_dir=str(folder), default_root_dir=str(folder), world_size=1, global_rank=0, **more)


def test_each_skipped_file_is_listed_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    callback, trainer = SkippedFiles(), trainer_in(tmp_path)
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
