"""JSON from files of others: parsed or refused in one line, and words of theirs as part of a line of ours."""

import json
from typing import Any

_SHOWN = 120


def parse_json(text: str | bytes, what: str) -> Any:
    """Return the value of a JSON text; a ValueError of one line says what it is of that cannot be parsed.

    Args:
        text: The text; bytes are in UTF-8.
        what: A file, or a place in one, for the error.
    """
    try:
        return json.loads(text)
    # RecursionError: brackets in brackets in brackets. ValueError also for numbers of thousands of digits.
    except (ValueError, RecursionError) as error:
        reason = "too many brackets within brackets" if isinstance(error, RecursionError) else str(error)
        raise ValueError(f"{what} is not JSON ({quoted(reason)})") from None


def quoted(value: object) -> str:
    """Return a foreign value as it can stand in a line: printable and short."""
    text = value if isinstance(value, str) else ascii(value)
    text = text if text.isprintable() else ascii(text)
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}…"
