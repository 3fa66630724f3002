"""A run that meets NaN ends with one line and a whole checkpoint, and its batch can be drawn again."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from lightning import Callback

from experiments.bad_batches import draw_batch

STEPS = (
    *("--trainer.max_steps", "6", "--trainer.limit_train_batches", "2", "--trainer.max_epochs", "9"),
    *("--data.batch_size", "2", "--data.num_workers", "0"),
)


class Poison(Callback):
    """Breaks the gradient of the third step, and keeps the batch of it."""

    batches: list[dict] = []  # noqa: RUF012

    def on_train_batch_start(self, trainer, module, batch, batch_idx) -> None:
        if trainer.global_step == 2:
            self.batches.append(batch)
            next(module.parameters()).register_hook(lambda gradient: gradient * torch.nan)


class PoisonOneRank(Callback):
    """Makes the third batch of the second process NaN."""

    def on_train_batch_start(self, trainer, module, batch, batch_idx) -> None:
        if trainer.global_step == 2 and trainer.global_rank == 1:
            batch["image"].fill_(torch.nan)


def test_a_run_ends_with_a_line_and_its_batch_can_be_drawn_again(
    sealmark: Callable[..., int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.syspath_prepend(Path(__file__).parent)
    assert sealmark("fit", *STEPS, "--trainer.callbacks+", "test_bad_batches.Poison", "--seed_everything", 7) == 2
    told = capsys.readouterr().err
    (line,) = (line for line in told.splitlines() if line.startswith("sealmark: error:"))
    assert "Traceback" not in told
    (listed,) = tmp_path.glob("runs/**/bad_numbers.jsonl")
    assert "step 2: the gradient of " in line
    assert str(listed.relative_to(tmp_path)) in line
    entry = json.loads(listed.read_text())
    assert (entry["step"], entry["epoch"], entry["batch_idx"], entry["run_seed"]) == (2, 1, 0, 7)
    (last,) = tmp_path.glob("runs/**/last.ckpt")
    saved = torch.load(last, weights_only=True)
    assert saved["global_step"] == 2
    assert all(value.isfinite().all() for value in saved["state_dict"].values())

    from test_bad_batches import Poison as Used

    (seen,) = Used.batches
    monkeypatch.setenv("PL_GLOBAL_SEED", "0")  # of another run
    drawn = draw_batch(listed.with_name("config.yaml"), entry)
    assert drawn["index"].tolist() == entry["index"] == seen["index"].tolist()
    assert torch.equal(drawn["image"].float() / 255, seen["image"].cpu())
    assert list(drawn["path"]) == entry["path"]


@pytest.mark.slow
def test_two_processes_end_together_with_one_line(tmp_path: Path) -> None:
    namespace: dict = {"__file__": str(Path(__file__).with_name("conftest.py"))}
    exec(Path(__file__).with_name("conftest.py").read_text(), namespace)
    command = [
        *(sys.executable, "-m", "experiments", "fit", *namespace["SMALL"], *STEPS),
        *("--trainer.devices", "2", "--trainer.strategy", "ddp", "--trainer.callbacks+"),
        "test_bad_batches.PoisonOneRank",
    ]
    paths = (Path(__file__).parents[2], Path(__file__).parent)
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(map(str, paths)), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=280)
    assert done.returncode == 2, done.stderr[-3000:]
    assert "Traceback" not in done.stderr
    told = [line for line in done.stderr.splitlines() if line.startswith("sealmark: error:")]
    # The other process may add whose error ended it.
    (line,) = (line for line in told if "rank 1 ends, as rank 0 ended with" not in line)
    # Its loss is a ratio of sums over both.
    assert "step 2: the loss of rank 0, 1 is nan (train/loss): stopped before the step" in line
    (listed,) = tmp_path.glob("runs/**/bad_numbers.jsonl")
    entries = [json.loads(entry) for entry in listed.read_text().splitlines()]
    assert [(entry["rank"], "image" in entry["inputs"]) for entry in entries] == [(0, False), (1, True)]
