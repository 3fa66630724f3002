"""A network that is spread over processes is trained as a whole one, and its checkpoints are everyone's."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from lightning_modules.seal2real.joint import JointFinetuneModule

ROOT = Path(__file__).parents[2]


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_spread_and_whole_networks_take_the_same_steps_from_the_same_checkpoints(tmp_path: Path) -> None:
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    program = [sys.executable, str(Path(__file__).with_name("sharded_run.py")), str(tmp_path)]
    done = subprocess.run(program, capture_output=True, text=True, timeout=900, env=environment)
    assert done.returncode == 0, done.stderr[-3000:]

    def read(name: str) -> dict:
        return torch.load(tmp_path / f"{name}.ckpt", weights_only=True)

    early, late = read("whole2"), read("whole4")
    assert early["state_dict"].keys() == read("spread2")["state_dict"].keys()
    moved = [(late["state_dict"][key] - value).abs().max() for key, value in early["state_dict"].items()]
    assert max(moved) > 1e-3
    assert_close(read("spread2"), early)
    for name in ("whole_from_spread", "spread_from_whole", "spread_from_spread"):
        assert_close(read(name), late)

    folder = JointFinetuneModule(str(tmp_path / "diffusion"), repeats=1).backbone.unet.state_dict()
    for key, value in folder.items():
        torch.testing.assert_close(value, early["state_dict"][f"backbone.unet.{key}"], rtol=1e-4, atol=1e-6)


def assert_close(got: dict, wanted: dict) -> None:
    for key, value in wanted["state_dict"].items():
        torch.testing.assert_close(got["state_dict"][key], value, rtol=1e-4, atol=1e-6, msg=key)
    (mine,), (other,) = got["optimizer_states"], wanted["optimizer_states"]
    assert [group["params"] for group in mine["param_groups"]] == [group["params"] for group in other["param_groups"]]
    assert mine["state"].keys() == other["state"].keys()
    for number, state in other["state"].items():
        torch.testing.assert_close(
            mine["state"][number]["momentum_buffer"], state["momentum_buffer"], rtol=1e-3, atol=1e-5
        )
