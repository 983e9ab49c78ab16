"""Combine the user's request with the facts about the workload: its reference, the search space, the baseline.

Nothing here writes files; a request that cannot be met raises a `UsageError`.
"""

from __future__ import annotations

import inspect
import math
import os
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from feedrate.search.engine.reservation import Placement
from feedrate.search.options import ANY_ORDER, OWN_BATCHES, OWN_STEP, SearchOptions, UsageError
from feedrate.search.space.dimension import Choice, Dimension, Range
from feedrate.search.space.search_space import OPT_IN, WITH_WORKERS, SearchSpace, num_batches
from feedrate.search.versions import recorded
from feedrate.trainables.checking.described import Described
from feedrate.trainables.config import LoaderConfig
from feedrate.trainables.resolve import UnknownWorkload, WorkloadRef, make_command_ref, make_ref

SHORT_FORM_BATCH_SIZES = (32, 64, 128)
_RENDEZVOUS = re.compile(r"--(standalone|nnodes|node[-_]rank|rdzv[-_]|master[-_])")
"""Options by which torchrun is told where its ranks run and meet."""


def make_workload_ref(
    workload: str | Callable[..., Any] | Sequence[str], options: Mapping[str, Any] | None, loader: str | None = None
) -> WorkloadRef:
    """Return a reference by which another process can import the workload, or start the training command.

    Raises:
        UsageError: there is no workload with that name, or the function is not at the top level of a file.
    """
    if not isinstance(workload, str) and isinstance(workload, Sequence):
        try:
            return make_command_ref(workload, loader=loader)
        except UnknownWorkload as error:
            raise UsageError(str(error)) from None
    if callable(workload):
        path = inspect.getsourcefile(workload)
        if path is None or not os.path.isfile(path):
            raise UsageError(
                f"the workload's function {workload.__name__!r} is defined in a notebook cell or at a prompt, and every trial imports it in another "
                f"process: write the cell into a file (%%writefile mine.py) and name it, as in 'mine.py:{workload.__name__}'. To tune a loader "
                "that exists here, iterate `feedrate.trainables.live(loader)` in the training loop instead"
            )
        if workload.__qualname__ != workload.__name__:
            raise UsageError(
                "the workload's function must be defined at the top level of a file, so that another process can import it"
            )
        workload = f"{Path(path).resolve()}:{workload.__name__}"
    try:
        return make_ref(workload, options)
    except UnknownWorkload as error:
        raise UsageError(str(error)) from None


def given_dimensions(space: Mapping[str, Any]) -> dict[str, Dimension]:
    """Return the requested dimensions as `Range` or `Choice`, translated if they are Ray Tune domains or single values.

    Raises:
        UsageError: a name is not the name of a dimension, or a Tune domain has no exact equivalent.
    """
    from feedrate.search.space.domains import from_tune

    given: dict[str, Dimension] = {name: value for name, value in space.items() if isinstance(value, Range | Choice)}
    domains = {name: value for name, value in space.items() if name not in given}
    try:
        translated = from_tune(domains, num_cpus=1, has_accelerator=True) if domains else None
    except ValueError as error:
        raise UsageError(str(error)) from None
    return given | {name: getattr(translated, name) for name in domains}


def search_space(
    given: Mapping[str, Dimension], described: Described, placement: Placement, epoch_samples: int | None = None
) -> SearchSpace:
    """Return the search space; if no batch sizes were requested, the workload's own loader decides them.

    Args:
        given: the requested dimensions.
        described: facts about the workload (prepare.describe_workload).
        placement: the resources that a trial may use.
        epoch_samples: items in the user's epoch; None if it is not known.

    Raises:
        UsageError: the space cannot be searched.
    """
    given = dict(given)
    own = described.own
    for name in ("multiprocessing_context", "in_order"):
        # if the user's loader has a value other than the default, keep it, because there may be a reason, and record it
        if name not in given and getattr(own, name) != LoaderConfig.__dataclass_fields__[name].default:
            given[name] = Choice((getattr(own, name),))
    if described.has_own_batches:
        given["batch_size"] = Choice((None,))
    elif "batch_size" not in given:
        given["batch_size"] = Choice((own.batch_size,) if described.baseline else SHORT_FORM_BATCH_SIZES)
    try:
        space = SearchSpace.default(
            num_cpus=placement.cpus, has_accelerator=placement.gpus > 0, given=given, epoch_samples=epoch_samples, num_ranks=described.num_ranks, num_hosts=placement.num_hosts
        )
    except ValueError as error:
        raise UsageError(str(error)) from None
    kept = max((count for count in space.values("trainer_cpus") if count is not None), default=0)
    if kept >= placement.cpus:
        raise UsageError(
            f"--trainer-cpus {kept} leaves no CPU for the workers: a trial has only {placement.cpus} here. "
            + (f"Ask for {placement.cpus - 1} at most" if placement.cpus > 1 else "Leave it out")
        )
    return space


def baseline_of(options: SearchOptions, described: Described, space: SearchSpace) -> LoaderConfig:
    """Return the baseline: the setting of --baseline, else that of the user's own loader, else torch's default."""
    config = options.baseline or described.own
    if not space.has_accelerator:
        config = config.without_accelerator()
    sizes = space.values("batch_size")
    return config if config.batch_size in sizes else replace(config, batch_size=sizes[0])


