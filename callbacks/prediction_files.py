"""Files that a run can be killed in the middle of: JSON lines without torn ends, images that are whole or absent."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import stat
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from fnmatch import fnmatch
from pathlib import Path
from typing import Any, Literal
from weakref import WeakSet

import cv2
import numpy as np
from numpy.typing import NDArray

from lightning_modules.functional.plain_json import parse_json

ImageFormat = Literal["png", "jpg"]
TEMPORARY_SUFFIX = ".part"
_NO_LOCKS = (errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOLCK, errno.ENOSYS)  # of a file system, not of a holder


class FolderLock:
    """Keeps other runs out of a folder until it is released or the process ends, however it ends.

    Rank 0 decides for its run. The files of the other ranks show that one of them has outlived a killed rank 0. All
    files stay, empty: one that is deleted could be held by two runs.
    """

    def __init__(self) -> None:
        self._file = -1

    def take(self, folder: Path, rank: int) -> bool:
        """Lock the folder for a rank; False where another run is at work in it."""
        self.release()
        mine = folder / f".lock.rank{rank}"
        self._file = _lock(mine)
        _folder_locks.add(self)
        if rank == 0 and any(_is_locked(path) for path in folder.glob(".lock.rank*") if path != mine):
            self.release()
        return self._file >= 0

    def release(self) -> None:
        """Let others in; a second time does nothing."""
        if self._file >= 0:
            os.close(self._file)
            self._file = -1


_folder_locks: WeakSet[FolderLock] = WeakSet()


def _release_all() -> None:
    for lock in _folder_locks:
        lock.release()


# A worker of a DataLoader lives for seconds after its parent was killed, and would hold the parent's lock as long.
os.register_at_fork(after_in_child=_release_all)


class JsonLines:
    """Appends records to a file that holds complete lines at every moment, also when the disk is full."""

    def __init__(self, path: Path, *, fresh: bool = False) -> None:
        """Open for appending; a torn last line is cut off, with `fresh` everything is."""
        self.path = path
        self._size = 0 if fresh else complete_size(path)
        with explained(path):
            self._file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_NOFOLLOW, 0o644)
            os.ftruncate(self._file, self._size)
            os.lseek(self._file, 0, os.SEEK_END)

    def append(self, record: dict[str, Any]) -> None:
        """Write one line; where that fails, none of it stays."""
        line = json.dumps(record).encode() + b"\n"
        with explained(self.path):
            try:
                write_all(self._file, line)
            except OSError:
                os.ftruncate(self._file, self._size)
                os.lseek(self._file, self._size, os.SEEK_SET)
                raise
        self._size += len(line)

    def close(self) -> None:
        """Close the file; a second time does nothing."""
        if self._file >= 0:
            os.close(self._file)
            self._file = -1


@contextmanager
def explained(path: Path) -> Iterator[None]:
    """Turn an `OSError` of the body into one line that names the file and says what to do."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            text = f"no space left to write {path}: free some and start again with the same output folder"
        elif error.errno in (errno.EEXIST, errno.ENOTDIR):
            text = f"cannot write {path}: a file is on the way to it; name another folder"
        else:
            text = f"cannot write {path}: {error.strerror or error}"
        explanation = OSError(text)
        explanation.errno = error.errno
        raise explanation from error


def complete_size(path: Path) -> int:
    """Return the length of a file of lines up to its last newline; 0 if there is none."""
    if not path.exists():
        return 0
    with path.open("rb") as file:
        end = file.seek(0, os.SEEK_END)
        while end > 0:
            start = max(0, end - 65536)
            file.seek(start)
            newline = file.read(end - start).rfind(b"\n")
            if newline >= 0:
                return start + newline + 1
            end = start
    return 0


def cut_torn_line(path: Path) -> None:
    """Cut off what follows the last newline."""
    size = complete_size(path)
    if path.stat().st_size > size:
        os.truncate(path, size)


