"""`run_search` and `resume_search`: a whole search, from a workload's name to a `SearchResult`.

A crash at any moment leaves a run folder whose `trials.jsonl` contains every finished trial. The study may lack the last of them;
it learns them when the search is resumed. No process outlives the driver by more than seconds.
"""

from __future__ import annotations

import os
import shlex
import socket
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

from rich.console import Console

from feedrate.analysis.disqualified import Disqualified
from feedrate.analysis.remote import is_url
from feedrate.analysis.run_folder import RunFolder
from feedrate.search.engine.nodes import Host, left_out_of, look, promised
from feedrate.search.engine.ray_cluster import JOB, cluster
from feedrate.search.engine.reservation import Placement, SeveralClasses, place
from feedrate.search.options import HIDDEN, SearchOptions, UsageError, without_password
from feedrate.search.record import Hardware, ResumedAs, SearchedWorkload, SearchRecord, TrialPlace
from feedrate.search.result import SearchResult, conclude
from feedrate.search.service.mirror import bring, check_url, mirrored
from feedrate.search.session.display import Display
from feedrate.search.session.job_display import make_display
from feedrate.search.session.session import Session
from feedrate.search.setup.duplicates import disqualification, restricted
from feedrate.search.setup.duplicates import remarks as duplicate_remarks
from feedrate.search.setup.prepare import choose_folder, clear, describe_workload, held, resume_command
from feedrate.search.setup.request import (
    baseline_configs,
    baseline_of,
    check_batch_sizes,
    check_step_options,
    epoch_remarks,
    given_dimensions,
    make_workload_ref,
    remarks,
    search_space,
    seed_configs,
    versions,
)
from feedrate.search.setup.script_lines import loader_lines
from feedrate.search.setup.warm_start import check_source, remembered
from feedrate.search.shipping.shipping import moved
from feedrate.search.shipping.submission import Submission, owner_here
from feedrate.search.space.search_space import SearchSpace
from feedrate.search.study.brain import Brain
from feedrate.search.study.reconcile import reconcile
from feedrate.search.study.storage import BrainError, check_address
from feedrate.search.terminal.ending import Interrupted, at_the_latest
from feedrate.search.terminal.machine_output import answer_error
from feedrate.search.versions import changed
from feedrate.trainables.checking.described import Described
from feedrate.trainables.machine.host import cpu_model
from feedrate.trainables.resolve import WorkloadRef


def run_search(
    workload: str | Callable[..., Any] | Sequence[str],
    *,
    options: SearchOptions | None = None,
    space: Mapping[str, Any] | None = None,
    workload_options: Mapping[str, Any] | None = None,
    loader: str | None = None,
    out: str | os.PathLike[str] | None = None,
    force: bool = False,
    console: Console | None = None,
    quiet: bool = False,
    argv: Sequence[str] | None = None,
) -> SearchResult:
    """Search for the best DataLoader settings of a workload by training it.

    Args:
        workload: a bundled name, "package.module:function", "path/to/file.py:function", or the function itself
            (defined at the top level of an importable module); or a training command as a list of words, such as
            ["python", "train.py"].
        options: budget, objective, resources; see `SearchOptions`.
        space: dimension -> Ray Tune domain (`tune.randint(0, 33)`, `tune.choice([32, 64])`), `Range`, `Choice`, or one
            value; a dimension that is not given has its default.
        workload_options: keyword arguments of the workload's function.
        loader: which DataLoader of a training command to measure, by its number or as "file.py:line"; None is the one that
            training reads.
        out: run folder; None takes the next free feedrate-runs/<name>-N. If it is an address (s3://...), the run folder is in
            feedrate-runs, and a copy of it is kept at the address (mirror.py).
        force: replace a run that is already in `out`.
        console: where progress is printed; None is standard error.
        quiet: show no progress.
        argv: the command line, to be recorded in search.json.

    Raises:
        UsageError: the request cannot be met; nothing was written.
        KeyboardInterrupt: the search was interrupted. All measurements are in the run folder; `resume_search` continues the search.
    """
    options = options or SearchOptions()
    console = console or Console(stderr=True)
    ref = make_workload_ref(workload, workload_options, loader)
    mirror = None
    if out is not None and is_url(out):
        mirror = os.fspath(out).rstrip("/")
        out = Path("feedrate-runs") / check_url(mirror, options, force)
    if out is not None:
        choose_folder(out, "", force)  # refuses an unusable folder before the data are made
    _check_sources(options)
    _say(console, quiet, f"feedrate {version('feedrate')}: looking at {ref.target}")
    described = describe_workload(ref)
    check_step_options(options, described)
    _say(console, quiet, *loader_lines(described))
    folder = choose_folder(out, described.name, force)
    disqualified = disqualification(described, options)
    given = restricted(given_dimensions(space or {}), disqualified)
    check_batch_sizes(given, described)
    local_gpus = described.num_gpus
    if options.address is None and (options.gpus_per_trial or 0) > local_gpus:
        raise UsageError(
            f"--gpus-per-trial {options.gpus_per_trial}: this machine has {local_gpus} GPUs. Leave it out, or join a cluster with --address"
        )
    for text in [*remarks(given, options, described), *duplicate_remarks(disqualified, described, options)]:
        _say(console, quiet, f"note: {text}")
    _say(console, quiet, "starting a local Ray" if options.address is None else f"joining the Ray at {options.address}")
    with _resumable(folder), cluster(options, local_gpus, _own_folder(ref)) as notes:
        hosts = _hosts(options, ref, notes)
        try:
            placement = replace(place(options, hosts), left_out=left_out_of(hosts))
        except SeveralClasses as several:
            several.out = folder.path
            raise
        epoch_samples = options.epoch_samples or described.epoch_samples
        space_ = search_space(given, described, placement, epoch_samples)
        for text in epoch_remarks(given, space_):
            _say(console, quiet, f"note: {text}")
        record = _record(folder, ref, options, described, placement, space_, hosts, disqualified, argv or [], mirror)
        if options.warm_start is not None:
            warm, said = remembered(options.warm_start, record, space_)
            record = replace(record, warm_start=tuple(warm))
            _say(console, quiet, f"note: {said}")
        with held(folder):
            clear(folder, force)
            record.write(folder)
            with mirrored(folder.path, mirror, lambda text: _say(console, quiet, text)):
                return _search(folder, record, ref, options, placement, console, quiet, [*notes, *described.notes])


