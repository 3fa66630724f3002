"""One process, two, and accumulated halves of a batch give the gradients of one batch, for every module that trains.

Tables of other evaluations, on one and two processes: tests/callbacks/test_two_processes.py (segmentation and its
threshold), test_detection.py, test_copy_detection.py, test_sync_setups.py, metrics/test_crop_store.py (realism).
"""

import importlib.util
import inspect
import os
import pkgutil
import subprocess
import sys
from pathlib import Path
from typing import NoReturn

import pytest
import torch

import lightning_modules
from lightning_modules.base import ProvenanceModule

PROGRAM = Path(__file__).with_name("equality_run.py")
ROOT = PROGRAM.parents[2]
# By precision of the case, shares of the largest gradient of a parameter and of the largest of all.
ROUNDING = {"64-true": (1e-9, 1e-13), "32-true": (1e-3, 1e-4)}


def load_cases():
    spec = importlib.util.spec_from_file_location("equality_run", PROGRAM)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


RUN = load_cases()


# What the line about accumulation names, for the cases that are refused.
REFUSED = {
    **{
        f"segmentation/{loss}": f"pixels of the whole batch divide loss {loss}:"
        for loss in RUN.MASKS
        if loss not in ("image_dice", "lovasz")
    },
    "segmentation/heads": "whole batch divide loss bce_image_dice and alpha_head and color_head",
    **dict.fromkeys(("sscd", "sscd/micro_batch"), "each picture is told from all others of its batch"),
    **dict.fromkeys((name for name in RUN.CASES if name.startswith("masksim")), "each head's norm and loss are over"),
    "denoiser": "the mean over a batch's real pictures",
    **dict.fromkeys((name for name in RUN.CASES if name.startswith("syncseal")), "both players step after every batch"),
    "prompts/batch": "a batch has one timestep",
    "forger/vsd": "both optimisers step after every batch",
}


def run_program(folder, names):
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, str(PROGRAM), str(folder), *names],
        capture_output=True,
        text=True,
        timeout=1100,
        env=environment,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    names = ("one", "accumulated", "rank_0", "rank_1")
    return {name: torch.load(folder / f"{name}.pt", weights_only=True) for name in names}


def assert_equal_gradients(name, found, wanted):
    assert found.keys() == wanted.keys()
    own, of_all = ROUNDING[RUN.CASES[name][2]]
    sizes = {key: float(value.abs().max()) for key, value in wanted.items()}
    for key, value in wanted.items():
        limit = own * sizes[key] + of_all * max(sizes.values())
        assert float((found[key] - value).abs().max()) <= limit, (name, key, sizes[key])


def assert_equality(found, names):
    for name in names:
        one = found["one"][name]
        assert one["steps"] == RUN.STEPS
        assert any(float(value.abs().max()) > 0 for value in one["gradients"].values())
        for rank in ("rank_0", "rank_1"):
            assert_equal_gradients(name, found[rank][name]["gradients"], one["gradients"])
            assert found[rank][name]["steps"] == RUN.STEPS
        assert found["rank_0"][name]["table"] == one["table"]
        halves = found["accumulated"][name]
        if name in REFUSED:
            assert halves["refused"].startswith("trainer.accumulate_grad_batches 2 is not one batch 2 times")
            assert REFUSED[name] in halves["refused"]
            assert "\n" not in halves["refused"]
        else:
            assert_equal_gradients(name, halves["gradients"], one["gradients"])
            assert halves["steps"] == RUN.STEPS


@pytest.mark.timeout(900)
def test_some_modules_train_alike_on_one_and_two_processes_and_by_accumulation(tmp_path):
    assert_equality(run_program(tmp_path, RUN.FAST), RUN.FAST)


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_all_modules_train_alike_on_one_and_two_processes_and_by_accumulation(tmp_path):
    names = [name for name in RUN.CASES if name not in RUN.FAST]
    assert_equality(run_program(tmp_path, names), names)


def test_every_module_that_trains_is_a_case():
    """The tiny diffusion model refuses several processes; an abstract base has no loss of its own."""
    for each in pkgutil.walk_packages(lightning_modules.__path__, "lightning_modules."):
        importlib.import_module(each.name)
    trains = {module.__name__ for module in descendants(ProvenanceModule) if has_a_loss(module)}
    program = PROGRAM.read_text()
    assert {name for name in trains if f"import {name}" not in program} == {"TinyDiffusionModule"}
    assert len(trains) == 11


def descendants(base):
    return {base} | {each for child in base.__subclasses__() for each in descendants(child)}


def has_a_loss(module):
    ours = module.__module__.startswith("lightning_modules.")
    abstract = any(getattr(getattr(module, name), "__isabstractmethod__", False) for name in dir(module))
    returns = inspect.signature(module.training_step).return_annotation
    return ours and not abstract and returns not in (NoReturn, "NoReturn", inspect.Signature.empty)
