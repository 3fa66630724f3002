"""Weights in and out of files: safetensors and tensors-only checkpoints, with readable errors."""

import io
import json
import os
import pickletools
from argparse import Namespace
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from lightning_modules.torchscript import is_torchscript, read_torchscript

KeyMap = Mapping[str, str] | Callable[[str], str]
_SHOWN = 5
_LEGACY_PICKLES = 5


@dataclass(frozen=True)
class LoadReport:
    """What a weight file gave to a module."""

    path: str
    loaded: int
    missing: list[str] = field(default_factory=list)
    unexpected: list[str] = field(default_factory=list)
    mismatched: list[str] = field(default_factory=list)
    metadata: dict[str, Any] = field(default_factory=dict)


def load_weights(
    module: nn.Module, path: str | os.PathLike[str], key_map: KeyMap | None = None, strict: bool = True
) -> LoadReport:
    """Copy a file's tensors into a module; raise a ValueError that lists the keys that do not fit.

    Nothing in the file is executed. Lightning checkpoints are unwrapped, TorchScript files read as state. Where the
    load fails, the module stays as it was.

    Args:
        module: Where the tensors go.
        path: A .safetensors file, or one that torch.save or torch.jit.save made.
        key_map: Renames keys: prefixes to replacements (the first that fits), or a function.
        strict: Whether every key must fit. Where not, what fits is loaded and the rest is in the report.
    """
    tensors, metadata = read_weights(path)
    renamed = _rename(tensors, key_map)
    wanted = module.state_dict()
    mismatched = [
        f"{key} {tuple(renamed[key].shape)} for {tuple(wanted[key].shape)}"
        for key in wanted
        if key in renamed and renamed[key].shape != wanted[key].shape
    ]
    report = LoadReport(
        path=str(path),
        loaded=sum(key in renamed for key in wanted) - len(mismatched),
        missing=[key for key in wanted if key not in renamed],
        unexpected=[key for key in renamed if key not in wanted],
        mismatched=mismatched,
        metadata=metadata,
    )
    if strict and (report.missing or report.unexpected or mismatched):
        raise ValueError(_describe_misfit(report, module))
    fitting = {key: value for key, value in renamed.items() if key in wanted and value.shape == wanted[key].shape}
    module.load_state_dict(fitting, strict=False)
    return report


def read_weights(path: str | os.PathLike[str]) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Return the tensors of a weight file by key, and its metadata, without executing anything in it."""
    file = Path(path)
    _check_file(file)
    if _is_safetensors(file):
        return _read_safetensors(file)
    if is_torchscript(file):
        return read_torchscript(file), {}
    content = _read_pickle(file)
    wrapped = content.get("state_dict")
    if isinstance(wrapped, dict):
        metadata: dict[str, Any] = {k: content[k] for k in ("hyper_parameters", "calibration") if k in content}
        content = wrapped
    else:
        metadata = {}
    tensors = {key: value for key, value in content.items() if isinstance(value, Tensor)}
    if not tensors:
        raise ValueError(f"{file} holds no tensors: expected a state_dict or a Lightning checkpoint")
    return tensors, metadata


def read_metadata(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Return the metadata that `save_weights` or a Lightning checkpoint stored beside the tensors."""
    file = Path(path)
    _check_file(file)
    if not _is_safetensors(file):
        return read_weights(file)[1]
    with _opened(file) as opened:
        return _decoded(opened.metadata())


def save_weights(
    module: nn.Module, path: str | os.PathLike[str], metadata: Mapping[str, Any], half: bool = False
) -> None:
    """Write a module's state dict as safetensors, whole or not at all.

    Args:
        module: What to save.
        path: The file; folders are made.
        metadata: JSON-able values, each stored under its key in the file's header.
        half: Store floats as float16. `load_weights` makes them float32 again.
    """
    tensors = {}
    for key, value in module.state_dict().items():
        stored = value.detach().cpu()
        if half and stored.is_floating_point():
            stored = stored.half()
        tensors[key] = stored.contiguous().clone()
    file = Path(path)
    file.parent.mkdir(parents=True, exist_ok=True)
    partial = file.with_name(f".{file.name}.{os.getpid()}.partial")
    try:
        save_file(tensors, partial, {key: json.dumps(value) for key, value in metadata.items()})
        os.replace(partial, file)
    finally:
        partial.unlink(missing_ok=True)


