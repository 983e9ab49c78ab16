"""A copy of the output of a submitted search, beside its run folder, because Ray loses a job's log with the cluster's head."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout, suppress
from pathlib import Path
from typing import Any, TextIO

FOLDER = ".logs"


def log_of(run: Path) -> Path:
    """Return the file with the copied output for a run folder."""
    return run.parent / FOLDER / f"{run.name}.log"


@contextmanager
def copied(run: Path) -> Iterator[None]:
    """Copy what Python prints in the context to a file that only this user can read; make no copy if the file cannot be written."""
    path = log_of(run)
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW, 0o600)
    except OSError:
        yield
        return
    with (
        open(descriptor, "w", buffering=1, encoding="utf-8", errors="replace") as copy,
        redirect_stdout(_Copied(sys.stdout, copy)),
        redirect_stderr(_Copied(sys.stderr, copy)),
    ):
        yield


class _Copied:
    """A stream that also writes its text to a second stream. Its other attributes are those of the first stream."""

    def __init__(self, stream: TextIO, copy: TextIO) -> None:
        self._stream, self._copy = stream, copy

    def write(self, text: str) -> int:
        with suppress(OSError, ValueError):  # a full disk must not end the search
            self._copy.write(text)
        return self._stream.write(text)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)
