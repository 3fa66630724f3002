"""A million image paths in two arrays, found once, kept in a cache file and shared by all workers."""

import errno
import hashlib
import heapq
import itertools
import mmap
import os
import tempfile
import time
import warnings
import zlib
from array import array
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, overload

import numpy as np
from numpy.typing import NDArray

IMAGE_EXTENSIONS = (".jpg", ".jpeg", ".png", ".webp", ".tif", ".tiff", ".bmp", ".gif")
PREDICTIONS = b"predictions.rank0.jsonl"  # beside the pictures that `sealmark predict` made of others
MOST_WAYS = 1000  # to one folder, by links: links to one another make a tree that doubles at every level
CACHED_FROM = 10_000  # below this a scan takes less time than a user notices

_MAGIC = 0x53454C4C4953_0001  # "SELLIS" and the version of the format
_HEADER_INTS = 6  # magic, paths, bytes of paths, folders, bytes of folders, checksum
# A folder that changed this recently can change again without a new time stamp, on coarse file systems.
_SETTLED_NS = 2_000_000_000


class ImageListing(Sequence[str]):
    """An immutable sequence of paths that costs its characters and 8 bytes a path, whatever reads it.

    Indexing makes one string and keeps nothing. A slice is an `ImageListing` too. Opened from a cache file, the
    arrays are memory-mapped: forked workers share them, spawned ones are sent the name of the file.
    """

    def __init__(self, blob: NDArray[np.uint8], offsets: NDArray[np.int64]) -> None:
        self._blob = blob
        self._offsets = offsets
        self._cached_at: tuple[str, int] | None = None
        blob.flags.writeable = False
        offsets.flags.writeable = False

    @classmethod
    def from_paths(cls, paths: Iterable[str | os.PathLike[str]]) -> "ImageListing":
        """Keeps the paths as they are, in their order."""
        return _pack(os.fsencode(path) for path in paths)

    @classmethod
    def scan(
        cls,
        roots: str | os.PathLike[str] | Sequence[str | os.PathLike[str]],
        extensions: Sequence[str] = IMAGE_EXTENSIONS,
        cache_dir: str | os.PathLike[str] | None = None,
    ) -> "ImageListing":
        """Lists every image below the roots once, in byte order of the paths, on any file system.

        Folders are searched recursively, through linked folders but not in circles; hidden names are skipped. A
        sub-folder that may not be listed, has vanished, lies too deep or holds predictions is left out, with a warning.
        A file named as a root is taken whatever its extension. Listings of `CACHED_FROM` paths and more are
        cached; a cached one is used while no visited folder has a new time stamp.

        Args:
            roots: files and folders.
            extensions: endings of image files, in any case.
            cache_dir: folder of the cache; else `SEALMARK_CACHE`, else `sealmark` in the user's cache folder.

        Raises:
            FileNotFoundError: a root is missing, or no image was found.
            OSError: links lead to one folder in more than `MOST_WAYS` ways.
            PermissionError: a root may not be listed.
        """
        given = [roots] if isinstance(roots, str | os.PathLike) else roots
        # Not `Path.expanduser`, which fails for a user who is not known.
        names = [os.fsencode(os.path.normpath(os.path.expanduser(root))) for root in given]
        files, folders = _split_roots(names)
        suffixes = tuple(sorted({b"." + os.fsencode(ending).lower().lstrip(b".") for ending in extensions}))
        cache = _ScanCache.of_scan(files, folders, suffixes, cache_dir)
        listing = cache.load()
        if listing is not None:
            return listing
        started_ns = time.time_ns()
        visited: list[_Folder] = []
        listing = _pack(_merged([*(_walk(folder, suffixes, visited) for folder in folders), iter(files)]))
        if not listing:
            wanted = " ".join(map(os.fsdecode, suffixes))
            raise FileNotFoundError(f"no images ({wanted}) in {_quoted(names)}; name a folder that has some")
        if len(listing) >= CACHED_FROM:
            listing = cache.store(listing, visited, started_ns) or listing
        return listing

    @classmethod
    def concatenate(cls, parts: Sequence["ImageListing"]) -> "ImageListing":
        """All paths of the parts, in order; a single part is returned as it is."""
        if len(parts) == 1:
            return parts[0]
        starts = itertools.accumulate((len(part._blob) for part in parts[:-1]), initial=0)
        shifted = [part._offsets[1:] - part._offsets[0] + start for part, start in zip(parts, starts, strict=True)]
        return cls(
            np.concatenate([part._blob for part in parts]),
            np.concatenate([np.zeros(1, np.int64), *shifted]),
        )

    @property
    def nbytes(self) -> int:
        """Bytes that the arrays take, mapped or not."""
        return int(self._blob.nbytes + self._offsets.nbytes)

    def select(self, indices: Sequence[int] | NDArray[np.int64]) -> "ImageListing":
        """The paths at these positions, in this order."""
        return _pack(self._encoded(int(index)) for index in indices)

    def __len__(self) -> int:
        return len(self._offsets) - 1

    @overload
    def __getitem__(self, index: int) -> str: ...

    @overload
    def __getitem__(self, index: slice) -> "ImageListing": ...

    def __getitem__(self, index: int | slice) -> "str | ImageListing":
        if isinstance(index, slice):
            return self.select(range(*index.indices(len(self))))
        return os.fsdecode(self._encoded(index))

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, ImageListing):
            return NotImplemented
        return np.array_equal(self._offsets, other._offsets) and np.array_equal(self._blob, other._blob)

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        return f"ImageListing({len(self)} paths, {self.nbytes / 1e6:.1f} MB)"

    def __reduce__(self) -> tuple[Callable[..., "ImageListing"], tuple[object, ...]]:
        if self._cached_at is not None:
            return _reopen, self._cached_at
        return ImageListing, (self._blob, self._offsets)

    def _encoded(self, index: int) -> bytes:
        position = index + len(self) if index < 0 else index
        if not 0 <= position < len(self):
            raise IndexError(f"index {index} is outside a listing of {len(self)} paths")
        return self._blob[self._offsets[position] : self._offsets[position + 1]].tobytes()


