"""Shards: ordinary tar files of small images, with an index by which any of them is read in one go.

A folder of shards holds `shards/*.tar` and `index/*.npy`. An image is a range of bytes of a tar file, so reading is
random access: shuffled order, resuming and ranks need nothing of their own. `s3://…` and the like work where fsspec
knows them.
"""

import io
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, overload

import cv2
import numpy as np
from numpy.typing import NDArray

from datamodules.array_files import map_array
from datamodules.images.decoding import decode_bytes
from datamodules.images.errors import UnreadableImageError
from lightning_modules.functional.plain_json import quoted

INDEX_FOLDER, SHARD_FOLDER = "index", "shards"
INDEX_TYPES = {
    "names": "uint8",
    "name_ends": "int64",
    "shard": "int32",
    "offset": "int64",
    "length": "int32",
    "shard_names": "uint8",
    "shard_name_ends": "int64",
}
INDEX_PARTS = tuple(INDEX_TYPES)
REMOTE = "://"


class PackedNames(Sequence[str]):
    """Names that cost their bytes and eight more each, memory-mapped or not."""

    def __init__(self, blob: NDArray[np.uint8], ends: NDArray[np.int64]) -> None:
        self._blob = blob
        self._ends = ends

    @classmethod
    def pack(cls, names: Iterable[str]) -> "PackedNames":
        """Keep names in their order."""
        blob, ends = bytearray(), []
        for name in names:
            blob += os.fsencode(name)
            ends.append(len(blob))
        return cls(np.frombuffer(bytes(blob), np.uint8), np.asarray(ends, np.int64))

    @property
    def arrays(self) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
        """All bytes, and where each name ends."""
        return self._blob, self._ends

    def __len__(self) -> int:
        return len(self._ends)

    @overload
    def __getitem__(self, index: int) -> str: ...

    @overload
    def __getitem__(self, index: slice) -> list[str]: ...

    def __getitem__(self, index: int | slice) -> str | list[str]:
        if isinstance(index, slice):
            return [self[position] for position in range(*index.indices(len(self)))]
        position = range(len(self))[index]
        start = int(self._ends[position - 1]) if position else 0
        return os.fsdecode(self._blob[start : int(self._ends[position])].tobytes())


@dataclass(frozen=True)
class ShardIndex:
    """Where each image of a folder of shards lies.

    Args:
        names: Name of each image.
        shard: Number of its tar file.
        offset: Its first byte there.
        length: How many bytes it has.
        shard_names: Names of the tar files.
    """

    names: PackedNames
    shard: NDArray[np.int32]
    offset: NDArray[np.int64]
    length: NDArray[np.int32]
    shard_names: PackedNames

    def __len__(self) -> int:
        return len(self.names)

    def save(self, folder: Path) -> None:
        """Write the arrays into a new folder."""
        folder.mkdir(parents=True)
        parts: list[NDArray[Any]] = [*self.names.arrays, self.shard, self.offset, self.length]
        for name, array in zip(INDEX_PARTS, [*parts, *self.shard_names.arrays], strict=True):
            np.save(folder / f"{name}.npy", array)

    @classmethod
    def load(cls, root: str) -> "ShardIndex":
        """Read the index of a folder of shards; local arrays are memory-mapped."""
        parts = [_load_array(f"{root}/{INDEX_FOLDER}/{name}.npy") for name in INDEX_PARTS]
        if (odd := _oddity(dict(zip(INDEX_PARTS, parts, strict=True)))) is not None:
            raise ValueError(f"{root}/{INDEX_FOLDER}: {odd}; prepare the shards again or copy the folder again")
        return cls(PackedNames(parts[0], parts[1]), parts[2], parts[3], parts[4], PackedNames(parts[5], parts[6]))


class ShardSource:
    """The images of a folder of shards.

    Args:
        root: The folder, local or an address that fsspec opens.
    """

    def __init__(self, root: str | os.PathLike[str]) -> None:
        self.root = os.fspath(root).rstrip("/")
        self.index = ShardIndex.load(self.root)

    def __len__(self) -> int:
        return len(self.index)

    @property
    def names(self) -> PackedNames:
        """The name of each image."""
        return self.index.names

    def path(self, index: int) -> str:
        """`ROOT/shards/N.tar/NAME`."""
        return f"{self._shard(index)}/{self.index.names[index]}"

    def read(self, index: int, target_size: int | None = None) -> NDArray[np.uint8]:
        """The image at a position as `read_image` would give it."""
        position = range(len(self))[index]
        start, length = int(self.index.offset[position]), int(self.index.length[position])
        try:
            data = read_range(self._shard(position), start, length)
        except OSError as error:
            raise UnreadableImageError(self.path(position), error.strerror or str(error)) from error
        if len(data) < length:
            raise UnreadableImageError(self.path(position), "the shard ends before it: copy the shard again")
        return decode_bytes(data, self.path(position), target_size)

    def _shard(self, index: int) -> str:
        return f"{self.root}/{SHARD_FOLDER}/{self.index.shard_names[int(self.index.shard[index])]}"


