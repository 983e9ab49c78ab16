"""`resume_search`: continue a search that was interrupted or killed, or extend a finished one."""

from __future__ import annotations

import os
import time
from dataclasses import replace

from rich.console import Console

from feedrate.analysis.run_folder import RunFolder
from feedrate.search.engine.look import left_out_of
from feedrate.search.engine.ray_cluster import JOB, cluster
from feedrate.search.engine.reservation import place
from feedrate.search.options import HIDDEN, UsageError
from feedrate.search.record import ResumedAs, SearchRecord
from feedrate.search.result import SearchResult
from feedrate.search.service.mirror import bring, mirrored
from feedrate.search.setup.prepare import describe_workload, held
from feedrate.search.shipping.shipping import moved
from feedrate.search.shipping.submission import Submission
from feedrate.search.trials import ask_hosts, find_answer, own_folder, resumable, say
from feedrate.search.versions import changed


def resume_search(
    run: str | os.PathLike[str],
    *,
    time_budget_s: float | None = None,
    max_trials: int | None = None,
    storage: str | None = None,
    confirm: bool = False,
    console: Console | None = None,
    quiet: bool = False,
) -> SearchResult:
    """Continue an interrupted search, or extend a finished one.

    The records in `trials.jsonl` have priority: the study first learns what they contain, then trials that were running are
    enqueued again.

    Args:
        run: the run folder, or the address of its copy.
        time_budget_s: wall time from now on; None is the run's own budget again.
        max_trials: total number of settings, including those already tried; if given, settings are tried even if no further gain
            is expected. None is the run's own limit.
        storage: the database URL, needed again if the run used one with a password, which is not stored.
        confirm: measure the best settings and the baseline in rounds, even if the run was started without rounds.
        console: where progress is printed; None is standard error.
        quiet: show no progress.

    Raises:
        RunError: the folder is no run.
        UsageError: the run cannot be continued as requested.
    """
    console = console or Console(stderr=True)
    folder = RunFolder(bring(run))
    record = SearchRecord.read(folder)
    if record.submission is not None and Submission.from_environment() is None:
        raise UsageError(f"{folder.path} is the run folder of a submitted search, which can only be continued on its cluster: {record.submission.way_on}")
    options = record.options
    if storage is not None:
        options = replace(options, storage=storage)
    if options.storage is not None and HIDDEN in options.storage:
        raise UsageError(
            f"the run's database needs its password, which is not stored: pass --storage again ({options.storage}), without the password if PGPASSWORD or ~/.pgpass has it"
        )
    options = replace(
        options,
        time_budget_s=time_budget_s or options.time_budget_s,
        max_trials=max_trials or options.max_trials,
        keep_going=options.keep_going or max_trials is not None,  # the caller asked for this number of settings
        confirm=options.confirm or confirm,
    )
    if (sentence := nothing_left(folder, str(folder.path), max_trials=max_trials, confirm=confirm)) is not None:
        raise UsageError(sentence)
    ref = record.workload.ref
    if JOB in os.environ and ref.cwd is not None:
        ref = moved(ref, ref.cwd, os.getcwd())  # Ray removed the folder of the job that began this search
    described = describe_workload(ref)
    with resumable(folder), held(folder), cluster(options, described.num_gpus, own_folder(ref)) as notes:
        hosts = ask_hosts(options, ref, notes)
        options = replace(options, hardware=options.hardware or (record.placement.hardware if hosts else None))
        placement = replace(place(options, hosts, record.workload.num_ranks), left_out=left_out_of(hosts))
        record = replace(record, options=options, finished=False)
        if (submission := Submission.from_environment()) is not None:
            resumed = ResumedAs(submission_id=submission.submission_id, unix_s=time.time())
            record = replace(record, resumed_as=(*record.resumed_as, resumed))
        record.write(folder)
        with mirrored(folder.path, record.mirror, lambda text: say(console, quiet, text)):
            notes += [*described.notes, *changed(record.versions)]
            return find_answer(folder, record, ref, options, placement, console, quiet, notes)


def nothing_left(folder: RunFolder, name: str, *, max_trials: int | None, confirm: bool) -> str | None:
    """Return in one sentence that a finished search has nothing left to do, and what would extend it; None if it has something to do.

    Args:
        folder: the run folder.
        name: of the search, for the sentence.
        max_trials, confirm: as for `resume_search`.

    Raises:
        RunError: the folder is no run.
    """
    record = SearchRecord.read(folder)
    limit = max_trials or record.options.max_trials
    has_rounds = (record.options.confirm or confirm) and max_trials is None  # without further settings, it has rounds to add
    if not record.finished or has_rounds or limit is None:
        return None
    tried = len({trial["number"] for trial in folder.records()[0] if trial["kind"] != "confirm"})
    if tried < limit:
        return None
    were = "1 setting was" if tried == 1 else f"{tried} settings were"
    return (
        f"{name} is finished: {were} tried, and --max-trials counts these, too. Resume it with --max-trials {tried + 1} or more to try "
        "others, or with --confirm and without --max-trials to measure the best ones again in rounds"
    )
