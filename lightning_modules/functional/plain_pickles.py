"""Files of `torch.save` read as data: what could be more than tensors and plain values is refused beforehand.

`torch.load(weights_only=True)` imports and calls what is on its list alone, and does the reading here. The list is
long, though: it has bytearrays of any claimed size, codecs whose time is the square of a text, tensors that are
validated late or never, and archives may unpack to a thousand times their size. What our checkpoints and published
ones need is short.
"""

import io
import os
import pickletools
import struct
import zipfile
from argparse import Namespace
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lightning_modules.functional.plain_json import quoted

PICKLE_BYTES = 16 << 20
"""The most that may describe the tensors of a file."""
INSTRUCTIONS = 2_000_000  # of a description: some 40 a tensor, a microsecond each, and up to 72 bytes of memory
DEPTH = 100  # containers within containers; what comes later recurses
_DTYPES = frozenset(value for value in vars(torch).values() if isinstance(value, torch.dtype))
_PLAIN_DTYPES = frozenset(
    {torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.int64, torch.int32, torch.int16, torch.int8}
    | {torch.uint8, torch.uint16, torch.uint32, torch.uint64, torch.bool, torch.float8_e4m3fn, torch.float8_e5m2}
)
_STORAGES = frozenset(name for name in vars(torch) if name.endswith("Storage"))
_NAMES = frozenset(
    {f"collections {name}" for name in ("OrderedDict", "Counter")}
    | {f"{module} set" for module in ("builtins", "__builtin__")}
    | {f"torch._utils _rebuild_{name}" for name in ("tensor", "tensor_v2", "tensor_v3", "parameter")}
    | {"argparse Namespace", "torch Size", "torch device", "torch.storage UntypedStorage"}
    | {f"torch {name}" for name in _STORAGES}
    | {f"torch {str(dtype).removeprefix('torch.')}" for dtype in _DTYPES}
)
_LEGACY = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."  # the first pickle of torch's format before archives: a number
_LEGACY_PICKLES = 5
_INT64 = 1 << 63
_SHOWN = 5
_LAST_RECORD = struct.Struct("<4s4H2LH")  # of an archive: where its directory starts is the last but one number
_LOCATOR = struct.Struct("<4sLQL")  # before it where numbers may be of 64 bits: of the record below
_LARGE_RECORD = struct.Struct("<4sQ2H2L4Q")


def load_plain(file: Path, *, mapped: bool = False) -> Any:
    """Return what a file of `torch.save` holds, on the CPU; nothing in it is executed.

    Args:
        file: The file.
        mapped: Whether tensors stay in the file until they are looked at.

    Raises:
        ValueError: it is no such file, is not whole, or holds or claims what no checkpoint does; in one line.
    """
    if not file.exists():
        raise FileNotFoundError(f"no weight file at {file}")
    size = file.stat().st_size
    with file.open("rb") as stream:
        start = stream.read(len(_LEGACY))
    is_archive = start.startswith(b"PK\x03\x04")
    if is_archive:
        check_archive(file)
    if odd := _odd_names(file, is_archive):
        raise ValueError(
            f"{file} is refused: loading it would execute {', '.join(odd)}. Only files of tensors are loaded."
        )
    if not is_archive and start != _LEGACY:
        raise ValueError(f"{file} is not a whole weight file (no file of torch.save): copy or download it again")
    try:
        # Published checkpoints hold their arguments in a Namespace: values, and nothing that runs.
        with torch.serialization.safe_globals([Namespace]):
            content = torch.load(file, map_location="cpu", weights_only=True, mmap=mapped and is_archive)
    except OSError:
        raise
    # Bytes that are no checkpoint drive torch's unpickler into errors of any type, and its texts advise unsafe loading.
    except Exception as error:
        raise ValueError(
            f"{file} is not a whole weight file ({type(error).__name__}): copy or download it again"
        ) from None
    check_content(content, file, size)
    return content


def check_archive(file: Path) -> None:
    """Refuse an archive whose entries are compressed, come twice, or claim more bytes than the file has.

    TorchScript compresses its code, which nobody reads here.
    """
    size = os.path.getsize(file)
    try:
        with zipfile.ZipFile(file) as archive:
            entries, comment, start = archive.infolist(), archive.comment, archive.start_dir
        stated = _stated_directory(file)
    except Exception as error:  # of the many that damaged archives bring forth
        raise ValueError(
            f"{file} is not a whole weight file ({type(error).__name__}): copy or download it again"
        ) from None
    read = [entry for entry in entries if "/code/" not in entry.filename]
    if comment or any(entry.compress_type != zipfile.ZIP_STORED for entry in read):
        raise ValueError(f"{file} is refused: its archive is compressed or has a comment, which torch.save never does")
    if start != stated:
        # zipfile looks before the last record, torch where that says: a file could show each its own directory.
        raise ValueError(f"{file} is refused: its archive's directory is not where it says")
    # torch does not look at the case of a name.
    if len({entry.filename.lower() for entry in entries}) < len(entries):
        raise ValueError(f"{file} is refused: an entry of its archive comes twice")
    if sum(entry.file_size for entry in read) > size:
        raise ValueError(f"{file} is refused: its archive claims more bytes than the file has")


