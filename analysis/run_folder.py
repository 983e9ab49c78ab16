"""The run folder: where each file of a search lies, and how it is written. Standard library only.

`trials.jsonl` is appended, one fsynced line a trial: a crash leaves whole lines and at most one torn last line, which
readers skip and name. Every other file is replaced atomically: a crash leaves the old one or the new one.
"""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from feedrate.analysis.schema import SCHEMA, check_record


class RunError(Exception):
    """A run folder cannot be used; the message says why and what to do instead."""


class RunFolder:
    """Paths of one run. Making the object touches nothing."""

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        self.search = self.path / "search.json"
        self.trials = self.path / "trials.jsonl"
        self.journal = self.path / "study.journal"
        self.best = self.path / "best.json"
        self.report = self.path / "report.html"
        self.tune = self.path / "tune"
        self.lock = self.path / "search.lock"

    def files(self) -> list[Path]:
        """The files that a search writes, as far as they are there, search.json and the lock last."""
        own = [self.trials, self.best, self.report, *sorted(self.path.glob("study.journal*")), self.search, self.lock]
        return [path for path in own if path.is_file() and not path.is_symlink()]

    def tune_folders(self) -> list[Path]:
        """Ray Tune's own state, of no use when the search is over."""
        return [path for path in (self.tune, *sorted(self.path.glob("tune-*"))) if path.is_dir() and not path.is_symlink()]

    def read_search(self) -> dict[str, Any]:
        """What was asked, on what: the content of `search.json`.

        Raises:
            RunError: the folder is no run, or the file is unreadable. Name a folder that `feedrate search` wrote.
        """
        try:
            return read_object(self.search)
        except (FileNotFoundError, NotADirectoryError):
            way_out = "Name a folder that feedrate search wrote"
            what = "is not a run folder: it has no search.json" if self.path.exists() else "does not exist"
            raise RunError(f"{self.path} {what}. {way_out}") from None

    def records(self) -> tuple[list[dict[str, Any]], list[str]]:
        """Every record of `trials.jsonl` in order of writing, and one sentence for each line that was skipped.

        Raises:
            RunError: a record has a schema that this feedrate does not know, or the file cannot be read.
        """
        problems: list[str] = []
        try:
            return list(_read_lines(self.trials, problems)), problems
        except FileNotFoundError:
            return [], problems
        except OSError as error:
            raise RunError(f"{self.trials} cannot be read: {error}") from None

    def write_search(self, search: Mapping[str, Any]) -> None:
        """Replace search.json whole."""
        write_atomic(self.search, json.dumps(search, indent=2) + "\n")

    def append(self, record: dict[str, Any]) -> None:
        """Append one record and force it to disk before returning.

        Raises:
            ValueError: the record does not fit analysis/schema.py.
        """
        check_record(record)
        line = json.dumps(record, allow_nan=False, separators=(",", ":")).encode() + b"\n"
        descriptor = os.open(self.trials, os.O_RDWR | os.O_APPEND | os.O_CREAT, 0o644)
        try:
            size = os.fstat(descriptor).st_size
            if size and os.pread(descriptor, 1, size - 1) != b"\n":
                line = b"\n" + line  # a torn last line of a killed writer stays a line of its own
            while line:  # a disk that fills up takes a part of the line first, then refuses the rest
                line = line[os.write(descriptor, line) :]
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def _read_lines(path: Path, problems: list[str]) -> Iterator[dict[str, Any]]:
    for position, line in enumerate(path.read_bytes().split(b"\n"), start=1):
        if not line.strip():
            continue
        try:
            record = json.loads(line)
        except (ValueError, RecursionError):
            record = None
        schema = record.get("schema") if isinstance(record, dict) else None
        if not isinstance(schema, str):
            problems.append(f"line {position} of {path.name} is torn or damaged and was skipped")
        elif schema != SCHEMA:
            reads = f"this feedrate reads {SCHEMA!r}. Install the version that wrote it"
            raise RunError(f"{path} line {position} has schema {schema!r}; {reads}")
        else:
            yield record


def read_object(path: Path) -> dict[str, Any]:
    """The JSON object that a file holds.

    Raises:
        FileNotFoundError, NotADirectoryError: there is no such file.
        RunError: it cannot be read or holds something else.
    """
    try:
        data = path.read_bytes()
    except (FileNotFoundError, NotADirectoryError):
        raise
    except OSError as error:
        raise RunError(f"{path} cannot be read: {error}") from None
    return parse_object(data, str(path))


def parse_object(data: bytes, name: str) -> dict[str, Any]:
    """The JSON object in the content of a file of this name.

    Raises:
        RunError: it holds something else.
    """
    try:
        loaded = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise RunError(f"{name} cannot be read: {error}") from None
    if not isinstance(loaded, dict):
        raise RunError(f"{name} does not contain a JSON object")
    return loaded


def write_atomic(path: Path, content: str | bytes) -> None:
    """Replace a file whole: a crash leaves the old content or the new, never a mixture. Text becomes UTF-8."""
    data = content.encode() if isinstance(content, str) else content
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "wb") as stream:
            stream.write(data)
            stream.flush()
            os.fsync(stream.fileno())
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
    except BaseException:
        os.unlink(temporary)
        raise
