"""The parser of every command: a mistake is told in one line."""

import os
import sys
from typing import Any

from jsonargparse import ArgumentParser

# How lines begin that jsonargparse adds for every member of a Union beside the one that was meant.
TRIED_TYPES = (
    "Does not validate against any of the Union",
    "Subtypes: ",
    "Errors",
    "Not a valid subclass",
    "Subclass types expect one of",
    "a class path (str)",
    "a dict with",
    "Expected a <class 'NoneType'>",
    "Given value",
)


class OneLineParser(ArgumentParser):
    """Answers a mistake with what is wrong and where, instead of forty lines of usage."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        # Here, so that it also holds for the parsers of sub-commands, which jsonargparse makes itself.
        kwargs.setdefault("allow_abbrev", False)
        super().__init__(*args, **kwargs)

    def error(self, message: str, ex: Exception | None = None) -> None:  # type: ignore[override]
        """Print the mistake in one line and exit with 2."""
        if os.environ.get("SEALMARK_DEBUG") and ex is not None:
            raise ex
        print(f"sealmark: error: {condense(message)}", file=sys.stderr)
        raise SystemExit(2)


def condense(message: str) -> str:
    """Put a message of the parser into one line, without what it says of the types that were also tried."""
    lines = [line.strip(" -").rstrip(":") for line in message.splitlines()]
    told = [line for line in lines if line and not line.startswith(TRIED_TYPES)]
    return ": ".join(told or lines)
