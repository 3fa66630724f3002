"""Three forked processes watch each other; one is lost, and the others end and say which."""

import os
import signal
import socket
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from callbacks.process_watch import ProcessWatch

SILENCE = 2.0


def be_rank(rank: int, port: int, folder: Path, fault: str) -> None:
    """Watch as a rank of a run whose network is a sleep; never returns."""
    sys.stdout = sys.stderr = (folder / f"rank{rank}.log").open("w")
    try:
        os.environ.update({"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)})
        torch.distributed.init_process_group("gloo", rank=rank, world_size=3)
        trainer: Any = SimpleNamespace(world_size=3, global_rank=rank, local_rank=rank, log_dir=str(folder))
        trainer.strategy, trainer.state = SimpleNamespace(launcher=None), SimpleNamespace(fn="test")
        watch = ProcessWatch(silence=SILENCE)
        watch.setup(trainer, trainer, "test")
        watch.on_test_batch_start(trainer, trainer, None, 5)
        time.sleep(1.5)  # a round, so that all know where all are
        if rank == 2 and fault in ("kill", "freeze"):
            os.kill(os.getpid(), signal.SIGKILL if fault == "kill" else signal.SIGSTOP)
        if rank == 2 and fault == "error":
            watch.on_exception(trainer, trainer, ValueError("no such photo"))
            os._exit(2)
        if fault != "none":
            time.sleep(60)
        watch.teardown(trainer, trainer, "test")
        os._exit(0)
    finally:
        os._exit(99)


def run(folder: Path, fault: str) -> tuple[list[int], list[str]]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    ranks = []
    for rank in range(3):
        pid = os.fork()
        if not pid:
            be_rank(rank, port, folder, fault)
        ranks.append(pid)
    codes = [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in ranks[:2]]
    if fault == "freeze":
        os.kill(ranks[2], signal.SIGKILL)  # it was not started by rank 0, so it is for its starter to end
    codes.append(os.waitstatus_to_exitcode(os.waitpid(ranks[2], 0)[1]))
    return codes, [(folder / f"rank{rank}.log").read_text() for rank in range(3)]


def test_a_killed_process_ends_the_others_and_is_named(tmp_path: Path) -> None:
    codes, told = run(tmp_path, "kill")
    assert codes == [75, 75, -signal.SIGKILL], told
    assert "sealmark: error: rank 2 (process " in told[0]
    assert "last seen at test batch 5) ended without a word" in told[0]
    assert "rank 1 ends: rank 0 (process " in told[1]


@pytest.mark.slow
def test_a_frozen_process_ends_the_others_and_is_named(tmp_path: Path) -> None:
    codes, told = run(tmp_path, "freeze")
    assert codes == [75, 75, -signal.SIGKILL], told
    assert "last seen at test batch 5) has not answered for 2 s" in told[0]


@pytest.mark.slow
def test_an_error_ends_the_others_with_its_line_and_code(tmp_path: Path) -> None:
    codes, told = run(tmp_path, "error")
    assert codes == [2, 2, 2], told
    for rank in (0, 1):
        assert f"rank {rank} ends, as rank 2 ended with: no such photo" in told[rank]
    assert "sealmark" not in told[2], "it tells its error itself"


@pytest.mark.slow
def test_all_end_well_together(tmp_path: Path) -> None:
    codes, told = run(tmp_path, "none")
    assert codes == [0, 0, 0], told


@pytest.mark.parametrize("setting", ["silence", "worker_timeout"])
def test_negative_times_are_refused(setting: str) -> None:
    with pytest.raises(ValueError, match=rf"process_watch.{setting} must be 0 or more, got -1"):
        ProcessWatch(**{setting: -1.0})
