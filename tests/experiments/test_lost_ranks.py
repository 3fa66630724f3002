"""A run of two processes ends soon and says why when one of them is lost, and goes on from its checkpoint."""

import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from experiments.mistakes import explain

pytestmark = pytest.mark.timeout(3600)  # the first slow test waits for all runs
SILENCE = 6
# Twice the time without an answer and ten seconds in which rank 0 says so; the rest is the load of the machine.
BOUND = 2 * SILENCE + 10 + 60
TWO = "--trainer.devices 2 --trainer.strategy ddp"
# What a collective waits for; the processes find each other within it too.
IMPATIENT = (
    "--trainer.devices 2 --trainer.strategy lightning.pytorch.strategies.DDPStrategy --trainer.strategy.timeout 0:00:20"
)
EVERY_STEP = (
    "--trainer.callbacks+ lightning.pytorch.callbacks.ModelCheckpoint --trainer.callbacks.every_n_train_steps 1 "
    "--trainer.callbacks.save_top_k -1 --trainer.callbacks.filename every{step}"
)
WATCH = f"--process_watch.silence {SILENCE}"
FIT = (
    f"{WATCH} --trainer.max_steps 6 --trainer.limit_train_batches 1.0 --trainer.limit_val_batches 0 "
    f"--data.train_samples 24 {EVERY_STEP}"
)
PREDICT = f"{WATCH} --data.paths ../pictures --trainer.limit_predict_batches 1.0 --model.weights random"
# The fourth batch is waited for: two are ahead.
WORKERS = f"{FIT} --data.num_workers 1 --trainer.devices 1"


def scenario(by: str, command: str, fault: str, words: str) -> dict[str, str]:
    return {"by": by, "command": command, "fault": fault, "words": words}


SCENARIOS = {
    "unbroken": scenario("lightning", "fit", "none:9:none:0", f"{FIT} {TWO}"),
    "child killed": scenario("lightning", "fit", "kill:1:train:3", f"{FIT} {TWO}"),
    "parent killed": scenario("lightning", "fit", "kill:0:train:3", f"{FIT} {TWO}"),
    "child frozen": scenario("lightning", "fit", "freeze:1:train:3", f"{FIT} {TWO}"),
    "parent frozen": scenario("lightning", "fit", "freeze:0:train:3", f"{FIT} {TWO}"),
    "rank 1 killed": scenario("torchrun", "fit", "kill:1:train:3", f"{FIT} {TWO} --data.num_workers 1"),
    "rank 1 frozen": scenario("torchrun", "fit", "freeze:1:train:3", f"{FIT} {TWO}"),
    "mistake": scenario("lightning", "fit", "mistake:1:train:3", f"{FIT} {TWO}"),
    "hang": scenario("lightning", "fit", "hang:1:train:3", f"{FIT} {IMPATIENT}"),
    "hang at a checkpoint": scenario("lightning", "fit", "hang:1:save:0", f"{FIT} {IMPATIENT}"),
    "epoch left early": scenario("torchrun", "fit", "leave:1:train:3", f"{FIT} {IMPATIENT}"),
    "validation": scenario("lightning", "validate", "kill:1:validation:0", f"{WATCH} {TWO} --model.weights random"),
    "test": scenario("lightning", "test", "freeze:1:test:0", f"{WATCH} {TWO} --model.weights random"),
    "prediction": scenario("lightning", "predict", "kill:1:predict:1", f"{PREDICT} {TWO}"),
    "slow prediction": scenario("torchrun", "predict", "slow:1:predict:1", f"{PREDICT} {IMPATIENT}"),
    "prediction stopped": scenario("torchrun", "predict", "stopped:1:predict:0", f"{PREDICT} {TWO}"),
    "worker killed": scenario("one", "fit", "kill_worker:0:train:1", WORKERS),
    "worker frozen": scenario("one", "fit", "freeze_worker:0:train:1", f"{WORKERS} --process_watch.worker_timeout 5"),
}
LOST = 75
RESUMED = ("child killed", "parent killed", "child frozen")
ADVICE = re.compile(r"sealmark (fit --config (\S+) --ckpt_path (\S+))")


