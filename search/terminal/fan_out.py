"""Run one search per hardware class of a cluster at the same time: rates of different classes cannot be compared, so each has its answer.

Every search is a separate `feedrate search --hardware NAME`, with its own run folder inside the requested one. Each can be resumed
on its own.
"""

from __future__ import annotations

import contextlib
import json
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import IO, Any, TextIO

from feedrate.analysis.command_line import extended
from feedrate.search.terminal.arguments import without
from feedrate.search.terminal.ending import Interrupted, asked, at_the_latest


def one_each(names: Sequence[str], argv: Sequence[str], out: Path, objects: dict[str, Any] | None = None) -> int:
    """Search on each class, and return the highest exit code; a search that was killed counts as 1.

    Args:
        names: names of the classes.
        argv: the command line, beginning with `search`.
        out: the folder that will contain one run folder per class.
        objects: with --json, a dictionary that receives the object of each search by class; None prints what the searches print.

    Raises:
        KeyboardInterrupt: the searches were interrupted; each has kept its measurements.
    """
    _print(f"{len(names)} kinds of machines: a search on each, in {out}/", sys.stderr)
    common = without(argv, "--out")
    searches, readers = [], []
    for name in names:
        command = [sys.executable, "-m", "feedrate.search.cli.main", *extended(common, "--hardware", name, "--out", str(out / name))]
        # in a session of its own, the search gets Ctrl-C only once, from this process
        process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
        )
        searches.append(process)
        for stream, to in ((process.stdout, sys.stdout), (process.stderr, sys.stderr)):
            collect = objects is not None and stream is process.stdout
            how = (_collect, (stream, objects, name)) if collect else (_forward, (stream, to, name))
            reader = threading.Thread(target=how[0], args=how[1], daemon=True)
            reader.start()
            readers.append(reader)
    interrupted = False
    with at_the_latest(lambda: _end_all(searches)):
        while any(process.poll() is None for process in searches):
            try:
                for process in searches:
                    process.wait()
            except KeyboardInterrupt:
                interrupted = True
                for process in searches:
                    if process.poll() is None:
                        process.send_signal(asked() or signal.SIGINT)
    for reader in readers:
        reader.join()
    if interrupted:
        folders = ", ".join(str(out / name) for name in names)
        raise Interrupted(f"interrupted; carry each on with feedrate resume: {folders}", run=out.absolute())
    return max(process.returncode if process.returncode >= 0 else 1 for process in searches)


def _end_all(searches: Sequence[subprocess.Popen[str]]) -> None:
    """Wait 2 s for the searches (child processes, which got the same signal) to end by themselves, then kill them."""
    deadline = time.monotonic() + 2
    for process in searches:
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(max(deadline - time.monotonic(), 0))
        process.kill()


def _forward(stream: IO[str] | None, to: TextIO, name: str) -> None:
    assert stream is not None
    with stream:
        for line in stream:
            _print(f"[{name}] {line.rstrip()}", to)


def _collect(stream: IO[str], objects: dict[str, Any], name: str) -> None:
    with stream, contextlib.suppress(ValueError):  # a search that was killed has printed nothing
        objects[name] = json.load(stream)


def _print(text: str, to: TextIO) -> None:
    print(text, file=to, flush=True)
