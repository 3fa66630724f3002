"""The tensors of a TorchScript file, read without running or compiling what is in it."""

import io
import pickle
import zipfile
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor

from lightning_modules.functional.plain_json import quoted
from lightning_modules.functional.plain_pickles import DEPTH, PICKLE_BYTES, check_archive, check_pickle

_DTYPES = {
    "Double": torch.float64, "Float": torch.float32, "Half": torch.float16, "BFloat16": torch.bfloat16,
    "Long": torch.int64, "Int": torch.int32, "Short": torch.int16, "Char": torch.int8, "Byte": torch.uint8,
    "Bool": torch.bool,
}  # fmt: skip
_MODULE_BYTES = 8  # fewer than any module takes in a pickle


def is_torchscript(file: Path) -> bool:
    """Return whether torch.jit.save made a file."""
    try:
        with zipfile.ZipFile(file) as archive:
            names = archive.namelist()
    except OSError:
        raise
    except Exception:  # of the many that files which are no archives bring forth
        return False
    return any(name.endswith("/constants.pkl") for name in names) and any("/code/" in name for name in names)


def read_torchscript(file: Path) -> dict[str, Tensor]:
    """Return the parameters and buffers of a TorchScript file by the names of its state dict."""
    check_archive(file)
    try:
        with zipfile.ZipFile(file) as archive:
            root = next(name for name in archive.namelist() if name.endswith("/data.pkl")).removesuffix("data.pkl")
            content = _description(archive, root)
            module = _Reader(io.BytesIO(content), archive, root).load()
        named = dict(_named_tensors(module, len(content) // _MODULE_BYTES))
    except pickle.UnpicklingError as error:
        raise ValueError(f"{file} is refused: {quoted(str(error))}. Only files of tensors are loaded.") from None
    # Bytes that are no archive drive the unpickler into errors of any type.
    except Exception as error:
        raise ValueError(f"{file} is not a whole TorchScript file ({type(error).__name__}): copy it again") from None
    if not named:
        raise ValueError(f"{file} holds no tensors: expected the parameters of a network")
    return named


def _description(archive: zipfile.ZipFile, root: str) -> bytes:
    """Return the pickle of an archive; one that asks for memory by a number alone is an error."""
    if archive.getinfo(f"{root}data.pkl").file_size > PICKLE_BYTES:
        raise ValueError("it is too long")
    content = archive.read(f"{root}data.pkl")
    for _ in check_pickle(io.BytesIO(content)):
        pass
    return content


class _Part:
    """Stands for any class of the archive's own code: what it holds, nothing that it does."""

    content: Mapping[str, Any] = MappingProxyType({})

    def __setstate__(self, state: Any) -> None:
        self.content = state if isinstance(state, dict) else {}


class _Reader(pickle.Unpickler):
    """Builds tensors and containers; every other name is refused."""

    def __init__(self, stream: Any, archive: zipfile.ZipFile, root: str) -> None:
        super().__init__(stream)
        self.archive = archive
        self.root = root
        self.storages: dict[Any, Tensor] = {}

    def find_class(self, module: str, name: str) -> Any:
        if module.startswith("__torch__"):
            return _Part
        if (module, name) == ("torch._utils", "_rebuild_tensor_v2"):
            return _rebuilt
        if (module, name) == ("collections", "OrderedDict"):
            return OrderedDict
        if module == "torch.jit._pickle":  # typed lists of plain numbers: no tensor is in them
            return lambda values, *_: values
        if module == "torch" and name.endswith("Storage"):
            return name
        raise pickle.UnpicklingError(f"loading it would execute {module}.{name}")

    def persistent_load(self, pid: Any) -> Tensor:
        _, kind, key, _, count = pid
        dtype = _DTYPES[kind.removesuffix("Storage")]
        if (key, dtype) not in self.storages:
            content = bytearray(self.archive.read(f"{self.root}data/{key}"))
            empty = torch.empty(0, dtype=dtype)
            self.storages[key, dtype] = torch.frombuffer(content, dtype=dtype) if content else empty
        return self.storages[key, dtype][:count]


def _rebuilt(storage: Tensor, offset: int, size: tuple[int, ...], stride: tuple[int, ...], *_: Any) -> Tensor:
    view = storage.as_strided(size, stride, offset)
    # One number can stand for any count of them; as a copy it takes their memory.
    if view.numel() > storage.numel():
        raise ValueError("a tensor is larger than its storage")
    return view.clone()


def _named_tensors(root: _Part, most: int) -> Iterator[tuple[str, Tensor]]:
    """Yield parameters and buffers in the order of a state dict: a module's own ones first.

    A module may be within others twice, and so, in a hostile file, a million times, or within itself.
    """
    todo, visits = [("", root, 0)], 0
    while todo:
        prefix, part, depth = todo.pop()
        visits += 1
        if visits > most or depth > DEPTH:
            raise ValueError("modules within modules without end")
        yield from ((prefix + name, value) for name, value in part.content.items() if isinstance(value, Tensor))
        inner = [(f"{prefix}{name}.", value) for name, value in part.content.items() if isinstance(value, _Part)]
        todo += [(name, value, depth + 1) for name, value in reversed(inner)]
