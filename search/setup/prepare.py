"""What happens before a search: the workload is described in a clean child, the run folder is claimed.

Nothing is written until `held` is entered; whatever is wrong with the request is said before that.
"""

from __future__ import annotations

import fcntl
import os
import shlex
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from feedrate.analysis.run_folder import RunFolder
from feedrate.search.engine.ray_cluster import JOB
from feedrate.search.options import UsageError, refusal
from feedrate.search.shipping.submission import Submission
from feedrate.search.terminal.paste import pasted
from feedrate.search.versions import untested
from feedrate.trainables.resolve import WorkloadRef
from feedrate.trainables.sandbox.template import Template

DEFAULT_PARENT = Path("feedrate-runs")


def describe_workload(ref: WorkloadRef) -> dict[str, Any]:
    """Facts about the workload (trainables/sandbox/child_main.py: describe), its data made or checked.

    Raises:
        UsageError: the workload is none, or what it was given is wrong.
        WorkloadFailed: its code failed; a traceback in the message is the user's own.
    """
    template = Template(ref, show_output=True)
    try:
        for event in template.run({"op": "describe"}):
            if event["event"] == "described":
                return event | {"notes": [*untested(), *event["notes"]]}
            if event["event"] == "silent":
                print(f"still making the workload, for {event['silent_s']:.0f} s", file=sys.stderr, flush=True)
            if event["event"] == "failure":
                raise refusal(event)
        raise UsageError("the workload could not be described")
    finally:
        template.close()


def choose_folder(out: str | os.PathLike[str] | None, name: str, force: bool) -> RunFolder:
    """The run folder, checked but not made: exactly `out`, else the next free feedrate-runs/<name>-N.

    Raises:
        UsageError: it exists (without force), or cannot be made.
    """
    if out is None:
        safe = "".join(letter if letter.isalnum() or letter in "-_." else "-" for letter in name).strip(".-") or "run"
        number = 1
        while (DEFAULT_PARENT / f"{safe}-{number}").exists():
            number += 1
        folder = RunFolder(DEFAULT_PARENT / f"{safe}-{number}")
    else:
        folder = RunFolder(out)
        if folder.path.exists() and not folder.path.is_dir():
            raise UsageError(f"--out {out} is a file: name a folder")
        if folder.path.exists() and any(folder.path.iterdir()) and not force:
            raise UsageError(
                f"--out {out} exists and is not empty: name another folder, or replace the run in it with --force"
            )
    parent = folder.path
    while not parent.exists():
        parent = parent.parent
    if not parent.is_dir() or not os.access(parent, os.W_OK | os.X_OK):
        raise UsageError(f"--out {folder.path} cannot be written: {parent} is not a folder that you may write to")
    return folder


@contextmanager
def held(folder: RunFolder) -> Iterator[None]:
    """Make the folder if it is not there, and let one driver at a time use it, as long as its process lives.

    Raises:
        UsageError: another process is searching into this folder, or the file system refuses.
    """
    try:
        folder.path.mkdir(parents=True, exist_ok=True)
        stream = folder.lock.open("w")
    except OSError as error:
        raise UsageError(f"--out {folder.path} cannot be written: {error.strerror}") from None
    with stream:
        try:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UsageError(f"{folder.path} is in use: another feedrate is searching into it. Stop it first") from None
        yield


def clear(folder: RunFolder, force: bool) -> None:
    """Remove an earlier run (--force); files of other kinds stay.

    Raises:
        UsageError: there is a run that came after `choose_folder` looked, and no force; or the file system refuses.
    """
    if folder.search.exists() and not force:
        raise UsageError(f"another search has started in {folder.path} meanwhile: start this one again")
    try:
        for file in folder.files():
            if file != folder.lock:  # which is held
                file.unlink(missing_ok=True)
        for tune in folder.tune_folders():
            shutil.rmtree(tune)
    except OSError as error:
        raise UsageError(f"--out {folder.path} cannot be replaced: {error.strerror}") from None


def resume_command(folder: RunFolder) -> str:
    """Return the command that carries a search on; of a submitted one, whose folder is on the head, from where it was submitted."""
    submission = Submission.from_environment()
    if submission is not None:
        return submission.way_on
    if JOB in os.environ:  # of somebody else's making, who knows the address
        return f"{shlex.join(['feedrate', 'resume', folder.path.name])} --address URL"
    words = ("resume", str(folder.path))
    return pasted(*words) if folder.read_search().get("options", {}).get("address") is not None else shlex.join(["feedrate", *words])
