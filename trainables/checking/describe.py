"""`describe`: facts about a workload, without training it: its baseline, its size, and the result of a quick check of its data."""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Callable
from typing import NoReturn

from feedrate.trainables.checking.described import Described
from feedrate.trainables.checking.disqualify import quick_look
from feedrate.trainables.checking.quick_look import QuickLook
from feedrate.trainables.config import LoaderConfig
from feedrate.trainables.failure import Failure, TrialFailed
from feedrate.trainables.isolation.isolated import Died
from feedrate.trainables.machine.host_facts import HostFacts
from feedrate.trainables.probing.fresh_loader import CannotBeMade, FreshLoader, check_again
from feedrate.trainables.probing.survey import Make, Survey
from feedrate.trainables.workload import WorkloadError, WorkloadRaised


def describe(make: Make, of_host: Callable[[], tuple[HostFacts, int]]) -> Described:
    """Return what a workload is, without training it.

    The workload is made in separate processes, once in each. If such a process ends by itself, this process ends in the same way.

    Args:
        make: makes the workload.
        of_host: returns the facts about this host and its number of accelerators. It is called last, because asking for accelerators
            may start them, and a process that has done so cannot be forked.

    Raises:
        WorkloadError: the workload cannot be made, or make_loader does not pass its arguments on.
        TrialFailed: making the workload hangs.
    """
    try:
        survey, quick = _looked_at(make)
    except CannotBeMade as error:
        raise WorkloadRaised(str(error)) from None
    return _described(survey, quick, *of_host())


def _looked_at(make: Make) -> tuple[Survey, QuickLook]:
    try:
        with FreshLoader(make) as loader:
            if loader.survey.is_short:
                return loader.survey, quick_look(loader)
    except CannotBeMade:
        raise
    except TrialFailed as error:
        _cannot_be_built(error.failure)
    return loader.survey, _general_look(make, loader.survey)


def _general_look(make: Make, survey: Survey) -> QuickLook:
    """Check the data with more workers than the user has, which also shows whether make_loader passes its arguments on.

    Raises:
        WorkloadError: make_loader does not pass them on.
        CannotBeMade: a second process cannot make the loader.
    """
    own = survey.setting
    other = LoaderConfig(num_workers=max(own.num_workers + 1, 2), batch_size=own.batch_size)
    try:
        with FreshLoader(make, other, survey) as loader:
            return quick_look(loader)
    except CannotBeMade:
        raise
    except TrialFailed as error:
        failure = error.failure
    if failure.kind == "override-ignored":
        raise WorkloadError(failure.message)
    check_again(make)
    if failure.message.startswith("TypeError"):
        raise WorkloadError(
            f"make_loader of workload {survey.name!r} must take DataLoader's arguments, as in "
            f"`def make_loader(**overrides)`, and pass them on: {failure.message.partition(': ')[2]}"
        )
    _cannot_be_built(failure, survey.name)


def _cannot_be_built(failure: Failure, name: str | None = None) -> NoReturn:
    if isinstance(failure, Died):
        _end_alike(failure.exit_code)
    if failure.kind == "hang":
        raise TrialFailed(failure)
    whose = "the workload's loader" if name is None else f"the loader of workload {name!r}"
    raise WorkloadRaised(f"{whose} cannot be built:\n{failure.traceback or failure.message}".rstrip())


def _end_alike(exit_code: int) -> NoReturn:
    """End this process in the way in which another one ended, so that the supervisor reports that."""
    if exit_code < 0:
        with contextlib.suppress(OSError):  # raised for SIGKILL, which cannot have a handler
            signal.signal(-exit_code, signal.SIG_DFL)
        os.kill(os.getpid(), -exit_code)
    os._exit(exit_code)


def _described(survey: Survey, quick: QuickLook, facts: HostFacts, num_gpus: int) -> Described:
    notes = [*survey.notes, *quick.notes]
    if quick.reason:
        notes.append(f"with 2 workers or more, {quick.reason}; `feedrate check` shows the fix")
    if quick.epochs_reason:
        notes.append(f"with persistent_workers={not quick.persistent_workers}, {quick.epochs_reason}; `feedrate check` shows the fix")
    return Described(
        name=survey.name,
        unit=survey.unit,
        is_short=survey.is_short,
        iterable=survey.is_iterable,
        epoch_samples=survey.epoch_samples if survey.unit == "samples" else None,
        baseline=None if survey.is_short else survey.setting,
        fixed=tuple(survey.fixed),
        notes=tuple(notes),
        data=quick,
        facts=facts,
        num_gpus=num_gpus,
    )
