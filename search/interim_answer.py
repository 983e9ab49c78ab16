"""`InterimAnswer`: best.json while a search goes on, from the first setting that works on."""

from __future__ import annotations

import time
from collections.abc import Callable

from feedrate.analysis.run_folder import RunFolder
from feedrate.search.result import write_so_far

PERIOD_S = 10.0
COST_FRACTION = 0.02
"""At most this share of a search's time goes into computing the best setting so far, which takes longer the more settings are measured."""


class InterimAnswer:
    """Writes the best setting so far to best.json, at most every PERIOD_S.

    The file is replaced as a whole. In it, `search.is_final` and `confirmed` are false. At its end, the search replaces it by the answer.

    Args:
        folder: the run folder.
        note: shows a sentence to the user, once.
        clock: returns seconds.
    """

    def __init__(self, folder: RunFolder, note: Callable[[str], None], clock: Callable[[], float] = time.monotonic) -> None:
        self._folder, self._note, self._clock = folder, note, clock
        self._next_s: float | None = None

    def update(self, *, at_last: bool = False) -> None:
        """Write the best setting so far, unless that was done a moment ago; with `at_last` in any case."""
        began_s = self._clock()
        if self._next_s is not None and began_s < self._next_s and not at_last:
            return
        try:
            write_so_far(self._folder)
        except Exception as error:  # a search must not end because of what it shows meanwhile
            self._note(f"best.json is not written before the end of the search ({type(error).__name__}: {error})")
        ended_s = self._clock()
        self._next_s = ended_s + max(PERIOD_S, (ended_s - began_s) / COST_FRACTION)