def _stated_directory(file: Path) -> int:
    """Return where an archive without a comment says that its directory starts."""
    with file.open("rb") as stream:
        stream.seek(-_LAST_RECORD.size - _LOCATOR.size, os.SEEK_END)
        locator = _LOCATOR.unpack(stream.read(_LOCATOR.size))
        start: int = _LAST_RECORD.unpack(stream.read(_LAST_RECORD.size))[-2]
        if locator[0] == b"PK\6\7":
            stream.seek(locator[2])
            start = _LARGE_RECORD.unpack(stream.read(_LARGE_RECORD.size))[-1]
    return start


def check_pickle(stream: io.BytesIO, most: int = PICKLE_BYTES) -> Iterator[str]:
    """Read one pickle's instructions without following them; yield the names it imports, as "module name".

    Raises:
        ValueError: it is no whole pickle, is too long, or has instructions that ask for memory by a number.
    """
    strings: list[str] = []
    for count, (opcode, argument, position) in enumerate(pickletools.genops(stream)):
        if (position or 0) > most or count > INSTRUCTIONS:
            raise ValueError("its description of tensors is longer than that of any network")
        if opcode.name == "GLOBAL":
            yield str(argument)
        elif opcode.name == "STACK_GLOBAL":
            yield " ".join(strings[-2:])
        elif opcode.name in ("LONG_BINPUT", "PUT") and int(argument or 0) > count:
            # Python's own unpickler makes a table as long as the number.
            raise ValueError("it numbers its objects with gaps")
        elif opcode.name in ("BYTEARRAY8", "LONG4", "INST", "OBJ", "EXT1", "EXT2", "EXT4", "PERSID"):
            raise ValueError(f"it has an instruction {opcode.name}")
        elif opcode.name == "LONG1" and not -_INT64 <= int(argument or 0) < 2 * _INT64:
            # All multiples of 2**61 - 1 have one hash: a dictionary of them takes the square of its size in time.
            raise ValueError("it has a number of more than 64 bits")
        elif isinstance(argument, str):
            strings = [*strings[-1:], argument]


def check_content(content: Any, file: Path, size: int) -> None:
    """Refuse tensors that are larger than their storage or the file, or of kinds that no network has."""
    storages: dict[int, int] = {}
    for value in _values(content, file):
        if not isinstance(value, Tensor):
            continue
        odd = value.layout != torch.strided or value.is_quantized or value.is_meta or value.is_complex()
        if odd or value.dtype not in _PLAIN_DTYPES:
            raise ValueError(f"{file} is refused: it holds a {value.dtype} tensor of a kind that no weights have")
        storage = value.untyped_storage()
        storages[storage.data_ptr()] = storage.nbytes()
        if value.numel() * value.element_size() > storage.nbytes():
            raise ValueError(f"{file} is refused: it holds a tensor {tuple(value.shape)} of fewer numbers than that")
    if sum(storages.values()) > size:
        raise ValueError(f"{file} is refused: its tensors claim more bytes than the file has")


def plain_items(value: Any) -> dict[Any, Any]:
    """Return a plain copy of a dictionary, whose own methods a file may have covered up; of other things nothing."""
    return dict(dict.items(value)) if isinstance(value, dict) else {}


def _values(content: Any, file: Path) -> Iterator[Any]:
    """Yield all that is in nested containers, each once."""
    seen: set[int] = set()
    todo: list[tuple[Any, int]] = [(content, 0)]
    while todo:
        value, depth = todo.pop()
        if id(value) in seen:
            continue
        if depth > DEPTH:
            raise ValueError(f"{file} is refused: it nests containers more than {DEPTH} deep")
        yield value
        inner: Iterable[Any] = ()
        if isinstance(value, dict):
            inner = [*dict.keys(value), *dict.values(value)]
        elif isinstance(value, list | tuple | set):
            inner = value
        elif isinstance(value, Namespace):
            inner = vars(value).values()
        if not isinstance(value, str | bytes | int | float | bool | None):
            seen.add(id(value))
        todo += [(each, depth + 1) for each in inner]


def _odd_names(file: Path, is_archive: bool) -> list[str]:
    """Return the first names that the file's pickles import and no checkpoint needs."""
    try:
        names = list(_names(file, is_archive))
    except (ValueError, KeyError, IndexError, UnicodeError, zipfile.BadZipFile, EOFError) as error:
        raise ValueError(
            f"{file} is not a whole weight file ({quoted(str(error))}): copy or download it again"
        ) from None
    return [quoted(name.replace(" ", ".")) for name in dict.fromkeys(names) if name not in _NAMES][:_SHOWN]


def _names(file: Path, is_archive: bool) -> Iterator[str]:
    if is_archive:
        with zipfile.ZipFile(file) as archive:
            described = [entry for entry in archive.infolist() if entry.filename.lower().endswith("/data.pkl")]
            if len(described) != 1 or described[0].file_size > PICKLE_BYTES:
                raise ValueError(f"{len(described)} descriptions of tensors, or one beyond {PICKLE_BYTES >> 20} MiB")
            yield from check_pickle(io.BytesIO(archive.read(described[0])))
        return
    with file.open("rb") as opened:
        # Behind the pickles come raw numbers.
        stream = io.BytesIO(opened.read(PICKLE_BYTES))
    if stream.getvalue().startswith(_LEGACY):
        stream.seek(len(_LEGACY))
        for _ in range(_LEGACY_PICKLES - 1):
            yield from check_pickle(stream)
        return
    yield from _names_of_anything(stream)


def _names_of_anything(stream: io.BytesIO) -> Iterator[str]:
    """Yield what a plain pickle imports, so that the refusal can tell; of other bytes nothing."""
    try:
        yield from check_pickle(stream)
    except (ValueError, IndexError, UnicodeError):
        return
