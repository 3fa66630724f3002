"""Job scripts queue themselves again, and machines joined by torchrun or srun do what one process does.

`srun`, `scontrol` and the machines are stand-ins on this one: no cluster is at hand.
"""

import csv
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from omegaconf import OmegaConf

ROOT = Path(__file__).parents[2]
SCRIPTS = ROOT / "experiments" / "slurm"
# Starts its command once a task, hands SIGUSR1 on, and ends with the highest code, as SLURM's does.
SRUN = """#!/usr/bin/env python3
import os, signal, subprocess, sys
words, per_node = sys.argv[1:], int(os.environ["SLURM_NTASKS_PER_NODE"])
with open("srun.txt", "a") as log:
    log.write(" ".join(words) + "\\n")
while words[0].startswith("--"):
    words = words[1:]
def start(rank):
    place = {"SLURM_PROCID": rank, "SLURM_LOCALID": rank % per_node, "SLURM_NODEID": rank // per_node}
    return subprocess.Popen(words, env=os.environ | {key: str(value) for key, value in place.items()})
tasks = [start(rank) for rank in range(int(os.environ["SLURM_NTASKS"]))]
signal.signal(signal.SIGUSR1, lambda number, frame: [task.send_signal(number) for task in tasks])
open("started", "w").close()
codes = [task.wait() for task in tasks]
sys.exit(max(128 - code if code < 0 else code for code in codes))
"""
SCONTROL = """#!/usr/bin/env bash
if [[ $1 == show ]]; then printf 'here\\nthere\\n'; else echo "$*" >> scontrol.txt; fi
"""
# In place of the command: leaves on SIGUSR1 after its step, as training does; `fail` and `end` are for the other ways.
COMMAND = """#!/usr/bin/env bash
leave() { if [[ -e slow ]]; then sleep 1; echo saved >> scontrol.txt; fi; exit "$(cat code 2>/dev/null || echo 138)"; }
trap leave USR1
echo "${0#"$PWD/"} $*" >> command.txt
case "$*" in *--fail*) exit 2;; *--end*) exit 0;; esac
for _ in {1..200}; do sleep 0.05; done
"""
SGD = (
    *("--model.encoder", "tu-convnext_atto", "--model.decoder_norm", "identity", "--model.optimizer", "sgd"),
    *("--model.lr", "0.01", "--model.ema_decay", "0"),
)
TRAINING = (
    *SGD,
    *("--trainer.max_steps", "14", "--trainer.max_epochs", "2", "--trainer.limit_train_batches", "1.0"),
    *("--data.train_samples", "28", "--trainer.callbacks+", "lightning.pytorch.callbacks.ModelCheckpoint"),
    *("--trainer.callbacks.every_n_train_steps", "2", "--trainer.callbacks.save_top_k", "-1"),
    *("--trainer.callbacks.filename", "every{step}"),
)
# What an overlay for GPUs must be told on this machine.
ON_CPU = (
    *("--trainer.accelerator", "cpu", "--trainer.precision", "32-true", "--trainer.sync_batchnorm", "false"),
    *("--data.batch_size", "2"),
)


def small_recipe() -> tuple[str, ...]:
    namespace: dict[str, object] = {"__file__": str(Path(__file__).with_name("conftest.py"))}
    exec(Path(__file__).with_name("conftest.py").read_text(), namespace)
    return namespace["SMALL"]  # type: ignore[return-value]


def own_environment(folder: Path, **more: object) -> dict[str, str]:
    paths = os.pathsep.join((str(ROOT), str(Path(__file__).parent)))
    own = {"PYTHONPATH": paths, "OMP_NUM_THREADS": "1", "SEALMARK_CACHE": str(folder / "cache")}
    return os.environ | own | {key: str(value) for key, value in more.items()}


@pytest.fixture
def cluster(tmp_path: Path) -> Callable[..., subprocess.Popen[str]]:
    """Return a function that starts a job script in a folder with stand-ins for SLURM's programs."""
    for name, text in (("srun", SRUN), ("scontrol", SCONTROL)):
        write_program(tmp_path / "bin" / name, text)
    for name in ("configs", "experiments"):
        (tmp_path / name).symlink_to(ROOT / name)

    def submit(script: str, *words: object, tasks: int = 1, **more: object) -> subprocess.Popen[str]:
        (tmp_path / "started").unlink(missing_ok=True)
        slurm = {"JOB_ID": 4711, "NTASKS": tasks, "NTASKS_PER_NODE": 1, "NNODES": tasks, "CPUS_PER_TASK": 3}
        slurm |= {"JOB_NODELIST": "here,there", "GPUS_ON_NODE": 1, "ARRAY_TASK_ID": 3, "ARRAY_TASK_COUNT": 8}
        path = f"{tmp_path / 'bin'}{os.pathsep}{os.environ['PATH']}"
        environment = own_environment(tmp_path, PATH=path, **{f"SLURM_{key}": value for key, value in slurm.items()})
        return subprocess.Popen(
            ["bash", str(SCRIPTS / script), *map(str, words)],
            cwd=tmp_path,
            env=environment | {key: str(value) for key, value in more.items()},
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )

    return submit


