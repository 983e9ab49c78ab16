"""`HangDetector`: how long a trial may be silent in its present phase; a longer silence is a hang."""

from __future__ import annotations

import math
import time

from feedrate.trainables.protocol import ACCOMPANYING, Event, Phase, Silent, Waiting

SETUP_TIMEOUT_S = 300.0
"""Longest silence before a trial's timed part, which covers making dataset and model and the first use of CUDA."""
GRACE_S = 20.0
"""Silence allowed beyond max_trial_s while a trial is timed: enough for the loader's timeout and for the trial to find out
the reason afterwards."""
RERUN_TIMEOUT_S = 10.0
"""Silence allowed while one sample is loaded again to find out why a batch failed."""
BETWEEN_TIMEOUT_S = 120.0
"""Silence allowed while a script is between two epochs. The trial itself gives up earlier, unless the script is stuck in C code."""
TEARDOWN_TIMEOUT_S = 10.0
"""Silence allowed after the measurement: torch waits 5 s for a worker that does not end."""
SILENT_S = 30.0
"""Report a silent child after this many seconds, and again at the same interval."""


class HangDetector:
    """The silence of one child, measured from its last event.

    Args:
        max_s: time limit of the timed part.
    """

    def __init__(self, max_s: float) -> None:
        self.max_s = max_s
        self.phase = "setup"
        """What the child said last that it was doing."""
        self.allowed_s: float | None = SETUP_TIMEOUT_S
        """The longest silence that is no hang; None while the child waits for the host."""
        self.listen()

    def listen(self) -> None:
        """Measure the silence from now on."""
        self._since_s = time.monotonic()
        self._report_s = self._since_s + SILENT_S
        self.deadline_s = math.inf if self.allowed_s is None else self._since_s + self.allowed_s
        """Time of the monotonic clock after which the child hangs."""

    def heard(self, event: Event) -> None:
        """Update the phase from an event, and how long the child may be silent from now on."""
        if isinstance(event, Phase):
            self.phase = event.name
        if isinstance(event, Waiting) or self.phase == ACCOMPANYING:
            self.allowed_s = None  # the wait for the host's lock may last as long as another search, and rank 0 reports a hang elsewhere
        elif self.phase in ("setup", "warm"):
            self.allowed_s = SETUP_TIMEOUT_S
        elif self.phase == "between epochs":
            self.allowed_s = BETWEEN_TIMEOUT_S
        elif self.phase == "rerun":
            self.allowed_s = RERUN_TIMEOUT_S
        else:
            self.allowed_s = TEARDOWN_TIMEOUT_S if self.phase == "teardown" else self.max_s + GRACE_S
        self.listen()

    def silent(self) -> Silent | None:
        """Return an event saying for how long the child has reported nothing; None if the last such event is less than SILENT_S ago."""
        now_s = time.monotonic()
        if now_s < self._report_s:
            return None
        self._report_s = now_s + SILENT_S
        return Silent(phase=self.phase, waits=self.allowed_s is None, silent_s=now_s - self._since_s)