@dataclass(frozen=True)
class _Folder:
    """A visited folder, and the stamp by which a later run sees that nothing was added, removed or renamed."""

    path: bytes
    mtime_ns: int
    inode: int

    def is_unchanged(self) -> bool:
        try:
            status = os.stat(self.path)
        except OSError:
            return False
        return (status.st_mtime_ns, status.st_ino) == (self.mtime_ns, self.inode)


@dataclass(frozen=True)
class _ScanCache:
    """One file a scan; whatever is wrong with it only costs the time of scanning again."""

    path: Path

    @classmethod
    def of_scan(
        cls,
        files: Sequence[bytes],
        folders: Sequence[bytes],
        suffixes: Sequence[bytes],
        cache_dir: str | os.PathLike[str] | None,
    ) -> "_ScanCache":
        parts = [os.fsencode(Path.cwd()), b"", *files, b"", *folders, b"", *suffixes]
        key = hashlib.sha256(b"\0".join(parts)).hexdigest()[:32]
        return cls(_cache_folder(cache_dir) / f"{key}.listing")

    def load(self) -> ImageListing | None:
        try:
            listing, folders = _open_cache(self.path)
        except (OSError, ValueError):
            return None
        return listing if all(folder.is_unchanged() for folder in folders) else None

    def store(self, listing: ImageListing, folders: Sequence[_Folder], started_ns: int) -> ImageListing | None:
        """Writes the file in one step and returns the listing mapped from it, or nothing if it cannot."""
        if any(folder.mtime_ns > started_ns - _SETTLED_NS for folder in folders):
            return None
        temporary = None
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with tempfile.NamedTemporaryFile(dir=self.path.parent, suffix=".partial", delete=False) as file:
                temporary = file.name
                for part in _cache_parts(listing, folders):
                    file.write(part)
                file.flush()
                os.fsync(file.fileno())
            Path(temporary).replace(self.path)
            return _open_cache(self.path)[0]
        except (OSError, ValueError):
            if temporary is not None:
                Path(temporary).unlink(missing_ok=True)
            return None


