"""Facts about a submitted search from the Jobs API, as an object for programs and in words."""

from __future__ import annotations

import signal
import time
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from feedrate.search.service.folder_job import LOST, RESUMED, FolderJob

if TYPE_CHECKING:
    from feedrate.search.service.jobs import Jobs

FAILED = 1
STOPPED = 128 + signal.SIGTERM
MEANING = {0: "done", 1: "the search failed", 2: "wrong usage", 128 + signal.SIGINT: "interrupted"}
"""Exit code of a search -> its meaning; a code above 128 is 128 plus the number of a signal. docs/json.md has the table."""


def summary(job: Any) -> dict[str, Any]:
    """Return the facts about one search on a cluster that do not need its log."""
    ended_s = job.end_time / 1e3 if job.end_time else time.time() if not job.status.is_terminal() else None
    return {
        "id": job.submission_id,
        "status": str(job.status.value),
        "search_exit_code": exit_code(job),
        "owner": job.metadata.get("owner") or None,
        "workload": job.metadata.get("workload"),
        "command": job.metadata.get("command"),
        "feedrate": job.metadata.get("feedrate"),
        "started_unix_s": job.start_time / 1e3 if job.start_time else None,
        "took_s": ended_s - job.start_time / 1e3 if job.start_time and ended_s else None,
    }


def status_facts(jobs: Jobs, submission_id: str) -> dict[str, Any]:
    """Return all known facts about one search.

    Args:
        jobs: the jobs of the cluster.
        submission_id: id of the search.

    Returns:
        `summary`, and: how and with which sentence the search ended, the searches that continued it, its progress with the run folder
        on the head and the best setting so far (by hardware class if there are several), the last lines of its log, and the command
        that continues it if Ray has forgotten it.
    """
    from feedrate.search.session.job_display import split_log  # it imports pandas, which --help does not need

    job = jobs.job(submission_id)
    log, told = split_log(jobs.raw_log(submission_id))
    alone = told.get(None)
    lines = [line for line in log.splitlines() if line.strip()]
    over = job.status.is_terminal()
    message = lines[-1] if lines else (job.message or "").strip().rpartition("\n")[2] or None
    return summary(job) | {
        "ended_by": ended_by(job) if over else None,
        "message": message if over and exit_code(job) != 0 else None,
        "carried_on_by": [{"id": other.submission_id, "status": str(other.status.value)} for other in jobs.continued(job)],
        "progress": alone,
        "by_hardware": {name: facts for name, facts in told.items() if name is not None},
        "last_lines": lines[-8:],
        "resume": _way_on(jobs, job),
    }


def in_words(progress: Mapping[str, Any]) -> str:
    """Return the progress of a search as one sentence."""
    done = sum(progress[name] for name in ("num_complete", "num_pruned", "num_failed"))
    of = f" of {progress['max_trials']}" if progress["max_trials"] is not None else ""
    failed = f", {progress['num_failed']} failed" if progress["num_failed"] else ""
    rounds = f", round {progress['round']}" if progress["round"] else ""
    settings = "setting" if done == 1 and not of else "settings"
    text = f"{done}{of} {settings} tried{failed}{rounds}, {progress['elapsed_s']:.0f} s of at most {progress['time_budget_s']:.0f} s"
    best = progress["best"]
    if best is None:
        return f"{text}; no rate was measured so far"
    which = "answer" if best.get("is_answer") else "best so far"
    return f"{text}; {which} {best['config']} with {best['samples_per_second']:,.0f} {progress['unit']}/s"


def began(jobs: Jobs, job: Any) -> bool:
    """Return whether a search has made its run folder: only then can it be continued."""
    from feedrate.search.session.job_display import split_log

    return isinstance(job, FolderJob) or bool(split_log(jobs.raw_log(job.submission_id))[1])


def _way_on(jobs: Jobs, job: Any) -> str | None:
    """Return the command that continues an unfinished search that Ray has forgotten; None for other searches."""
    if not isinstance(job, FolderJob) or job.message != LOST:
        return None
    names = job.submission.env if job.submission is not None else ()
    return jobs.command("resume", job.submission_id, *(word for name in names for word in ("--env", name)))


def exit_code(job: Any) -> int | None:
    """Return the exit code that the search would have had in a shell; None while it runs, and if its end was lost with the head."""
    if not job.status.is_terminal() or job.message in (LOST, RESUMED):
        return None
    code = job.driver_exit_code
    if code is not None:
        return int(code) if code >= 0 else 128 - int(code)
    return {"SUCCEEDED": 0, "STOPPED": STOPPED}.get(str(job.status.value), FAILED)


def ended_by(job: Any) -> str:
    """Return in words what ended the search: its exit code, a signal, or a lost head."""
    code = exit_code(job)
    if job.message in (LOST, RESUMED):
        return str(job.message)
    if job.status.value == "STOPPED":
        return "stopped on request"
    if code is None or (code == FAILED and job.driver_exit_code is None):
        return "Ray could not run it"
    if code in MEANING:
        return f"exit code {code}: {MEANING[code]}"
    try:
        name = signal.Signals(code - 128).name
    except ValueError:
        return f"exit code {code}"
    return f"signal {name}" + (": the kernel sends it when memory runs out" if name == "SIGKILL" else "")