def read_records(path: Path) -> Iterator[dict[str, Any]]:
    """Yield the records of the complete lines, one at a time."""
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            if not line.endswith(b"\n"):
                return
            try:
                record = parse_json(line, f"{path}, line {number},")
            except ValueError as error:
                raise ValueError(f"{error}: delete that line to go on") from None
            if not isinstance(record, dict):
                raise ValueError(f"{path}, line {number}, is no record: delete that line to go on")
            yield record


def refuse_links(folder: Path, patterns: Iterable[str]) -> None:
    """Refuse a folder whose entries lead elsewhere or are no files: writing to them would change what is not in it.

    Args:
        folder: What is to be written into.
        patterns: Which entries; a folder among them may not be a link either.
    """
    wanted = tuple(patterns)
    # Not by `glob`, which sees no link to nothing; writing through one would make a file there.
    for path in folder.iterdir() if folder.is_dir() else ():
        if not any(fnmatch(path.name, pattern) for pattern in wanted):
            continue
        mode = path.lstat().st_mode
        if not (stat.S_ISREG(mode) or (stat.S_ISDIR(mode) and "." not in path.name)):
            raise ValueError(f"{path} is no plain file but a link or the like: remove it, or name another folder")


def count_lines(path: Path) -> int:
    """Return the number of newlines."""
    with path.open("rb") as file:
        return sum(block.count(b"\n") for block in iter(lambda: file.read(1 << 20), b""))


def write_whole(path: Path, data: bytes) -> None:
    """Write a file that is there entirely or not at all."""
    temporary = path.with_name(path.name + TEMPORARY_SUFFIX)
    with explained(path):
        try:
            temporary.unlink(missing_ok=True)  # what a killed run left, or a link that leads elsewhere
            file = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644)
            try:
                write_all(file, data)
            finally:
                os.close(file)
            os.replace(temporary, path)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise


def encode_image(pixels: NDArray[np.uint8], image_format: ImageFormat) -> bytes:
    """Return the bytes of an image file; OpenCV lets other threads run meanwhile."""
    bgr = cv2.cvtColor(pixels, cv2.COLOR_RGB2BGR) if pixels.ndim == 3 else pixels
    if image_format == "jpg":
        options = [cv2.IMWRITE_JPEG_QUALITY, 92]
    else:
        # Run-length strategy: half the time of the default one, and files of about the same size.
        options = [cv2.IMWRITE_PNG_STRATEGY, cv2.IMWRITE_PNG_STRATEGY_RLE, cv2.IMWRITE_PNG_COMPRESSION, 1]
    done, data = cv2.imencode(f".{image_format}", bgr, options)
    if not done:
        raise ValueError(f"OpenCV cannot encode an array of shape {pixels.shape} as {image_format}")
    return data.tobytes()


class ImageThreads:
    """Encodes and writes images on a few threads; the caller waits for the futures."""

    def __init__(self, threads: int) -> None:
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix="prediction-writer")

    def submit(self, path: Path, pixels: NDArray[np.uint8], image_format: ImageFormat) -> Future[None]:
        """Write `pixels` to `path` some time soon."""
        return self._pool.submit(_encode_and_write, path, pixels, image_format)

    def close(self) -> None:
        """Finish what has begun and drop the rest."""
        self._pool.shutdown(wait=True, cancel_futures=True)


def _encode_and_write(path: Path, pixels: NDArray[np.uint8], image_format: ImageFormat) -> None:
    write_whole(path, encode_image(pixels, image_format))


def write_all(file: int, data: bytes) -> None:
    """Write all bytes to an open file, in as many goes as it takes."""
    view = memoryview(data)
    while len(view):
        view = view[os.write(file, view) :]


def _lock(path: Path) -> int:
    """Open a file and lock it until it is closed; -1 where it is locked already."""
    with explained(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o644)
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(file)
            return -1
        except OSError as error:
            if error.errno not in _NO_LOCKS:
                os.close(file)
                raise
    return file


def _is_locked(path: Path) -> bool:
    file = _lock(path)
    if file >= 0:
        os.close(file)
    return file < 0
