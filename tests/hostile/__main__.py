"""Run one hostile input again, here and with its traceback: `python -m tests.hostile images 4711`."""

import ast
import sys
import tempfile
from importlib import import_module
from pathlib import Path


def main(name: str, case: str) -> None:
    """Make the input in a temporary folder and hand it to the reader.

    Args:
        name: `images` for `tests/hostile/test_images.py`, which has `make` and `target`.
        case: The input as a failure prints it.
    """
    module = import_module(f"tests.hostile.test_{name}")
    try:
        named = ast.literal_eval(case)
    except (ValueError, SyntaxError):
        named = case
    with tempfile.TemporaryDirectory() as folder:
        print(module.target(module.make(named, Path(folder)), Path(folder)))


if __name__ == "__main__":
    main(*sys.argv[1:3])
