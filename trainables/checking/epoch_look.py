"""Compare several epochs with and without workers, to see whether workers notice a new epoch."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

from feedrate.trainables.checking.epoch_check import EpochState, changes, outcome
from feedrate.trainables.failure import TrialFailed
from feedrate.trainables.probing.probe import Epoch, Look

NUM_EPOCHS = 3
"""Two epochs are too few to tell workers that are one epoch behind from workers that repeat the first epoch."""
NUMBERS = ((0, 1, 2), (0, 10, 100))
"""Arguments for `set_epoch`: consecutive epochs, and epochs far apart for samples that change only now and then."""


def epoch_state(
    look: Look, looked_at: Callable[[Look], list[Epoch]], tells: Sequence[str], num_workers: int = 2
) -> EpochState:
    """Find out how samples that change from epoch to epoch behave with workers.

    Args:
        look: which samples to deliver; this function chooses everything else.
        looked_at: delivers the requested epochs, in a process in which nothing was delivered before.
        tells: which objects have a `set_epoch` (`probe.tells`). It is called only if nothing changes without the call: a
            sampler may call the dataset's `set_epoch` itself, and a second call would hide that the sampler's comes too late.
        num_workers: number of workers to compare with 0.

    Raises:
        Exception: whatever `looked_at` raises.
    """
    look = replace(look, num_workers=0, epochs=NUM_EPOCHS, neutral=True, to_the_end=True, collates=True)
    waiting = [look, *(replace(look, told=who, epoch_numbers=numbers) for numbers in NUMBERS for who in tells)]
    while waiting:
        each = waiting.pop(0)
        try:
            alone = looked_at(each)
        except TrialFailed:
            if each.told is not None:
                continue  # set_epoch may refuse this number
            if not each.collates:
                raise
            waiting = [replace(way, collates=False) for way in (each, *waiting)]  # collate_fn may not accept such small batches
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
