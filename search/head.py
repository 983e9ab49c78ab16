"""The program that the cluster commands (`submit`, `status`, `logs`, `stop`, `fetch`) run on a cluster's head as Ray Jobs.

It is called as `python -m feedrate.search.head search|resume|pack|log|left|hardware ID ...`, or with `list` alone. If the run folder
of a search exists and was begun by the same command, the search continues there.

The run folder is FOLDER/ID on the head. FOLDER comes from FEEDRATE_RUNS_DIR there, else it is ~/feedrate-runs. The run folder
outlives the job, whose own folder Ray removes.
"""

from __future__ import annotations

import io
import json
import os
import signal
import sys
import tarfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from feedrate.analysis.command_line import extended
from feedrate.analysis.run_folder import RunError, RunFolder
from feedrate.search.service.folder_job import described
from feedrate.search.service.job_log import copied, log_of
from feedrate.search.service.jobs import CLASSES, packed
from feedrate.search.session.job_display import VARIABLE
from feedrate.search.shipping.job_environment import unpacked

PARTS = ("search.json", "trials.jsonl", "best.json", "report.html", "study.journal")
"""Files of a run folder that are sent to the client; Ray Tune's own state stays on the head."""


def parent_here() -> Path:
    """Return the folder that holds the run folders on this head."""
    return Path(os.environ.get("FEEDRATE_RUNS_DIR") or "~/feedrate-runs").expanduser()


def folder_of(submission_id: str) -> Path:
    """Return the run folder of a search on this head."""
    return parent_here() / submission_id


def pack(folder: Path) -> str:
    """Return a run folder, and the run folders inside it (one per hardware class), as lines of a log.

    Raises:
        SystemExit: there is no run folder yet; the message says so.
    """
    found = sorted(path for path in folder.rglob("*") if path.name in PARTS and path.is_file())
    if not found:
        raise SystemExit("there is no run folder: the search has not begun, or failed before it did (feedrate logs shows why)")
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w:gz") as archive:
        for path in found:
            data = path.read_bytes()  # a search may be appending: the size in the archive must be that of the bytes read here
            info = tarfile.TarInfo(str(path.relative_to(folder)))
            info.size, info.mtime = len(data), int(path.stat().st_mtime)
            archive.addfile(info, io.BytesIO(data))
        if log_of(folder).is_file():
            archive.add(log_of(folder), "search.log")
    return packed(stream.getvalue())


def hardware_classes() -> list[str]:
    """Return the hardware classes of the cluster that this job runs on, including those of nodes that it starts on demand."""
    from feedrate.search.engine.look import look
    from feedrate.search.engine.nodes import promised
    from feedrate.search.engine.ray_cluster import cluster
    from feedrate.search.engine.reservation import with_slots
    from feedrate.search.options import SearchOptions

    with cluster(SearchOptions(address="auto"), 0):
        return sorted({host.hardware for host in with_slots(look()[0] + promised())})


def main(argv: Sequence[str]) -> int:
    """Do what the arguments ask for and return the exit code."""
    what, submission_id, *words = [*argv, ""] if len(argv) == 1 else argv
    if what in ("pack", "log", "list", "left"):
        print(_told(what, submission_id, *words), flush=True)
        return 0
    if what == "hardware":
        print(CLASSES + json.dumps(hardware_classes()), flush=True)
        return 0
    from feedrate.search.cli.main import main as command

    # Ray starts jobs with SIGINT blocked, and stops them with SIGTERM, which the command line turns into an interrupt
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
    folder = folder_of(submission_id)
    os.environ[VARIABLE] = submission_id
    os.environ.update(unpacked())
    with copied(folder):
        if what == "resume":
            return max(command(["resume", str(run), *words]) for run in _runs_in(folder))
        words = extended(["search", *words], "--address", "auto", "--out", str(folder))
        return command(["resume", str(folder)] if _began(folder, words) else words)


def _runs_in(folder: Path) -> list[Path]:
    """Return the run folders to continue: the folder itself, or the unfinished (else all) folders in it, one per hardware class."""
    from feedrate.search.record import SearchRecord

    found = [path.parent for path in sorted(folder.glob("*/search.json"))]
    unfinished = [run for run in found if not SearchRecord.read(RunFolder(run)).finished]
    return [folder] if (folder / "search.json").exists() or not found else unfinished or found


def _nothing_left(folder: Path, asked: Mapping[str, Any]) -> str | None:
    """Return `resume.nothing_left` for a search here, with the arguments in `asked`; None also if its folder cannot be read.

    If the search has several hardware classes, it has something left to do as long as one of them has.
    """
    from feedrate.search.resume import nothing_left

    try:
        sentences = [nothing_left(RunFolder(run), **asked) for run in _runs_in(folder)]
    except RunError:
        return None
    return sentences[0] if all(sentences) else None


def _told(what: str, submission_id: str, asked: str = "{}") -> str:
    """Return what the client asked for (`pack`, `list`, `log` or `left`) as lines of a log.

    Raises:
        SystemExit: `pack` found no run folder; the message says so.
    """
    if what == "pack":
        return pack(folder_of(submission_id))
    if what == "list":
        return packed(json.dumps(list(described(parent_here()))).encode())
    if what == "left":
        return packed(json.dumps(_nothing_left(folder_of(submission_id), json.loads(asked))).encode())
    log = log_of(folder_of(submission_id))
    return packed(log.read_bytes() if log.is_file() else b"")


def _began(folder: Path, words: Sequence[str]) -> bool:
    """Return whether the same command began this run folder: the job is then a new attempt after a crash (RayJob's backoffLimit)."""
    from feedrate.search.record import SearchRecord

    try:
        return SearchRecord.read(RunFolder(folder)).argv == tuple(words)
    except RunError:
        return False


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
