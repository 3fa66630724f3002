"""What can be found wrong with a command before torch is imported, which takes longer than users should wait for it."""

import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import yaml

from experiments.config_guard import check_yaml

_DIFFUSION = "lightning_modules.seal2real."
_BACKBONE_FLAGS = ("--model.backbone", "--model.init_args.backbone")
# Its forger realises by itself.
_NEEDS_NO_BACKBONE = (("predict", "lightning_modules.seal2real.forger.ForgerModule"),)


def check_diffusion_model(words: Sequence[str]) -> None:
    """Raise a FileNotFoundError where a command of Seal2Real names a diffusion model that cannot be had.

    What cannot be read or understood here is left to the real parser.
    """
    model: dict[str, Any] = {}
    for path in _values(words, ("--config", "-c")):
        model |= _model_of(path)
    kind, arguments = str(model.get("class_path", "")), model.get("init_args")
    named = list(_values(words, _BACKBONE_FLAGS))
    source = named[-1] if named else arguments.get("backbone") if isinstance(arguments, dict) else None
    if not kind.startswith(_DIFFUSION) or not isinstance(source, str) or source == "tiny":
        return
    if (words[0], kind) in _NEEDS_NO_BACKBONE or {"-h", "--help", "--print_config"} & {*words}:
        return
    from lightning_modules.seal2real.hub import find_model

    find_model(source)


def _values(words: Sequence[str], flags: Sequence[str]) -> Iterator[str]:
    """Yield the values of flags, of both spellings, in their order."""
    for place, word in enumerate(words):
        name, equals, value = word.partition("=")
        if name in flags and (equals or place + 1 < len(words)):
            yield value if equals else words[place + 1]


def _model_of(path: str) -> dict[str, Any]:
    if not os.path.isfile(path):  # a pipe, such as the shell's `<(…)`, can be read but once
        return {}
    try:
        text = Path(path).read_text(encoding="utf-8")
        check_yaml(text)
        content = yaml.safe_load(text)
    except Exception:  # PyYAML raises many kinds for tags that do not fit their values
        return {}
    model = content.get("model") if isinstance(content, dict) else None
    return model if isinstance(model, dict) else {}
