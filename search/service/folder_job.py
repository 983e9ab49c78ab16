"""`FolderJob`: a submitted search that Ray has forgotten, because the head was restarted, reconstructed from its run folder on the head.

It has those fields of Ray's JobDetails that the cluster commands read.
"""

from __future__ import annotations

import fcntl
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from feedrate.analysis.run_folder import RunError, RunFolder
from feedrate.search.shipping.submission import Submission

if TYPE_CHECKING:
    from ray.job_submission import JobStatus

    from feedrate.search.record import SearchRecord

LOST = "unfinished, and Ray no longer knows it: the cluster's head was lost or restarted since"
RESUMED = "continued by a later job"


@dataclass(frozen=True, kw_only=True, slots=True)
class FolderJob:
    """A submitted search, described by its run folder."""

    submission_id: str
    status: JobStatus
    metadata: dict[str, str]
    start_time: int | None
    """Milliseconds since 1970, as in Ray's JobDetails."""
    end_time: int | None
    message: str
    submission: Submission | None
    carried_on_by: tuple[str, ...] = ()
    """Ids of the later jobs that continued the search, the oldest first."""
    driver_exit_code: int | None = None
    runtime_env: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def jobs_of(cls, facts: Mapping[str, Any]) -> list[FolderJob]:
        """Return the job that began the search and those that continued it, the oldest first, for what `described` yielded on the head.

        How a job that was continued had ended is not known; it is given as stopped.
        """
        from ray.job_submission import JobStatus

        began = cls.from_json(facts)
        names = [began.submission_id, *(each["submission_id"] for each in facts.get("resumed_as", ()))]
        starts = [began.start_time, *(int(each["unix_s"] * 1e3) for each in facts.get("resumed_as", ()))]
        jobs = []
        for index, (name, start) in enumerate(zip(names, starts, strict=True)):
            job = replace(began, submission_id=name, start_time=start, carried_on_by=tuple(names[index + 1 :]))
            if job.carried_on_by:
                job = replace(job, status=JobStatus.STOPPED, message=RESUMED, end_time=None, driver_exit_code=None)
            jobs.append(job)
        return jobs

    @classmethod
    def from_json(cls, facts: Mapping[str, Any]) -> FolderJob:
        """Return the job that began a search, in the state of its run folder, for the facts that `described` yielded on the head."""
        from ray.job_submission import JobStatus

        submission = Submission.from_json(facts["submission"]) if facts.get("submission") else None
        metadata = {
            "kind": "search",
            "run": facts["id"],
            "workload": submission.workload if submission else facts["workload"],
            "command": submission.command if submission else facts["command"],
            "owner": facts.get("owner") or "",
            "feedrate": facts.get("feedrate") or "",
        }
        status = JobStatus.RUNNING if facts["running"] else JobStatus.SUCCEEDED if facts["finished"] else JobStatus.FAILED
        return cls(
            submission_id=facts["id"],
            status=status,
            metadata=metadata,
            start_time=int(facts["created_unix_s"] * 1e3),
            end_time=int(facts["written_unix_s"] * 1e3) if status == JobStatus.SUCCEEDED else None,
            message="" if status != JobStatus.FAILED else LOST,
            submission=submission,
            driver_exit_code=0 if status == JobStatus.SUCCEEDED else None,
            runtime_env={"pip": list(submission.pip)} if submission and submission.pip else {},
        )


def described(parent: Path) -> Iterator[dict[str, Any]]:
    """Yield the facts of each search whose run folder is in `parent`, a folder on the head; unreadable run folders are skipped."""
    from feedrate.search.record import SearchRecord  # it imports pandas, which the client does not need

    for folder in sorted(path for path in parent.glob("*") if path.is_dir()):
        found = next(iter(sorted(folder.glob("search.json")) or sorted(folder.glob("*/search.json"))), None)
        try:
            if found is not None:
                yield _facts(folder, SearchRecord.read(RunFolder(found.parent)))
        except (OSError, RunError):
            continue


def _facts(folder: Path, record: SearchRecord) -> dict[str, Any]:
    files = [path for path in folder.rglob("*") if path.name in ("search.json", "trials.jsonl", "best.json")]
    return {
        "id": folder.name,
        "workload": record.workload.ref.target,
        "command": record.command,
        "owner": record.owner,
        "feedrate": record.versions.get("feedrate"),
        "submission": None if record.submission is None else record.submission.to_json(),
        "resumed_as": [each.to_json() for each in record.resumed_as],
        "created_unix_s": record.created_unix_s,
        "written_unix_s": max(path.stat().st_mtime for path in files),
        "finished": record.finished,
        "running": any(_is_held(path.parent) for path in files if path.name == "search.json"),
    }


def _is_held(folder: Path) -> bool:
    """Return whether a driver is searching into this folder, that is, holds its lock (prepare.held)."""
    try:
        with RunFolder(folder).lock.open() as stream:
            fcntl.flock(stream, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        return False
    return False
