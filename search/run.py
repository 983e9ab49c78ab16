"""`run_search`: a whole search, from a workload's name to a `SearchResult`. `search/trials.py` says what a crash leaves behind."""

from __future__ import annotations

import os
import shlex
import socket
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

from rich.console import Console

from feedrate.analysis.disqualified import Disqualified
from feedrate.analysis.remote import is_url
from feedrate.analysis.run_folder import RunFolder
from feedrate.search.engine.look import left_out_of
from feedrate.search.engine.nodes import Host
from feedrate.search.engine.ray_cluster import cluster
from feedrate.search.engine.reservation import Placement, SeveralClasses, place
from feedrate.search.options import SearchOptions, UsageError, without_password
from feedrate.search.record import Hardware, SearchedWorkload, SearchRecord, TrialPlace
from feedrate.search.result import SearchResult
from feedrate.search.service.mirror import check_url, mirrored
from feedrate.search.setup.duplicates import disqualification, restricted
from feedrate.search.setup.duplicates import remarks as duplicate_remarks
from feedrate.search.setup.prepare import choose_folder, clear, describe_workload, held
from feedrate.search.setup.request import (
    baseline_of,
    check_batch_sizes,
    check_hosts,
    check_step_options,
    epoch_remarks,
    given_dimensions,
    make_workload_ref,
    remarks,
    search_space,
    versions,
)
from feedrate.search.setup.script_lines import loader_lines
from feedrate.search.setup.warm_start import check_source, remembered
from feedrate.search.shipping.submission import Submission, owner_here
from feedrate.search.space.search_space import SearchSpace
from feedrate.search.study.storage import BrainError, check_address
from feedrate.search.trials import ask_hosts, find_answer, own_folder, resumable, say
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
    _check(options, ref)
    say(console, quiet, f"feedrate {version('feedrate')}: looking at {ref.target}")
    described = describe_workload(ref)
    check_step_options(options, described)
    say(console, quiet, *loader_lines(described))
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
        say(console, quiet, f"note: {text}")
    say(console, quiet, "starting a local Ray" if options.address is None else f"joining the Ray cluster at {options.address}")
    with resumable(folder), cluster(options, local_gpus, own_folder(ref)) as notes:
        hosts = ask_hosts(options, ref, notes)
        try:
            placement = replace(place(options, hosts, described.num_ranks), left_out=left_out_of(hosts))
        except SeveralClasses as several:
            several.out = folder.path
            raise
        epoch_samples = options.epoch_samples or described.epoch_samples
        space_ = search_space(given, described, placement, epoch_samples)
        for text in epoch_remarks(given, space_):
            say(console, quiet, f"note: {text}")
        record = _record(folder, ref, options, described, placement, space_, hosts, disqualified, argv or [], mirror)
        if options.warm_start is not None:
            warm, said = remembered(options.warm_start, record, space_)
            record = replace(record, warm_start=tuple(warm))
            say(console, quiet, f"note: {said}")
        with held(folder):
            clear(folder, force)
            record.write(folder)
            with mirrored(folder.path, mirror, lambda text: say(console, quiet, text)):
                return find_answer(folder, record, ref, options, placement, console, quiet, [*notes, *described.notes])



def _check(options: SearchOptions, ref: WorkloadRef) -> None:
    """Refuse what cannot be started on several hosts, and an earlier run or a database that cannot be read, before the data are made."""
    check_hosts(options, ref)
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
