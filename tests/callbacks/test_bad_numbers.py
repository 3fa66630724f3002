"""A step that meets NaN or infinity changes nothing, is written down, and is no secret of one rank."""

import copy
import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from lightning.pytorch import Callback, LightningModule
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.plugins import MixedPrecision
from torch.optim.swa_utils import AveragedModel, get_ema_avg_fn
from torch.utils.data import DataLoader

from callbacks.bad_numbers import FILE_NAME, BadNumbers, bad_names, culprit

PROGRAM = Path(__file__).with_name("bad_numbers_run.py")
SPEC = importlib.util.spec_from_file_location("bad_numbers_run", PROGRAM)
small = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(small)


def fit(folder, faults, bad_numbers, module=None, callbacks=(), fit_options=None, **options):
    """Train on batches with these faults; what it ends with, before the average takes the weights' place."""
    keeper, module = small.KeepsState(), module or small.Small()
    run = small.trainer(folder, bad_numbers, [*callbacks, keeper], **options)
    batches = [small.batch_of(number, fault) for number, fault in enumerate(faults)]
    run.fit(module, DataLoader(batches, batch_size=None), **(fit_options or {}))
    return keeper.state, run


def by_hand(steps, left_out, accumulated, clip):
    """The same training in torch alone, in which one step is not taken and its batches never seen."""
    module = small.Small()
    optimizer = torch.optim.AdamW(module.parameters(), lr=0.05, weight_decay=0.1)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 / (1 + step))
    average = AveragedModel(module, avg_fn=get_ema_avg_fn(small.DECAY), use_buffers=True)
    for step in range(steps):
        if step != left_out:
            optimizer.zero_grad()
            for number in range(step * accumulated, (step + 1) * accumulated):
                (module.loss_of(small.batch_of(number)) / accumulated).backward()
            if clip is not None:
                torch.nn.utils.clip_grad_norm_(module.parameters(), clip)
            optimizer.step()
            average.update_parameters(module)
        else:
            optimizer._opt_called = True  # the schedule goes on, and warns where no step went before
        schedule.step()
    averaged = average.state_dict()
    return {
        "average": {name[7:]: value for name, value in averaged.items() if name.startswith("module.")},
        "averaged": {name: value for name, value in averaged.items() if not name.startswith("module.")},
        "weights": module.state_dict(),
        "optimizers": [optimizer.state_dict()],
    }


def leaves(value, name=""):
    """All tensors and numbers of nested states, by name."""
    if isinstance(value, dict | list | tuple):
        items = value.items() if isinstance(value, dict) else enumerate(value)
        return {leaf: found for key, each in items for leaf, found in leaves(each, f"{name}/{key}").items()}
    return {name: torch.as_tensor(value)} if isinstance(value, torch.Tensor | int | float) else {}


def assert_same(first, second):
    first, second = leaves(first), leaves(second)
    assert first.keys() == second.keys()
    assert len(first) > 8
    different = [name for name, value in first.items() if not torch.equal(value, second[name])]
    assert different == []


