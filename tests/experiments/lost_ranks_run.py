"""A program: runs of two processes to which something happens, many after one import; writes how each ended."""

import importlib
import json
import multiprocessing
import os
import shlex
import signal
import socket
import subprocess
import sys
import time
import traceback
from pathlib import Path

import psutil
from lightning import Callback

ROOT = Path(__file__).parents[2]
IMPORTED_ONCE = (
    *("experiments.trainer_cli", "callbacks.segmentation", "datamodules.watermark_compositing"),
    "lightning_modules.watermark_segmentation.module",
)
SECONDS = 300.0  # after which a run counts as hanging


class Fault(Callback):
    """Does a thing to a process when it comes to a place: `kind:rank:hook:count`."""

    def __init__(self) -> None:
        self.kind, rank, self.hook, count = os.environ["FAULT"].split(":")
        self.rank, self.count = int(rank), int(count)

    def act(self, trainer, hook, count=0) -> None:
        if (trainer.global_rank, hook, count) != (self.rank, self.hook, self.count):
            return
        Path("fault_at").write_text(str(time.time()))
        match self.kind:
            case "kill" | "freeze":
                os.kill(os.getpid(), signal.SIGKILL if self.kind == "kill" else signal.SIGSTOP)
            case "kill_worker" | "freeze_worker":
                number = signal.SIGKILL if self.kind == "kill_worker" else signal.SIGSTOP
                os.kill(multiprocessing.active_children()[0].pid, number)
            case "mistake":
                raise ValueError("photo.png cannot be read")
            case "hang":
                time.sleep(10_000)
            case "slow":
                time.sleep(30)
            case "stopped":
                os.kill(os.getpid(), signal.SIGTERM)
            case "leave":
                trainer.fit_loop.epoch_loop.batch_progress.is_last_batch = True
                trainer.should_stop = True

    def on_train_batch_start(self, trainer, module, batch, batch_idx) -> None:
        self.act(trainer, "train", batch_idx)

    def on_validation_batch_start(self, trainer, module, batch, batch_idx, dataloader_idx=0) -> None:
        self.act(trainer, "validation", batch_idx)

    def on_test_batch_start(self, trainer, module, batch, batch_idx, dataloader_idx=0) -> None:
        self.act(trainer, "test", batch_idx)

    def on_predict_batch_start(self, trainer, module, batch, batch_idx, dataloader_idx=0) -> None:
        self.act(trainer, "predict", batch_idx)

    def on_save_checkpoint(self, trainer, module, checkpoint) -> None:
        self.act(trainer, "save")


def small_recipe():
    path = Path(__file__).with_name("conftest.py")
    namespace = {"__file__": str(path)}
    exec(path.read_text(), namespace)
    return namespace["SMALL"]


def run_rank(rank, words):
    """Run the command as a rank, in this process, and end it."""
    log = os.open(f"rank{rank}.log", os.O_CREAT | os.O_WRONLY | os.O_APPEND)
    os.dup2(log, 1)
    os.dup2(log, 2)
    from experiments.cli import main

    code = 1
    try:
        code = main(words)
    except SystemExit as error:
        code = error.code
    except BaseException:
        traceback.print_exc()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


class ForkedRank:
    """What Lightning's launcher takes for a `subprocess.Popen`: a fork, which need not import anything again."""

    def __init__(self, command, env, cwd) -> None:
        self.returncode = None
        self.pid = os.fork()
        if not self.pid:
            os.environ.clear()
            os.environ.update(env)
            run_rank(1, sys.argv[1:])

    def poll(self):
        if self.returncode is None:
            ended, status = os.waitpid(self.pid, os.WNOHANG)
            self.returncode = os.waitstatus_to_exitcode(status) if ended else None
        return self.returncode

    def wait(self, timeout):
        deadline = time.monotonic() + timeout
        while self.poll() is None:
            if time.monotonic() > deadline:
                raise subprocess.TimeoutExpired("rank 1", timeout)
            time.sleep(0.05)
        return self.returncode

    def send_signal(self, number) -> None:
        if self.poll() is None:
            os.kill(self.pid, number)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)


def lead(scenario):
    """Start the ranks of a run in a session of their own and return their exit codes."""
    from lightning.pytorch.strategies.launchers import subprocess_script

    os.setsid()
    words = [scenario["command"], *small_recipe(), *shlex.split(scenario["words"])]
    words += ["--trainer.callbacks+", "lost_ranks_run.Fault"]
    os.environ["FAULT"] = scenario["fault"]
    ranks = {}
    for rank in range(1 if scenario["by"] in ("lightning", "one") else 2):
        pid = os.fork()
        if not pid:
            if scenario["by"] == "lightning":
                subprocess_script.subprocess.Popen = ForkedRank
            elif scenario["by"] == "torchrun":
                os.environ.update({"LOCAL_RANK": str(rank), "NODE_RANK": "0", "WORLD_SIZE": "2"})
                os.environ.update({"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(scenario["port"])})
            sys.argv[1:] = words
            run_rank(rank, words)
        ranks[pid] = rank
    codes, deadline = {}, time.monotonic() + SECONDS
    while len(codes) < len(ranks) and time.monotonic() < deadline:
        pid, status = os.waitpid(-1, os.WNOHANG)
        if pid:
            codes[ranks[pid]] = os.waitstatus_to_exitcode(status)
        elif scenario["by"] == "torchrun" and any(codes.values()) and scenario["fault"].startswith("freeze"):
            for left in ranks:  # what torchrun does to those that are left, once it has waited 30 s
                if ranks[left] not in codes:
                    os.kill(left, signal.SIGKILL)
        time.sleep(0.05)
    return codes


def run(scenario, folder):
    """Run a scenario and return how it ended: exit codes, seconds since the fault, what was said, what is left."""
    folder.mkdir()
    scenario["port"] = free_port()
    leader = os.fork()
    if not leader:
        os.chdir(folder)
        codes = lead(scenario)
        (folder / "codes.json").write_text(json.dumps(codes))
        os._exit(0)
    os.waitpid(leader, 0)
    ended = time.time()
    for _ in range(100):  # data workers look for their parent every five seconds
        left = processes_of(leader)
        if not left:
            break
        time.sleep(0.1)
    for pid in left:
        os.kill(pid, signal.SIGKILL)
    fault, logs = folder / "fault_at", [folder / f"rank{rank}.log" for rank in (0, 1)]
    return {
        "codes": json.loads((folder / "codes.json").read_text()),
        "seconds": round(ended - float(fault.read_text()), 1) if fault.exists() else None,
        "told": [path.read_text() if path.exists() else "" for path in logs],
        "left": left,
    }


def processes_of(session):
    found = []
    for process in psutil.process_iter(["status"]):
        try:
            if os.getsid(process.pid) == session and process.info["status"] != psutil.STATUS_ZOMBIE:
                found.append(process.pid)
        except ProcessLookupError:
            pass
    return found


def free_port():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


def main(folder, scenarios):
    sys.path[:0] = [str(ROOT), str(Path(__file__).parent)]
    for module in IMPORTED_ONCE:
        importlib.import_module(module)
    results = {name: run(scenario, folder / name) for name, scenario in scenarios.items()}
    (folder / "results.json").write_text(json.dumps(results))


if __name__ == "__main__":
    main(Path(sys.argv[1]), json.loads(Path(sys.argv[1], "scenarios.json").read_text()))