def _oddity(parts: Mapping[str, NDArray[Any]]) -> str | None:
    """Return what cannot be in the index of a folder of shards; None where nothing is found."""
    for name, array in parts.items():
        if array.ndim != 1 or array.dtype != INDEX_TYPES[name]:
            return f"{name} is an array of {array.dtype} and {array.ndim} dimensions"
    if len({len(parts[name]) for name in ("name_ends", "shard", "offset", "length")}) > 1:
        return "its arrays have different lengths"
    for blob, ends in (("names", "name_ends"), ("shard_names", "shard_name_ends")):
        if not _rises_to(parts[ends], len(parts[blob])):
            return f"{ends} does not divide {blob}"
    count = len(parts["shard_name_ends"])
    if len(parts["shard"]) and not 0 <= parts["shard"].min() <= parts["shard"].max() < count:
        return f"it has {count} shards and names another"
    if (parts["offset"] < 0).any() or (parts["length"] < 0).any():
        return "an image lies before the beginning of its shard"
    if any(
        name in ("", ".", "..") or "/" in name for name in PackedNames(parts["shard_names"], parts["shard_name_ends"])
    ):
        return "the name of a shard leads out of its folder"
    return None


def _rises_to(ends: NDArray[np.int64], last: int) -> bool:
    """Return whether places rise from zero to a last one."""
    if not len(ends):
        return last == 0
    return bool(ends[0] >= 0 and ends[-1] == last and (ends[1:] >= ends[:-1]).all())


def is_shard_folder(spec: str) -> bool:
    """Return whether an address or a folder is one of shards."""
    if REMOTE in spec:
        return not spec.startswith("procedural")
    return os.path.isfile(f"{spec}/{INDEX_FOLDER}/{INDEX_PARTS[0]}.npy")


def read_range(path: str, start: int, length: int) -> bytes:
    """Return bytes of a local file or of an object in a store."""
    if REMOTE in path:
        filesystem, inner = _filesystem(path)
        data: bytes = filesystem.cat_file(inner, start=start, end=start + length)
        return data
    file = os.open(path, os.O_RDONLY)
    try:
        # Memory is taken for what is asked, also where the file has less.
        return os.pread(file, max(0, min(length, os.fstat(file).st_size - start)), start)
    finally:
        os.close(file)


def shrunk(image: NDArray[np.uint8], size_wh: tuple[int, int]) -> NDArray[np.uint8]:
    """Return an image at another size: areas are averaged where it shrinks, cubics fitted where it grows."""
    if image.shape[1::-1] == size_wh:
        return image
    shrinks = image.shape[1] >= size_wh[0] and image.shape[0] >= size_wh[1]
    method = cv2.INTER_AREA if shrinks else cv2.INTER_CUBIC
    return np.asarray(cv2.resize(image, size_wh, interpolation=method), np.uint8)


def _load_array(path: str) -> NDArray[Any]:
    filesystem, inner = _filesystem(path) if REMOTE in path else (None, path)
    try:
        if filesystem is None:
            return map_array(path)
        return np.asarray(np.load(io.BytesIO(filesystem.cat_file(inner))))
    except FileNotFoundError:
        raise FileNotFoundError(
            f"{path} is missing: name a folder that `sealmark prepare sa1b` has finished, with all of its parts"
        ) from None
    except OSError:
        raise
    except Exception as error:  # numpy hands headers to tokenize and ast, whose errors are of many kinds
        raise ValueError(f"{path} is no whole array ({quoted(str(error))}): copy the folder again") from None


def _filesystem(path: str) -> tuple[Any, str]:
    import fsspec  # type: ignore[import-untyped]  # comes with lightning

    try:
        return fsspec.core.url_to_fs(path)  # type: ignore[no-any-return]
    except (ImportError, ValueError) as error:
        raise ValueError(f"cannot open {path!r}: {error}") from error