@pytest.fixture
def stand_in(tmp_path: Path) -> None:
    """Put a short shell program in place of the command and of torchrun."""
    for name in ("sealmark", "torchrun"):
        write_program(tmp_path / ".venv" / "bin" / name, COMMAND)


def write_program(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    path.chmod(0o755)


def wait_for(path: Path, run: subprocess.Popen[str], seconds: float = 600) -> None:
    deadline = time.monotonic() + seconds
    while not path.exists():
        assert run.poll() is None, run.stdout.read()
        assert time.monotonic() < deadline
        time.sleep(0.05)


@pytest.mark.parametrize("script", sorted(path.name for path in SCRIPTS.iterdir()))
def test_scripts_are_sound_shell(script: str) -> None:
    assert subprocess.run(["bash", "-n", SCRIPTS / script]).returncode == 0
    if shutil.which("shellcheck") is None:
        pytest.skip("shellcheck is not installed")
    done = subprocess.run(["shellcheck", "-x", SCRIPTS / script], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


@pytest.mark.usefixtures("stand_in")
@pytest.mark.parametrize("script", ["train.sbatch", "predict.sbatch", "elastic.sbatch"])
def test_job_out_of_time_tells_its_tasks_and_is_queued_again(
    cluster: Callable[..., subprocess.Popen[str]], tmp_path: Path, script: str
) -> None:
    job = begun(cluster(script, "recipe.yaml", tasks=2), tmp_path)
    job.send_signal(signal.SIGUSR1)
    told = job.communicate(timeout=20)[0]
    assert job.returncode == 138, told
    assert (tmp_path / "scontrol.txt").read_text() == "requeue 4711\n"


@pytest.mark.usefixtures("stand_in")
def test_a_second_signal_does_not_queue_a_job_that_is_still_saving(
    cluster: Callable[..., subprocess.Popen[str]], tmp_path: Path
) -> None:
    (tmp_path / "slow").touch()
    job = begun(cluster("train.sbatch", "recipe.yaml", tasks=2), tmp_path)
    job.send_signal(signal.SIGUSR1)
    time.sleep(0.3)
    job.send_signal(signal.SIGUSR1)
    told = job.communicate(timeout=20)[0]
    assert job.returncode == 138, told
    assert (tmp_path / "scontrol.txt").read_text() == "saved\nsaved\nrequeue 4711\n"


@pytest.mark.usefixtures("stand_in")
def test_a_mistake_after_the_signal_is_not_queued_again(
    cluster: Callable[..., subprocess.Popen[str]], tmp_path: Path
) -> None:
    (tmp_path / "code").write_text("2")
    job = begun(cluster("train.sbatch", "recipe.yaml", tasks=2), tmp_path)
    job.send_signal(signal.SIGUSR1)
    assert job.wait(20) == 2
    assert not (tmp_path / "scontrol.txt").exists()


def begun(job: subprocess.Popen[str], folder: Path) -> subprocess.Popen[str]:
    """Return a job whose two processes are at work."""
    wait_for(folder / "started", job)
    wait_for(folder / "command.txt", job)
    while len((folder / "command.txt").read_text().splitlines()) < 2:
        time.sleep(0.02)
    return job


@pytest.mark.usefixtures("stand_in")
@pytest.mark.parametrize(("way", "code"), [("--fail", 2), ("--end", 0)])
def test_job_that_ends_by_itself_is_not_queued_again(
    cluster: Callable[..., subprocess.Popen[str]], tmp_path: Path, way: str, code: int
) -> None:
    assert cluster("train.sbatch", "recipe.yaml", way, tasks=2).wait(20) == code
    assert not (tmp_path / "scontrol.txt").exists()


@pytest.mark.usefixtures("stand_in")
def test_scripts_start_what_their_pages_say(cluster: Callable[..., subprocess.Popen[str]], tmp_path: Path) -> None:
    overlay, folder = "--config r.yaml --config configs/env", "--run_name job-4711"
    for script in ("train", "predict", "elastic"):
        assert cluster(f"{script}.sbatch").wait(20) == 2, "no recipe"
        assert cluster(f"{script}.sbatch", "r.yaml", "--end", "a b").wait(20) == 0
    assert cluster("prepare_sa1b.sbatch", "--inputs", "--end").wait(20) == 0
    train, predict, elastic, prepare = (tmp_path / "command.txt").read_text().splitlines()
    assert train == f".venv/bin/sealmark fit {overlay}/slurm.yaml {folder} --ckpt_path last --end a b"
    assert predict == f".venv/bin/sealmark predict {overlay}/slurm.yaml {folder} --end a b"
    assert elastic.endswith(f"-m experiments fit {overlay}/torchrun.yaml {folder} --ckpt_path last --end a b")
    assert "--rdzv-endpoint here:29400 " in elastic
    assert prepare == ".venv/bin/sealmark prepare sa1b --part 3/8 --workers 3 --inputs --end"
    starts = (tmp_path / "srun.txt").read_text().splitlines()
    assert ["--kill-on-bad-exit=1" in start for start in starts] == [True, True, False]


def test_overlays_count_machines_and_processes_by_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    def sizes(name: str) -> tuple[int, int]:
        trainer = OmegaConf.to_container(OmegaConf.load(ROOT / "configs" / "env" / f"{name}.yaml"), resolve=True)
        return trainer["trainer"]["num_nodes"], trainer["trainer"]["devices"]

    for name in ("SLURM_NNODES", "SLURM_NTASKS_PER_NODE", "GROUP_WORLD_SIZE", "LOCAL_WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    assert (sizes("slurm"), sizes("torchrun")) == ((1, 1), (1, 1))
    monkeypatch.setenv("SLURM_NNODES", "3")
    monkeypatch.setenv("SLURM_NTASKS_PER_NODE", "8")
    monkeypatch.setenv("GROUP_WORLD_SIZE", "2")
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "4")
    assert (sizes("slurm"), sizes("torchrun")) == ((3, 8), (2, 4))


@pytest.fixture(scope="module")
def one_process(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the run of one process that takes the same global batches, fitted and tested."""
    folder = tmp_path_factory.mktemp("one")
    run = start(folder, "fit", *TRAINING, "--data.batch_size", "4")
    assert run.wait(600) == 0, run.stdout.read()
    return newest(folder, "runs/**/every*step=14.ckpt")


def command_of(command: str, *words: object) -> list[str]:
    return [command, *small_recipe(), *map(str, words)]


def start(folder: Path, *words: object) -> subprocess.Popen[str]:
    return begin(folder, [sys.executable, "-m", "experiments", *command_of(*words)])


def begin(folder: Path, command: list[str], **more: object) -> subprocess.Popen[str]:
    output = {"text": True, "stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
    return subprocess.Popen(command, cwd=folder, env=own_environment(folder, **more), **output)


@pytest.fixture
def machines(tmp_path: Path) -> Iterator[Callable[..., list[subprocess.Popen[str]]]]:
    """Return a function that starts a command on two "machines" of one process each, joined by torchrun."""
    started = []

    def call(*words: object, torchrun: tuple[str, ...] = ()) -> list[subprocess.Popen[str]]:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        meeting = ("--rdzv-backend", "c10d", "--rdzv-id", "test", "--rdzv-endpoint", f"127.0.0.1:{port}")
        joined = ("--nnodes", "2", "--nproc-per-node", "1", "--local-addr", "127.0.0.1", *meeting)
        overlay = ("--config", str(ROOT / "configs" / "env" / "torchrun.yaml"))
        program = (sys.executable, "-m", "torch.distributed.run", *joined, *torchrun)
        words = (words[0], *overlay, *ON_CPU, *words[1:])
        command = [*program, "-m", "experiments", *command_of(*words)]
        started.extend(begin(tmp_path, command, TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1) for _ in range(2))
        return started[-2:]

    yield call
    for process in started:
        process.kill()
        process.stdout.close()


def finish(runs: list[subprocess.Popen[str]], code: int = 0) -> list[str]:
    told = [run.communicate(timeout=600)[0] for run in runs]
    assert [run.returncode for run in runs] == [code] * len(runs), "\n".join(told)
    return told


def newest(folder: Path, pattern: str) -> Path:
    return max(folder.glob(pattern), key=lambda path: path.stat().st_mtime_ns)


def weights_of(checkpoint: Path) -> dict[str, torch.Tensor]:
    return torch.load(checkpoint, weights_only=True)["state_dict"]


def assert_equal_but_for_rounding(got: Path, wanted: Path) -> None:
    weights, others = weights_of(wanted), weights_of(got)
    assert weights.keys() == others.keys()
    for key, value in weights.items():
        torch.testing.assert_close(others[key], value, rtol=1e-4, atol=1e-6, msg=key)


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_two_machines_fit_test_and_predict_as_one_process(
    machines: Callable[..., list[subprocess.Popen[str]]], one_process: Path, tmp_path: Path
) -> None:
    first, second = finish(machines("fit", *TRAINING, "--run_name", "both"))
    told = first + second
    assert told.count("sealmark fit\n") == 1, "reported once"
    assert "  processes  2 on 2 machines, DDPStrategy, cpu\n" in told
    assert "  batch      2 x 2 processes x 1 accumulated = 4 a step\n" in told
    (folder,) = (path.parent for path in tmp_path.glob("runs/**/config.yaml"))
    assert folder.name == "both"
    rows = list(csv.DictReader((folder / "metrics.csv").open()))
    assert len({(row["step"], row["epoch"], row["val/loss"]) for row in rows}) == len(rows)
    trained = newest(folder, "checkpoints/every*step=14.ckpt")
    assert_equal_but_for_rounding(trained, one_process)

    scored = (*SGD, "--ckpt_path", one_process, "--data.test_samples", "5", "--trainer.limit_test_batches", "1.0")
    alone = start(tmp_path, "test", *scored, "--run_name", "alone")
    finish(machines("test", *scored, "--run_name", "joined"))
    finish([alone])
    tables = [json.loads(path.read_text())["results"] for path in sorted(tmp_path.glob("runs/**/results.json"))]
    assert len(tables) == 2
    assert str(tables[0]) == str(tables[1]), "not a bit of a number differs, NaN included"


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_two_machines_predict_each_input_once(
    machines: Callable[..., list[subprocess.Popen[str]]], one_process: Path, tmp_path: Path
) -> None:
    photos = ("--data.paths", "procedural://5?size=40", "--trainer.limit_predict_batches", "1.0")
    words = ("predict", *SGD, "--ckpt_path", one_process, *photos, "--predictions.output_dir")
    alone = start(tmp_path, *words, "alone")
    finish(machines(*words, "joined"))
    finish([alone])
    names = {path.name for path in (tmp_path / "joined").glob("predictions.rank*")}
    assert names == {"predictions.rank0.jsonl", "predictions.rank1.jsonl"}
    records = [
        sorted(line for path in folder.glob("predictions.rank*") for line in path.read_text().splitlines())
        for folder in (tmp_path / "alone", tmp_path / "joined")
    ]
    assert len(records[0]) == 5
    assert records[0] == records[1]


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_lost_process_is_started_again_by_torchrun_and_the_run_goes_on(
    machines: Callable[..., list[subprocess.Popen[str]]], one_process: Path, tmp_path: Path
) -> None:
    loses = ("--trainer.callbacks+", "run_watchers.KillOnce", "--trainer.callbacks.step", 9)
    words = ("fit", *TRAINING, *loses, "--run_name", "lost", "--ckpt_path", "last")
    told = "".join(finish(machines(*words, torchrun=("--max-restarts", "1"))))
    assert (tmp_path / "killed").exists()
    assert "going on from" in told
    assert len(list(tmp_path.glob("runs/**/config.yaml"))) == 1
    assert_equal_but_for_rounding(newest(tmp_path, "runs/**/every*step=14.ckpt"), one_process)


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_job_out_of_time_goes_on_exactly_where_it_was(
    cluster: Callable[..., subprocess.Popen[str]], one_process: Path, tmp_path: Path
) -> None:
    write_program(tmp_path / ".venv/bin/sealmark", f'#!/bin/sh\nexec {sys.executable} -m experiments "$@"\n')
    recipe, *others = small_recipe()[1:]
    slow = ("--trainer.callbacks+", "run_watchers.TellStep")
    words = (*others, *TRAINING, *ON_CPU, *slow)
    job = cluster("train.sbatch", recipe, *words, tasks=2)
    wait_for(tmp_path / "training", job)
    job.send_signal(signal.SIGUSR1)
    told = job.communicate(timeout=600)[0]
    assert job.returncode == 138, told
    assert (tmp_path / "scontrol.txt").read_text() == "requeue 4711\n"
    (left,) = tmp_path.glob("runs/**/interrupted*.ckpt")
    assert left.parents[1].name == "job-4711"
    assert 0 < torch.load(left, weights_only=True)["global_step"] < 14
    assert not list(tmp_path.glob("runs/*.ckpt")), "nothing of Lightning's own handler"

    again = cluster("train.sbatch", recipe, *words, tasks=2)
    told = again.communicate(timeout=600)[0]
    assert again.returncode == 0, told
    assert f"going on from {left.relative_to(tmp_path)}" in told
    assert_equal_but_for_rounding(newest(tmp_path, "runs/**/every*step=14.ckpt"), one_process)