@pytest.mark.parametrize("fault", ["sample", "infinite loss", "gradient"])
@pytest.mark.parametrize(
    ("accumulated", "bad_batch", "clip"),
    [(1, 2, None), (1, 0, 0.1), (2, 2, 0.1), (2, 3, None), (3, 4, None)],
)
def test_a_step_that_is_left_out_might_never_have_been(tmp_path, fault, accumulated, bad_batch, clip):
    faults = [None] * 4 * accumulated
    faults[bad_batch] = fault
    bad_numbers = BadNumbers("skip")
    found, run = fit(tmp_path, faults, bad_numbers, accumulate_grad_batches=accumulated, gradient_clip_val=clip)
    assert bad_numbers.skipped == 1
    assert run.global_step == 4
    assert_same(found, by_hand(4, bad_batch // accumulated, accumulated, clip))


def test_two_bad_batches_of_one_step_count_once_and_are_both_written_down(tmp_path):
    bad_numbers = BadNumbers("skip", limit=1)
    found, run = fit(tmp_path, [None, None, "sample", "gradient"], bad_numbers, accumulate_grad_batches=2)
    lines = [json.loads(line) for line in (tmp_path / FILE_NAME).read_text().splitlines()]
    assert [(line["step"], line["batch_idx"]) for line in lines] == [(1, 2), (1, 3)]
    assert run.callback_metrics["train/skipped_steps"] == bad_numbers.skipped == 1
    assert_same(found, by_hand(2, 1, 2, None))


@pytest.mark.parametrize("place", [0, 1])
def test_a_module_without_buffers_leaves_out_whole_steps_too(tmp_path, place):
    faults = [None, None]
    faults[place] = "sample"
    bad_numbers = BadNumbers("skip", limit=1)
    found, _ = fit(tmp_path, faults, bad_numbers, NoBuffers(), accumulate_grad_batches=2)
    assert bad_numbers.skipped == 1
    assert float(found["weights"]["weight"]) == 1.0


class NoBuffers(LightningModule):
    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.ones(()))

    def training_step(self, batch, batch_idx):
        return self.weight * batch["x"].sum()

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


@pytest.mark.parametrize(
    ("fault", "cause"),
    [("sample", "the loss of rank 0 is nan"), ("gradient", "the gradient of network.0.weight of rank 0")],
)
def test_stop_ends_before_the_step_with_all_that_names_the_batch(tmp_path, fault, cause):
    every = ModelCheckpoint(tmp_path, every_n_train_steps=1, save_top_k=-1, save_on_exception=True)
    module, optimizers = small.Small(), []

    class KeepsOptimizers(Callback):
        def on_exception(self, trainer, *_):
            optimizers.append(trainer.optimizers[0].state_dict())

    with pytest.raises(ValueError, match=f"step 2: {cause}") as told:
        fit(
            tmp_path,
            [None, None, fault, None],
            BadNumbers(),
            module,
            [every, KeepsOptimizers()],
            enable_checkpointing=True,
        )
    assert "\n" not in str(told.value)
    assert str(tmp_path / FILE_NAME) in str(told.value)
    (line,) = (json.loads(line) for line in (tmp_path / FILE_NAME).read_text().splitlines())
    assert line["index"] == [8, 9, 10, 11]
    assert line["path"][0] == "8.png"
    assert (line["step"], line["epoch"], line["batch_idx"], line["rank"]) == (2, 0, 2, 0)
    assert (line["loss"] == "nan") == (fault == "sample")
    assert line["inputs"] == (["x"] if fault == "sample" else [])
    assert "network.0.weight" in line["gradients"]
    expected = by_hand(2, None, 1, None)
    assert_same({"w": module.state_dict(), "o": optimizers}, {"w": expected["weights"], "o": expected["optimizers"]})
    saved = [torch.load(path, weights_only=True) for path in tmp_path.glob("*.ckpt")]
    assert len(saved) >= 2
    assert not any(bad_names(state[key].items()) for state in saved for key in ("state_dict", "current_model_state"))


def test_one_more_than_the_limit_ends_the_run_also_when_it_was_resumed(tmp_path):
    first = BadNumbers("skip", limit=2)
    faults = ["sample", None, "gradient", None]
    fit(tmp_path / "a", faults, first)
    assert first.skipped == 2
    with pytest.raises(ValueError, match=r"step 3: .*bad_numbers\.limit 2 steps were left out before"):
        fit(tmp_path / "b", [*faults[:3], "sample"], BadNumbers("skip", limit=2))

    half, path = BadNumbers("skip", limit=1), tmp_path / "half.ckpt"

    class Saves(Callback):
        def on_train_batch_end(self, trainer, *_):
            if trainer.global_step == 1:
                trainer.save_checkpoint(path)

    fit(tmp_path / "c", faults[:2], half, callbacks=[Saves()])
    resumed = BadNumbers("skip", limit=1)
    with pytest.raises(ValueError, match=r"bad_numbers\.limit 1"):
        fit(tmp_path / "d", ["gradient", None, None], resumed, fit_options={"ckpt_path": path})
    assert resumed.skipped == 2


def test_no_checkpoint_holds_weights_that_are_not_numbers(tmp_path):
    class Diverges(small.Small):
        def configure_optimizers(self):
            return torch.optim.SGD(self.parameters(), lr=torch.finfo().max)

    every = ModelCheckpoint(tmp_path, filename="{step}", every_n_train_steps=1, save_top_k=-1)
    with pytest.raises(ValueError, match=r"after step \d the weights are not numbers \(.*no checkpoint"):
        fit(tmp_path, [None] * 6, BadNumbers("skip"), Diverges(), [every], enable_checkpointing=True)
    assert not any(bad_names(torch.load(path, weights_only=True)["state_dict"].items()) for path in tmp_path.glob("*"))

    with pytest.raises(ValueError, match="and so are the weights: nothing comes of more steps"):
        fit(tmp_path, [None] * 6, BadNumbers("skip"), Diverges())


@pytest.mark.parametrize("fault", [None, "sample"])
def test_a_scaler_goes_on_leaving_out_its_own_steps(tmp_path, fault):
    # Far too large a scale: the first gradients are infinite, which is how a scaler finds its scale.
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**126, backoff_factor=2.0**-60)
    bad_numbers, module, scales = BadNumbers("stop" if fault is None else "skip"), small.Small(), []

    class Watches(Callback):
        def on_train_batch_end(self, trainer, module, *_):
            scales.append((scaler.get_scale(), copy.deepcopy(module.state_dict())))

    plugin = MixedPrecision("16-mixed", "cpu", scaler)
    fit(tmp_path, [None, None, None, fault, None], bad_numbers, module, [Watches()], plugins=[plugin])
    assert scales[0][0] < 2.0**126
    assert bad_numbers.skipped == (fault is not None)
    moved = [bad_names(after.items()) for _, after in scales]
    assert not any(moved)
    same = torch.equal(scales[2][1]["network.0.weight"], scales[3][1]["network.0.weight"])
    assert same == (fault is not None)
    assert not torch.equal(scales[3][1]["network.0.weight"], scales[4][1]["network.0.weight"])


