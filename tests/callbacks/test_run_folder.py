"""Run folders are taken once, also by processes that start together."""

import multiprocessing
from pathlib import Path

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
