"""Command lines as lists of words, for printed commands that repeat a typed one with changes. Standard library only."""

from __future__ import annotations

import argparse
from collections.abc import Collection, Sequence

COMMAND = "--"
"""The word after which a command line has the words of a training command, which are never changed."""


def split(argv: Sequence[str]) -> tuple[list[str], list[str] | None]:
    """Return a command line without its training command, and the words of the training command, or None if there is none."""
    if COMMAND not in argv:
        return list(argv), None
    at = argv.index(COMMAND)
    return list(argv[:at]), list(argv[at + 1 :])


def extended(argv: Sequence[str], *more: str) -> list[str]:
    """Return a command line with more words, before its training command if there is one."""
    words, command = split(argv)
    return [*words, *more, *([] if command is None else [COMMAND, *command])]


def without(argv: Sequence[str], flags: Collection[str], switches: Collection[str] = ()) -> list[str]:
    """Return a command line without the given flags and their values, and without the given switches, which have no value."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    for flag in flags:
        parser.add_argument(flag)
    for switch in switches:
        parser.add_argument(switch, action="store_true")
    words, command = split(argv)
    left = parser.parse_known_args(words)[1]
    return left if command is None else [*left, COMMAND, *command]
