"""The workflows of GitHub call what is there."""

import re
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[1]
WORKFLOWS = sorted((ROOT / ".github" / "workflows").glob("*.yml"))
TARGETS = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), flags=re.MULTILINE))
VARIABLES = set(re.findall(r"^([A-Z]+) \??=", (ROOT / "Makefile").read_text(), flags=re.MULTILINE)) | {"LONG", "AUDIT"}


def calls_of(job):
    matrix = job["strategy"]["matrix"]
    return [row["make"] for row in matrix["include"]] if "include" in matrix else matrix["make"]


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.stem)
def test_every_target_and_variable_exists(path):
    workflow = yaml.safe_load(path.read_text())
    calls = [call for job in workflow["jobs"].values() for call in calls_of(job)]
    assert calls
    for word in " ".join(calls).split():
        name = word.split("=")[0]
        assert name in (VARIABLES if "=" in word else TARGETS), word


def test_the_oldest_python_and_the_lowest_versions_are_tried():
    matrix = yaml.safe_load((ROOT / ".github/workflows/checks.yml").read_text())["jobs"]["checks"]["strategy"]["matrix"]
    oldest = re.search(r'requires-python = ">=([\d.]+)"', (ROOT / "pyproject.toml").read_text()).group(1)
    lowest = [row["python"] for row in matrix["include"] if "RESOLUTION=lowest-direct" in row["make"]]
    assert lowest == [oldest]


def test_parts_of_the_long_tests_leave_nothing_out():
    calls = yaml.safe_load((ROOT / ".github/workflows/nightly.yml").read_text())["jobs"]["nightly"]["strategy"][
        "matrix"
    ]
    parts = [call.split("LONG=")[1] for call in calls["make"] if "LONG=" in call]
    marked = [path for path in (ROOT / "tests").rglob("test_*.py") if "mark.long" in path.read_text()]
    assert len(marked) > 1
    for path in marked:
        if path != Path(__file__):
            named = [part for part in parts if part in str(path.relative_to(ROOT))]
            assert len(named) == 1, f"{path} runs in {named}"
