"""Fixtures that replay the cases of a goldens folder (`--goldens DIR`).

A test asks for its cases with a marker and gets them through the fixture `golden`:

    def cases(folder):                     # ids, or {id: anything the test needs}; runs at collection
        return {str(case["id"]): case for case in folder.meta("composite.safetensors")["cases"]}

    @pytest.mark.golden("watermark_segmentation", "composite", cases)
    def test_composite(golden):
        expected = golden.tensors("composite.safetensors")[f"case{golden.value['id']:02d}.image"]

Cases absent from the chosen folder are not collected; a kind without any case is an error.
"""

import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from safetensors import safe_open


@dataclass(eq=False, repr=False)
class GoldenFolder:
    """The golden files of one method, checked against the manifest's SHA-256 when first read."""

    path: Path
    manifest: dict[str, Any]
    _loaded: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def open(cls, path: Path) -> "GoldenFolder":
        manifest = path / "manifest.json"
        if not path.is_dir():
            raise pytest.UsageError(f"no folder {path}: give --goldens a folder that has one folder a method")
        return cls(path, json.loads(manifest.read_text()) if manifest.is_file() else {})

    def meta(self, file: str) -> dict[str, Any]:
        """What the manifest says about a file; empty if the file is not in this folder."""
        if not self.has(file):
            return {}
        return self.manifest["files"].get(file, {}).get("meta", {})

    def has(self, file: str) -> bool:
        return (self.path / file).is_file()

    def keys(self, file: str) -> list[str]:
        """Names of the tensors in a file, without reading them; empty if the file is not in this folder."""
        if not self.has(file):
            return []
        with safe_open(self.path / file, "numpy") as content:
            return sorted(content.keys())

    def tensors(self, file: str) -> dict[str, Any]:
        """All arrays of a safetensors file as read-only numpy arrays, read once."""
        if file not in self._loaded:
            self._verify(file)
            with safe_open(self.path / file, "numpy") as content:
                arrays = {name: content.get_tensor(name) for name in content.keys()}  # noqa: SIM118
            for array in arrays.values():
                array.setflags(write=False)
            self._loaded[file] = arrays
        return self._loaded[file]

    def json(self, file: str) -> Any:
        """The content of a JSON file, read once."""
        if file not in self._loaded:
            self._verify(file)
            self._loaded[file] = json.loads((self.path / file).read_text())
        return self._loaded[file]

    def goldens(self, kind: str, cases: Callable[["GoldenFolder"], Any]) -> list["Golden"]:
        """The cases that `cases` lists in this folder; none at all is an error, not a pass."""
        listed = cases(self)
        listed = listed if isinstance(listed, dict) else dict.fromkeys(listed)
        if not listed:
            raise pytest.UsageError(f"{self.path} has no golden case of kind {kind!r}")
        return [Golden(self, str(name), value) for name, value in listed.items()]

    def _verify(self, file: str) -> None:
        expected = self.manifest.get("files", {}).get(file, {}).get("sha256")
        actual = hashlib.sha256((self.path / file).read_bytes()).hexdigest()
        if expected is not None and actual != expected:
            raise ValueError(f"{self.path / file}: SHA-256 is {actual}, the manifest says {expected}")


@dataclass(frozen=True)
class Golden:
    """One case: its id, what the case list says about it, and the folder it is in."""

    folder: GoldenFolder
    id: str
    value: Any

    def tensors(self, file: str) -> dict[str, Any]:
        return self.folder.tensors(file)

    def meta(self, file: str) -> dict[str, Any]:
        return self.folder.meta(file)


@cache
def open_folder(root: Path, method: str) -> GoldenFolder:
    return GoldenFolder.open(root / method)


def _root(config) -> Path:
    return Path(config.getoption("--goldens")).resolve()


def pytest_generate_tests(metafunc):
    if "golden" not in metafunc.fixturenames:
        return
    marker = metafunc.definition.get_closest_marker("golden")
    if marker is None:
        raise pytest.UsageError(f"{metafunc.definition.nodeid} uses `golden` without the marker golden(...)")
    method, kind, cases = marker.args
    folder = open_folder(_root(metafunc.config), method)
    goldens = folder.goldens(kind, cases)
    metafunc.parametrize("golden", goldens, indirect=True, ids=[golden.id for golden in goldens])


@pytest.fixture
def golden(request):
    """The case to replay; counted in the terminal summary."""
    method, kind, _ = request.node.get_closest_marker("golden").args
    request.node.user_properties.append(("golden", (method, kind)))
    return request.param


@pytest.fixture(scope="session")
def golden_folder(request):
    """Function from a method's name to its `GoldenFolder`, for tests that are no replayed case."""
    return lambda method: open_folder(_root(request.config), method)
