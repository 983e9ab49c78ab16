"""`disqualified`: settings that are faster because they repeat data must not win a search.

The cheap part of `feedrate check`, which looks at a few samples before every search.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, TypeVar

from feedrate.trainables.epoch_check import LAG, LAGS, EpochState
from feedrate.trainables.epoch_look import epoch_state
from feedrate.trainables.failure import Failure, TrialFailed
from feedrate.trainables.fresh import CannotBeMade, FreshLoader
from feedrate.trainables.isolated import OutOfTime
from feedrate.trainables.order_check import repeats
from feedrate.trainables.probe import Epoch, Look, Pace, Parts, deliver, pace, samples_of
from feedrate.trainables.random_check import SAMPLES, streams
from feedrate.trainables.survey import Make
from feedrate.trainables.workload import Workload

T = TypeVar("T")

QUICK_S = 2.0
"""About how long the looks take where samples are fast."""
MOST_S = 20.0
"""Longest time for all looks where samples are slow."""
FIRST_SAMPLE_S = 5.0
LEAST_LIMIT_S = 3.0
"""Longest time of one look, where it should take less: starting workers takes a moment on a busy machine."""
MOST_SAMPLES, LEAST_SAMPLES = 32, 8
"""Different samples that are compared: of each worker half of them, of each worker all of them for an iterable dataset."""
NUM_NEEDED = 4
"""Looks that are taken even where each has to make the loader for itself, and that takes long."""
NUM_DRAWS = 16
"""Times that one index is fetched to see what two workers draw."""


@dataclass(frozen=True, kw_only=True, slots=True)
class QuickLook:
    """Which settings repeat data, as far as a few samples show."""

    max_num_workers: int | None = None
    """More workers repeat data; None where that was not seen."""
    reason: str | None = None
    persistent_workers: bool | None = None
    """The only value with which epochs do not repeat the first one; None where both may be used."""
    epochs_reason: str | None = None
    notes: tuple[str, ...] = ()
    """What else a user should know."""

    def to_json(self) -> dict[str, Any]:
        """A JSON object without the notes."""
        names = ("max_num_workers", "reason", "persistent_workers", "epochs_reason")
        return {name: getattr(self, name) for name in names}


def disqualified(workload: Workload | Make) -> QuickLook:
    """Find out whether workers duplicate data, or repeat the first epoch, within about two seconds.

    Args:
        workload: of either form, or a function that makes it, which is called in processes of its own.

    Raises:
        CannotBeMade: a second process cannot make the workload again.
    """
    with FreshLoader((lambda: workload) if isinstance(workload, Workload) else workload) as loader:
        return quick_look(loader)


def quick_look(loader: FreshLoader) -> QuickLook:
    """The same of a loader."""
    try:
        return _Looking(loader).look()
    except CannotBeMade:
        raise
    except TrialFailed:  # what fails or hangs disqualifies nothing: the trials will tell
        return QuickLook()


class _Looking:
    """One quick look under way."""

    def __init__(self, loader: FreshLoader) -> None:
        self.loader, self.iterable = loader, loader.survey.is_iterable
        self.until_s = time.monotonic() + MOST_S + NUM_NEEDED * loader.making_s
        self.sample_s = 0.0

    def look(self) -> QuickLook:
        seen: Pace = self._run(partial(pace, max_samples=MOST_SAMPLES, max_s=QUICK_S / 8), FIRST_SAMPLE_S)
        self.sample_s = seen.sample_s
        if self.sample_s * 3 * LEAST_SAMPLES > MOST_S:
            return QuickLook(notes=(_too_slow(self.sample_s),))
        items = seen.items
        if seen.num_samples < LEAST_SAMPLES:  # slow samples: as many as are needed
            seen = self._run(partial(pace, max_samples=LEAST_SAMPLES, max_s=MOST_S), MOST_S)
            items = seen.items
        look = Look(
            num_workers=0,
            num_samples=max(seen.num_samples // 2, LEAST_SAMPLES // 2),
            items=None if self.iterable else items,
            epochs=1,
            fork=True,
            neutral=True,
            max_s=QUICK_S,
        )
        reason = self._repeated_samples(look)
        reason = reason or self._or_none(self._repeated_draws)
        return _concluded(reason, self._or_none(lambda: self._epochs(look)))

    def _or_none(self, ask: Callable[[], T | None]) -> T | None:
        """The answer to a question; None where a look for it fails or hangs."""
        try:
            return ask()
        except CannotBeMade:
            raise
        except TrialFailed:
            return None

    def _epochs(self, look: Look) -> EpochState | None:
        return epoch_state(look, self._deliver, self.loader.survey.tells) if self._has_time(look) else None

    def _repeated_samples(self, look: Look) -> str | None:
        """Whether two workers deliver the same samples; random numbers that hide it, or make all alike, are taken out or left in."""
        for each in (look, replace(look, neutral=False)):
            alone_look = replace(each, num_samples=2 * each.num_samples) if self.iterable else each
            alone = self._deliver(alone_look)[0]
            shared = self._deliver(replace(each, num_workers=2))[0]
            if repeats(shared, alone, iterable=self.iterable).are_shown:
                what = (
                    "the iterable dataset is not divided among workers (get_worker_info())"
                    if self.iterable
                    else "a sample does not depend on its index, and every worker has its own copy of what it depends on"
                )
                return f"every worker delivers the same samples: {what}"
            num_different = len({seen.digest for seen in samples_of(alone)})
            if 2 * num_different > len(samples_of(alone)):
                return None
        return None

    def _repeated_draws(self) -> str | None:
        """Whether two workers draw the same random numbers, seen by fetching one index again and again."""
        if self.iterable:
            return None  # they may shuffle before they divide the samples
        look = Look(num_workers=2, num_samples=NUM_DRAWS, epochs=1, same_index=True, generators=True, fork=True)
        if not self._has_time(look):
            return None
        found = streams(self._deliver(look))
        if not found.duplicated:
            return None
        owned = self.loader.survey.owned
        names = ", ".join(f"dataset.{name}" if name in owned else name for name in found.duplicated)
        if found.duplicated == [SAMPLES]:
            return "every worker draws the same random numbers, so that augmentations repeat"
        return f"every worker draws the same random numbers from {names}, so that augmentations repeat"

    def _deliver(self, look: Look) -> list[Epoch]:
        expected_s = self.sample_s * look.num_samples * look.epochs
        return self._run(partial(deliver, look=look), max(LEAST_LIMIT_S, 4 * expected_s))

    def _has_time(self, look: Look) -> bool:
        return time.monotonic() + 10 * self.sample_s * look.num_samples + 2 * self.loader.making_s < self.until_s

    def _run(self, work: Callable[[Parts], T], limit_s: float) -> T:
        try:
            found = self.loader.look(work, min(limit_s, max(self.until_s - time.monotonic(), LEAST_LIMIT_S)))
        except OutOfTime:
            found = Failure(kind="hang", phase="loader", message=f"it took more than {limit_s:.0f} s")
        if isinstance(found, Failure):
            raise TrialFailed(found)
        return found


def _concluded(reason: str | None, state: EpochState | None) -> QuickLook:
    notes = []
    if state is not None and state.ending == LAGS:
        notes.append(LAG)
    only = None if state is None else state.only_persistent
    if state is not None and state.reason is not None and only is None:  # neither value of persistent_workers helps
        return QuickLook(max_num_workers=0, reason=state.reason, notes=tuple(notes))
    return QuickLook(
        max_num_workers=None if reason is None else 1,
        reason=reason,
        persistent_workers=only,
        epochs_reason=None if only is None or state is None else state.reason,
        notes=tuple(notes),
    )


def _too_slow(sample_s: float) -> str:
    return (
        f"a sample takes {sample_s:.1f} s, too long to see before the search whether workers repeat data: "
        "`feedrate check` looks as long as --time-budget says"
    )
