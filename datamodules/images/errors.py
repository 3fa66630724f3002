"""The error that an image file causes when it cannot be read."""

import ast
import os
import re
from collections.abc import Callable

_REMEDY = "remove the file or set on_unreadable to skip"
_LINE = re.compile(
    r"cannot read image (?P<path>'(?:[^'\\\n]|\\.)*'|\"(?:[^\"\\\n]|\\.)*\"): "
    rf"(?P<reason>[^\n]*); {re.escape(_REMEDY)}"
)


class UnreadableImageError(OSError):
    """Its text is one line that names the file, the reason and the remedy, in any process that catches it.

    Torch's DataLoader re-raises an error of a worker as `type(error)(text of the traceback)`. Given such a text
    alone, the constructor finds path and reason in it again, so `str(error)` is one line there too.

    Attributes:
        path: the file as it was asked for; empty if a text without our line was given.
        reason: what is wrong with it.
    """

    def __init__(self, path: str | os.PathLike[str], reason: str | None = None) -> None:
        text = os.fspath(path)
        if reason is None:
            text, reason = _recover(text)
        self.path = text
        self.reason = " ".join(reason.split())
        # `!r` keeps line breaks and undecodable bytes of a file name out of the terminal.
        super().__init__(f"cannot read image {self.path!r}: {self.reason}; {_REMEDY}")

    def __reduce__(self) -> tuple[Callable[..., "UnreadableImageError"], tuple[str, str]]:
        return type(self), (self.path, self.reason)


def _recover(text: str) -> tuple[str, str]:
    """The last line of ours in a traceback: chained causes come before the error that ended the worker."""
    found = list(_LINE.finditer(text))
    if not found:
        return "", text
    return ast.literal_eval(found[-1]["path"]), found[-1]["reason"]
