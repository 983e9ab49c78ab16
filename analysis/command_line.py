"""Command lines as lists of words, for printed commands that repeat a typed one with changes. Standard library only."""

from __future__ import annotations

import argparse
from collections.abc import Collection, Sequence


def without(argv: Sequence[str], flags: Collection[str], switches: Collection[str] = ()) -> list[str]:
    """Return a command line without the given flags and their values, and without the given switches, which have no value."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    for flag in flags:
        parser.add_argument(flag)
    for switch in switches:
        parser.add_argument(switch, action="store_true")
    return parser.parse_known_args(list(argv))[1]
