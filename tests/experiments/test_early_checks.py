"""A diffusion model that cannot be had is told before anything heavy is imported."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from experiments.early_checks import check_diffusion_model

ROOT = Path(__file__).parents[2]
RECIPES = ROOT / "configs" / "seal2real"
PROGRAM = """
import sys
from experiments.cli import main
code = main(sys.argv[1:])
print("torch" in sys.modules)
sys.exit(code)
"""


@pytest.mark.parametrize("recipe", ["sd15_prompts", "sd21_prompts", "sd15_forger"])
def test_without_a_network_the_command_says_in_one_line_what_to_put_where(recipe, tmp_path):
    environment = os.environ | {"PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path)}
    command = [sys.executable, "-c", PROGRAM, "fit", "--config", str(RECIPES / f"{recipe}.yaml")]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stdout == "False\n", "torch was not imported for that"
    assert len(done.stderr.splitlines()) == 1
    assert "neither in the hub's cache here nor to be had from the hub (HF_HUB_OFFLINE is set)" in done.stderr
    assert "--local-dir FOLDER) and give model.backbone that folder" in done.stderr
    assert not list(tmp_path.glob("runs/**/*")), "nothing is half-written"


@pytest.mark.parametrize(
    "words",
    [
        ("fit", "--config", str(RECIPES / "sd15_prompts.yaml"), "--model.backbone", "tiny"),
        ("fit", "--config", str(RECIPES / "sd15_prompts.yaml"), "--model.backbone=tiny"),
        ("fit", "--config", str(RECIPES / "sd15_prompts.yaml"), "--print_config"),
        ("predict", "--config", str(RECIPES / "sd15_forger.yaml")),
        ("fit", "--config", str(ROOT / "configs" / "masksim" / "quickstart.yaml")),
        ("fit", "--config", "missing.yaml"),
        ("fit", "--config"),
        ("fit",),
    ],
)
def test_what_needs_no_model_or_is_for_the_parser_passes(words, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    check_diffusion_model(words)


def test_a_flag_wins_over_the_config(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("HF_HOME", str(tmp_path))
    words = ("fit", "--config", str(RECIPES / "prompts.yaml"), "--model.backbone", str(tmp_path / "absent"))
    with pytest.raises(FileNotFoundError, match=r"no diffusion model at .*absent: give model\.backbone a folder"):
        check_diffusion_model(words)
