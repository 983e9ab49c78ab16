"""A copy of what a submitted search prints, beside its run folder: Ray forgets a job's log with the cluster's head."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout, suppress
from pathlib import Path
from typing import Any, TextIO

FOLDER = ".logs"


def log_of(run: Path) -> Path:
    """Return the file that holds the copy for a run folder."""
    return run.parent / FOLDER / f"{run.name}.log"


@contextmanager
def copied(run: Path) -> Iterator[None]:
    """Copy to a file, which this user alone can read, what Python prints meanwhile; a file that cannot be written is done without."""
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
    """A stream whose text goes to a second one, too. Everything else is the first one's."""

    def __init__(self, stream: TextIO, copy: TextIO) -> None:
        self._stream, self._copy = stream, copy

    def write(self, text: str) -> int:
        with suppress(OSError, ValueError):  # the disk is full: the search goes on
            self._copy.write(text)
        return self._stream.write(text)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)
