"""What the audit takes for checked, and which licences it lets pass."""

import json
import re
import subprocess
from importlib.metadata import PackageNotFoundError
from pathlib import Path

import pytest

from experiments import audit

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize(
    ("said", "spdx"),
    [
        ("Apache 2.0", "Apache-2.0"),
        ("Apache License, Version 2.0", "Apache-2.0"),
        ("BSD-3-Clause AND 0BSD AND MIT", "BSD-3-Clause AND 0BSD AND MIT"),
        ("3-Clause BSD License", "BSD-3-Clause"),
        ("MIT License  Copyright (c) somebody", "MIT"),
        ("MIT licensed, as found in the LICENSE file", "MIT"),
        ("GNU General Public License v3 (GPLv3)", "GNU General Public License v3 (GPLv3)"),
        ("GPL-3.0 with parts under MIT", "GPL-3.0 with parts under MIT"),
        ("UNKNOWN", None),
        ("Copyright (c) 2001 Enthought\nmore", None),
    ],
)
def test_what_packages_say_becomes_spdx(said, spdx):
    assert audit.to_spdx(said) == spdx


@pytest.mark.parametrize(
    ("name", "licence", "allowed"),
    [
        ("some", "MIT OR Apache-2.0", True),
        ("some", "(Apache-2.0 WITH LLVM-exception) AND MIT", True),
        ("some", "MPL-2.0", True),
        ("some", "MIT AND GPL-3.0-only", False),
        ("some", "AGPL-3.0", False),
        ("some", "unknown", False),
        ("some", "CC-BY-NC-4.0", False),
        ("some", "LicenseRef-NVIDIA-Proprietary", False),
        ("nvidia-cublas", "LicenseRef-NVIDIA-Proprietary", True),
    ],
)
def test_what_may_be_depended_on(name, licence, allowed):
    assert audit.is_allowed(audit.Dependency(name, "1", licence, "runtime", "")) is allowed


def plant(folder, name, *lines):
    place = folder / f"{name.replace('-', '_')}-1.0.dist-info"  # as installers write it
    place.mkdir()
    place.joinpath("METADATA").write_text("\n".join(["Metadata-Version: 2.4", f"Name: {name}", "Version: 1.0", *lines]))


def test_a_planted_licence_is_found_through_what_requires_it(tmp_path, monkeypatch):
    plant(tmp_path, "planted-one", "License: MIT", 'Requires-Dist: planted_two[more]>=1; python_version > "3"')
    plant(tmp_path, "planted-two", "Provides-Extra: more", 'Requires-Dist: Planted.Three; extra == "more"')
    plant(tmp_path, "planted-three", "Classifier: License :: OSI Approved :: GNU Affero General Public License v3")
    monkeypatch.syspath_prepend(str(tmp_path))
    assert audit.closure("planted-one", ()) == {"planted-one", "planted-two", "planted-three"}
    assert audit.closure("planted-two", ()) == {"planted-two"}
    assert not audit.is_allowed(audit.describe("planted-three", "runtime"))
    assert audit.describe("planted-two", "extra").licence == "unknown"
    with pytest.raises(PackageNotFoundError):
        audit.closure("planted-four", ())


def answer(dependencies):
    return subprocess.CompletedProcess([], 0, json.dumps({"dependencies": dependencies}), "")


def test_what_was_not_checked_is_not_called_clean():
    unknown = {"name": "some", "skip_reason": "not found"}
    clean = {"name": "other", "version": "1", "vulns": []}
    weak = {"name": "weak", "version": "2", "vulns": [{"id": "GHSA-1", "fix_versions": ["3"]}]}
    assert audit.known_weaknesses(answer([unknown, unknown]))[0] == 0
    assert "NOT checked: the service knew none of 2" in audit.known_weaknesses(answer([unknown, unknown]))[1]
    assert audit.known_weaknesses(answer([clean, unknown])) == (
        0,
        "audit: 0 weaknesses in 1 packages, 1 not known to the service",
    )
    count, told = audit.known_weaknesses(answer([clean, weak]))
    assert count == 1
    assert "weak 2: GHSA-1, fixed in 3" in told
    unreached = subprocess.CompletedProcess([], 1, "", "Traceback\nConnectionError: no such host")
    assert audit.known_weaknesses(unreached) == (
        0,
        "audit: known weaknesses NOT checked: ConnectionError: no such host",
    )
    absent = subprocess.CompletedProcess([], 1, "", "/x/python: No module named pip_audit")
    assert "pip-audit is not installed" in audit.known_weaknesses(absent)[1]


def test_the_table_is_that_of_the_pinned_versions():
    rows = [line.split(" | ") for line in (ROOT / "docs/licences.md").read_text().splitlines() if line.startswith("| ")]
    listed = {row[0].removeprefix("| "): row[1] for row in rows[1:]}
    pins = dict(re.findall(r"^([\w.-]+)==([^\s;]+)", (ROOT / "constraints.txt").read_text(), flags=re.MULTILINE))
    assert len(listed) > 100
    assert {name: pins.get(name) for name in listed} == listed, "run `make audit`"