def test_a_limit_of_none_is_said():
    with pytest.raises(ValueError, match=r"bad_numbers\.limit must be at least 1, got 0"):
        BadNumbers("skip", 0)


def test_a_line_tells_the_ranks_whose_loss_it_was():
    sound = {"rank": 0, "loss": 1.0, "logged": {}, "gradients": ["w"], "gradients_in_all": 3}
    broken = sound | {"rank": 3, "loss": "inf", "logged": {"train/loss_a": 1.0, "train/loss_b": "inf"}}
    assert culprit([sound, broken]) == "the loss of rank 3 is inf (train/loss_b)"
    assert culprit([sound, sound]) == "the gradient of w after averaging over ranks is not a number, nor 2 more"


@pytest.fixture(scope="module")
def two(tmp_path_factory):
    folder = tmp_path_factory.mktemp("two")
    command = [sys.executable, str(PROGRAM), str(folder)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, timeout=240, env=environment)
    assert done.returncode == 0, done.stderr[-3000:]
    return {
        name: [torch.load(folder / f"{name}.rank{rank}.pt", weights_only=True) for rank in (0, 1)]
        for name in small.CASES
    }


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name, case in small.CASES.items() if case[2] == "skip"])
def test_a_fault_of_rank_one_alone_leaves_the_step_out_on_both(two, name):
    for outcome in two[name]:
        assert outcome["met"]["skipped"] == 1
        assert outcome["met"]["step"] == outcome["without"]["step"] + 1
        assert_same(outcome["met"]["state"], outcome["without"]["state"])
    assert_same(two[name][0]["met"]["state"]["optimizers"], two[name][1]["met"]["state"]["optimizers"])


@pytest.mark.slow
def test_a_fault_of_rank_one_alone_stops_both_and_one_says_why(two):
    told = [outcome["met"]["told"] for outcome in two["stop"]]
    assert told[0].startswith("ValueError step 1: the loss of rank 1 is inf (train/loss): stopped before the step")
    assert told[1] == "SystemExit 2"
    assert [outcome["met"]["step"] for outcome in two["stop"]] == [1, 1]
