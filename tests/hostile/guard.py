"""Python's audit hook as a fence: no writing outside some folders, no processes, no network."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
# Event: where its arguments hold a path, and the folder's descriptor that a relative one starts at.
CHANGED_ITSELF = {
    "os.mkdir": ((0, 2),),
    "os.remove": ((0, 1),),
    "os.rmdir": ((0, 1),),
    "os.rename": ((0, 2), (1, 3)),
    "os.link": ((1, 3),),
    "os.symlink": ((1, 2),),
}
CHANGED_BEHIND_LINKS = {
    "os.truncate": ((0, None),),
    "os.chmod": ((0, 2),),
    "os.chown": ((0, 3),),
    "os.utime": ((0, 3),),
    "os.setxattr": ((0, None),),
    "os.removexattr": ((0, None),),
}
FORBIDDEN = (
    *("subprocess.Popen", "os.system", "os.exec", "os.posix_spawn", "os.spawn", "os.fork", "os.forkpty", "os.kill"),
    *("os.killpg", "os.startfile", "pty.spawn", "socket.", "urllib.Request", "http.client.", "ftplib.", "smtplib."),
    *("webbrowser.", "sys.settrace", "sys.setprofile"),
)


class Trespass(BaseException):
    """Not an `Exception`, so that no reader catches it as a fault of the file."""


class Guard:
    """Forbids and notes, while it is entered; it stays in the process for good, so only a forked one may make it."""

    def __init__(self, folders: Sequence[Path]) -> None:
        import sys

        self.faults: list[str] = []
        self._roots = tuple(os.path.realpath(folder) + os.sep for folder in folders)
        self._on = False
        sys.addaudithook(self._hear)

    def __enter__(self) -> "Guard":
        self._on = True
        return self

    def __exit__(self, *_: object) -> None:
        self._on = False

    def _hear(self, event: str, args: tuple[Any, ...]) -> None:
        if not self._on:
            return
        self._on = False  # what follows raises events itself
        try:
            fault = self._fault(event, args)
        finally:
            self._on = True
        if fault is not None:
            self.faults.append(fault)
            raise Trespass(fault)

    def _fault(self, event: str, args: tuple[Any, ...]) -> str | None:
        if event == "open":
            path, mode, flags = args
            writes = bool(flags & WRITING) if isinstance(flags, int) else bool(mode and set(mode) & set("wax+"))
            return f"opens {path!r} to write" if writes and self._is_outside(path, -1, follow=True) else None
        for table, follow in ((CHANGED_ITSELF, False), (CHANGED_BEHIND_LINKS, True)):
            for path_at, base_at in table.get(event, ()):
                base = args[base_at] if base_at is not None and len(args) > base_at else -1
                if self._is_outside(args[path_at], base, follow):
                    return f"{event} of {args[path_at]!r}"
        return f"{event}{args!r}"[:300] if event.startswith(FORBIDDEN) else None

    def _is_outside(self, path: Any, base: Any, follow: bool) -> bool:
        if isinstance(path, int):  # an open file: judged when it was opened
            return False
        name = os.fsdecode(path)
        if isinstance(base, int) and base >= 0 and not os.path.isabs(name):
            name = os.path.join(os.readlink(f"/proc/self/fd/{base}"), name)
        name = os.path.abspath(name)
        folder, last = os.path.split(name)
        real = os.path.realpath(name) if follow else os.path.join(os.path.realpath(folder), last)
        return real != os.devnull and not (real + os.sep).startswith(self._roots)
