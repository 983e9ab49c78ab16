"""`WrittenFiles`: which files of the user's folder a training script wrote while feedrate measured it."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

MOST_FILES = 20_000
"""A folder with more files is not compared: listing it would take seconds."""
MOST_NAMED = 5
_OTHERS = ("__pycache__", "node_modules", "site-packages", "feedrate-runs")
"""Folders whose files are no results of a training."""


class WrittenFiles:
    """The state of a folder when this object is made.

    Args:
        folder: the working directory of the training command.
    """

    def __init__(self, folder: str | os.PathLike[str]) -> None:
        self.folder = Path(folder)
        self._before = self._state()

    def remark(self) -> str | None:
        """Return a sentence that names the files that are new or changed; None if there are none."""
        if self._before is None or (now := self._state()) is None:
            return None
        names = sorted(name for name, state in now.items() if self._before.get(name) != state)
        if not names:
            return None
        shown = ", ".join(names[:MOST_NAMED]) + (f" and {len(names) - MOST_NAMED} more" if len(names) > MOST_NAMED else "")
        return f"the script wrote files into its folder while it was measured: {shown}. A script can look at the variable FEEDRATE, which is 1 meanwhile"

    def _state(self) -> dict[str, tuple[int, int]] | None:
        """Return size and time of change of each file; None if there are too many."""
        found: dict[str, tuple[int, int]] = {}
        ours = set(_outputs())
        for entry in _files(self.folder):
            if len(found) >= MOST_FILES:
                return None
            try:
                status = entry.stat(follow_symlinks=False)
            except OSError:
                continue
            if (status.st_dev, status.st_ino) not in ours:
                found[os.path.relpath(entry.path, self.folder)] = (status.st_size, status.st_mtime_ns)
        return found


def _outputs() -> Iterator[tuple[int, int]]:
    """Yield device and inode of where this process writes its output and errors: feedrate's own words are no results of a training."""
    for number in (1, 2):
        with suppress(OSError):  # it may be closed
            status = os.fstat(number)
            yield status.st_dev, status.st_ino


def _files(folder: Path) -> Iterator[os.DirEntry[str]]:
    try:
        entries = list(os.scandir(folder))
    except OSError:
        return
    if any(entry.name == "search.json" for entry in entries):  # a run folder, which feedrate writes
        return
    for entry in entries:
        if entry.is_dir(follow_symlinks=False):
            if not entry.name.startswith(".") and entry.name not in _OTHERS:
                yield from _files(Path(entry.path))
        elif entry.is_file(follow_symlinks=False):
            yield entry
