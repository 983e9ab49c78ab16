"""The run folder: the path of each file of a search, and how it is written. Standard library only.

Each trial appends one fsynced line to `trials.jsonl`. So a crash leaves whole lines and at most one torn last line, which
readers skip and report. Every other file is replaced atomically: after a crash it is either the old file or the new one.
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
    """A run folder cannot be used; the message gives the reason and the way out."""


class RunFolder:
    """The paths of one run. Making the object does not touch the file system."""

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        self.search = self.path / "search.json"
        self.trials = self.path / "trials.jsonl"
        self.journal = self.path / "study.journal"
        self.best = self.path / "best.json"
        self.report = self.path / "report.html"
        self.tune = self.path / "tune"
        self.script_log = self.path / "script.log"
        self.lock = self.path / "search.lock"
        self.training = self.path / "train.json"
        self.live = self.path / "live.jsonl"

    def files(self) -> list[Path]:
        """Return the files that a search writes, if they exist; search.json and the lock come last."""
        own = [self.trials, self.best, self.report, self.script_log, *sorted(self.path.glob("study.journal*")), self.search, self.lock]
        return [path for path in own if path.is_file() and not path.is_symlink()]

    def tune_folders(self) -> list[Path]:
        """Return the folders with Ray Tune's own state, which nobody needs after the search."""
        return [path for path in (self.tune, *sorted(self.path.glob("tune-*"))) if path.is_dir() and not path.is_symlink()]

    def read_search(self) -> dict[str, Any]:
        """Return the content of `search.json`: the options of the search, the workload and the machine.

        Raises:
            RunError: the folder is no run, or the file is unreadable. Name a folder that `feedrate search` wrote.
        """
        try:
            return read_object(self.search)
        except (FileNotFoundError, NotADirectoryError):
            way_out = "Name a folder that feedrate search wrote"
            if self.is_training():
                raise RunError(f"{self.path} is the folder of a training, not of a search. To see it, run: feedrate report {self.path}") from None
            what = "is not a run folder: it has no search.json" if self.path.exists() else "does not exist"
            raise RunError(f"{self.path} {what}. {way_out}") from None

    def is_training(self) -> bool:
        """Return whether `feedrate train` or `live(loader)` wrote this folder, and no search did."""
        return not self.search.exists() and (self.training.is_file() or self.live.is_file())

    def records(self) -> tuple[list[dict[str, Any]], list[str]]:
        """Return every record of `trials.jsonl` in order of writing, and one sentence for each line that was skipped.

        Raises:
            RunError: a record has a schema that this version of feedrate does not know, or the file cannot be read.
        """
        problems: list[str] = []
        try:
            return list(_read_lines(self.trials, problems)), problems
        except FileNotFoundError:
            return [], problems
        except OSError as error:
            raise RunError(f"{self.trials} cannot be read: {error}") from None

    def write_search(self, search: Mapping[str, Any]) -> None:
        """Replace search.json atomically."""
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
                line = b"\n" + line  # so that the torn last line of a killed writer stays a separate line
            while line:  # a full disk first accepts a part of the line, then refuses the rest
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
    """Return the JSON object in a file.

    Raises:
        FileNotFoundError, NotADirectoryError: there is no such file.
        RunError: it cannot be read, or contains something else.
    """
    try:
        data = path.read_bytes()
    except (FileNotFoundError, NotADirectoryError):
        raise
    except OSError as error:
        raise RunError(f"{path} cannot be read: {error}") from None
    return parse_object(data, str(path))


def parse_object(data: bytes, name: str) -> dict[str, Any]:
    """Return the JSON object in `data`, the content of a file called `name`.

    Raises:
        RunError: it contains something else.
    """
    try:
        loaded = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise RunError(f"{name} cannot be read: {error}") from None
    if not isinstance(loaded, dict):
        raise RunError(f"{name} does not contain a JSON object")
    return loaded


def write_atomic(path: Path, content: str | bytes) -> None:
    """Replace a file atomically: after a crash it has the old content or the new, never a mixture. Text becomes UTF-8."""
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
