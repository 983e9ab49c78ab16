"""What a new search and a resumed one share: from a run folder with search.json, through its trials, to a `SearchResult`.

A crash at any moment leaves a run folder whose `trials.jsonl` contains every finished trial, and after the first minute a best.json that is not final. The study may lack the last of them;
it learns them when the search is resumed. No process outlives the driver by more than seconds.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from rich.console import Console

from feedrate.analysis.run_folder import RunFolder
from feedrate.search.engine.look import look
from feedrate.search.engine.nodes import Host, promised
from feedrate.search.engine.reservation import Placement
from feedrate.search.interim_answer import InterimAnswer
from feedrate.search.options import SearchOptions, UsageError
from feedrate.search.record import SearchRecord
from feedrate.search.result import SearchResult, conclude
from feedrate.search.session.display import Display
from feedrate.search.session.job_display import make_display
from feedrate.search.session.session import Session
from feedrate.search.setup.prepare import resume_command
from feedrate.search.setup.request import baseline_configs, seed_configs
from feedrate.search.study.brain import Brain
from feedrate.search.study.reconcile import reconcile
from feedrate.search.study.storage import BrainError
from feedrate.search.terminal.ending import Interrupted, at_the_latest
from feedrate.search.terminal.machine_output import answer_error
from feedrate.trainables.resolve import WorkloadRef


def find_answer(
    folder: RunFolder,
    record: SearchRecord,
    ref: WorkloadRef,
    options: SearchOptions,
    placement: Placement,
    console: Console,
    quiet: bool,
    notes: list[str],
) -> SearchResult:
    """Try settings until the search is over, then write and return its answer. The folder has search.json, and is held by this process.

    Args:
        folder: the run folder; measurements in it count.
        record: the content of its search.json.
        ref: what is trained.
        options: those of `record`, with passwords.
        placement: where a trial runs, and with what.
        console: where progress is printed.
        quiet: show no progress.
        notes: sentences to print before the first trial.

    Raises:
        UsageError: the study's storage cannot be used.
        KeyboardInterrupt: the search was interrupted.
    """
    from feedrate.search.engine.tuner import run_trials
    from feedrate.search.space.domains import to_tune

    space, baseline = record.space, record.baseline
    brain = _brain(folder, record, options)
    records, problems = folder.records()
    again = reconcile(brain, records, options.objective).requeued
    display = _display(folder, record, options, brain, console, quiet)
    so_far = InterimAnswer(folder, display.note_once)
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
            seeds=[*(record.warm_start or ()), *seed_configs(baseline, placement, space, record.workload.num_ranks)],
            epoch_samples=record.workload.epoch_samples,
            display=display,
            on_measured=so_far.update,
        )
        session.replay(records)
        try:
            root = own_folder(ref) if options.address is not None else None
            complete = run_trials(session, placement, ref, options, str(folder.path.absolute()), to_tune(space), root, record.command)
        finally:
            session.abandon()
    finally:
        display.end()
        brain.close()
    if not complete:
        so_far.update(at_last=True)
        raise KeyboardInterrupt
    if len(session.records) == len(records):
        display.say(f"nothing new was measured: {session.stop_reason}")
    record = SearchRecord.read(folder)  # again, because the session may have extended the space
    replace(record, finished=True, stop_reason=session.stop_reason, unconfirmed_because=session.unconfirmed_because).write(folder)
    result = conclude(folder, session.stop_reason)
    display.answered(result.best)
    return result



def ask_hosts(options: SearchOptions, ref: WorkloadRef, notes: list[str]) -> list[Host] | None:
    """Return the nodes of a joined cluster, after asking each for its hardware and versions; None for a local Ray."""
    if options.address is None:
        return None
    if ref.cwd is not None and ref.folder is not None and not Path(ref.folder).is_relative_to(ref.cwd):
        notes.append(f"{ref.folder} is not sent to the cluster, because it is outside of {ref.cwd}: every node needs it at the same path")
    hosts, problems = look()
    notes += problems
    return hosts + promised()



def own_folder(ref: WorkloadRef) -> str | None:
    """Return the folder that a cluster needs for this workload; None for a bundled workload."""
    return ref.cwd if ref.folder is not None else None



def say(console: Console, quiet: bool, *lines: str) -> None:
    """Print lines as they are, unless `quiet`."""
    for text in lines if not quiet else ():
        console.print(text, markup=False, highlight=False, soft_wrap=True)



@contextmanager
def resumable(folder: RunFolder) -> Iterator[None]:
    """A context that replaces a KeyboardInterrupt by one whose message says how to continue the run, once there is a run to continue."""
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
