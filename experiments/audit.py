"""`make audit`: what this package depends on, under which licences, and whether a weakness of it is known.

Licences come from what is installed and are checked against the list below; known weaknesses come from pip-audit where
the service that it asks can be reached. Where it cannot, that is said: nothing is taken as checked that was not.
"""

import json
import re
import subprocess
import sys
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

from packaging.requirements import Requirement

ROOT = Path(__file__).parents[1]
CONSTRAINTS = ROOT / "constraints.txt"
TABLE = ROOT / "docs" / "licences.md"
EXTRAS = ("export", "disc", "wandb", "tensorboard")
NOT_CHECKED = "audit: known weaknesses NOT checked"

# How a licence is named in the wild, and what SPDX calls it. Longer names first: "BSD 3" before "BSD".
SPDX = (
    (r"apache", "Apache-2.0"),
    (r"mozilla public license 2|mpl[- ]?2", "MPL-2.0"),
    (r"python software foundation|psf-2", "PSF-2.0"),
    (r"3-clause bsd|bsd-3", "BSD-3-Clause"),
    (r"bsd-2|2-clause bsd", "BSD-2-Clause"),
    (r"mit-cmu|hpnd", "MIT-CMU"),
    (r"nvidia", "LicenseRef-NVIDIA-Proprietary"),
    (r"\bmit\b", "MIT"),
    (r"\bisc\b", "ISC"),
    (r"bsd", "BSD"),
)
BSD_FAMILY = frozenset({"0BSD", "BSD", "BSD-2-Clause", "BSD-3-Clause", "ISC", "MIT", "MIT-CMU", "Zlib"})
PERMISSIVE = BSD_FAMILY | {"Apache-2.0", "BSL-1.0", "CC0-1.0", "CNRI-Python", "PSF-2.0", "Unlicense"}
# Copyleft for the files themselves: using them as they are asks nothing of a program.
FILE_COPYLEFT = frozenset({"MPL-2.0"})
# CUDA's libraries, which come with torch's ordinary wheels and may be used and passed on under NVIDIA's terms.
CUDA = re.compile(r"nvidia-|cuda-")


@dataclass(frozen=True)
class Dependency:
    """One package, what it is for, and under what it may be used."""

    name: str
    version: str
    licence: str
    purpose: str
    page: str


def main(words: Sequence[str] = ()) -> int:
    """Write the table, ask for known weaknesses, and tell; 1 where something needs a person.

    With --strict that includes weaknesses that could not be asked for.
    """
    dependencies = find_dependencies()
    TABLE.write_text(table_of(dependencies), encoding="utf-8")
    refused = [one for one in dependencies if not is_allowed(one)]
    for one in refused:
        print(f"audit: {one.name} {one.version} is under '{one.licence}', which is not on the list in {__file__}")
    print(f"audit: licences of {len(dependencies)} packages, {len(refused)} to look at: {TABLE.relative_to(ROOT)}")
    known, told = known_weaknesses(run_pip_audit())
    print(told)
    unasked = "--strict" in words and NOT_CHECKED in told
    return 1 if refused or known or unasked else 0


def find_dependencies() -> list[Dependency]:
    """Return everything that the package, its extras and its tools bring, sorted by name."""
    needed = closure("sealmark", ())
    optional = closure("sealmark", EXTRAS)
    tools = closure("sealmark", ("dev",))
    found = []
    for name in sorted(tools - {"sealmark"}):
        purpose = "runtime" if name in needed else "extra" if name in optional else "development"
        found.append(describe(name, purpose))
    return found


def closure(name: str, extras: Collection[str]) -> set[str]:
    """Return the names of a package and of all that it requires on this machine, itself or through others."""
    asked: set[tuple[str, str]] = set()
    todo = [(name, extra) for extra in ("", *extras)]
    while todo:
        package, extra = todo.pop()
        if (package, extra) in asked:
            continue
        asked.add((package, extra))
        for line in metadata.distribution(package).requires or []:
            required = Requirement(line)
            if required.marker is None or required.marker.evaluate({"extra": extra}):
                wanted = re.sub(r"[-_.]+", "-", required.name).lower()
                todo += [(wanted, each) for each in ("", *required.extras)]
    return {package for package, _ in asked}


def describe(name: str, purpose: str) -> Dependency:
    """Read what an installed package says of itself."""
    about = metadata.metadata(name)
    classifiers = [each.split(" :: ")[-1] for each in about.get_all("Classifier") or [] if "License ::" in each]
    said = (*(about.get_all("License-Expression") or []), *(about.get_all("License") or []), *classifiers)
    licence = next((found for found in map(to_spdx, said) if found), "unknown")
    if licence == "unknown" and CUDA.match(name):
        licence = "LicenseRef-NVIDIA-Proprietary"  # cuda-toolkit is a name for the others and says nothing itself
    return Dependency(name, metadata.version(name), licence, purpose, page_of(about))


