"""A run folder that is kept at an address as well (--out s3://...), for drivers whose disk may be lost.

The folder of the driver stays the truth; what changed in it is copied within seconds, each file whole. A crash loses at most
those seconds of records, which the study's database may know more of; `resume URL` on another machine brings the copy
and carries on, and what the database counts as under way is measured again.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any, Self

import pyarrow
import pyarrow.fs

from feedrate.analysis.remote import filesystem_of, is_url, name_of, read_run, read_url, words
from feedrate.analysis.run_folder import RunError, RunFolder, write_atomic
from feedrate.search.options import SearchOptions, UsageError, without_password

FILES = ("search.json", "trials.jsonl", "best.json", "report.html")
PERIOD_S = 2.0


class Mirror:
    """Copies a run folder while it is used: `with Mirror(...)`.

    Args:
        folder: of the run.
        url: where the copy goes.
        say: told once where copying fails, and at the end if it still does.
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
        """Copy what has changed since the last time; a failure is told once, and tried again the next time."""
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


def mirrored(folder: Path, search: Mapping[str, Any], say: Callable[[str], None]) -> AbstractContextManager[object]:
    """Copy a run while it is used, where it has an address; `search` is its search.json."""
    return Mirror(folder, search["mirror"], say) if search.get("mirror") else nullcontext()


def write_url(url: str, data: bytes) -> None:
    """Replace the file at an address whole.

    Raises:
        RunError: it cannot be written.
    """
    filesystem, place = filesystem_of(url)
    is_local = isinstance(filesystem, pyarrow.fs.LocalFileSystem)
    try:
        if is_local:
            Path(place).parent.mkdir(parents=True, exist_ok=True)
            write_atomic(Path(place), data)
            return
        with filesystem.open_output_stream(place) as stream:  # what is not closed in order is never seen
            stream.write(data)
    except (OSError, pyarrow.ArrowException, ImportError, ValueError) as error:
        raise RunError(f"{url} cannot be written: {words(error)}") from None


def check_url(url: str, options: SearchOptions, force: bool) -> str:
    """Refuse an address that a search cannot be resumed from; gives the name of the folder here.

    Raises:
        UsageError: the study would be lost with this machine, the address holds a password or another run, or it
            cannot be written.
    """
    if without_password(url) != url:
        raise UsageError("--out contains a password, which would be stored in the run's files: put it into the environment instead (AWS_ACCESS_KEY_ID, ...)")
    if options.storage is None or not options.storage.startswith("postgresql"):
        raise UsageError("--out with an address needs a database that outlives this machine: add --storage postgresql://USER@HOST/DATABASE")
    try:
        if not force and exists(f"{url.rstrip('/')}/search.json"):
            raise UsageError(f"--out {url} already has a run: continue it with feedrate resume {url}, or replace it with --force")
        write_url(f"{url.rstrip('/')}/search.json", b"{}\n")
    except RunError as error:
        raise UsageError(f"--out {url}: {error}") from None
    return name_of(url)


def exists(url: str) -> bool:
    """Whether there is a file of some content at an address.

    Raises:
        RunError: the address cannot be opened.
    """
    try:
        return len(read_url(url)) > len(b"{}\n")
    except FileNotFoundError:
        return False


def bring(run: str | os.PathLike[str]) -> Path:
    """The folder of a run here: made from the copy where the run is at an address and no folder of it is here.

    Raises:
        RunError: there is no run at the address.
    """
    if not is_url(run):
        return Path(run)
    url = os.fspath(run).rstrip("/")
    folder = Path("feedrate-runs") / name_of(url)
    if not (folder / "search.json").exists():
        found = read_run(url, FILES)
        folder.mkdir(parents=True, exist_ok=True)
        for name in reversed(FILES):  # search.json last: the folder is a run when it is whole
            if name in found:
                write_atomic(folder / name, found[name])
    elif RunFolder(folder).read_search().get("mirror") != url:
        raise RunError(f"{folder} contains a different run than {url}: move it away")
    return folder