def _cache_folder(cache_dir: str | os.PathLike[str] | None) -> Path:
    if cache_dir is not None:
        return Path(cache_dir)
    if own := os.environ.get("SEALMARK_CACHE"):
        return Path(own)
    # Not `Path.home()`, which fails for a user without a home folder.
    return Path(os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")) / "sealmark"


def _cache_parts(listing: ImageListing, folders: Sequence[_Folder]) -> list[bytes | memoryview]:
    names = _pack(folder.path for folder in folders)
    stamps = np.array([(folder.mtime_ns, folder.inode) for folder in folders], np.uint64).reshape(-1, 2)
    body: list[NDArray[Any]] = [listing._offsets, stamps, names._offsets, listing._blob, names._blob]
    sizes = [len(listing), len(listing._blob), len(names), len(names._blob)]
    views: list[bytes | memoryview] = [part.data.cast("B") if part.size else b"" for part in body]
    return [np.array([_MAGIC, *sizes, _checksum(sizes, views)], np.int64).tobytes(), *views]


def _checksum(sizes: Sequence[int], parts: Iterable[bytes | memoryview]) -> int:
    value = zlib.crc32(np.array(sizes, np.int64).tobytes())
    for part in parts:
        value = zlib.crc32(part, value)
    return value


def _open_cache(path: Path) -> tuple[ImageListing, list[_Folder]]:
    """Maps a cache file; a file that is not wholly what was written is a ValueError."""
    with path.open("rb") as file:
        header = np.frombuffer(file.read(8 * _HEADER_INTS), np.int64)
        if len(header) != _HEADER_INTS or header[0] != _MAGIC:
            raise ValueError(f"{path} is no listing; delete it")
        paths, path_bytes, folders, folder_bytes, checksum = map(int, header[1:])
        # Read, not mapped, for the checksum: mapped pages would count as this process's memory.
        chunks = iter(lambda: file.read(1 << 20), b"")
        if _checksum([paths, path_bytes, folders, folder_bytes], chunks) != checksum:
            raise ValueError(f"{path} is damaged; delete it")
        mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    position = 8 * _HEADER_INTS
    arrays = []
    layout = [
        (np.int64, paths + 1),
        (np.uint64, 2 * folders),
        (np.int64, folders + 1),
        (np.uint8, path_bytes),
        (np.uint8, folder_bytes),
    ]
    for dtype, count in layout:
        arrays.append(np.frombuffer(mapped, dtype, count, position))
        position += arrays[-1].nbytes
    offsets, stamps, folder_offsets, blob, folder_blob = arrays
    listing = ImageListing(blob, offsets)
    listing._cached_at = (str(path), checksum)
    names = ImageListing(folder_blob, folder_offsets)
    visited = [
        _Folder(names._encoded(row), int(mtime_ns), int(inode))
        for row, (mtime_ns, inode) in enumerate(stamps.reshape(-1, 2))
    ]
    return listing, visited


def _reopen(path: str, checksum: int) -> ImageListing:
    """What a spawned worker does: it must see the very listing of its parent, or stop."""
    try:
        listing = _open_cache(Path(path))[0]
    except (OSError, ValueError):
        listing = None
    if listing is None or listing._cached_at != (path, checksum):
        raise OSError(f"listing cache {path!r} was changed while a run was using it; start the run again")
    return listing


def _pack(paths: Iterable[bytes]) -> ImageListing:
    blob, offsets = bytearray(), array("q", [0])
    for path in paths:
        blob += path
        offsets.append(len(blob))
    return ImageListing(np.frombuffer(blob, np.uint8), np.frombuffer(offsets, np.int64))


def _split_roots(names: Sequence[bytes]) -> tuple[list[bytes], list[bytes]]:
    """Files and folders, each sorted and once."""
    if not names:
        raise ValueError("no paths were given; name files or folders of images")
    files: set[bytes] = set()
    folders: set[bytes] = set()
    for name in names:
        if not os.path.lexists(name):
            raise FileNotFoundError(f"no such file or folder: {os.fsdecode(name)!r}; correct the path")
        (folders if os.path.isdir(name) else files).add(name)
    return sorted(files), sorted(folders)


def _merged(streams: Sequence[Iterator[bytes]]) -> Iterator[bytes]:
    """Sorted streams as one, without repeats: roots may overlap."""
    for path, _ in itertools.groupby(heapq.merge(*streams)):
        yield path


def _walk(root: bytes, suffixes: tuple[bytes, ...], visited: list[_Folder]) -> Iterator[bytes]:
    """Image files below a folder in byte order, holding the names of one branch only."""
    ways: Counter[tuple[int, int]] = Counter()
    branch = [_enter(root, frozenset(), suffixes, visited, ways)]
    while branch:
        folder, names, above = branch[-1]
        name = next(names, None)
        if name is None:
            branch.pop()
        elif name.endswith(b"/"):
            below = os.path.join(folder, name[:-1])
            try:
                branch.append(_enter(below, above, suffixes, visited, ways))
            except (PermissionError, FileNotFoundError, NotADirectoryError, _LeftOutError) as error:
                warnings.warn(f"images are left out: {error}", stacklevel=2)
                # A permission given later changes no time stamp; one of now keeps the scan out of the cache.
                visited.append(_Folder(below, time.time_ns(), 0))
        else:
            yield os.path.join(folder, name)


def _enter(
    folder: bytes,
    above: frozenset[tuple[int, int]],
    suffixes: tuple[bytes, ...],
    visited: list[_Folder],
    ways: Counter[tuple[int, int]],
) -> tuple[bytes, Iterator[bytes], frozenset[tuple[int, int]]]:
    """A folder's images and sub-folders, those with a slash at the end, which is also their place in byte order."""
    try:
        status = os.stat(folder)  # before listing: a change while listing must show as a newer stamp
        identity = (status.st_dev, status.st_ino)
        if identity in above:
            return folder, iter(()), above
        with os.scandir(folder) as entries:
            names = sorted(_wanted_names(entries, suffixes))
    except OSError as error:
        line = f"cannot list folder {_quoted([folder])}: {error.strerror}; correct its permissions or the path"
        raise (_LeftOutError if error.errno == errno.ENAMETOOLONG else type(error))(line) from error
    if above and os.path.lexists(os.path.join(folder, PREDICTIONS)):
        # Or a folder of images with its predictions inside would grow with every start.
        raise _LeftOutError(f"folder {_quoted([folder])} holds predictions; name it itself to read it")
    ways[identity] += 1
    if ways[identity] > MOST_WAYS:
        raise OSError(f"links lead to folder {_quoted([folder])} in more than {MOST_WAYS} ways; remove some")
    visited.append(_Folder(folder, status.st_mtime_ns, status.st_ino))
    return folder, iter(names), above | {identity}


def _wanted_names(entries: Iterable["os.DirEntry[bytes]"], suffixes: tuple[bytes, ...]) -> Iterator[bytes]:
    for entry in entries:
        if entry.name.startswith(b"."):
            continue
        if _is_folder(entry):
            yield entry.name + b"/"
        elif entry.name.lower().endswith(suffixes):
            yield entry.name


def _is_folder(entry: "os.DirEntry[bytes]") -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link to itself; if it is called an image, reading it will say what is wrong
        return False


class _LeftOutError(OSError):
    """A sub-folder whose path is longer than the system takes, or which is not of images to read."""


def _quoted(names: Iterable[bytes]) -> str:
    texts = map(os.fsdecode, names)
    return ", ".join(repr(text if len(text) < 400 else f"{text[:100]}…{text[-100:]}") for text in texts)
