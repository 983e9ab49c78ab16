"""`Ledger`: a study's trials in the memory of the brain, with counts and the set of tried settings, kept up to date.

A search needs the counts and the tried settings before every trial. Going through all trials each time would make the thousandth
trial more expensive than the first. The ledger writes nothing: the storage keeps the trials.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from collections.abc import Set as AbstractSet

from feedrate.search.study.trials import Counts, KnownTrial
from feedrate.trainables.config import LoaderConfig


class Ledger:
    """Trials in the order of their numbers. Only `move` may change a trial's state.

    Args:
        fold: returns the equivalent setting of the search space (`SearchSpace.fold`), which counts as tried too.
    """

    def __init__(self, fold: Callable[[LoaderConfig], LoaderConfig] = lambda config: config) -> None:
        self._fold = fold
        self._trials: list[KnownTrial] = []
        self._states: Counter[str] = Counter()
        self._waiting: dict[int, KnownTrial] = {}
        self._uses: Counter[LoaderConfig] = Counter()
        self._tried: set[LoaderConfig] = set()

    def __len__(self) -> int:
        return len(self._trials)

    def __getitem__(self, number: int) -> KnownTrial:
        return self._trials[number]

    def all(self) -> list[KnownTrial]:
        """Return all trials, in order of their numbers."""
        return list(self._trials)

    def append(self, past: KnownTrial) -> None:
        """Add a trial; its number must be the ledger's length."""
        self._trials.append(past)
        self._enter(past, 1)

    def move(self, past: KnownTrial, state: str, *, is_blameless: bool | None = None) -> None:
        """Put a trial into another state."""
        self._enter(past, -1)
        past.state = state
        past.is_blameless = past.is_blameless if is_blameless is None else is_blameless
        self._enter(past, 1)

    def counts(self) -> Counts:
        """Return how many trials are in each state."""
        return Counts(**self._states)

    @property
    def tried(self) -> AbstractSet[LoaderConfig]:
        """Settings that are not drawn again: waiting, running and told ones. Not a copy."""
        return self._tried

    def waiting(self) -> list[KnownTrial]:
        """Return the trials that do not run yet, in order of their numbers."""
        return [self._waiting[number] for number in sorted(self._waiting)]

    def _enter(self, past: KnownTrial, sign: int) -> None:
        self._states[past.state] += sign
        if past.state == "waiting" and sign > 0:
            self._waiting[past.number] = past
        else:
            self._waiting.pop(past.number, None)
        if past.config is None or past.state == "lost":
            return
        # one trial makes a setting tried, or two trials that failed through no fault of the setting
        for config in {past.config, self._fold(past.config)}:
            self._uses[config] += sign * (1 if past.is_blameless else 2)
            if self._uses[config] >= 2:
                self._tried.add(config)
            else:
                self._tried.discard(config)
