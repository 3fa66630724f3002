"""Run folders are taken once, also by processes that start together; named ones are taken up again."""

import csv
import errno
import multiprocessing
import os
from pathlib import Path

import pytest

from callbacks.run_folder import RunFolderLogger


def take(folder: str, barrier, queue) -> None:
    barrier.wait()
    queue.put(RunFolderLogger("recipe", folder).version)


def test_runs_that_start_together_take_different_folders(tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")
    barrier, queue = context.Barrier(6), context.Queue()
    processes = [context.Process(target=take, args=(str(tmp_path), barrier, queue)) for _ in range(6)]
    for process in processes:
        process.start()
    versions = sorted(queue.get(timeout=60) for _ in processes)
    for process in processes:
        process.join()
    assert versions == list(range(6))
    assert sorted(path.name for path in (tmp_path / "recipe").iterdir()) == [f"version_{n}" for n in range(6)]


def test_a_logger_keeps_its_folder(tmp_path: Path) -> None:
    logger = RunFolderLogger("a/b", str(tmp_path))
    assert logger.version == logger.version == 0
    assert Path(logger.log_dir) == tmp_path / "a/b/version_0"


def steps_and_values(folder: Path) -> list[tuple[str, str]]:
    with (folder / "metrics.csv").open(newline="") as file:
        return [(row["step"], row.get("loss", "")) for row in csv.DictReader(file)]


def log(logger: RunFolderLogger, steps: range, **more: float) -> None:
    for step in steps:
        logger.log_metrics({"loss": 0.5 * step, "epoch": 0, **more}, step)
        logger.save()


def test_a_named_folder_is_taken_up_and_its_metrics_go_on(tmp_path: Path) -> None:
    first = RunFolderLogger("recipe", str(tmp_path), version="job-1")
    log(first, range(6))
    folder = Path(first.log_dir)
    assert folder == tmp_path / "recipe/job-1"
    with (folder / "metrics.csv").open("a") as file:
        file.write("0,0.3,6,t")  # torn by a kill

    second = RunFolderLogger("recipe", str(tmp_path), version="job-1")
    second.go_on_after(3)
    log(second, range(4, 8), **{"val/iou": 0.25})
    assert steps_and_values(folder) == [(str(step), str(0.5 * step)) for step in range(8)]
    third = RunFolderLogger("recipe", str(tmp_path), version="job-1")
    third.go_on_after(-1)
    log(third, range(1))
    assert steps_and_values(folder) == [("0", "0.0")]


def test_a_row_that_was_kept_is_not_written_twice(tmp_path: Path) -> None:
    first = RunFolderLogger("recipe", str(tmp_path), version="job-1")
    log(first, range(3))
    first.log_metrics({"val/iou": 0.5, "epoch": 0}, 2)
    first.save()
    second = RunFolderLogger("recipe", str(tmp_path), version="job-1")
    second.go_on_after(2)
    second.log_metrics({"val/iou": 0.5, "epoch": 0}, 2)  # a validation that is done again
    second.log_metrics({"other": 0.5, "epoch": 0}, 2)
    second.save()
    with open(Path(second.log_dir, "metrics.csv"), newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["step"] for row in rows] == ["0", "1", "2", "2", "2"]
    assert [row["val/iou"] for row in rows] == ["", "", "", "0.5", ""]


def test_rows_wait_for_space(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> None:
    logger = RunFolderLogger("recipe", str(tmp_path))
    log(logger, range(2))

    def full(file: int, data: bytes) -> None:
        os.write(file, data[:5])
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("callbacks.run_folder.write_all", full)
        patch.setattr("callbacks.prediction_files.write_all", full)
        log(logger, range(2, 4))
        log(logger, range(4, 5), new=1.0)
        assert [step for step, _ in steps_and_values(Path(logger.log_dir))] == ["0", "1"]
    assert capsys.readouterr().err.count("no space left") == 1
    log(logger, range(5, 6))
    assert [step for step, _ in steps_and_values(Path(logger.log_dir))] == ["0", "1", "2", "3", "4", "5"]


def test_damaged_rows_are_left_out(tmp_path: Path) -> None:
    first = RunFolderLogger("recipe", str(tmp_path), version="job-1")
    log(first, range(3))
    path = Path(first.log_dir, "metrics.csv")
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(lines[0] + lines[1] + bytes(20) + b"\n" + b"a,b,c,d\n" + b"0,0.5,x\n" + b"\xff\xff\n" + lines[3])
    second = RunFolderLogger("recipe", str(tmp_path), version="job-1")
    second.go_on_after(5)
    log(second, range(6, 7))
    assert [step for step, _ in steps_and_values(Path(first.log_dir))] == ["0", "2", "6"]
    path.write_bytes(lines[0] + b"1" * 200_000 + b"\n")
    with pytest.raises(ValueError, match=r"metrics\.csv is damaged .* move it away"):
        RunFolderLogger("recipe", str(tmp_path), version="job-1").go_on_after(1)
    path.write_bytes(b"")
    third = RunFolderLogger("recipe", str(tmp_path), version="job-1")
    third.go_on_after(1)
    log(third, range(2))
    assert [step for step, _ in steps_and_values(Path(first.log_dir))] == ["0", "1"]


@pytest.mark.parametrize("version", ["", "a/b", ".."])
def test_a_version_is_a_name(version: str) -> None:
    with pytest.raises(ValueError, match="without slashes"):
        RunFolderLogger("recipe", version=version)
