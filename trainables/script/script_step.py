"""`ScriptStep`: the loop of a script as a training step, which also knows when the script did something other than training."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from feedrate.trainables.measurement import Measurement


class ScriptStep:
    """One training step: the script gets a batch, and the step is over when it asks for the next one.

    Args:
        hand_over: gives a batch to the script and returns when the script asks for the next one.
        end_epoch: lets the script's epoch end, and writes into a measurement how long it takes until the script begins the next one.
    """

    def __init__(self, hand_over: Callable[[Any], None], end_epoch: Callable[[Measurement], None]) -> None:
        self._hand_over = hand_over
        self.time_between_epochs = end_epoch
        self.num_batches = 0
        self.num_asides = 0
        """How often the script validated, saved a checkpoint or began an epoch between two batches. Such a time is no training step."""

    def __call__(self, batch: Any) -> None:
        self.num_batches += 1
        self._hand_over(batch)