def _check_file(file: Path) -> None:
    if not file.exists():
        raise FileNotFoundError(f"no weight file at {file}")
    if file.is_dir():
        raise ValueError(f"{file} is a folder: name the weight file in it")
    if file.stat().st_size == 0:
        raise ValueError(f"{file} is empty: copy or download it again")


def _is_safetensors(file: Path) -> bool:
    return file.suffix == ".safetensors"


def _opened(file: Path) -> Any:
    try:
        return safe_open(file, framework="pt")
    except SafetensorError as error:
        raise ValueError(f"{file} is not a whole safetensors file: {error}") from None


def _read_safetensors(file: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    with _opened(file) as opened:
        return {key: opened.get_tensor(key) for key in opened.keys()}, _decoded(opened.metadata())  # noqa: SIM118


def _decoded(metadata: Mapping[str, str] | None) -> dict[str, Any]:
    decoded: dict[str, Any] = {}
    for key, value in (metadata or {}).items():
        try:
            decoded[key] = json.loads(value)
        except json.JSONDecodeError:
            # Foreign files hold plain text here, such as {"format": "pt"}.
            decoded[key] = value
    return decoded


def _read_pickle(file: Path) -> dict[str, Any]:
    # Published checkpoints hold their arguments in a Namespace. It holds values and runs nothing; a value in it of any
    # class that is not plain is refused as everywhere.
    with torch.serialization.safe_globals([Namespace]):
        content = _unpickled(file)
    if not isinstance(content, dict):
        raise ValueError(f"{file} holds a {type(content).__name__}: expected a state_dict or a checkpoint")
    return content


def _unpickled(file: Path) -> Any:
    try:
        return torch.load(file, map_location="cpu", weights_only=True)
    except OSError:
        raise
    # Bytes that are no checkpoint drive torch's unpickler into errors of any type, and its texts advise unsafe loading.
    except Exception as error:
        found = _forbidden_globals(file)
        if found:
            raise ValueError(
                f"{file} is refused: loading it would execute {', '.join(found)}. Only files of tensors are loaded."
            ) from None
        raise ValueError(
            f"{file} is not a whole weight file ({type(error).__name__}): copy or download it again"
        ) from None


def _forbidden_globals(file: Path) -> list[str]:
    """Return the names that weights_only loading refuses to import, read without importing them."""
    try:
        names = torch.serialization.get_unsafe_globals_in_checkpoint(file)
    except Exception:  # it knows the zip format only
        harmless = ("torch.", "collections.OrderedDict", "_codecs.encode")
        names = [name for name in _globals(file) if not name.startswith(harmless)]
    return list(dict.fromkeys(names))[:_SHOWN]


def _globals(file: Path) -> Iterator[str]:
    """Yield the names that the file's pickles import."""
    stream = io.BytesIO(file.read_bytes())
    # torch's old format is five pickles in a row, then raw numbers.
    for _ in range(_LEGACY_PICKLES):
        yield from _globals_of_next(stream)


def _globals_of_next(stream: io.BytesIO) -> Iterator[str]:
    strings: list[str] = []
    try:
        for opcode, argument, _ in pickletools.genops(stream):
            if opcode.name == "GLOBAL":
                yield str(argument).replace(" ", ".")
            elif opcode.name == "STACK_GLOBAL" and len(strings) > 1:
                yield ".".join(strings[-2:])
            elif isinstance(argument, str):
                strings.append(argument)
    except ValueError:
        # Not a pickle from here on.
        return


def _rename(tensors: Mapping[str, Tensor], key_map: KeyMap | None) -> dict[str, Tensor]:
    if key_map is None:
        return dict(tensors)
    if callable(key_map):
        return {key_map(key): value for key, value in tensors.items()}
    return {_replace_prefix(key, key_map): value for key, value in tensors.items()}


def _replace_prefix(key: str, prefixes: Mapping[str, str]) -> str:
    for prefix, replacement in prefixes.items():
        if key.startswith(prefix):
            return replacement + key.removeprefix(prefix)
    return key


def _describe_misfit(report: LoadReport, module: nn.Module) -> str:
    parts = [
        f"{len(keys)} {what}: {', '.join(keys[:_SHOWN])}{', …' if len(keys) > _SHOWN else ''}"
        for what, keys in (
            ("missing", report.missing),
            ("unexpected", report.unexpected),
            ("of another shape", report.mismatched),
        )
        if keys
    ]
    return (
        f"{report.path} does not fit {type(module).__name__} ({report.loaded} of its keys do): {'; '.join(parts)}. "
        "Check the architecture and the heads it was trained with."
    )
