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
SHARED = {f"lightning_modules.{path.stem}" for path in (ROOT / "lightning_modules").glob("[a-z]*.py")}
PARTS = [path.parent for path in (ROOT / "lightning_modules").glob("*/__init__.py")]
METHODS = sorted(path.name for path in PARTS if path.name != "functional")
TRAINED = [name for name in METHODS if (ROOT / "lightning_modules" / name / "module.py").is_file()]
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


def may_import(path: Path) -> set[str]:
    """What a file may import: names of packages and modules, with all that is in them."""
    package, *inner = path.relative_to(ROOT).parts
    if package == "lightning_modules" and inner[0] == "functional":
        return {"lightning_modules.functional"}
    if package == "lightning_modules" and len(inner) == 1:
        return SHARED | {"lightning_modules.functional"}
    return MAY_IMPORT[package]


def lies_in(name: str, root: str) -> bool:
    return name == root or name.startswith(f"{root}.")


def allowed(name: str, path: Path) -> bool:
    # `from package import part` names the package too.
    return any(lies_in(name, root) or lies_in(root, name) for root in may_import(path))


@pytest.mark.parametrize(
    ("name", "file", "wanted"),
    [
        ("lightning_modules.weights", "callbacks/figures.py", False),
        ("experiments.cli", "datamodules/base.py", False),
        ("lightning_modules.functional.tiling", "callbacks/figures.py", True),
        ("lightning_modules.base", "lightning_modules/functional/tiling.py", False),
        ("lightning_modules.sscd.network", "lightning_modules/functional/tiling.py", False),
        ("lightning_modules.functional.regions", "lightning_modules/functional/tiling.py", True),
        ("lightning_modules.watermark_segmentation.module", "lightning_modules/weights.py", False),
        ("lightning_modules.sscd", "lightning_modules/base.py", False),
        ("lightning_modules.weights.read_weights", "lightning_modules/base.py", True),
        ("lightning_modules.base", "lightning_modules/sscd/network.py", True),
    ],
)
def test_a_forbidden_import_is_seen(name: str, file: str, wanted: bool) -> None:
    assert allowed(name, ROOT / file) == wanted


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_follow_the_arrows(path: Path) -> None:
    assert [name for name in imports_of(path) if not allowed(name, path)] == []


@pytest.mark.parametrize("method", METHODS)
def test_methods_do_not_know_each_other(method: str) -> None:
    others = {f"lightning_modules.{other}" for other in METHODS} - {f"lightning_modules.{method}"}
    for path in (ROOT / "lightning_modules" / method).rglob("*.py"):
        assert not [name for name in imports_of(path) if any(lies_in(name, other) for other in others)], path


def test_every_package_but_the_shared_one_is_a_method() -> None:
    assert {"watermark_segmentation", "sscd"} <= set(METHODS)
    assert "functional" not in METHODS


@pytest.mark.parametrize("method", TRAINED)
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
