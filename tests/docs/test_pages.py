"""Pages name only files, commands and targets that exist."""

import itertools
import re
import shlex
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
OUTER = ("CONTRIBUTING.md", "CHANGELOG.md", "SECURITY.md")
PAGES = [*(ROOT / name for name in OUTER), *sorted((ROOT / "docs").glob("*.md"))]
LINK = re.compile(r"\]\((?!https?:)(?P<target>[^)#]+)")
SHELL = re.compile(r"^```sh\n(?P<lines>.*?)^```", re.DOTALL | re.MULTILINE)
OWN = ("lightning_modules/", "datamodules/", "callbacks/", "experiments/", "configs/", "tests/", "docs/")


def commands_of(page: Path) -> list[list[str]]:
    """Words of each command in the page's shell blocks."""
    blocks = SHELL.findall(page.read_text(encoding="utf-8"))
    return [shlex.split(line) for block in blocks for line in block.splitlines()]


@pytest.mark.parametrize("page", PAGES, ids=lambda path: path.name)
def test_links_lead_to_files(page: Path) -> None:
    targets = LINK.findall(page.read_text(encoding="utf-8"))
    assert [target for target in targets if not (page.parent / target).exists()] == []


@pytest.mark.parametrize("page", PAGES, ids=lambda path: path.name)
def test_files_in_the_text_exist(page: Path) -> None:
    named = re.findall(r"`([\w./]+)`", page.read_text(encoding="utf-8"))
    own = [name for name in named if name.startswith(OWN) and "jpeg_quality/" not in name]
    # Made by a step of the page, not there before.
    own = [name for name in own if name != "datamodules/recompressed_scenes.py" and "quality_estimation" not in name]
    assert [name for name in own if not (ROOT / name).exists()] == []


@pytest.mark.parametrize("page", PAGES, ids=lambda path: path.name)
def test_commands_use_what_is_there(page: Path) -> None:
    from experiments.cli import TOOLS, TRAINER_COMMANDS

    targets = re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
    for words in commands_of(page):
        if words[0] == "make":
            assert words[1] in targets
        configs = [value for flag, value in itertools.pairwise(words) if flag == "--config"]
        assert [config for config in configs if not config.startswith("RUN/") and not (ROOT / config).is_file()] == []
        if ".venv/bin/sealmark" in words:
            assert words[words.index(".venv/bin/sealmark") + 1] in (*TRAINER_COMMANDS, *TOOLS)