def to_spdx(said: str | None) -> str | None:
    """Turn what a package says of its licence into an SPDX expression; None for what says nothing."""
    if not said or said == "UNKNOWN":
        return None
    text = said.strip()
    if all(part in PERMISSIVE | FILE_COPYLEFT for part in parts_of(text)):
        return text
    head = text.splitlines()[0].lower()
    if re.search(r"gpl|general public", head):
        return text.splitlines()[0]
    if head.startswith("copyright"):  # scipy: the text of the licence, whose kind the classifiers name
        return None
    return next((spdx for pattern, spdx in SPDX if re.search(pattern, head)), text.splitlines()[0][:60])


def parts_of(expression: str) -> list[str]:
    """Return the licences of an SPDX expression; an exception only adds permissions."""
    bare = re.sub(r"\bWITH\s+\S+", "", expression).replace("(", " ").replace(")", " ")
    return re.split(r"\s+(?:AND|OR)\s+", bare.strip())


def page_of(about: metadata.PackageMetadata) -> str:
    """Return where a package lives."""
    urls = dict(line.split(", ", 1) for line in about.get_all("Project-URL") or [] if ", " in line)
    named = {key.lower(): url for key, url in urls.items()}
    order = ("homepage", "home", "source", "repository", "source code", "github")
    own = about.get_all("Home-page") or [named[key] for key in order if key in named] or list(urls.values())
    return str(own[0]) if own else ""


def is_allowed(dependency: Dependency) -> bool:
    """Tell whether a package may be depended on without asking a person."""
    if CUDA.match(dependency.name):
        return dependency.licence in PERMISSIVE | {"LicenseRef-NVIDIA-Proprietary"}
    return all(part.strip() in PERMISSIVE | FILE_COPYLEFT for part in parts_of(dependency.licence))


def table_of(dependencies: Iterable[Dependency]) -> str:
    """Return the page with the table."""
    rows = [f"| {one.name} | {one.version} | {one.licence} | {one.purpose} | {one.page} |" for one in dependencies]
    extras = ",".join(EXTRAS)
    head = f"""# Licences of what Sealmark depends on

Made by `make audit` from what `make install` put there on Linux; do not edit. The licences are those that the packages
name themselves, in SPDX's words. `runtime` comes with the package, `extra` with `sealmark[{extras}]`,
`development` with `sealmark[dev]`. Wheels carry compiled libraries under licences of their own, which lie in the
wheels: FFmpeg (LGPL 2.1) in OpenCV's, for one. NVIDIA's libraries come with torch's ordinary wheels; a CPU build of
torch needs none of them. Weights and fonts: see the READMEs of the methods.

| package | version | licence | for | home |
|---|---|---|---|---|
"""
    return head + "\n".join(rows) + "\n"


def run_pip_audit() -> "subprocess.CompletedProcess[str]":
    """Ask for the weaknesses known of the pinned versions."""
    command = [sys.executable, "-m", "pip_audit", "--requirement", str(CONSTRAINTS), "--no-deps", "--disable-pip"]
    options = ["--format", "json", "--progress-spinner", "off", "--timeout", "30"]
    return subprocess.run([*command, *options], capture_output=True, text=True, check=False)  # noqa: S603 - our words


def known_weaknesses(answer: "subprocess.CompletedProcess[str]") -> tuple[int, str]:
    """Return how many weaknesses are known, and the line that tells it.

    pip-audit ends with 0 also where the service knew none of the packages, as an index without that service answers.
    """
    if "No module named" in answer.stderr:
        return 0, f"{NOT_CHECKED}: pip-audit is not installed (pip install pip-audit)"
    try:
        packages = json.loads(answer.stdout)["dependencies"]
    except (json.JSONDecodeError, KeyError):
        reason = (answer.stderr.strip().splitlines() or ["no answer"])[-1][:200]
        return 0, f"{NOT_CHECKED}: {reason}"
    checked = [package for package in packages if "vulns" in package]
    found = [(package, weakness) for package in checked for weakness in package["vulns"]]
    if not checked:
        return 0, f"{NOT_CHECKED}: the service knew none of {len(packages)} packages"
    lines = [
        f"audit: {package['name']} {package['version']}: {weakness['id']}, fixed in "
        f"{', '.join(weakness['fix_versions']) or 'no version yet'}"
        for package, weakness in found
    ]
    unknown = f", {len(packages) - len(checked)} not known to the service" if len(checked) < len(packages) else ""
    return len(found), "\n".join([*lines, f"audit: {len(found)} weaknesses in {len(checked)} packages{unknown}"])


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