def seed_configs(baseline: LoaderConfig, placement: Placement, space: SearchSpace, num_ranks: int = 1) -> list[LoaderConfig]:
    """Return the rules of thumb that are in the space; a dimension whose default is not in the space takes a value from it.

    Every second one has the largest batch size, because the effect of workers differs between batch sizes, and rates mostly rise with
    the batch size.
    """
    seeds = []
    sizes = [size for size in space.values("batch_size") if size is not None]
    for index, config in enumerate(rules_of_thumb(baseline.batch_size, max(placement.cpus // num_ranks, 1), placement.gpus > 0)):
        if index % 2 and sizes and config.num_workers <= space.most_workers(max(sizes)):
            config = replace(config, batch_size=max(sizes))
        names = (*OPT_IN, "persistent_workers")
        asked = {name: space.values(name)[0] for name in names if getattr(config, name) not in space.values(name)}
        config = space.fold(replace(config, **asked))
        if space.contains(config):
            seeds.append(config)
    return seeds


def epoch_remarks(given: Mapping[str, Dimension], space: SearchSpace) -> list[str]:
    """Return one sentence for each dimension that is searched only in part, because an epoch has too few batches for the rest."""
    said = []
    sizes = [size for size in space.values("batch_size") if size is not None]
    batches = {size: num_batches(space.epoch_samples, size) or math.inf for size in sizes}
    told = " and ".join(f"{number} batches of {size}" for size, number in batches.items())
    epoch = f"your epoch of {space.epoch_samples} items has {told}"
    workers = space.values("num_workers")
    if "num_workers" in given and any(max(workers) > number for number in batches.values()):
        said.append(f"--num-workers: {epoch}; settings with more workers than batches are not tried, because the extra workers would be idle")
    choices = space.values("prefetch_factor")
    if "prefetch_factor" in given and any(choices[:-1] and choices[-2] * max(workers) >= number for number in batches.values()):
        said.append(f"--prefetch-factor: {epoch}; settings that would prefetch more than one epoch are tried only once, with the smallest value that has the same effect")
    return said


def baseline_configs(baseline: LoaderConfig, batch_sizes: Sequence[int | None]) -> list[LoaderConfig]:
    """Return the baseline at every batch size, its own size first, because speed-ups compare settings with equal batch sizes."""
    ordered = sorted(batch_sizes, key=lambda size: size != baseline.batch_size)
    return [replace(baseline, batch_size=size) for size in ordered]


def rules_of_thumb(batch_size: int | None, num_cpus: int, accelerator: bool) -> list[LoaderConfig]:
    """Return common settings that people use without measuring: 0, 2, 8 and 16 workers, and one worker per CPU."""
    workers = dict.fromkeys([0, num_cpus, 8, 2, 16])
    return [
        LoaderConfig(num_workers=number, batch_size=batch_size, pin_memory=accelerator, persistent_workers=number > 0)
        for number in workers
    ]


def check_step_options(options: SearchOptions, described: Described) -> None:
    """Refuse options that only the training step of the short form supports.

    Raises:
        UsageError: one of them is given, and the workload has its own step.
    """
    if not described.is_short and (options.amp or options.compile):
        raise UsageError(f"--{'amp' if options.amp else 'compile'} {OWN_STEP}")


def check_hosts(options: SearchOptions, ref: WorkloadRef) -> None:
    """Refuse a training that cannot be started on several hosts.

    Raises:
        UsageError: several hosts are asked for, and the workload is no training command, or torchrun is told in it where its ranks run.
    """
    if options.hosts_per_trial == 1:
        return
    if ref.command is None:
        raise UsageError(
            f"--hosts-per-trial {options.hosts_per_trial} is for trainings that torchrun starts: add --ranks N (ranks on each host), or name your command, "
            "as in -- torchrun --nproc-per-node 4 train.py"
        )
    told = [word for word in _torchruns_words(ref.command) if _RENDEZVOUS.match(word)]
    if told:
        raise UsageError(f"--hosts-per-trial sets on which hosts torchrun's ranks run, and where they meet: leave {' and '.join(told)} out of the command")


def _torchruns_words(command: Sequence[str]) -> list[str]:
    """Return the options of torchrun in a command: the words between it and the script, whose own options have any name."""
    names = [os.path.basename(word) for word in command]
    launchers = [number for number, name in enumerate(names) if name in ("torchrun", "torch.distributed.run")]
    if not launchers:
        return []
    rest = list(command[launchers[0] + 1 :])
    ends = [number for number, word in enumerate(rest) if word.endswith(".py") or word in ("-m", "--module")]
    return rest[: ends[0]] if ends else rest


def check_batch_sizes(given: Mapping[str, Dimension], described: Described) -> None:
    """Refuse batch sizes if the workload's loader has none.

    Raises:
        UsageError: batch sizes are given, but the workload's sampler or dataset makes the batches.
    """
    asked = given["batch_size"].values if "batch_size" in given else (None,)
    if described.has_own_batches and asked != (None,):
        raise UsageError(f"--batch-size {','.join(map(str, asked))}: {OWN_BATCHES}")


def remarks(given: Mapping[str, Dimension], options: SearchOptions, described: Described) -> list[str]:
    """Return one sentence for each request that has no effect here, or a larger effect than it seems."""
    said = []
    pin = given.get("pin_memory")
    if pin is not None and True in pin.values and options.address is None and not described.num_gpus:
        said.append("--pin-memory has no effect: there is no accelerator here, so torch ignores it")
    workers = given.get("num_workers")
    if workers is not None and workers.values == (0,):
        said += [f"{_flag(name)} has no effect with 0 workers" for name in WITH_WORKERS if name in given]
    elif "in_order" in given and False in given["in_order"].values:
        said.append(ANY_ORDER)
    return said


def _flag(name: str) -> str:
    return "--" + name.replace("_", "-")


def versions(described: Described) -> dict[str, str]:
    """Return the versions for the record of a run: those of installed packages, and those that the workload's process reported."""
    return recorded() | dict(described.facts.versions)
