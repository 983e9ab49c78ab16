"""`TunedLoader`: a loader, the policy of its number of workers, and the workers that run now."""

from __future__ import annotations

import time
import traceback
import weakref
from collections.abc import Callable, Iterable
from typing import Any

from torch.utils.data import BatchSampler

from feedrate.trainables.deciding.decision import Decision
from feedrate.trainables.deciding.policy import Policy, workers
from feedrate.trainables.failure import sentence
from feedrate.trainables.machine.memory_guard import MemoryGuard
from feedrate.trainables.machine.process import tree_pids
from feedrate.trainables.measuring.limits import amount, storage_bytes
from feedrate.trainables.tuning.batch_group import BatchGroup
from feedrate.trainables.tuning.decision_log import DecisionLog
from feedrate.trainables.tuning.pool import Pool

GUARD_PERIOD_S = 0.2
SIZED_BATCHES = 3
"""Number of batches whose size is measured, to know what fits into shared memory."""


class TunedLoader:
    """What lasts from one epoch of a loader to the next.

    Args:
        loader: the user's loader.
        policy: has its own number of workers.
        log: where the decisions go.
    """

    def __init__(self, loader: Any, policy: Policy, log: DecisionLog) -> None:
        self._loader: Callable[[], Any] = _reference(loader)
        self.policy, self.log = policy, log
        self.own = policy.own
        self.is_persistent = bool(getattr(loader, "persistent_workers", False))
        size = _items_per_batch(loader)
        self.policy.items_per_batch = None if size is None else size * policy.num_ranks
        self.guard = MemoryGuard()
        self.has_fallen_back = False
        """Whether a failure under another setting was survived. The next one is the user's."""
        self.num_epochs = self.num_seeds = self.num_fetched = 0
        """Epochs begun, seeds that were drawn apart from the training's random numbers, and batches fetched inside this process."""
        self.storage_sizes: list[list[int]] = []
        """Bytes of each tensor storage in the first batches."""
        self.left_open: tuple[str, ...] = ()
        """Files that the dataset opened in this process and keeps open."""
        self.held: dict[str, Any] | None = None
        """Attributes of the dataset when the workers of the user's own setting would have copied it."""
        self.keeps_state: bool | None = None
        """Whether an epoch in this process leaves an iterable dataset as it was; None if no epoch has ended."""
        self.draws_random_numbers = False
        """Whether an iterable dataset has drawn from the global generators of this process."""
        self.epoch_s: float | None = None
        """How long the latest epoch of an iterable dataset took with the user's own setting."""
        self.group = BatchGroup(self.own)
        """Batches that the policy has not counted yet."""
        self._pools: dict[int, Pool] = {}
        self._next_guard_s = 0.0

    @property
    def loader(self) -> Any:
        """The user's loader, which others keep alive."""
        return self._loader()

    def is_training(self) -> bool:
        """Return whether the training reads this loader, so that its batches are observed. Called before each batch but the first."""
        return True

    def handed(self) -> None:
        """Note that the training got a batch."""

    def count(self, num_ready: Callable[[], int]) -> list[Decision]:
        """Let the policy count the batches since the last time, and return the decisions that follow.

        Args:
            num_ready: returns how many batches of the present setting are finished and not yet taken.
        """
        group, self.group = self.group, BatchGroup(self.own)
        if not group.num:
            return []
        try:
            found = self.policy.observe(group.num_workers, group.wait_s, group.step_s, num_ready, group.num)
            self.log.write_course(self.policy.course.take())
            return found
        except Exception as error:  # a defect of feedrate must not end a training
            traceback.print_exc()
            return [self.policy.leave_alone(f"feedrate has a defect ({sentence(error)}), so the number of workers stays")]

    def count_rest(self) -> None:
        """Let the policy count the last batches before something else happens."""
        for each in self.count(lambda: 0):
            self.log.write(each)

    def end_course(self) -> None:
        """Count and write what has happened since the last point of the course, because the training ends."""
        self.count_rest()
        self.policy.course.end(self.policy.elapsed)
        self.log.write_course(self.policy.course.take())

    def draws_seed(self) -> bool:
        """Return whether torch would start workers in the epoch that begins now, for which it draws a seed."""
        return not (self.is_persistent and self.own and self.num_epochs)

    def survives(self) -> bool:
        """Return whether a failure now is one of a setting that the user did not choose, and the first."""
        policy = self.policy
        is_own = policy.target == policy.own and all(number == policy.own for number in self._pools)
        return not self.has_fallen_back and not is_own

    def note_sizes(self, batch: Any) -> None:
        """Measure one of the first batches (SIZED_BATCHES), to know what fits into shared memory."""
        self.storage_sizes.append(storage_bytes(batch))

    def memory_shortage(self, num_workers: int) -> str | None:
        """Return why a setting must be left because it takes the last memory, as a sentence; None if it need not."""
        now = time.perf_counter()
        if now < self._next_guard_s:
            return None
        self._next_guard_s = now + GUARD_PERIOD_S
        if self.guard.crossed(pid for pid in tree_pids()) is None:
            return None
        return f"with {workers(num_workers)}, less than {amount(self.guard.min_available_bytes)} of memory is available"

    def has_pool(self, num_workers: int) -> bool:
        """Return whether the workers of this setting run."""
        return num_workers in self._pools

    def has_workers(self) -> bool:
        """Return whether any worker process runs."""
        return any(self._pools)

    def pool(self, num_workers: int) -> Pool:
        """Return the workers of this setting; they start on first use."""
        if num_workers not in self._pools:
            self._pools[num_workers] = Pool(self.loader, num_workers, may_die=self.survives)
        return self._pools[num_workers]

    def release(self, pools: Iterable[Pool], *, is_begun: bool) -> None:
        """Leave pools to an iteration that is tuned no more. If it has delivered nothing, the next one counts in its place."""
        for pool in pools:
            self.forget(pool)
        if is_begun:
            self.left()
        else:
            self.num_epochs -= 1

    def forget(self, pool: Pool) -> None:
        """Remove a pool that could not start."""
        self._pools.pop(pool.num_workers, None)

    def close_idle(self, used: Iterable[Pool]) -> None:
        """End the workers of settings that are neither used nor compared now."""
        kept = {self.policy.best, self.policy.target} | {each.num_workers for each in used}
        for number in [each for each in self._pools if each not in kept]:
            self._pools.pop(number).close()

    def close_pools(self) -> None:
        """End all workers."""
        while self._pools:
            self._pools.popitem()[1].close()

    def epoch_ended(self) -> None:
        """End the workers with the epoch, as torch does unless they are persistent."""
        if not self.is_persistent:
            self.close_pools()

    def left(self) -> None:
        """Note that the user left an epoch before its end."""
        self.count_rest()
        self.policy.interrupted()
        self.epoch_ended()

    def summary(self) -> dict[str, Any]:
        """Return what was observed and decided so far: times in seconds, rates in batches per second."""
        self.count_rest()
        policy = self.policy
        speedup = policy.speedup
        return {
            "num_batches": policy.num_batches,
            "items_per_batch": policy.items_per_batch,
            "wait_s": policy.wait_s,
            "step_s": policy.step_s,
            "aside_s": policy.aside_s,
            "wait_fraction": policy.fraction_waited(),
            "own": {"num_workers": policy.own} | (policy.first or {}),
            "best": {"num_workers": policy.best} | (policy.rate(policy.best) or {}),
            "speedup": speedup[0] if speedup else None,
            "speedup_ci95": list(speedup[1:]) if speedup else None,
            "confirmed": speedup is not None,
            "lost_s": policy.budget.lost_s,
            "left_alone": policy.leave,
            "ranks": policy.rank_facts(),
        }


def _items_per_batch(loader: Any) -> int | None:
    """Return the samples in a batch; None if only a batch sampler of somebody's own knows (its batch_size may be that of all ranks)."""
    sampler = getattr(loader, "batch_sampler", None)
    found = sampler.batch_size if type(sampler) is BatchSampler else getattr(loader, "batch_size", None)
    return None if found is None else int(found)


def _reference(loader: Any) -> Callable[[], Any]:
    """Return a weak reference, so that a loader and its workers end as soon as the user drops it; objects without one are kept."""
    try:
        return weakref.ref(loader)
    except TypeError:
        return lambda: loader
