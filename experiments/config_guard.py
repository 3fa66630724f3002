"""Bounds on the YAML that parsers read, kept before PyYAML builds anything of it.

A config is trusted like code, for its `class_path`s are imported and called. But one that was damaged or made by a
machine must end in a line: libyaml goes down with the process at some ten thousand nested brackets, a few aliases of
aliases stand for more values than memory holds, and a number of a million sexagesimal places takes minutes.
"""

from typing import Any

import yaml

MOST_CHARACTERS = 1 << 22
MOST_IN_A_SCALAR = 1 << 16
MOST_DEPTH = 200
MOST_VALUES = 50_000  # with every alias counted as what it stands for
UNCHECKED = 500  # characters too few to nest deeply

# What PyYAML's constructors raise for tags that do not fit their values, numbers of 5000 digits and the like.
UNFITTING = (ArithmeticError, AttributeError, LookupError, RecursionError, TypeError, ValueError)

_guarded: set[str] = set()


class UnreadableConfigError(yaml.YAMLError):
    """A config cannot be what was meant; PyYAML's class, which jsonargparse reports as a config's fault."""


def guard_loader(mode: str) -> None:
    """Make all parsers of a mode check configs and values before they read them."""
    if mode in _guarded:
        return
    from jsonargparse import ArgumentParser, get_loader, set_loader

    _guarded.add(mode)
    ArgumentParser(parser_mode=mode).parse_string("{}")  # the loader of OmegaConf is there from its first use on
    load = get_loader(mode)

    def load_checked(text: str) -> Any:
        check_yaml(text)
        try:
            return load(text)
        except UNFITTING as error:
            if type(error).__module__.startswith("omegaconf."):
                raise
            raise UnreadableConfigError(f"a value that its tag or type does not fit ({error})") from error

    set_loader(mode, load_checked, (yaml.YAMLError,))


def check_yaml(text: str) -> None:
    """Raise an `UnreadableConfigError` for what is too long, too deep or stands for too much."""
    if len(text) < UNCHECKED and "*" not in text:
        return
    if len(text) > MOST_CHARACTERS:
        raise UnreadableConfigError(f"longer than {MOST_CHARACTERS} characters: put lists of files into a manifest")
    worth: dict[str, int] = {}  # of anchors: how many values each stands for
    open_nodes: list[tuple[str | None, int]] = []  # anchors of the nodes around a place, and values before them
    values = 0
    # Events come one by one, without recursion.
    for event in yaml.parse(text, getattr(yaml, "CSafeLoader", yaml.SafeLoader)):
        if isinstance(event, yaml.CollectionStartEvent):
            open_nodes.append((event.anchor, values))
            values += 1
        elif isinstance(event, yaml.CollectionEndEvent):
            anchor, before = open_nodes.pop()
            if anchor is not None:
                worth[anchor] = values - before
        elif isinstance(event, yaml.AliasEvent):
            if event.anchor not in worth:
                raise UnreadableConfigError(f"{_at(event)} an alias of what is not there before it, or holds it")
            values += worth[event.anchor]
        elif isinstance(event, yaml.ScalarEvent):
            values += 1
            if event.anchor is not None:
                worth[event.anchor] = 1
            if len(event.value) > MOST_IN_A_SCALAR:
                raise UnreadableConfigError(f"{_at(event)} a value of more than {MOST_IN_A_SCALAR} characters")
        if len(open_nodes) > MOST_DEPTH:
            raise UnreadableConfigError(f"{_at(event)} nested more than {MOST_DEPTH} levels deep")
        if values > MOST_VALUES:
            raise UnreadableConfigError(f"{_at(event)} more than {MOST_VALUES} values, with what aliases stand for")


def _at(event: yaml.Event) -> str:
    return f"line {event.start_mark.line + 1 if event.start_mark else '?'}:"
