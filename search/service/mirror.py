"""A copy of a run folder at an address (--out s3://...), for drivers whose disk may be lost.

The driver's own folder has priority; changed files are copied within seconds, each as a whole. A crash loses at most the records
of those seconds; the study's database may know of more trials. `resume URL` on another machine downloads the copy and continues; trials
that the database knows and the copy does not are measured again.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Self

import pyarrow
import pyarrow.fs

from feedrate.analysis.remote import filesystem_of, is_url, name_of, read_run, read_url, words
from feedrate.analysis.run_folder import RunError, RunFolder, write_atomic
from feedrate.search.options import SearchOptions, UsageError, without_password
from feedrate.search.record import SearchRecord

FILES = ("search.json", "trials.jsonl", "best.json", "report.html")
PERIOD_S = 2.0


class Mirror:
    """A context in which a thread copies a run folder to an address: `with Mirror(...)`.

    Args:
        folder: the run folder.
        url: the address of the copy.
        say: called with a sentence once if copying fails, and at the end if it still fails.
    """

    def __init__(self, folder: Path, url: str, say: Callable[[str], None]) -> None:
        self.folder, self.url, self.say = folder, url.rstrip("/"), say
        self._copied: dict[str, tuple[int, int]] = {}
        self._over = threading.Event()
        self._failing = False

    def __enter__(self) -> Self:
        self._thread = threading.Thread(target=self._work, name="mirror", daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._over.set()
        self._thread.join()
        self.push()
        if self._failing:
            self.say(f"{self.folder} is complete, but its copy at {self.url} is not")

    def push(self) -> None:
        """Copy the files that have changed since the last call; a failure is reported once, and the next call tries again."""
        try:
            for name in FILES:
                path = self.folder / name
                if not path.exists():
                    continue
                state = path.stat()
                known = (state.st_mtime_ns, state.st_size)
                if self._copied.get(name) != known:
                    write_url(f"{self.url}/{name}", path.read_bytes())
                    self._copied[name] = known
            self._failing = False
        except RunError as error:
            if not self._failing:
                self.say(f"the run could not be copied to {self.url}; feedrate keeps trying: {error}")
            self._failing = True

    def _work(self) -> None:
        while not self._over.wait(PERIOD_S):
            self.push()


def mirrored(folder: Path, url: str | None, say: Callable[[str], None]) -> AbstractContextManager[object]:
    """Return a context that copies a run to an address; it does nothing if `url` is None."""
    return nullcontext() if url is None else Mirror(folder, url, say)


def write_url(url: str, data: bytes) -> None:
    """Replace the file at an address as a whole.

    Raises:
        RunError: the file cannot be written.
    """
    filesystem, place = filesystem_of(url)
    is_local = isinstance(filesystem, pyarrow.fs.LocalFileSystem)
    try:
        if is_local:
            Path(place).parent.mkdir(parents=True, exist_ok=True)
            write_atomic(Path(place), data)
            return
        with filesystem.open_output_stream(place) as stream:  # an object store shows the file only once it is closed properly
            stream.write(data)
    except (OSError, pyarrow.ArrowException, ImportError, ValueError) as error:
        raise RunError(f"{url} cannot be written: {words(error)}") from None


def check_url(url: str, options: SearchOptions, force: bool) -> str:
    """Refuse an address from which a search could not be resumed; return the name of the local run folder.

    Raises:
        UsageError: the study would be lost with this machine, the address contains a password or has another run, or it
            cannot be written.
    """
    if without_password(url) != url:
        raise UsageError("--out contains a password, which would be stored in the run's files: put it into the environment instead (AWS_ACCESS_KEY_ID, ...)")
    if options.storage is None or not options.storage.startswith("postgresql"):
        raise UsageError("an address as --out needs a database that outlives this machine: add --storage postgresql://USER@HOST/DATABASE")
    try:
        if not force and exists(f"{url.rstrip('/')}/search.json"):
            raise UsageError(f"--out {url} already has a run: continue it with feedrate resume {url}, or replace it with --force")
        write_url(f"{url.rstrip('/')}/search.json", b"{}\n")
    except RunError as error:
        raise UsageError(f"--out {url}: {error}") from None
    return name_of(url)


def exists(url: str) -> bool:
    """Return whether an address has a file with more content than the empty object that `check_url` writes.

    Raises:
        RunError: the address cannot be opened.
    """
    try:
        return len(read_url(url)) > len(b"{}\n")
    except FileNotFoundError:
        return False


def bring(run: str | os.PathLike[str]) -> Path:
    """Return the local folder of a run; if the run is at an address and has no folder here, make one from the copy.

    Raises:
        RunError: there is no run at the address, or the local folder has another run.
    """
    if not is_url(run):
        return Path(run)
    url = os.fspath(run).rstrip("/")
    folder = Path("feedrate-runs") / name_of(url)
    if not (folder / "search.json").exists():
        found = read_run(url, FILES)
        folder.mkdir(parents=True, exist_ok=True)
        for name in reversed(FILES):  # search.json comes last, because it makes the folder a run
            if name in found:
                write_atomic(folder / name, found[name])
    elif SearchRecord.read(RunFolder(folder)).mirror != url:
        raise RunError(f"{folder} contains another run, not that of {url}: move the folder, or choose another one")
    return folder
