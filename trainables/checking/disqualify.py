"""`disqualified`: find the settings that are fast only because they repeat data, so that they cannot win a search.

This is the cheap part of `feedrate check`; it examines a few samples before every search.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import TypeVar

from feedrate.trainables.checking.epoch_check import LAG, LAGS, EpochState
from feedrate.trainables.checking.epoch_look import epoch_state
from feedrate.trainables.checking.order_check import OWN_STATE, repeats
from feedrate.trainables.checking.quick_look import QuickLook
from feedrate.trainables.checking.random_check import SAMPLES, streams
from feedrate.trainables.failure import Failure, TrialFailed
from feedrate.trainables.isolation.isolated import OutOfTime
from feedrate.trainables.probing.fresh_loader import CannotBeMade, FreshLoader
from feedrate.trainables.probing.probe import Epoch, Look, Pace, Parts, deliver, pace, samples_of
from feedrate.trainables.probing.survey import Make
from feedrate.trainables.workload import Workload

T = TypeVar("T")

QUICK_S = 2.0
"""About how long all readings of a few samples (see `Look`) take together if samples are fast."""
MOST_S = 20.0
"""Longest time for all of these readings together if samples are slow."""
FIRST_SAMPLE_S = 5.0
LEAST_LIMIT_S = 3.0
"""Each reading of a few samples may take at least this long before it is given up, because workers start slowly on a busy machine."""
MOST_SAMPLES, LEAST_SAMPLES = 32, 8
"""Number of different samples to compare; each of two workers delivers half of them."""
MOST_OF_STREAM = 128
"""Most samples per worker to compare, for an iterable dataset."""
FEW_ITEMS = 4
"""Number of samples to follow through three epochs if samples are slow."""
NUM_NEEDED = 4
"""So many readings of a few samples are made in any case, however long each takes because the loader has to be made again."""
NUM_DRAWS, LEAST_DRAWS = 16, 12
"""Number of times that one index is loaded, so that the random numbers of two workers can be compared; the smaller one if samples are slow."""


def disqualified(workload: Workload | Make) -> QuickLook:
    """Find out whether workers duplicate data, or repeat the first epoch, within about two seconds.

    Args:
        workload: of either form, or a function that makes it, which is called in separate processes.

    Raises:
        CannotBeMade: a second process cannot make the workload again.
    """
    with FreshLoader((lambda: workload) if isinstance(workload, Workload) else workload) as loader:
        return quick_look(loader)


def quick_look(loader: FreshLoader) -> QuickLook:
    """Do the same as `disqualified` for an existing loader."""
    try:
        return _Looking(loader).look()
    except CannotBeMade:
        raise
    except TrialFailed:  # a loader that fails or hangs disqualifies no setting; the trials will report it
        return QuickLook()


class _Looking:
    """The state of one quick check."""

    def __init__(self, loader: FreshLoader) -> None:
        self.loader, self.iterable = loader, loader.survey.is_iterable
        self.until_s = time.monotonic() + MOST_S + NUM_NEEDED * loader.making_s
        self.sample_s = 0.0
        self.skipped: list[str] = []

    def look(self) -> QuickLook:
        ask = partial(pace, max_samples=MOST_SAMPLES, max_s=QUICK_S / 8, least_items=LEAST_SAMPLES)
        seen: Pace = self._run(ask, FIRST_SAMPLE_S)
        self.sample_s = seen.sample_s
        is_slow = seen.num_samples < LEAST_SAMPLES
        num_samples = LEAST_SAMPLES if is_slow else seen.num_samples
        look = Look(
            num_workers=0,
            num_samples=self._num_of_stream(num_samples) if self.iterable else num_samples,
            items=None if self.iterable else seen.items[:num_samples],
            epochs=1,
            fork=True,
            neutral=True,
            max_s=QUICK_S if not is_slow else MOST_S,
        )
        reason, state = None, None
        if self._has_time("repeat samples", 2 * look.num_samples):
            reason = self._repeated_samples(look)
        num_draws = LEAST_DRAWS if is_slow else NUM_DRAWS
        if reason is None and not self.iterable and self._has_time("draw the same random numbers", num_draws):
            reason = self._or_none(lambda: self._repeated_draws(num_draws))
        few = replace(look, num_samples=look.num_samples // 2, items=look.items and look.items[:FEW_ITEMS]) if is_slow else look
        if self._has_time("notice a new epoch", 6 * few.num_samples):
            state = self._or_none(lambda: epoch_state(few, self._deliver, self.loader.survey.tells))
        return self._concluded(reason, state)

    def _or_none(self, ask: Callable[[], T | None]) -> T | None:
        """Return the result of `ask`; None if a look for it fails or hangs."""
        try:
            return ask()
        except CannotBeMade:
            raise
        except TrialFailed:
            return None

    def _num_of_stream(self, num_samples: int) -> int:
        """Return the samples per worker: as many as take a moment, because shuffled streams have only some samples in common."""
        fast = int(QUICK_S / 8 / max(self.sample_s, 1e-6))
        return min(max(num_samples // 2, fast), MOST_OF_STREAM)

    def _repeated_samples(self, look: Look) -> str | None:
        """Return a reason if two workers deliver the same samples.

        The first try seeds random generators to the same value, because random numbers can hide repetition. If that makes most
        samples alike, the second try uses the user's own random numbers.
        """
        for each in (look, replace(look, neutral=False)):
            alone_look = replace(each, num_samples=2 * each.num_samples) if self.iterable else each
            alone = self._deliver(alone_look)[0]
            shared = self._deliver(replace(each, num_workers=2))[0]
            if repeats(shared, alone, iterable=self.iterable).are_shown:
                what = (
                    "the iterable dataset is not divided among workers (get_worker_info())"
                    if self.iterable
                    else OWN_STATE
                )
                return f"every worker delivers the same samples: {what}"
            num_different = len({seen.digest for seen in samples_of(alone)})
            if 2 * num_different > len(samples_of(alone)):
                return None
        return None

    def _repeated_draws(self, num_draws: int) -> str | None:
        """Return a reason if two workers draw the same random numbers, found by fetching one index again and again.

        This is not done for an iterable dataset, whose workers may shuffle before they divide the samples.
        """
        look = Look(num_workers=2, num_samples=num_draws, epochs=1, same_index=True, generators=True, fork=True)
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

    def _has_time(self, what: str, num_samples: int) -> bool:
        """Whether there is time to read this many samples in sequence, in two looks."""
        if time.monotonic() + self.sample_s * num_samples + 2 * self.loader.making_s < self.until_s:
            return True
        self.skipped.append(what)
        return False

    def _run(self, work: Callable[[Parts], T], limit_s: float) -> T:
        try:
            found = self.loader.look(work, min(limit_s, max(self.until_s - time.monotonic(), LEAST_LIMIT_S)))
        except OutOfTime:
            found = Failure(kind="hang", phase="loader", message=f"it took more than {limit_s:.0f} s")
        if isinstance(found, Failure):
            raise TrialFailed(found)
        return found


    def _concluded(self, reason: str | None, state: EpochState | None) -> QuickLook:
        notes = []
        if self.skipped:
            notes.append(
                f"a sample takes {self.sample_s:.1f} s, so there was no time to check whether workers {' or '.join(self.skipped)}. "
                "`feedrate check` does, and takes as long as --time-budget allows"
            )
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
