"""`Epoch`: one iteration of a loader whose number of workers can change between two batches."""

from __future__ import annotations

import contextlib
import time
from collections import deque
from collections.abc import Callable, Iterator
from typing import Any

import torch

from feedrate.trainables.config import LoaderConfig
from feedrate.trainables.deciding.decision import Decision
from feedrate.trainables.deciding.policy import WARM_BATCHES, Policy, workers
from feedrate.trainables.failure import TrialFailed, sentence
from feedrate.trainables.loader.build_loader import start_method
from feedrate.trainables.measuring.limits import check_limits
from feedrate.trainables.probing.leftovers import Leftovers, Snapshot
from feedrate.trainables.tuning.index_stream import IndexStream
from feedrate.trainables.tuning.pool import Pool
from feedrate.trainables.tuning.suitable import changed, held_values, why_not_forked
from feedrate.trainables.tuning.torchs import torchs_iterator
from feedrate.trainables.tuning.tuned_loader import SIZED_BATCHES, TunedLoader

GROUP_S, MOST_GROUP_S = 200e-3, 0.4
"""To count a batch takes 15 microseconds, and several times as long between two training steps, which leave the CPU's caches to others. So batches that take less than GROUP_S are counted together: as many as take GROUP_S, and then those up to the end of the
production cycle (in one, each worker delivers a batch), but never more than take MOST_GROUP_S."""
WATCHED_FETCHES = (1, 2, 3, 5, 9)
"""Fetches inside the training process after which new open files are looked for."""


class Observed:
    """One iteration of a loader that is only timed.

    Args:
        live: the loader and its policy.
    """

    def __init__(self, live: TunedLoader) -> None:
        self._live = live
        self._loader = live.loader
        """Kept alive while it is iterated."""
        begin = time.perf_counter()
        self._handed_s: float | None = None
        self.is_begun = self.is_aside = False
        """Whether a batch was delivered, and whether another iteration of the loader is tuned instead of this one."""
        self._wait_s = 0.0
        self._quick: Callable[[], Any] | None = None
        """Torch's own method, while the next batch need only be timed; otherwise `_take` delivers it. Training steps leave the CPU's caches to others,
        so each of our functions in between costs a microsecond."""
        self._num_workers = self._policy.own
        self._num_left: int | None = None
        """Number of batches that are still to come; None if it is not known."""
        with contextlib.suppress(TypeError, NotImplementedError):
            self._policy.epoch_batches_left = self._num_left = len(self._loader)
        self._open()
        self._startup_s = time.perf_counter() - begin
        """Time for starting workers, which belongs to the wait for the first batch."""

    def __iter__(self) -> Iterator[Any]:
        return self

    def __next__(self) -> Any:
        begin = time.perf_counter()
        quick, group = self._quick, self._live.group
        if begin < group.until_s and self._handed_s is not None and group.num_workers == self._num_workers:
            group.num += 1
            group.wait_s += self._wait_s
            group.step_s += begin - self._handed_s
        elif self.is_aside:
            return self._take()
        else:
            self._be_slow()
            if self._handed_s is not None and self._live.is_training():
                self._count(begin - self._handed_s, begin)
            quick = self._quick
        try:
            batch = self._take() if quick is None else quick()
        except BaseException as error:
            self._handed_s = None
            if quick is not None and isinstance(error, StopIteration):
                self._end_quick()
            self._live.count_rest()
            self._policy.interrupted()
            raise
        self._handed_s = end = time.perf_counter()
        self._wait_s = end - begin
        if quick is None:
            self._wait_s += self._startup_s
            self._startup_s, self.is_begun = 0.0, True
            self._live.handed()
        if self._num_left is not None:
            self._num_left -= 1
        return batch

    def is_used(self) -> bool:
        """Return whether the user is in the middle of this iteration. Those who count batches by themselves never reach its end."""
        return self.is_begun and (self._num_left is None or self._num_left > 0)

    def __len__(self) -> int:
        return len(self._loader)

    @property
    def _policy(self) -> Policy:
        return self._live.policy

    def _open(self) -> None:
        self._real = torchs_iterator(self._loader)

    def _take(self) -> Any:
        return next(self._real)

    def _be_quick(self) -> None:
        """Let torch's own method deliver the next batches, until `_be_slow`."""
        self._quick = self._real.__next__

    def _be_slow(self) -> None:
        """Let `_take` deliver the next batch."""
        self._quick = None

    def _end_quick(self) -> None:
        """Note that torch's own method has come to the end of the epoch."""

    def _count(self, step_s: float, now_s: float) -> None:
        """Count a batch, perhaps together with some before it, and follow the decisions."""
        live, policy = self._live, self._policy
        is_apart = live.group.num_workers != self._num_workers or step_s >= GROUP_S
        found = live.count(self._num_ready) if is_apart else []
        group = live.group
        group.num_workers = self._num_workers
        group.num += 1
        group.wait_s += self._wait_s
        group.step_s += step_s
        taken_s = group.wait_s + group.step_s
        # a group that has begun inside a cycle ends with it, however short it is; otherwise none may ever end with one
        is_inside = not policy.is_whole(0)
        is_due = (taken_s >= GROUP_S and group.num == 1) or (policy.is_whole(group.num) and (taken_s >= GROUP_S or is_inside))
        if is_due or taken_s >= MOST_GROUP_S or not policy.counts_groups or policy.num_batches < WARM_BATCHES:
            found += live.count(self._num_ready)
        if not live.group.num or self._is_watched():  # it is 0 when the policy has just counted
            self._decide(found)
        elif not is_inside:
            group.until_s = now_s + GROUP_S - taken_s
            self._be_quick()

    def _num_ready(self) -> int:
        return 0

    def _is_watched(self) -> bool:
        """Whether the next batch may come from another number of workers than the user's. Then whatever forbids that must be noticed before it is delivered."""
        return False

    def _decide(self, decisions: list[Decision]) -> None:
        for each in decisions:
            self._live.log.write(each)


