"""diffusers and transformers, imported when a name of theirs is first needed."""

import importlib
from typing import Any


def from_diffusers(name: str) -> Any:
    """Return a class or function of diffusers."""
    return getattr(importlib.import_module("diffusers"), name)


def from_transformers(name: str) -> Any:
    """Return a class or function of transformers."""
    return getattr(importlib.import_module("transformers"), name)


def silence_loading() -> None:
    """Switch off the libraries' progress bars for files that load in a moment."""
    for library in ("diffusers", "transformers"):
        importlib.import_module(f"{library}.utils.logging").disable_progress_bar()
