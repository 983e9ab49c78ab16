"""`FreshLoader`: runs functions on a workload's loader in processes that have made the loader and done nothing else with it."""

from __future__ import annotations

import contextlib
import pickle
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from multiprocessing.connection import Connection
from typing import Self, TypeVar

from feedrate.trainables.config import LoaderConfig
from feedrate.trainables.failure import Failure, TrialFailed, classify
from feedrate.trainables.isolation.isolated import IsolatedProcess, OutOfTime, isolated, outcome_of
from feedrate.trainables.isolation.leaving import EXIT_S
from feedrate.trainables.probing.probe import Parts
from feedrate.trainables.probing.survey import Made, Make, Survey
from feedrate.trainables.resolve import UnknownWorkload
from feedrate.trainables.workload import WorkloadError, WorkloadRaised

T = TypeVar("T")

MAKING_LIMIT_S = 280.0
"""Longest time to make a workload: less than the supervisor waits, because the supervisor does not know where it hangs."""
ANSWER_S = 5.0
"""Time for finding out where a process hangs."""


class CannotBeMade(TrialFailed):
    """One process made the loader, but after it ended, a second process could not make it again."""


class FreshLoader:
    """A workload's loader with one setting; every `look` at it begins with the loader as it was made.

    A first process makes workload and loader. If that leaves neither threads nor open files behind, each look is a fork of
    this process, because making them can take a long time. Otherwise the process ends, and every look makes workload and loader
    anew in a process of its own, one after the other.

    Args:
        make: makes the workload.
        config: the loader's setting; None is the user's own.
        first: the survey of the user's own loader, if `config` is another setting.

    Raises:
        WorkloadError: there is no loader or no data, or the workload's function raised an exception.
        CannotBeMade: it raised one only now, after an earlier process made the workload.
        TrialFailed: the workload or loader cannot be made; the failure says why.
    """

    def __init__(self, make: Make, config: LoaderConfig | None = None, first: Survey | None = None) -> None:
        self._is_first = first is None
        self._make = partial(Made.now, make, config, None if first is None else first.has_generator)
        process = IsolatedProcess(self._serve)
        self._process: IsolatedProcess | None = process
        try:
            made: Survey | Failure = process.receive(MAKING_LIMIT_S)
        except WorkloadRaised as error:
            self.close()
            if self._is_first:
                raise
            raise CannotBeMade(made_before(error)) from None
        except BaseException:
            self.close()
            raise
        if isinstance(made, Failure):
            self.close()
            if made.kind == "hang":
                made = replace(made, phase="setup", message=f"the workload was not made: {made.message}")
            raise TrialFailed(made)
        self.survey = made
        if not made.left.is_nothing:
            self.close()

    def look(self, work: Callable[[Parts], T], limit_s: float) -> T | Failure:
        """Run `work` in a process in which the loader was just made; return its result, or a failure if it raises, dies or hangs.

        Args:
            work: a function at a module's top level, or a `functools.partial` of one; its result must be picklable.
            limit_s: longest time for `work`; making the loader again does not count.

        Raises:
            OutOfTime: the work was slow.
            CannotBeMade: the loader cannot be made again.
        """
        if self._process is None:
            found = isolated(lambda: work(self._again()), limit_s + 2 * self.survey.made_s)
            if isinstance(found, Failure) and found.phase == "setup":
                raise CannotBeMade(found)
            return found
        with contextlib.suppress(OSError):  # raised if the process has died, which `receive` reports
            self._process.channel.send_bytes(pickle.dumps((work, limit_s)))
        received: T | Failure = self._process.receive(limit_s + 2 * EXIT_S + ANSWER_S)
        return received

    @property
    def making_s(self) -> float:
        """Time that each look takes to make the loader; 0 if one process made it for all looks."""
        return 0.0 if self._process is not None else self.survey.made_s

    def close(self) -> None:
        """End the process that made the loader; if `look` is called again, each call makes the loader anew in a process of its own."""
        if self._process is not None:
            self._process.end()
        self._process = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *raised: object) -> None:
        self.close()

    def _serve(self, channel: Connection) -> None:
        """Make the loader, send its survey, and run each requested look in a fork."""
        made: Made | None = None

        def survey() -> Survey:
            nonlocal made
            made = self._make(checks=self._is_first)
            return made.survey()

        channel.send_bytes(outcome_of(survey, WorkloadError, UnknownWorkload))
        while made is not None and made.left.is_nothing:
            try:
                work, limit_s = pickle.loads(channel.recv_bytes())
            except EOFError:
                return
            look = partial(isolated, partial(work, made.parts), limit_s)
            channel.send_bytes(outcome_of(look, OutOfTime))

    def _again(self) -> Parts:
        """Make the loader again, in another process.

        Raises:
            TrialFailed: that fails, although the first process could make it.
        """
        try:
            return self._make().parts
        except Exception as error:
            raise TrialFailed(made_before(error)) from error


def made_before(error: BaseException) -> Failure:
    """Return the failure of a loader that one process made, but that a second one, after the first had ended, could not make."""
    failure = classify(error, "setup")
    why, trace = failure.message, failure.traceback
    if isinstance(error, WorkloadRaised):  # its text is a line and the user's own traceback
        trace = str(error).partition("\n")[2]
        why = trace.strip().rpartition("\n")[2] or why
    message = (
        f"a process made the loader and ended, and then a second process could not make it again: {why}. Something that "
        "the first process made is in the way, such as a block of shared memory, a file or a port with a fixed name. Remove it "
        "when the process ends (atexit), or give it a name that no other process uses"
    )
    return replace(failure, message=message, traceback=trace)


def check_again(make: Make) -> None:
    """Find out whether the user's own loader can be made again, after making it with another setting failed.

    Raises:
        CannotBeMade: it cannot, so the other setting is not to blame.
    """
    try:
        FreshLoader(make).close()
    except (TrialFailed, WorkloadError) as error:
        raise CannotBeMade(made_before(error)) from None
