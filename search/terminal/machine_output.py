"""The one JSON object that a command prints with --json, and nothing else on standard output. docs/json.md has the fields."""

from __future__ import annotations

import contextlib
import json
import math
import os
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from numbers import Integral
from typing import Any

FLAG = "--json"
_answer: dict[str, Any] | None = None


def answer(command: str, facts: Mapping[str, Any], version: int = 1) -> None:
    """Hand over a command's object, printed when the command has ended; its exit code is added then.

    Args:
        command: its name, part of the schema.
        facts: the fields. Numbers that JSON does not have become null, paths become text.
        version: of the schema, raised when a field changes its meaning or goes.
    """
    global _answer
    _answer = {"schema": f"feedrate/cli/{command}/{version}", **facts}


def answer_error(sentence: str, kind: str, **more: Any) -> None:
    """Hand over why a command failed, instead of what it may have handed over before."""
    answer("error", {"kind": kind, "error": sentence, "run": None, "resume": None} | more)


def is_answered() -> bool:
    """Return whether there is an object already."""
    return _answer is not None


@contextmanager
def one_object() -> Iterator[int]:
    """Send to standard error what is printed meanwhile, also by other processes; gives the real standard output."""
    global _answer
    _answer = None
    sys.stdout.flush()
    kept = os.dup(1)
    os.dup2(2, 1)
    try:
        with contextlib.redirect_stdout(sys.stderr):
            yield kept
    finally:
        sys.stderr.flush()
        os.dup2(kept, 1)
        os.close(kept)


def print_answer(descriptor: int, exit_code: int) -> None:
    """Write the object that was handed over."""
    text = json.dumps(plain((_answer or {}) | {"exit_code": exit_code}), allow_nan=False) + "\n"
    with open(descriptor, "w", closefd=False) as stream:
        stream.write(text)


def plain(value: Any) -> Any:
    """The same value in types that JSON has."""
    if isinstance(value, Mapping):
        return {str(key): plain(each) for key, each in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(each) for each in value]
    if isinstance(value, float):  # numpy's are floats too
        return float(value) if math.isfinite(value) else None
    if isinstance(value, Integral) and not isinstance(value, bool):
        return int(value)
    return value if value is None or isinstance(value, (str, bool)) else str(value)


def records(table: Any) -> list[dict[str, Any]]:
    """The rows of a pandas table as objects; what is missing is null."""
    rows: list[dict[str, Any]] = json.loads(table.to_json(orient="records", date_format="iso", default_handler=str))
    return rows
