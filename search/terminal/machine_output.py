"""The JSON object that is all a command prints on standard output with --json. docs/json.md describes the fields."""

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
    """Set the command's object, which is printed with the exit code when the command has ended.

    Args:
        command: the command's name, which becomes part of the schema.
        facts: the fields. Numbers that JSON does not have (NaN, infinity) become null, paths become text.
        version: version of the schema; it is raised if a field changes its meaning or is removed.
    """
    global _answer
    _answer = {"schema": f"feedrate/cli/{command}/{version}", **facts}


def answer_error(sentence: str, kind: str, **more: Any) -> None:
    """Set an object that says why the command failed, in place of an earlier one."""
    answer("error", {"kind": kind, "error": sentence, "run": None, "resume": None} | more)


def is_answered() -> bool:
    """Return whether the command has set an object."""
    return _answer is not None


@contextmanager
def one_object() -> Iterator[int]:
    """Redirect standard output to standard error within the context, also for child processes; yield the real standard output."""
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
    """Write the command's object, with its exit code, to a file descriptor."""
    text = json.dumps(plain((_answer or {}) | {"exit_code": exit_code}), allow_nan=False) + "\n"
    with open(descriptor, "w", closefd=False) as stream:
        stream.write(text)


def plain(value: Any) -> Any:
    """Return a value converted to types that JSON has."""
    if isinstance(value, Mapping):
        return {str(key): plain(each) for key, each in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(each) for each in value]
    if isinstance(value, float):  # numpy's float64 is a float, too
        return float(value) if math.isfinite(value) else None
    if isinstance(value, Integral) and not isinstance(value, bool):
        return int(value)
    return value if value is None or isinstance(value, (str, bool)) else str(value)


def records(table: Any) -> list[dict[str, Any]]:
    """Return the rows of a pandas table as objects; missing values are null."""
    rows: list[dict[str, Any]] = json.loads(table.to_json(orient="records", date_format="iso", default_handler=str))
    return rows
