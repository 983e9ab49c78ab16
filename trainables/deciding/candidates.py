"""`Candidates`: which number of workers is worth a measurement next, from a simple model of waiting."""

from __future__ import annotations

import math
from collections.abc import Sequence

from feedrate.trainables.deciding.window import Window, joined

ENOUGH_FRACTION = 0.02
"""Where the training waits for less than this share of its time, no loader can make it noticeably faster."""
MARGIN = 1.1
"""Workers beyond those that the mean times ask for, because times vary."""
MAX_CHEAPER = 2
CHEAPER_FRACTION = 0.9
"""Fewer workers are tried only if they are at most this share of the best number: a smaller saving is not worth a long comparison of near equals."""
SCALES_FRACTION = 0.85
WAITS_FRACTION = 0.5
"""If a training uses less than this share of the CPUs that its workers could use, they wait for storage, and more of them than CPUs are faster."""


class Candidates:
    """The proposals of one search.

    The model: a worker takes `load_s` for a batch and works alone, so `num_workers / load_s` batches come per second until the
    training takes them faster. It holds until workers share CPUs; what was measured then decides.

    Args:
        own: the user's own number of workers.
        cpus: CPUs that this process may use.
        most: the largest number to try.
        used_cpus: how many CPUs the training and its workers use with the present number; None if it is not known.
    """

    def __init__(self, own: int, *, cpus: int, most: int, used_cpus: float | None = None) -> None:
        self.own, self.cpus, self.most = own, cpus, most
        self._tried: set[int] = set()
        self._goes_up = True
        self._too_few = own
        """The largest number of workers below the best that is known to be slower."""
        self._num_cheaper = 0
        self._used_cpus = used_cpus
        self._scales = False
        """Whether the latest step up gained in proportion to the workers, so that a larger step is safe."""

    def limit(self, most: int) -> None:
        """Try no more workers than this."""
        self.most = min(self.most, most)

    def tried(self, num_workers: int, *, adopted: bool, than: int, ratio: float = 1.0, before: Window | None = None) -> None:
        """Note the outcome of a comparison with `than`, the best setting before it.

        Args:
            num_workers: the candidate.
            adopted: whether it is the best setting now.
            than: the other setting of the comparison.
            ratio: the candidate's rate divided by the other's.
            before: the windows of the other setting as one.
        """
        self._used_cpus = None  # it was that of the setting before
        if adopted and num_workers > than:
            self._too_few = than
            self._scales = ratio >= SCALES_FRACTION * num_workers / max(than, 1)
            if before is not None and before.wait_s / before.duration_s >= ENOUGH_FRACTION:
                # workers never do better than in proportion to their number
                needed = ratio * than if than else ratio * before.wait_s / before.duration_s
                self._too_few = max(self._too_few, min(math.ceil(needed / MARGIN), num_workers) - 1)
        elif adopted:
            pass
        elif num_workers > max(2 * than, self.cpus):
            self.limit(max(2 * than, self.cpus))  # it was too large a step
        elif num_workers > than:
            self._goes_up = False
        else:
            self._too_few = max(self._too_few, num_workers)

    def next(self, best: Sequence[Window]) -> tuple[int, str] | None:
        """Return the next number of workers and why, or None if nothing more is worth a measurement.

        Args:
            best: windows of the best setting so far.
        """
        whole = joined(best)
        waits = whole.wait_s / whole.duration_s
        found = self._more(whole, waits) if waits >= ENOUGH_FRACTION and self._goes_up else None
        found = found or self._fewer_than_own(whole.num_workers) or self._cheaper(whole.num_workers)
        if found is not None:
            self._tried.add(found[0])
        return found

    def _more(self, whole: Window, waits: float) -> tuple[int, str] | None:
        now = whole.num_workers
        load_s = (now * whole.duration_s if now else whole.wait_s) / whole.num_batches
        step_s = whole.step_s / whole.num_batches
        need = math.ceil(MARGIN * load_s / step_s) if step_s > 0 else self.most
        # beyond the CPUs, more workers are faster only if they wait for storage: the number is doubled, or quadrupled where that seems safe
        is_safe = self._scales or (self._used_cpus is not None and self._used_cpus < WAITS_FRACTION * min(now, self.cpus))
        num = min(max(need, now + 1), max((4 if is_safe else 2) * now, self.cpus), self.most)
        if num <= now or num in self._tried:
            return None
        reason = (
            f"the training waits {waits:.0%} of its time for batches; a worker takes {1000 * load_s:.3g} ms for a batch and the training "
            f"{1000 * step_s:.3g} ms, so about {need} worker{'s are' if need != 1 else ' is'} needed"
        )
        return num, reason

    def _fewer_than_own(self, now: int) -> tuple[int, str] | None:
        fewer = max(self.cpus, 1)
        if now != self.own or now <= fewer or fewer in self._tried:
            return None
        return fewer, f"there are more workers than the {self.cpus} CPUs, which may slow each other"

    def _cheaper(self, now: int) -> tuple[int, str] | None:
        """Return fewer workers than the best number has, and more than any smaller number that was slower; None if there is none to try."""
        if now <= self.own or self._num_cheaper >= MAX_CHEAPER:
            return None
        middle = round(math.sqrt(max(self._too_few, 1) * now))
        if not self._too_few < middle <= CHEAPER_FRACTION * now or middle in self._tried:
            return None
        self._num_cheaper += 1
        return middle, f"fewer workers than {now} may be as fast, and take less memory"
