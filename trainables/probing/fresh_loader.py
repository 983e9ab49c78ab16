"""`FreshLoader`: a workload's loader as a process has it that made it and did nothing else with it."""

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
from feedrate.trainables.probing.survey import Make, Survey, make_parts
from feedrate.trainables.resolve import UnknownWorkload
from feedrate.trainables.workload import WorkloadError

T = TypeVar("T")

MAKING_LIMIT_S = 280.0
"""Longest time to make a workload: less than what the supervisor waits for it, which does not know where it hangs."""
ANSWER_S = 5.0
"""Time to find out where a look hangs."""


class CannotBeMade(TrialFailed):
    """A process made the loader, and a second one, after the first had ended, could not make it again."""


class FreshLoader:
    """A workload's loader with one setting, for looks that each begin with it as it was made.

    A first process makes workload and loader. Where that leaves neither threads nor open files behind, the looks are
    forked from it, because making can take long. Where it does, the process ends, and every look makes both for itself,
    one after the other, as the user's own program does.

    Args:
        make: makes the workload.
        config: the loader's setting; None is the user's own.
        first: the survey of the user's own loader, where `config` is another one.

    Raises:
        WorkloadError: there is no loader or no data.
        TrialFailed: it cannot be made; the failure says why.
    """

    def __init__(self, make: Make, config: LoaderConfig | None = None, first: Survey | None = None) -> None:
        self._is_first = first is None
        self._make = partial(make_parts, make, config, None if first is None else first.has_generator)
        process = IsolatedProcess(self._serve)
        self._process: IsolatedProcess | None = process
        try:
            made: Survey | Failure = process.receive(MAKING_LIMIT_S)
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
        """Return what `work` returns in a process in which the loader was just made; a failure where it raises, dies or hangs.

        Args:
            work: a function of a module's top level, perhaps a `functools.partial` of one; its result must be picklable.
            limit_s: longest time for it, making the loader again apart.

        Raises:
            OutOfTime: it was slow.
            CannotBeMade: the loader cannot be made again.
        """
        if self._process is None:
            found = isolated(lambda: work(self._again()), limit_s + 2 * self.survey.made_s)
            if isinstance(found, Failure) and found.phase == "setup":
                raise CannotBeMade(found)
            return found
        with contextlib.suppress(OSError):  # it has died, which `receive` finds
            self._process.channel.send_bytes(pickle.dumps((work, limit_s)))
        received: T | Failure = self._process.receive(limit_s + 2 * EXIT_S + ANSWER_S)
        return received

    @property
    def making_s(self) -> float:
        """Time that each look takes to make the loader; 0 where one process made it for all."""
        return 0.0 if self._process is not None else self.survey.made_s

    def close(self) -> None:
        """End the process that made the loader; further looks make it for themselves."""
        if self._process is not None:
            self._process.end()
        self._process = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *raised: object) -> None:
        self.close()

    def _serve(self, channel: Connection) -> None:
        """Make the loader, say what it is, and fork looks as long as they are asked for."""
        parts: Parts | None = None
        left_nothing = False

        def survey() -> Survey:
            nonlocal parts, left_nothing
            parts, found = self._make(checks=self._is_first)
            left_nothing = found.left.is_nothing
            return found

        channel.send_bytes(outcome_of(survey, WorkloadError, UnknownWorkload))
        while left_nothing:
            try:
                work, limit_s = pickle.loads(channel.recv_bytes())
            except EOFError:
                return
            look = partial(isolated, partial(work, parts), limit_s)
            channel.send_bytes(outcome_of(look, OutOfTime))

    def _again(self) -> Parts:
        """Make the loader once more, in another process.

        Raises:
            TrialFailed: that fails, although it did not before.
        """
        try:
            return self._make()[0]
        except Exception as error:
            raise TrialFailed(made_before(error)) from error


def made_before(error: BaseException) -> Failure:
    """The failure of a loader that one process made, and a second one after the first has ended could not make."""
    failure = classify(error, "setup")
    message = (
        f"a process made the loader and ended, and then a second process could not make it again: {failure.message}. Something that "
        "the first process made is in the way, such as a block of shared memory, a file or a port with a fixed name. Remove it "
        "when the process ends (atexit), or give it a name that no other process uses"
    )
    return replace(failure, message=message)


def check_again(make: Make) -> None:
    """Find out whether the user's own loader can be made again, where one with another setting could not be made.

    Raises:
        CannotBeMade: it cannot, so that it is not the setting's fault.
    """
    try:
        FreshLoader(make).close()
    except (TrialFailed, WorkloadError) as error:
        raise CannotBeMade(made_before(error)) from None