class Epoch(Observed):
    """One iteration of a map-style loader, in which one pool of workers takes over from another."""

    def _open(self) -> None:
        live, policy = self._live, self._policy
        self._pools: deque[Pool] = deque()
        """The pools with batches in flight, in the order of their batches. The last one takes further indices."""
        self.is_over = False
        num_begins = 1 if not live.own or not live.draws_seed() else 2
        self._stream = IndexStream(live.loader._index_sampler, num_begins=num_begins, check_draws=live.num_epochs == 0)
        self._draws_seed = live.draws_seed()
        self._base_seed: int | None = None
        if live.held is None or not live.is_persistent:
            live.held = held_values(live.loader.dataset)
        live.num_epochs += 1
        self._feed(policy.target)

    def begin_again(self) -> Epoch:
        """Begin the next epoch with the same iterator, as torch does where workers persist."""
        self._live.count_rest()
        self._policy.interrupted()
        self._handed_s = None
        begin = time.perf_counter()
        self._open()
        self._startup_s = time.perf_counter() - begin
        return self

    def stand_aside(self) -> None:
        """Go on alone with the workers that it has: the loader is iterated once more, and this iteration is not used."""
        self._be_slow()
        self.is_aside, self._handed_s = True, None
        self._live.release(self._pools, is_begun=self.is_begun)

    def __del__(self) -> None:
        if not self.__dict__.get("is_over", True):
            with contextlib.suppress(Exception):  # at the end of the interpreter
                self._leave(is_whole=False)

    def _leave(self, *, is_whole: bool) -> None:
        if self.is_aside:
            for pool in self._pools:
                pool.close()
        elif is_whole:
            self._live.epoch_ended()
        else:
            self._live.left()

    def _num_ready(self) -> int:
        return self._pools[-1].num_ready() if self._pools else 0

    def _is_watched(self) -> bool:
        own = self._policy.own
        return len(self._pools) != 1 or self._pools[0].num_workers != own or self._policy.target != own

    def _decide(self, decisions: list[Decision]) -> None:
        super()._decide(decisions)
        live, policy = self._live, self._policy
        if policy.leave is None:
            self._check_training()
        if policy.target != policy.own and (why := live.memory_shortage(policy.target)) is not None:
            live.log.write(policy.limited(policy.target, why))
        if not self._pools:
            return
        if policy.target != self._pools[-1].num_workers and len(self._pools) == 1 and not self._stream.is_over:
            if (refusal := self._why_not(policy.target)) is not None:
                live.log.write(refusal)
                return
            self._pools[-1].end()
            self._feed(policy.target)
        elif decisions:
            live.close_idle(self._pools)

    def _take(self) -> Any:
        if self.is_over:
            raise StopIteration
        while True:
            pool = self._pools[0]
            try:
                batch = pool.take() if pool.num_workers or self._live.num_fetched >= WATCHED_FETCHES[-1] else self._watched_fetch(pool)
            except StopIteration:
                if pool.is_drained():
                    if self.is_aside:
                        self._pools[0].close()
                    self._pools.popleft()
                    if self._pools or not self._stream.is_spent():
                        if not self._pools:
                            self._feed(self._policy.target)
                        if not self.is_aside:
                            self._live.close_idle(self._pools)
                        continue
                self.is_over = True
                self._leave(is_whole=True)
                raise
            except Exception as error:
                is_own = not pool.num_workers and not self._policy.own  # no worker can have died, so the dataset raised
                if self.is_aside or is_own or error is self._stream.error or not self._live.survives():
                    pool.pass_over()
                    raise
                self._fall_back(error)
                continue
            self._num_workers = pool.num_workers
            if len(self._live.storage_sizes) < SIZED_BATCHES:
                self._live.note_sizes(batch)
            return batch

    def _be_quick(self) -> None:
        live = self._live
        if self._pools and live.num_fetched >= WATCHED_FETCHES[-1] and len(live.storage_sizes) >= SIZED_BATCHES:
            indices = self._stream.rest()
            self._quick = None if indices is None else self._pools[0].pass_by(indices)

    def _be_slow(self) -> None:
        if self._quick is not None:
            self._quick = None
            self._pools[0].pass_by(None)

    def _end_quick(self) -> None:
        self._quick, self.is_over = None, True
        self._leave(is_whole=True)

    def _watched_fetch(self, pool: Pool) -> Any:
        """Take a batch; if the dataset is used inside this process, notice files that it opens."""
        live = self._live
        live.num_fetched += 1
        if live.policy.leave is not None or live.num_fetched not in WATCHED_FETCHES:
            return pool.take()
        before = Snapshot.now()
        batch = pool.take()
        live.left_open += Leftovers.since(before).shared
        return batch

    def _feed(self, num_workers: int) -> None:
        """Let a pool take the indices from here on; if it cannot, the best setting does."""
        live, policy = self._live, self._policy
        if not policy.own and not live.has_workers():
            live.held = held_values(live.loader.dataset)
        pool = live.pool(num_workers)
        try:
            pool.start(self._stream, self._generator())
        except Exception as error:
            if num_workers == policy.own or error is self._stream.error:
                raise
            self._stream.give_back(pool.give_up())
            live.forget(pool)
            live.log.write(policy.cannot_start(num_workers, sentence(error)))
            if not self._pools:
                self._feed(policy.target)
            return
        self._base_seed = pool.base_seed() if self._base_seed is None else self._base_seed
        self._pools.append(pool)

    def _why_not(self, num_workers: int) -> Decision | None:
        """Return the decision to not start this setting; None if it can be started."""
        live, policy = self._live, self._policy
        loader = live.loader
        if num_workers == policy.own or live.has_pool(num_workers):
            return None
        if policy.own and live.held is not None and (path := changed(live.held, loader.dataset)) is not None:
            return policy.leave_alone(f"the training has changed {path} since the workers started. New workers would see the change and load other data, so the number of workers is not changed")
        if not policy.own:
            why = why_not_forked(loader.dataset)
            if live.left_open:
                why = f"the dataset keeps {live.left_open[0]} open in this process, which workers must not share. With num_workers=1 in your script, a worker opens it, and feedrate can change their number"
            if why is not None:
                return policy.leave_alone(why)
        method = start_method(loader) if policy.own else "fork"
        if (refusal := why_not_fitting(live, num_workers, method)) is not None:
            return policy.cannot_start(num_workers, refusal)
        return None

    def _generator(self) -> torch.Generator | None:
        """Return the generator from which torch draws the seed of new workers.

        Torch draws one such number from the loader's generator (or the global one) when it starts workers. So that the training's random
        numbers stay what they would be, only as many are drawn there as without feedrate.
        """
        if self._draws_seed:
            self._draws_seed = False
            return self._live.loader.generator  # type: ignore[no-any-return]
        self._live.num_seeds += 1
        return torch.Generator().manual_seed(((self._base_seed or 0) + self._live.num_seeds) % 2**63)

    def _check_training(self) -> None:
        """Leave the setting alone if changing it would change the training."""
        live, policy = self._live, self._policy
        if self._stream.draws_random_numbers:
            why = "the sampler draws random numbers during the epoch. With another number of workers it would draw other ones, so the number of workers is not changed"
            self._decide_and_return(policy.leave_alone(why))
            return
        if (place := self._stream.place) is not None:
            why = f"the sampler keeps its place in {place}, which would run ahead by another number of batches, so the number of workers stays"
            self._decide_and_return(policy.leave_alone(why))
            return
        if not policy.own and live.has_workers() and live.held is not None and (path := changed(live.held, live.loader.dataset)) is not None:
            why = f"the training changed {path} between two batches, which workers would not see, so the number of workers stays 0"
            self._decide_and_return(policy.leave_alone(why))

    def _decide_and_return(self, decision: Decision) -> None:
        """Go back to the user's own setting at this very batch."""
        self._live.log.write(decision)
        if self._pools[-1].num_workers != self._policy.own or len(self._pools) > 1:
            self._restart()

    def _fall_back(self, error: Exception) -> None:
        """Go back to the user's own setting, once, after a failure under another one; load again what was in flight."""
        live, policy = self._live, self._policy
        self._end_all()
        live.has_fallen_back = True
        live.log.write(policy.failed(policy.target, f"with {workers(policy.target)}, loading failed ({sentence(error)})"))
        self._feed(policy.target)

    def _restart(self) -> None:
        """Let the setting that is asked for now load what is in flight."""
        self._end_all()
        self._feed(self._policy.target)

    def _end_all(self) -> None:
        """End all workers, and take back what is in flight."""
        pending = [batch for pool in self._pools for batch in pool.give_up()]
        self._pools.clear()
        self._live.close_pools()
        self._stream.give_back(pending)


def why_not_fitting(live: TunedLoader, num_workers: int, method: str | None) -> str | None:
    """Return why a setting does not fit into memory, /dev/shm or the limit of open files, as a sentence; None if it does."""
    loader = live.loader
    try:
        config = LoaderConfig(
            num_workers=num_workers,
            prefetch_factor=loader.prefetch_factor or 2,
            pin_memory=bool(loader.pin_memory),
            multiprocessing_context=method,
        )
        check_limits(config, max(live.storage_sizes, key=sum, default=[]), num_ranks=live.policy.num_ranks)
    except TrialFailed as failed:
        return failed.failure.message
    return None
