import importlib.util
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def echo():
    """The module `echo_run.py`, which is also a program for two processes."""
    spec = importlib.util.spec_from_file_location("echo_run", Path(__file__).with_name("echo_run.py"))
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