def _check_sources(options: SearchOptions) -> None:
    """Refuse an earlier run or a database that cannot be read, before the data are made."""
    if options.warm_start is not None:
        check_source(options.warm_start)
    if options.storage is not None:
        try:
            check_address(options.storage)
        except BrainError as error:
            raise UsageError(str(error)) from None


def _record(
    folder: RunFolder,
    ref: WorkloadRef,
    options: SearchOptions,
    described: Described,
    placement: Placement,
    space: SearchSpace,
    hosts: Sequence[Host] | None,
    disqualified: Disqualified,
    argv: Sequence[str],
    mirror: str | None,
) -> SearchRecord:
    """Return the content of search.json as it is before the first trial."""
    submission = Submission.from_environment()
    facts, words = described.facts, [without_password(word) for word in argv]
    epoch_samples = options.epoch_samples or described.epoch_samples
    return SearchRecord(
        study=f"{folder.path.name}-{os.urandom(4).hex()}",
        workload=SearchedWorkload(
            ref=ref, name=described.name, unit=described.unit, epoch_samples=epoch_samples, script=described.script
        ),
        objective=options.objective,
        argv=tuple(words),
        command=shlex.join(["feedrate", *words]) if words else "run_search(...)",
        created_unix_s=time.time(),
        owner=owner_here() if submission is None else submission.owner,
        submission=submission,
        mirror=mirror,
        versions=versions(described),
        hardware=Hardware(
            hostname=socket.gethostname(),
            cpu_model=cpu_model(),
            num_cpus=facts.num_cpus,
            gpus=(facts.device_name,) * described.num_gpus,
        ),
        placement=TrialPlace(
            cpus=placement.cpus,
            gpus=placement.gpus,
            where=placement.where,
            hardware=placement.hardware or None,
            trials_per_host=placement.num_shares,
        ),
        hosts=tuple(host.to_json() for host in hosts or []),
        space=space,
        disqualified=disqualified,
        baseline=baseline_of(options, described, space),
        options=options,
    )


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
    tried = len({trial["number"] for trial in folder.records()[0] if trial["kind"] != "confirm"})
    has_rounds = options.confirm and max_trials is None  # a finished search without further settings has rounds to add
    if record.finished and not has_rounds and options.max_trials is not None and tried >= options.max_trials:
        raise UsageError(
            f"{tried} settings were already tried in {folder.path}, and --max-trials counts them too: ask for more than {tried}"
        )
    ref = record.workload.ref
    if JOB in os.environ and ref.cwd is not None:
        ref = moved(ref, ref.cwd, os.getcwd())  # Ray removed the folder of the job that began this search
    described = describe_workload(ref)
    with _resumable(folder), held(folder), cluster(options, described.num_gpus, _own_folder(ref)) as notes:
        hosts = _hosts(options, ref, notes)
        options = replace(options, hardware=options.hardware or (record.placement.hardware if hosts else None))
        placement = replace(place(options, hosts), left_out=left_out_of(hosts))
        record = replace(record, options=options, finished=False)
        if (submission := Submission.from_environment()) is not None:
            resumed = ResumedAs(submission_id=submission.submission_id, unix_s=time.time())
            record = replace(record, resumed_as=(*record.resumed_as, resumed))
        record.write(folder)
        with mirrored(folder.path, record.mirror, lambda text: _say(console, quiet, text)):
            notes += [*described.notes, *changed(record.versions)]
            return _search(folder, record, ref, options, placement, console, quiet, notes)


