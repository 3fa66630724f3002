"""The parser of every command: a mistake is told in one line."""

import os
import sys
from typing import Any

from jsonargparse import ArgumentParser

from experiments.config_guard import UNFITTING, guard_loader

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

# Of one command's config.yaml, which another command does not know.
OTHER_COMMANDS = ("option 'verbose'", "option 'return_predictions'")
MOST_CHARACTERS = 1500  # a line that is longer quotes what somebody mistook for a value


class OneLineParser(ArgumentParser):
    """Answers a mistake with what is wrong and where, instead of forty lines of usage."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        # Here, so that it also holds for the parsers of sub-commands, which jsonargparse makes itself.
        kwargs.setdefault("allow_abbrev", False)
        super().__init__(*args, **kwargs)
        guard_loader(self.parser_mode)

    def parse_args(self, *args: Any, **kwargs: Any) -> Any:
        """Parse; what neither OmegaConf nor the parser can make sense of is a mistake of the config."""
        try:
            return super().parse_args(*args, **kwargs)
        except Exception as error:
            if type(error).__module__.startswith("omegaconf."):
                told = " ".join(str(error).split())[:400]
                raise ValueError(f"a value of the config cannot be resolved: {told}; correct it") from error
            if isinstance(error, UNFITTING) and not isinstance(error, ValueError):
                told = f"{type(error).__name__}: {' '.join(str(error).split())[:400]}"
                raise ValueError(f"a value of the config is of a kind that cannot be there ({told})") from error
            raise

    def error(self, message: str, ex: Exception | None = None) -> None:  # type: ignore[override]
        """Print the mistake in one line and exit with 2."""
        if os.environ.get("SEALMARK_DEBUG") and ex is not None:
            raise ex
        told = condense(message)
        if any(text in told.lower() for text in OTHER_COMMANDS):
            told += ": the config is of a validate, test or predict run; use the config.yaml of the training"
        print(f"sealmark: error: {told}", file=sys.stderr)
        raise SystemExit(2)


def condense(message: str) -> str:
    """Put a message of the parser into one line, without what it says of the types that were also tried."""
    lines = [line.strip(" -").rstrip(":") for line in message.splitlines()]
    told = [line for line in lines if line and not line.startswith(TRIED_TYPES)]
    # Nor may a file's text reach the terminal as control characters.
    text = "".join(mark if mark.isprintable() else "?" for mark in ": ".join(told or lines))
    return text if len(text) <= MOST_CHARACTERS else f"{text[:MOST_CHARACTERS]} …"


def check_at_least(least: int, **given: int | None) -> None:
    """Refuse a number that is too small; None, where it is allowed, is no number."""
    for name, value in given.items():
        if value is not None and value < least:
            raise ValueError(f"--{name} must be at least {least}, got {value}")
