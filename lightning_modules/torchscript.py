"""The tensors of a TorchScript file, read without running or compiling what is in it."""

import pickle
import zipfile
from collections import OrderedDict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

_DTYPES = {
    "Double": torch.float64, "Float": torch.float32, "Half": torch.float16, "BFloat16": torch.bfloat16,
    "Long": torch.int64, "Int": torch.int32, "Short": torch.int16, "Char": torch.int8, "Byte": torch.uint8,
    "Bool": torch.bool,
}  # fmt: skip


def is_torchscript(file: Path) -> bool:
    """Return whether torch.jit.save made a file."""
    if not zipfile.is_zipfile(file):
        return False
    with zipfile.ZipFile(file) as archive:
        names = archive.namelist()
    return any(name.endswith("/constants.pkl") for name in names) and any("/code/" in name for name in names)


def read_torchscript(file: Path) -> dict[str, Tensor]:
    """Return the parameters and buffers of a TorchScript file by the names of its state dict."""
    try:
        with zipfile.ZipFile(file) as archive:
            root = next(name for name in archive.namelist() if name.endswith("/data.pkl")).removesuffix("data.pkl")
            with archive.open(f"{root}data.pkl") as stream:
                module = _Reader(stream, archive, root).load()
    except pickle.UnpicklingError as error:
        raise ValueError(f"{file} is refused: {error}. Only files of tensors are loaded.") from None
    # Bytes that are no archive drive the unpickler into errors of any type.
    except Exception as error:
        raise ValueError(f"{file} is not a whole TorchScript file ({type(error).__name__}): copy it again") from None
    return dict(_named_tensors(module))


class _Part:
    """Stands for any class of the archive's own code: what it holds, nothing that it does."""

    def __init__(self) -> None:
        self.content: dict[str, Any] = {}

    def __setstate__(self, state: Any) -> None:
        self.content = state if isinstance(state, dict) else {}


class _Reader(pickle.Unpickler):
    """Builds tensors and containers; every other name is refused."""

    def __init__(self, stream: Any, archive: zipfile.ZipFile, root: str) -> None:
        super().__init__(stream)
        self.archive = archive
        self.root = root

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
        content = bytearray(self.archive.read(f"{self.root}data/{key}"))
        return torch.frombuffer(content, dtype=dtype)[:count] if content else torch.empty(0, dtype=dtype)


def _rebuilt(storage: Tensor, offset: int, size: tuple[int, ...], stride: tuple[int, ...], *_: Any) -> Tensor:
    return storage.as_strided(size, stride, offset).clone()


def _named_tensors(part: _Part, prefix: str = "") -> Iterator[tuple[str, Tensor]]:
    """Yield parameters and buffers in the order of a state dict: a module's own ones first."""
    for name, value in part.content.items():
        if isinstance(value, Tensor):
            yield prefix + name, value
    for name, value in part.content.items():
        if isinstance(value, _Part):
            yield from _named_tensors(value, f"{prefix}{name}.")
