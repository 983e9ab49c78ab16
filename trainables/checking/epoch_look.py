"""Looks at several epochs with 0 workers and with some, to see whether workers hear of a new epoch."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

from feedrate.trainables.checking.epoch_check import EpochState, changes, outcome
from feedrate.trainables.failure import TrialFailed
from feedrate.trainables.probing.probe import Epoch, Look

NUM_EPOCHS = 3
"""Two cannot tell workers that are an epoch behind from workers that repeat the first one."""
NUMBERS = ((0, 1, 2), (0, 10, 100))
"""What `set_epoch` is called with: one after the other, and far apart for what changes only now and then."""


def epoch_state(
    look: Look, looked_at: Callable[[Look], list[Epoch]], tells: Sequence[str], num_workers: int = 2
) -> EpochState:
    """See what becomes of samples that change from epoch to epoch.

    Args:
        look: which samples; everything else is chosen here.
        looked_at: delivers the epochs of a look, in a process in which nothing was delivered before.
        tells: who has a `set_epoch` (`probe.tells`). It is called only where nothing changes without: a sampler may do
            that itself, and another caller would hide that it is too late.
        num_workers: compared with 0.

    Raises:
        Exception: what `looked_at` raises.
    """
    look = replace(look, num_workers=0, epochs=NUM_EPOCHS, neutral=True, to_the_end=True, collates=True)
    waiting = [look, *(replace(look, told=who, epoch_numbers=numbers) for numbers in NUMBERS for who in tells)]
    while waiting:
        each = waiting.pop(0)
        try:
            alone = looked_at(each)
        except TrialFailed:
            if each.told is not None:
                continue  # there may be no such epoch
            if not each.collates:
                raise
            waiting = [replace(way, collates=False) for way in (each, *waiting)]  # small batches may be too small for it
            continue
        if changes(alone, every=each.told is None):
            break
    else:
        return EpochState(changes=False)
    iterable = look.items is None
    states = [
        outcome(alone, looked_at(replace(each, num_workers=num_workers, persistent_workers=persistent)), iterable=iterable)
        for persistent in (False, True)
    ]
    return EpochState(changes=True, ending=states[0], persistent=states[1])
