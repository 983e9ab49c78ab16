"""Free disk space: remove finished or old runs, or only Ray Tune's state in them, and nothing else.

A folder is a run if it has a search.json. Links are never followed, a run that is in use is not touched, and in a run
folder only files that a search or a report writes are removed.
"""

from __future__ import annotations

import contextlib
import fcntl
import fnmatch
import os
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from feedrate.analysis.export import FORMATS
from feedrate.analysis.run_folder import RunError, RunFolder
from feedrate.search.record import OtherSchema, SearchRecord

TUNE, WHOLE = "Ray Tune's state", "the run"


@dataclass(frozen=True, kw_only=True, slots=True)
class Policy:
    """What to remove, and of which runs."""

    whole: bool = False
    """Remove the whole run; otherwise only Ray Tune's state, which takes most of the space and is never read again."""
    older_than_s: float | None = None
    """Consider only runs that were last written to longer ago than this, including unfinished ones. None: finished runs of any age."""
    keep: Sequence[str] = ()
    """Patterns for names or paths of runs that are kept."""


@dataclass(frozen=True, slots=True)
class Removal:
    """What is removed of one run, and how much space it takes."""

    path: str
    what: str
    num_bytes: int


@dataclass(frozen=True, slots=True)
class Kept:
    """A run of which nothing is removed."""

    path: str
    why: str


def prune(folders: Sequence[Path], policy: Policy, *, now_unix_s: float, remove: bool) -> tuple[list[Removal], list[Kept]]:
    """Find what the policy removes, and remove it.

    Args:
        folders: run folders.
        policy: what to remove, and of which runs.
        now_unix_s: the current time in seconds since 1970.
        remove: remove it; False only lists it.

    Returns:
        What was or would be removed, and the reason why each other run is kept.
    """
    removed, kept = [], []
    for path in folders:
        folder = RunFolder(path)
        with _unused(folder) as is_unused:
            why = _why_kept(folder, policy, now_unix_s) if is_unused else "in use by a search"
            paths = [*folder.tune_folders(), *(_files(folder) if policy.whole else [])]
            if why is None and not paths:
                why = "there is nothing to remove"
            if why is not None:
                kept.append(Kept(str(path), why))
                continue
            removed.append(Removal(str(path), WHOLE if policy.whole else TUNE, sum(map(num_bytes, paths))))
            if remove:
                _remove(folder, paths, policy.whole)
    return removed, kept


def num_bytes(path: Path) -> int:
    """Return the disk space of a file or folder in bytes; a link counts as itself, not as its target."""
    total = path.lstat().st_blocks * 512
    if path.is_dir() and not path.is_symlink():
        for parent, _, names in os.walk(path):
            for name in names:
                with contextlib.suppress(OSError):
                    total += Path(parent, name).lstat().st_blocks * 512
    return total


def _why_kept(folder: RunFolder, policy: Policy, now_unix_s: float) -> str | None:
    """Return why `runs --prune` must not remove anything of this run; None if it may."""
    if any(path.is_symlink() for path in (folder.path, folder.search, folder.lock)):
        return "a link"
    if any(fnmatch.fnmatch(name, pattern) for pattern in policy.keep for name in (folder.path.name, str(folder.path))):
        return "named by --keep"
    try:
        record = SearchRecord.read(folder)
    except OtherSchema as error:
        return f"search.json has schema {error.schema!r}"
    except RunError as error:
        return str(error)
    if policy.older_than_s is None:
        return None if record.finished else "not finished: --older-than TIME includes unfinished runs"
    written_s = max(path.lstat().st_mtime for path in folder.files())
    return None if now_unix_s - written_s > policy.older_than_s else "written to since"


def _files(folder: RunFolder) -> list[Path]:
    """Return the files of searches and reports in a run folder, including those of interrupted writes; search.json and lock come last."""
    names = (*FORMATS.values(), ".*.json.*", ".report.html.*", ".trials.*", ".report.md.*")
    more = [path for name in names for path in sorted(folder.path.glob(name))]
    return [path for path in more if path.is_file() and not path.is_symlink()] + folder.files()


def _remove(folder: RunFolder, paths: Sequence[Path], whole: bool) -> None:
    for path in paths:
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink()
    if whole:
        with contextlib.suppress(OSError):  # if somebody else put files there, they stay, and so does the folder
            folder.path.rmdir()


@contextmanager
def _unused(folder: RunFolder) -> Iterator[bool]:
    """Hold the run's lock, as a search does; yield False if another process holds it."""
    try:
        descriptor = os.open(folder.lock, os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC)
    except OSError:  # there is no lock file, or it is a link, which _why_kept refuses
        yield True
        return
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        yield False
    else:
        yield True
    finally:
        os.close(descriptor)
