"""Decide for each file in a user's folder whether it is sent to a cluster, and if not, why.

The files of a project are sent. Not sent are files whose names suggest secrets (secret_names.py), large files, links to folders,
files that no run needs, and files that .gitignore, .rayignore and .feedrateignore name. .feedrateignore overrides all other rules:
a name in it is not sent, and a name after `!` is sent even if feedrate's own rules or .gitignore exclude it.
"""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from pathspec import GitIgnoreSpec

from feedrate.search.options import UsageError
from feedrate.search.shipping.secret_names import secrets

MAX_FILE_BYTES = 10 * 2**20
MAX_FILES = 20_000
CLUTTER = frozenset({
    ".git", ".hg", ".svn", ".venv", "venv", "node_modules", "__pycache__", ".mypy_cache", ".pytest_cache", ".ruff_cache",
    ".ipynb_checkpoints", "feedrate-runs",
})  # fmt: skip
_BACKUP = re.compile(r"(~|[._-](bak|backup|copy|old|orig|save|saved|swp|tmp))+$")
"""What editors and people add to the name of a file to keep its earlier content."""
OWN_IGNORE_FILE = ".feedrateignore"
IGNORE_FILES = (OWN_IGNORE_FILE, ".gitignore", ".rayignore")
SECRET = "may hold a secret"
TOO_LARGE = f"over {MAX_FILE_BYTES // 2**20} MiB"
LINK = "link to a folder"
NOT_NEEDED = "no run needs it"
NO_FILE = "neither a file nor a folder"
NAMED = "named in "


@dataclass(frozen=True, slots=True)
class SentFile:
    """One file that is sent."""

    path: str
    """Path relative to the folder."""
    num_bytes: int


@dataclass(frozen=True, slots=True)
class LeftOut:
    """One file or folder that is not sent."""

    path: str
    """Path relative to the folder; the path of a folder ends with a slash."""
    why: str
    num_bytes: int | None
    """Size of a file; None for folders, whose content is not counted."""


@dataclass(frozen=True, slots=True)
class FolderContents:
    """The content of a folder, divided into what is sent and what is left out."""

    folder: Path
    sent: tuple[SentFile, ...]
    left_out: tuple[LeftOut, ...]
    folders: tuple[str, ...]
    """Relative paths of the folders that are sent, including empty ones."""

    @property
    def num_bytes(self) -> int:
        """Size of the sent files before packing."""
        return sum(file.num_bytes for file in self.sent)

    def missed(self) -> list[LeftOut]:
        """Return the files and folders that are not sent although the user may need them: all but caches, .git and what an ignore file names."""
        return [entry for entry in self.left_out if entry.why != NOT_NEEDED and not entry.why.startswith(NAMED)]

    def copy(self, to: Path) -> None:
        """Make a folder with exactly the files that are sent."""
        to.mkdir()
        for name in self.folders:
            (to / name).mkdir(parents=True, exist_ok=True)
        for file in self.sent:
            shutil.copy(self.folder / file.path, to / file.path)


class _Rules:
    """The ignore files that apply to a folder, including those of its parents; the deepest one that names a path decides."""

    def __init__(self, above: tuple[tuple[str, str, GitIgnoreSpec], ...], folder: Path, relative: str) -> None:
        found = []
        for name in IGNORE_FILES:
            path = folder / name
            if path.is_file():
                lines = path.read_text(errors="replace").splitlines()
                found.append((relative, name, GitIgnoreSpec.from_lines(lines)))
        self.known = (*found, *above)

    def verdict(self, path: str, *names: str) -> tuple[bool, str] | None:
        """Return whether a path is left out, and the ignore file that decides it; None if none of these files names the path."""
        for base, name, spec in self.known:
            if name in names and (include := spec.check_file(path[len(base) :]).include) is not None:
                return include, base + name
        return None


def contents(folder: str | os.PathLike[str]) -> FolderContents:
    """Decide for every file in a folder whether it is sent.

    Raises:
        UsageError: the folder has more than MAX_FILES files, so it is probably not a project.
    """
    root = Path(folder)
    sent: list[SentFile] = []
    left_out: list[LeftOut] = []
    folders: list[str] = []
    num_files = 0
    pending = [("", _Rules((), root, ""))]
    while pending:
        relative, rules = pending.pop()
        for entry in _entries(root / relative):
            path = relative + entry.name
            is_folder = entry.is_dir()
            num_bytes = None if is_folder else _size(entry)
            why = _why_not(Path(entry.path), path, is_folder, num_bytes, rules)
            if why is not None:
                left_out.append(LeftOut(path + "/" * is_folder, why, num_bytes))
            elif is_folder:
                folders.append(path)
                pending.append((f"{path}/", _Rules(rules.known, root / path, f"{path}/")))
            else:
                sent.append(SentFile(path, num_bytes or 0))
            num_files += not is_folder
            if num_files > MAX_FILES:
                raise UsageError(
                    f"{folder} would be sent to the cluster, but it has more than {MAX_FILES:,} files: start feedrate in your project's folder"
                )
    return FolderContents(
        root,
        tuple(sorted(sent, key=lambda file: file.path)),
        tuple(sorted(left_out, key=lambda entry: entry.path)),
        tuple(sorted(folders)),
    )


def _why_not(path: Path, relative: str, is_folder: bool, num_bytes: int | None, rules: _Rules) -> str | None:
    """Return why a file or folder is not sent; None if it is sent."""
    if is_folder and path.is_symlink():
        return LINK  # it may lead to the data
    if num_bytes is None and not is_folder:
        return NO_FILE
    compared = relative + "/" * is_folder
    own = rules.verdict(compared, OWN_IGNORE_FILE)
    if own is not None:
        return NAMED + own[1] if own[0] else None
    if path.name in CLUTTER or path.name in IGNORE_FILES:  # Ray would obey a sent ignore file, and send less than is listed
        return NOT_NEEDED
    if _is_secret(compared) or (path.is_symlink() and _is_secret(os.path.realpath(path))):
        return SECRET
    others = rules.verdict(compared, *IGNORE_FILES)
    if others is not None and others[0]:
        return NAMED + others[1]
    return TOO_LARGE if num_bytes is not None and num_bytes > MAX_FILE_BYTES else None


def _is_secret(path: str) -> bool:
    """Return whether a path, or the path whose backup it is (`.netrc~`, `key.pem.bak`), is named as secrets are."""
    return any(secrets().match_file(each) for each in {path.lower(), _BACKUP.sub("", path.lower())})


def _entries(folder: Path) -> Iterator[os.DirEntry[str]]:
    try:
        with os.scandir(folder) as entries:
            yield from sorted(entries, key=lambda entry: entry.name)
    except PermissionError:
        return


def _size(entry: os.DirEntry[str]) -> int | None:
    """Return the size of a file; None for anything that is not a file."""
    try:
        return entry.stat().st_size if entry.is_file() else None
    except OSError:
        return None