def _hosts(options: SearchOptions, ref: WorkloadRef, notes: list[str]) -> list[Host] | None:
    """Return the nodes of a joined cluster, after asking each for its hardware and versions; None for a local Ray."""
    if options.address is None:
        return None
    if ref.cwd is not None and ref.folder is not None and not Path(ref.folder).is_relative_to(ref.cwd):
        notes.append(f"{ref.folder} is not sent to the cluster, because it is outside of {ref.cwd}: every node needs it at the same path")
    hosts, problems = look()
    notes += problems
    return hosts + promised()


def _own_folder(ref: WorkloadRef) -> str | None:
    """Return the folder that a cluster needs for this workload; None for a bundled workload."""
    return ref.cwd if ref.folder is not None else None


def _say(console: Console, quiet: bool, *lines: str) -> None:
    for text in lines if not quiet else ():
        console.print(text, markup=False, highlight=False, soft_wrap=True)


@contextmanager
def _resumable(folder: RunFolder) -> Iterator[None]:
    """Replace a KeyboardInterrupt by one whose message says how to continue the run, once there is a run to continue."""
    try:
        with at_the_latest(lambda: _at_last(_interrupted(folder))):
            yield
    except KeyboardInterrupt:
        raise _interrupted(folder) from None


def _interrupted(folder: RunFolder) -> Interrupted:
    if not folder.search.exists():
        return Interrupted("interrupted")
    kept = "what was measured is kept" if folder.trials.exists() else "nothing was measured yet"
    command = resume_command(folder)
    return Interrupted(f"interrupted; {kept}. Carry on with: {command}", run=folder.path.absolute(), resume=command)


def _at_last(interrupted: Interrupted) -> None:
    print(interrupted, file=sys.stderr, flush=True)
    answer_error(str(interrupted), "interrupted", **interrupted.facts)


def _brain(folder: RunFolder, record: SearchRecord, options: SearchOptions) -> Brain:
    """Open the study of this search.

    Raises:
        UsageError: its storage cannot be used.
    """
    try:
        brain = Brain.open(
            options.storage,
            folder.journal,
            study_name=record.study,
            space=record.space,
            seed=options.seed,
            sampler=options.sampler,
        )
    except BrainError as error:
        raise UsageError(str(error)) from None
    brain.disqualified = record.disqualified
    return brain


def _display(
    folder: RunFolder, record: SearchRecord, options: SearchOptions, brain: Brain, console: Console, quiet: bool
) -> Display:
    display = make_display(
        folder.path,
        console,
        time_budget_s=options.time_budget_s,
        max_trials=options.max_trials,
        disqualified=brain.disqualified,
        unit=record.workload.unit,
        quiet=quiet,
    )
    display.names_hosts = options.address is not None
    return display


def _search(
    folder: RunFolder,
    record: SearchRecord,
    ref: WorkloadRef,
    options: SearchOptions,
    placement: Placement,
    console: Console,
    quiet: bool,
    notes: list[str],
) -> SearchResult:
    from feedrate.search.engine.tuner import run_trials
    from feedrate.search.space.domains import to_tune

    space, baseline = record.space, record.baseline
    brain = _brain(folder, record, options)
    records, problems = folder.records()
    again = reconcile(brain, records, options.objective).requeued
    display = _display(folder, record, options, brain, console, quiet)
    display.begin()
    try:
        display.say(placement.where)
        if options.address is not None:  # Ray ends a driver whose head is lost before feedrate can print anything
            display.say(f"if the cluster's head is lost, carry on with: {resume_command(folder)}")
        for note in [*notes, *problems]:
            display.say(f"note: {note}")
        if records:
            anew = f"; measured again, under new numbers: {', '.join(config.short() for config in again)}" if again else ""
            told = brain.counts().told
            display.say(f"carrying on after {told} setting{'s' * (told != 1)}{anew}")
        session = Session(
            brain=brain,
            folder=folder,
            options=options,
            study=record.study,
            baselines=baseline_configs(baseline, space.values("batch_size")),
            seeds=[*(record.warm_start or ()), *seed_configs(baseline, placement, space)],
            epoch_samples=record.workload.epoch_samples,
            display=display,
        )
        session.replay(records)
        try:
            root = _own_folder(ref) if options.address is not None else None
            complete = run_trials(session, placement, ref, options, str(folder.path.absolute()), to_tune(space), root, record.command)
        finally:
            session.abandon()
    finally:
        display.end()
        brain.close()
    if not complete:
        raise KeyboardInterrupt
    if len(session.records) == len(records):
        display.say(f"nothing new was measured: {session.stop_reason}")
    record = SearchRecord.read(folder)  # again, because the session may have extended the space
    replace(record, finished=True, stop_reason=session.stop_reason, unconfirmed_because=session.unconfirmed_because).write(folder)
    result = conclude(folder, session.stop_reason)
    display.answered(result.best)
    return result
