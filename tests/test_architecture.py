"""The shape of the tree: who may import whom, how long a file may be, what every method comes with."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGES = ("lightning_modules", "datamodules", "callbacks", "experiments")
MAY_IMPORT = {
    "lightning_modules": {"lightning_modules"},
    "datamodules": {"datamodules", "lightning_modules.functional"},
    "callbacks": {"callbacks", "lightning_modules.functional"},
    "experiments": set(PACKAGES),
}
METHODS = [path.name for path in (ROOT / "lightning_modules").iterdir() if (path / "module.py").is_file()]
FILES = [path for package in PACKAGES for path in (ROOT / package).rglob("*.py")]


def imports_of(path: Path) -> set[str]:
    """Full names of the modules that a file imports, at its top or inside functions."""
    found = set()
    package = path.relative_to(ROOT).parent.parts
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {name.name for name in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = ".".join(package[: len(package) - node.level + 1]) if node.level else ""
            module = ".".join(part for part in (base, node.module or "") if part)
            found |= {f"{module}.{name.name}" for name in node.names} | {module}
    return {name for name in found if name.split(".")[0] in PACKAGES}


def allowed(name: str, package: str) -> bool:
    return any(name == root or name.startswith(f"{root}.") or root.startswith(name) for root in MAY_IMPORT[package])


def test_a_forbidden_import_is_seen(tmp_path: Path) -> None:
    assert not allowed("lightning_modules.weights", "callbacks")
    assert not allowed("experiments.cli", "datamodules")
    assert allowed("lightning_modules.functional.tiling", "callbacks")


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_follow_the_arrows(path: Path) -> None:
    package = path.relative_to(ROOT).parts[0]
    assert [name for name in imports_of(path) if not allowed(name, package)] == []


@pytest.mark.parametrize("method", METHODS)
def test_methods_do_not_know_each_other(method: str) -> None:
    others = {f"lightning_modules.{other}" for other in METHODS} - {f"lightning_modules.{method}"}
    for path in (ROOT / "lightning_modules" / method).rglob("*.py"):
        assert not [name for name in imports_of(path) if any(name.startswith(other) for other in others)], path


@pytest.mark.parametrize("method", METHODS)
def test_every_method_has_its_recipes_and_pages(method: str) -> None:
    assert list((ROOT / "configs" / method).glob("*.yaml"))
    assert (ROOT / "lightning_modules" / method / "README.md").is_file()
    assert (ROOT / "experiments" / method / "README.md").is_file()


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_files_stay_readable(path: Path) -> None:
    assert len(path.read_text(encoding="utf-8").splitlines()) <= 400
    assert path.stem not in ("utils", "misc", "common", "helpers")


@pytest.mark.parametrize("package", PACKAGES)
def test_packages_import_nothing_at_their_top(package: str) -> None:
    for path in (ROOT / package).rglob("__init__.py"):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        assert not [node for node in ast.walk(tree) if isinstance(node, ast.Import | ast.ImportFrom)], path
