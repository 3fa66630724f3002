"""Weights in and out of files: safetensors and tensors-only checkpoints, with readable errors."""

import json
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from lightning_modules.functional.plain_json import quoted
from lightning_modules.functional.plain_pickles import check_content, load_plain, plain_items
from lightning_modules.torchscript import is_torchscript, read_torchscript

KeyMap = Mapping[str, str] | Callable[[str], str]
_SHOWN = 5
_METADATA = ("hyper_parameters", "calibration")


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
        metadata = checked_metadata({key: content[key] for key in _METADATA if key in content}, file)
        content = plain_items(wrapped)
    else:
        metadata = {}
    tensors = {key: value for key, value in content.items() if isinstance(value, Tensor) and isinstance(key, str)}
    if not tensors:
        keys = ", ".join(quoted(str(key)) for key in list(content)[:3]) or "nothing"
        raise ValueError(
            f"{file} holds no tensors by name (but {keys}): expected a state_dict or a Lightning checkpoint"
        )
    return tensors, metadata


def read_metadata(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Return the metadata that `save_weights` or a Lightning checkpoint stored beside the tensors."""
    file = Path(path)
    _check_file(file)
    if not _is_safetensors(file):
        return read_weights(file)[1]
    with _opened(file) as opened:
        return checked_metadata(_decoded(opened.metadata()), file)


def checked_metadata(metadata: dict[str, Any], file: Path) -> dict[str, Any]:
    """Return what a file says beside its tensors, or refuse entries that are no mappings of names."""
    for key in _METADATA:
        if (entry := metadata.get(key)) is None:
            metadata.pop(key, None)  # also where the file says None
        elif isinstance(entry, dict) and all(isinstance(name, str) for name in dict.keys(entry)):
            metadata[key] = plain_items(entry)
        else:
            raise ValueError(f"{file}: its `{key}` is no mapping of names: name a file that this project wrote")
    return metadata


def check_fit(build: Callable[[], nn.Module], tensors: Mapping[str, Tensor]) -> None:
    """Refuse tensors of other shapes than a network's, before the network takes the memory that a file asks for.

    Args:
        build: Makes the network; here on torch's device "meta", where tensors have shapes alone.
        tensors: What is to be loaded into it, by the keys of its state dict.
    """
    with torch.device("meta"):
        wanted = build().state_dict()
    odd = [key for key, value in wanted.items() if key not in tensors or tensors[key].shape != value.shape]
    odd += [key for key in tensors if key not in wanted]
    if odd:
        raise ValueError(f"it does not fit: {len(odd)} keys, first {quoted(odd[0])}")


@contextmanager
def usable(what: str) -> Iterator[None]:
    """Turn what the body stumbles over in a file's values into one line.

    Args:
        what: The values, and where they are from.
    """
    try:
        yield
    except (TypeError, KeyError, AttributeError, IndexError, ArithmeticError, ValueError, RuntimeError) as error:
        told = f"{error} is missing" if isinstance(error, KeyError) else str(error)
        raise ValueError(f"{what} cannot be used ({quoted(told)}): name a file that this project wrote") from None


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
        raise ValueError(f"{file} is not a whole safetensors file: {quoted(str(error))}") from None


def _read_safetensors(file: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    with _opened(file) as opened:
        metadata = checked_metadata(_decoded(opened.metadata()), file)
        tensors = {}
        for key in opened.keys():  # noqa: SIM118
            try:
                tensors[key] = opened.get_tensor(key)
            # Of types that this torch does not have.
            except (SafetensorError, RuntimeError, TypeError, ValueError, KeyError, AttributeError) as error:
                raise ValueError(f"{file}: its tensor {quoted(key)} cannot be read ({quoted(str(error))})") from None
    check_content(tensors, file, file.stat().st_size)
    return tensors, metadata


def _decoded(metadata: Mapping[str, str] | None) -> dict[str, Any]:
    decoded: dict[str, Any] = {}
    for key, value in (metadata or {}).items():
        try:
            decoded[key] = json.loads(value)
        except (ValueError, RecursionError):
            # Foreign files hold plain text here, such as {"format": "pt"}.
            decoded[key] = value
    return decoded


def _read_pickle(file: Path) -> dict[Any, Any]:
    content = load_plain(file)
    if not isinstance(content, dict):
        raise ValueError(f"{file} holds a {type(content).__name__}: expected a state_dict or a checkpoint")
    return plain_items(content)


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
        f"{len(keys)} {what}: {', '.join(map(quoted, keys[:_SHOWN]))}{', …' if len(keys) > _SHOWN else ''}"
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
