"""Try the best settings of an earlier search early (`--warm-start`), if it had the same workload and the same hardware.

Only settings are taken over, never rates. If the earlier run is out of date, this costs at most one trial per setting.
"""

from __future__ import annotations

import os
from typing import Any

from feedrate.analysis.best import load_best
from feedrate.analysis.load import load_run
from feedrate.analysis.run import Run
from feedrate.analysis.run_folder import RunError, RunFolder
from feedrate.analysis.summary import may_win, ranking
from feedrate.search.best_json import config_of
from feedrate.search.options import UsageError
from feedrate.search.record import SearchRecord
from feedrate.search.space.search_space import SearchSpace
from feedrate.trainables.config import LoaderConfig

MAX_REMEMBERED = 2


def fingerprint(record: SearchRecord) -> dict[str, Any]:
    """Return the facts that must be equal for an earlier run to be useful: the workload, the size of its data, and the machine."""
    workload, hardware = record.workload, record.hardware
    return {
        "workload": workload.name,
        "options of the workload": workload.ref.options,
        "items in an epoch": workload.epoch_samples,
        "GPUs": hardware.gpus,
        "CPU": hardware.cpu_model,
        "number of CPUs": hardware.num_cpus,
        "objective": record.objective,
    }


def check_run(run: str | os.PathLike[str]) -> Run:
    """Read an earlier run.

    Raises:
        UsageError: the folder is no run.
    """
    try:
        return load_run(run)
    except RunError as error:
        raise UsageError(f"--warm-start: {error}") from None


def is_training(run: str | os.PathLike[str]) -> bool:
    """Return whether a folder is that of a training with `feedrate train`, which has no trials."""
    return RunFolder(run).is_training()


def check_source(run: str | os.PathLike[str]) -> None:
    """Refuse a folder that is neither an earlier run nor a training.

    Raises:
        UsageError: the message says what is wrong with it.
    """
    if not is_training(run):
        check_run(run)
        return
    try:
        load_best(run)
    except RunError as error:
        raise UsageError(f"--warm-start: {error}") from None


def _of_training(run: str | os.PathLike[str], record: SearchRecord, space: SearchSpace) -> tuple[list[LoaderConfig], str]:
    """Return the setting that a training found, if this search may try it, and a sentence about it."""
    best = load_best(run)
    theirs = (best.measured_on["cpu_model"], best.measured_on["num_cpus"])
    if theirs != (record.hardware.cpu_model, record.hardware.num_cpus):
        return [], f"--warm-start has no effect: the training in {run} ran on another machine ({theirs[1]} CPUs, {theirs[0]})"
    config = LoaderConfig.from_dict(dict(best))
    if not space.contains(config):
        return [], f"--warm-start has no effect: {config.short()}, the setting that the training in {run} found, is not in the space of this search"
    return [config], f"--warm-start: {config.short()} is tried first: it was the best in the training in {run}"


def remembered(run: str | os.PathLike[str], record: SearchRecord, space: SearchSpace) -> tuple[list[LoaderConfig], str]:
    """Return the best settings of an earlier run that this search may try, the best first, and a sentence about them.

    Args:
        run: the earlier run folder.
        record: of this search.
        space: the settings that may be tried.

    Raises:
        UsageError: the folder is no run.
    """
    if is_training(run):
        return _of_training(run, record, space)
    earlier = check_run(run)
    try:
        theirs, ours = fingerprint(SearchRecord.of(earlier)), fingerprint(record)
    except RunError as error:
        raise UsageError(f"--warm-start: {error}") from None
    other = [name for name, value in ours.items() if theirs[name] != value]
    if other:
        return [], f"--warm-start has no effect: {earlier.path} has different values of {', '.join(other)}"
    ranked = ranking(earlier)
    ranked = ranked[(ranked["status"] == "complete") & may_win(earlier, ranked) & ~ranked["is_baseline"]]
    ranked = ranked.sort_values("throughput_low_sps", ascending=False, kind="stable")
    settings = [config_of(row) for _, row in ranked.iterrows()]
    found = [config for config in settings if space.contains(config)][:MAX_REMEMBERED]
    if not found:
        return [], f"--warm-start has no effect: except your own setting, no setting of {earlier.path} is in the space of this search"
    is_first = "are tried first: they were" if len(found) > 1 else "is tried first: it was"
    return found, f"--warm-start: {' and '.join(config.short() for config in found)} {is_first} the best in {earlier.path}"
