"""Prepare a search: describe the workload in a clean child process, and claim the run folder.

Nothing is written until `held` is entered; errors in the request are reported before that.
"""

from __future__ import annotations

import fcntl
import os
import shlex
import shutil
import sys
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import replace
from pathlib import Path

from feedrate.analysis.run_folder import RunFolder
from feedrate.search.engine.ray_cluster import JOB
from feedrate.search.options import UsageError, refusal
from feedrate.search.setup.script_lines import loader_remarks
from feedrate.search.shipping.submission import Submission
from feedrate.search.terminal.paste import pasted
from feedrate.search.versions import untested
from feedrate.trainables.checking.described import Described
from feedrate.trainables.protocol import DescribeRequest, Failed, News, Silent, outcome
from feedrate.trainables.resolve import WorkloadRef
from feedrate.trainables.sandbox.template import Template

DEFAULT_PARENT = Path("feedrate-runs")


def describe_workload(ref: WorkloadRef, template: Template | None = None) -> Described:
    """Return facts about the workload, after making or checking its data.

    Args:
        ref: the workload.
        template: its template process, which stays open; None makes one and closes it.

    Raises:
        UsageError: the target is no workload, or its options are wrong.
        WorkloadFailed: the workload's code failed; a traceback in the message is that of the user's code.
    """
    if template is None:
        with closing(Template(ref, show_output=ref.command is None)) as own:
            return describe_workload(ref, own)
    end = outcome(template.run(DescribeRequest()), Described, _say_silence)
    if isinstance(end, Failed):
        raise refusal(end)
    return replace(end, notes=(*untested(), *end.notes, *loader_remarks(end)))


def _say_silence(news: News) -> None:
    if isinstance(news, Silent):
        print(f"still making the workload, for {news.silent_s:.0f} s", file=sys.stderr, flush=True)


def choose_folder(out: str | os.PathLike[str] | None, name: str, force: bool) -> RunFolder:
    """Return the run folder, checked but not made: exactly `out`, or the next free feedrate-runs/<name>-N if `out` is None.

    Raises:
        UsageError: the folder exists (without force), or cannot be made.
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
    """Make the folder if necessary, and hold its lock, so that only one driver at a time uses it; the lock ends with the process.

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
        UsageError: another run has appeared since `choose_folder` checked, and `force` is false; or the file system refuses.
    """
    if folder.search.exists() and not force:
        raise UsageError(f"another search has started in {folder.path} meanwhile: start this one again")
    try:
        for file in folder.files():
            if file != folder.lock:  # this process holds the lock
                file.unlink(missing_ok=True)
        for tune in folder.tune_folders():
            shutil.rmtree(tune)
    except OSError as error:
        raise UsageError(f"--out {folder.path} cannot be replaced: {error.strerror}") from None


def resume_command(folder: RunFolder) -> str:
    """Return the command that continues a search; for a submitted one, whose folder is on the head, the command to run at the client."""
    submission = Submission.from_environment()
    if submission is not None:
        return submission.way_on
    if JOB in os.environ:  # the user made this Ray Job without `feedrate submit`, so only the user knows the address
        return f"{shlex.join(['feedrate', 'resume', folder.path.name])} --address URL"
    from feedrate.search.record import SearchRecord  # it imports pandas, which `feedrate measure` does not need

    words = ("resume", str(folder.path))
    return pasted(*words) if SearchRecord.read(folder).options.address is not None else shlex.join(["feedrate", *words])