def run(folder: Path, scenarios: dict[str, dict[str, str]]) -> dict[str, Any]:
    folder.mkdir(exist_ok=True)
    pictures = folder / "pictures"
    pictures.mkdir(exist_ok=True)
    for number in range(9):
        pixels = np.random.default_rng(number).integers(0, 255, (40, 40, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(pictures / f"{number}.png")
    (folder / "scenarios.json").write_text(json.dumps(scenarios))
    command = [sys.executable, str(Path(__file__).with_name("lost_ranks_run.py")), str(folder)]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "SEALMARK_CACHE": str(folder / "cache")}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads((folder / "results.json").read_text())


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("lost")


@pytest.fixture(scope="module")
def results(folder: Path) -> dict[str, Any]:
    """How all runs ended; none may leave a process."""
    return run(folder, SCENARIOS)


def test_a_broken_collective_is_told_in_a_line_where_nobody_watches() -> None:
    error = RuntimeError("[gloo/transport/tcp/pair.cc:561] Connection closed by peer [127.0.0.1]:6306")
    told = explain(error, None)
    assert isinstance(told, ValueError)
    assert str(told).startswith("another process of the run ended or did not come in time")
    bug = RuntimeError("shapes do not match")
    assert explain(bug, None) is bug


def steps(folder: Path) -> dict[int, Path]:
    return {int(path.stem.split("=")[1]): path for path in folder.glob("runs/**/every*.ckpt")}


@pytest.mark.slow
@pytest.mark.parametrize("name", SCENARIOS)
def test_nothing_is_left_and_the_end_comes_in_time(results: dict[str, Any], name: str) -> None:
    result = results[name]
    assert result["left"] == []
    if name != "unbroken":
        assert result["seconds"] < BOUND, result["told"]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "code", "cause"),
    [
        ("child killed", LOST, r"rank 1 \(process \d+ on \S+, last seen at [\w ]+\) was ended by SIGKILL"),
        ("child frozen", LOST, r"rank 1 \(.*\) has not answered for \d+ s: it hangs"),
        ("rank 1 killed", LOST, r"rank 1 \(.*\) (ended without a word|has not answered)"),
        ("rank 1 frozen", LOST, r"rank 1 \(.*\) has not answered"),
        ("mistake", 2, r"rank 0 ends, as rank 1 ended with: photo.png cannot be read"),
        (
            "hang",
            LOST,
            r"waited for each other in vain: rank 0 at training step 3 for \d+ s, rank 1 at training step 3",
        ),
        ("hang at a checkpoint", LOST, r"rank 1 at writing a checkpoint for \d+ s"),
        ("epoch left early", LOST, r"waited for each other in vain|as rank 1 waited for it in vain"),
        ("validation", LOST, r"rank 1 \(.*\) was ended by SIGKILL[^\n]*\nstart the same command again"),
        ("test", LOST, r"rank 1 \(.*\) has not answered[^\n]*\nstart the same command again"),
        ("prediction", LOST, r"was ended by SIGKILL[^\n]*\nthe same command with --predictions.output_dir \S+ goes on"),
        ("worker killed", 2, r"DataLoader worker \(pid \d+\) is killed by signal: Killed[^\n]*memory is full"),
        ("worker frozen", 2, r"DataLoader timed out after 5.0 seconds: the data workers hang"),
    ],
)
def test_rank_0_ends_with_the_cause(results: dict[str, Any], name: str, code: int, cause: str) -> None:
    told = results[name]["told"][0]
    assert results[name]["codes"]["0"] == code, told
    assert re.search(cause, told), told
    assert "Traceback" not in told
    assert told.count("sealmark: error:") == 1


@pytest.mark.slow
@pytest.mark.parametrize("name", ["parent killed", "parent frozen"])
def test_without_rank_0_another_says_the_cause_and_how_to_go_on(results: dict[str, Any], name: str) -> None:
    told = results[name]["told"][1]
    assert results[name]["codes"]["0"] == -9, "killed by the test, or by rank 1 since nobody else could"
    assert re.search(r"rank 0 \(process \d+ on \S+, last seen at [\w ]+\) is gone or does not answer", told)
    assert ADVICE.search(told), told


@pytest.mark.slow
def test_the_stack_of_what_hangs_is_told(results: dict[str, Any]) -> None:
    for name in ("hang", "hang at a checkpoint"):
        told = results[name]["told"][1]
        assert "time.sleep(10_000)" in told
        assert "rank 1 ends, as rank 0 waited for it in vain" in told


@pytest.mark.slow
def test_an_error_is_told_by_its_own_rank(results: dict[str, Any]) -> None:
    told = results["mistake"]["told"][1]
    assert "sealmark: error: photo.png cannot be read  [SEALMARK_DEBUG" in told
    assert told.count("sealmark: error:") == 1


@pytest.fixture(scope="module")
def resumed(results: dict[str, Any], folder: Path) -> dict[str, Any]:
    """How runs end that do what lost ones advised."""
    scenarios = {}
    for name in RESUMED:
        told = results[name]["told"][1 if name.startswith("parent") else 0]
        found = ADVICE.search(told)
        assert found is not None, told
        config, checkpoint = (folder / name / each for each in found.groups()[1:])
        assert checkpoint.is_file()
        words = shlex.join(["--config", str(config), "--ckpt_path", str(checkpoint)])
        scenarios[name] = scenario("lightning", "fit", "none:9:none:0", words)
    return run(folder / "resumed", scenarios)


@pytest.mark.slow
@pytest.mark.parametrize("name", RESUMED)
def test_the_advice_goes_on_to_the_weights_of_an_unbroken_run(resumed: dict[str, Any], folder: Path, name: str) -> None:
    assert resumed[name]["codes"]["0"] == 0, resumed[name]["told"][0]
    ours = torch.load(steps(folder / "resumed" / name)[6], weights_only=True)["state_dict"]
    theirs = torch.load(steps(folder / "unbroken")[6], weights_only=True)["state_dict"]
    assert ours.keys() == theirs.keys()
    assert [key for key in ours if not torch.equal(ours[key], theirs[key])] == []
    first = torch.load(steps(folder / "unbroken")[1], weights_only=True)["state_dict"]
    assert any(not torch.equal(first[key], theirs[key]) for key in theirs), "training moved"


@pytest.mark.slow
def test_prediction_waits_for_the_slower_share_longer_than_a_collective_would(results: dict[str, Any]) -> None:
    result = results["slow prediction"]
    assert result["codes"] == {"0": 0, "1": 0}, result["told"]
    assert "predicted 9 images" in result["told"][0]


@pytest.mark.slow
def test_prediction_stops_everywhere_when_one_process_is_stopped(results: dict[str, Any]) -> None:
    assert results["prediction stopped"]["codes"] == {"0": 143, "1": 143}, results["prediction stopped"]["told"]
