"""Do workers notice when samples change from epoch to epoch (a curriculum, `set_epoch`, progressive resizing)?

A dataset that knows its epoch is copied into workers when they start. Persistent workers keep the copy of the first epoch
forever. If the sampler passes the epoch to the dataset, workers that end with the epoch are one epoch behind, because torch
starts workers before it asks the sampler for the first index. If workers themselves advance a counter inside the dataset,
persistent workers keep counting, but the counter starts again in each new worker.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import Any

from feedrate.trainables.checking.order_check import by_worker
from feedrate.trainables.probing.finding import Finding
from feedrate.trainables.probing.probe import Epoch

CHANCE = 1e-4
"""Samples count as frozen only if random samples would repeat from epoch to epoch by chance less often than this."""
FOLLOWS, LAGS, FROZEN, UNKNOWN = "follows", "lags", "frozen", "unknown"

KEEP_EPOCH = """class MyDataset(Dataset):
    def __init__(self):
        self.epoch = torch.zeros(1, dtype=torch.long).share_memory_()  # one number for all workers

    def set_epoch(self, epoch):
        self.epoch.fill_(epoch)"""
TELL_BEFORE = "pass the epoch to the dataset in the training loop, before iter(loader), instead of in the sampler"


@dataclass(frozen=True, kw_only=True, slots=True)
class EpochState:
    """How samples that change from epoch to epoch behave with workers."""

    changes: bool
    """With 0 workers, an index gives different bytes in another epoch, although random generators are seeded to the same value."""
    ending: str = UNKNOWN
    """What samples do when workers end with the epoch: follows (they change with it), lags (they are one epoch behind), frozen (each epoch is like the first) or unknown."""
    persistent: str = UNKNOWN
    """The same for persistent workers."""

    @property
    def only_persistent(self) -> bool | None:
        """The only value of persistent_workers with which later epochs do not repeat the first one; None if both may be used."""
        if (self.ending == FROZEN) == (self.persistent == FROZEN):
            return None
        return self.ending == FROZEN

    @property
    def reason(self) -> str | None:
        """Why only one value, or none, may be used, as the beginning of a sentence; None if there is no reason."""
        if self.persistent == FROZEN:
            return (
                "every epoch delivers the samples of the first one, although they change from epoch to epoch with 0 workers: "
                "persistent workers keep the copy of the dataset with which they started"
            )
        if self.ending == FROZEN:
            return (
                "every epoch delivers the samples of the first one, although they change from epoch to epoch with 0 workers: "
                "workers that end with the epoch start again with the dataset as it was"
            )
        return None


LAG = (
    "workers that end with the epoch deliver the samples of the previous epoch: torch starts them before it asks the sampler "
    "for the first index, and the sampler then passes the new epoch only to the training process's copy of the dataset"
)


def changes(alone: list[Epoch], *, every: bool) -> bool:
    """Return whether samples change from epoch to epoch with 0 workers.

    Args:
        alone: epochs of the same indices, or of a stream, with random generators seeded to the same value for every sample.
        every: whether they must change from each epoch to the next; a cache that only the first epoch fills is no such change.
    """
    pairs = [_differ(one, two) for one, two in itertools.pairwise(alone)]
    return bool(pairs) and (all(pairs) if every else any(pairs))


def outcome(alone: list[Epoch], shared: list[Epoch], *, iterable: bool) -> str:
    """Return how changing samples behave with workers: follows, lags, frozen or unknown.

    Args:
        alone: epochs of the same indices, or of a stream, without workers, for which `changes` is true.
        shared: the same epochs with workers.
        iterable: whether there are no indices; then only `frozen` can be detected.
    """
    if len(shared) < 3 or len(alone) < 3:
        return UNKNOWN
    if iterable:
        first = _sequences(shared[0])
        return FROZEN if first and all(_sequences(epoch) == first for epoch in shared[1:]) else UNKNOWN
    own, others = [_by_key(epoch) for epoch in alone], [_by_key(epoch) for epoch in shared]
    if all(_equal(one, two) for one, two in zip(own, others, strict=True)):
        return FOLLOWS
    if all(_equal(one, two) for one, two in zip(own, others[1:], strict=False)):
        return LAGS
    num_pairs = sum(len(one.keys() & own[0].keys()) for one in own[1:])
    num_changed = sum(one[key] != two.get(key) for one, two in itertools.pairwise(own) for key in one)
    by_chance = max(1 - num_changed / max(num_pairs, 1), 0.0) ** (len(others[0]) * (len(others) - 1))
    is_frozen = by_chance < CHANCE and all(_equal(others[0], epoch) for epoch in others[1:])
    return FROZEN if is_frozen else UNKNOWN


def epoch_findings(state: EpochState | None, *, iterable: bool, already_told: bool = False) -> list[Finding]:
    """Report whether workers notice a new epoch.

    Args:
        state: the result of `epoch_look.epoch_state`; None if there was no time.
        iterable: if workers of an iterable dataset start each epoch in the same state, this is only a warning, because they
            may shuffle before they divide the samples.
        already_told: another finding reports that workers that end with the epoch draw the same random numbers again.
    """
    if state is None:
        return []
    evidence: dict[str, Any] = {"changes": state.changes, "ending": state.ending, "persistent": state.persistent}
    found = []
    if state.persistent == FROZEN:
        words = f"with persistent_workers=True, {state.reason}"
        found.append(Finding(name="epochs", level="error", sentence=words, fix=KEEP_EPOCH, evidence=evidence))
    if state.ending == FROZEN and not already_told:
        words = f"with persistent_workers=False, {EpochState(changes=True, ending=FROZEN).reason}"
        level = "warning" if iterable else "error"
        fix = "compute samples from an epoch number that the training loop passes to the dataset, or use persistent_workers=True"
        found.append(Finding(name="epochs", level=level, sentence=words, fix=fix, evidence=evidence))
    if state.ending == LAGS:
        found.append(Finding(name="epochs", level="warning", sentence=LAG, fix=TELL_BEFORE, evidence=evidence))
    if found or state.ending == FROZEN:
        return found
    if not state.changes:
        words = "samples do not change from epoch to epoch, apart from random augmentation"
    elif FOLLOWS in (state.ending, state.persistent):
        words = "samples change from epoch to epoch, whether or not workers load them"
    else:
        words = "samples change from epoch to epoch; with workers, too, no epoch was seen to repeat an earlier one"
    return [Finding(name="epochs", level="ok", sentence=words, evidence=evidence)]


def _by_key(epoch: Epoch) -> dict[Any, str]:
    return {seen.key: seen.digest for batch in epoch for seen in batch}


def _sequences(epoch: Epoch) -> list[list[str]]:
    """Return the digests of the samples that each worker delivered, in its own order."""
    return [[seen.digest for seen in each] for each in by_worker(epoch).values()]


def _equal(one: dict[Any, str], two: dict[Any, str]) -> bool:
    common = one.keys() & two.keys()
    return bool(common) and all(one[key] == two[key] for key in common)


def _differ(one: Epoch, two: Epoch) -> bool:
    """Whether the same samples, or the streams, have different bytes in two epochs."""
    if any(isinstance(seen.key, int) for batch in one for seen in batch):
        before, after = _by_key(one), _by_key(two)
        return any(before[key] != after[key] for key in before.keys() & after.keys())
    return _sequences(one) != _sequences(two)
