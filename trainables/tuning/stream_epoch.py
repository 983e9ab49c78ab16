"""`StreamEpoch`: one iteration of an iterable dataset, which is loaded by the training's process or by one worker.

Two workers or more would deal the samples out in another order, and twice if the dataset does not share them out. One worker
delivers what the training's process would: the same batches in the same order. Its place in the data is in its own process, so it can take
over between two epochs only.
"""

from __future__ import annotations

import contextlib
from typing import Any

from torch.utils.data import IterableDataset

from feedrate.trainables.deciding.decision import Decision
from feedrate.trainables.failure import sentence
from feedrate.trainables.tuning.epoch import Observed, why_not_fitting
from feedrate.trainables.tuning.random_state import RandomState
from feedrate.trainables.tuning.suitable import state_digest, why_not_forked
from feedrate.trainables.tuning.tuned_loader import SIZED_BATCHES, TunedLoader

SLOWER = 0.5
"""An epoch with a worker is tried only if an epoch that takes this much longer would not lose more than the budget allows: it cannot be left halfway."""
CHECKED_BATCHES = 16


def is_stream(loader: Any) -> bool:
    """Return whether a loader that may be tuned has an iterable dataset."""
    return isinstance(getattr(loader, "dataset", None), IterableDataset)


class StreamEpoch(Observed):
    """One iteration of a loader with an iterable dataset and no workers of its own.

    Args:
        live: the loader and its policy.
    """

    def __init__(self, live: TunedLoader) -> None:
        self.is_over = False
        self._num_taken = 0
        super().__init__(live)

    def stand_aside(self) -> None:
        """Go on alone with what was begun: the loader is iterated once more, and this iteration is not used."""
        self.is_aside = True
        self._live.release([self._pool], is_begun=self.is_begun)

    def __del__(self) -> None:
        if not self.__dict__.get("is_over", True):
            with contextlib.suppress(Exception):  # at the end of the interpreter
                self._pool.close() if self.is_aside else self._live.left()

    def _open(self) -> None:
        live = self._live
        self._state = None
        self._began_s = self._policy.elapsed()[0]
        num_workers = self._policy.target
        if num_workers != self._policy.own and (why := self._why_not(num_workers)) is not None:
            live.log.write(why)
            num_workers = self._policy.own
        elif num_workers != self._policy.own and not self._is_affordable():
            num_workers = self._policy.own
        self._is_first = num_workers == self._policy.own and live.keeps_state is None
        if self._is_first:
            self._state = state_digest(live.loader.dataset)
        before = RandomState.now() if self._is_first else None
        self._start_or_own(num_workers)
        if before is not None and live.loader.generator is None:
            before.draw_seed()
        live.draws_random_numbers |= before is not None and before != RandomState.now()
        live.num_epochs += 1

    def _start_or_own(self, num_workers: int) -> None:
        try:
            self._start(num_workers)
        except Exception as error:
            if num_workers == self._policy.own:
                raise
            self._live.close_pools()
            self._live.log.write(self._policy.cannot_start(num_workers, sentence(error)))
            self._start(self._policy.own, again=True)  # torch has drawn the seed before it starts a worker

    def _start(self, num_workers: int, *, again: bool = False) -> None:
        self._num_workers = num_workers
        self._pool = self._live.pool(num_workers)
        self._pool.start_stream(self._live.loader.generator, seeded_apart=again)

    def _num_ready(self) -> int:
        return self._pool.num_ready()

    def _is_watched(self) -> bool:
        return True

    def _decide(self, decisions: list[Decision]) -> None:
        super()._decide(decisions)
        if self._live.draws_random_numbers and self._policy.leave is None:
            why = "the iterable dataset draws random numbers in this process, which a worker would draw apart, so the number of workers stays 0"
            self._live.log.write(self._policy.leave_alone(why))
        if self._num_workers != self._policy.own and (shortage := self._live.memory_shortage(self._num_workers)) is not None:
            self._live.log.write(self._policy.limited(self._num_workers, shortage))
            self._load_again()

    def _take(self) -> Any:
        if self.is_over:
            raise StopIteration
        live = self._live
        while True:
            try:
                batch = self._checked_take()
            except StopIteration:
                self.is_over = True
                self._epoch_ended()
                raise
            except Exception as error:
                if self.is_aside or not live.survives():
                    raise
                live.has_fallen_back = True
                live.log.write(self._policy.failed(self._num_workers, f"with 1 worker, loading failed ({sentence(error)})"))
                self._load_again()
                continue
            self._num_taken += 1
            if len(live.storage_sizes) < SIZED_BATCHES:
                live.note_sizes(batch)
            return batch

    def _checked_take(self) -> Any:
        """Take a batch; in the first epoch, notice a dataset that draws random numbers, which a worker would draw apart."""
        if not self._is_first or self._num_taken >= CHECKED_BATCHES or self._policy.leave is not None:
            return self._pool.take()
        before = RandomState.now()
        batch = self._pool.take()
        self._live.draws_random_numbers |= before != RandomState.now()
        return batch

    def _load_again(self) -> None:
        """Go on in the training's process: read what is already delivered again, and discard it."""
        self._live.close_pools()
        self._start(self._policy.own, again=True)
        for _ in range(self._num_taken):
            self._pool.take()

    def _epoch_ended(self) -> None:
        live = self._live
        if self.is_aside:
            self._pool.close()
            return
        if self._is_first and self._state is not None:
            live.keeps_state = state_digest(live.loader.dataset) == self._state
        elif self._is_first:
            live.keeps_state = False
        if self._num_workers == self._policy.own:
            live.epoch_s = self._policy.elapsed()[0] - self._began_s
        live.epoch_ended()

    def _why_not(self, num_workers: int) -> Decision | None:
        """Return the decision to not start a worker; None if one can be started."""
        live, policy = self._live, self._policy
        if live.keeps_state is None:
            return policy.leave_alone("no epoch of this loader has come to its end yet, so whether its iterable dataset keeps a state is not known")
        if not live.keeps_state:
            return policy.leave_alone(
                "the iterable dataset has changed itself during an epoch, or cannot be compared; a worker's copy would not, so the number of workers stays 0"
            )
        if (why := why_not_forked(live.loader.dataset)) is not None:
            return policy.leave_alone(why)
        if (why := why_not_fitting(live, num_workers, "fork")) is not None:
            return policy.cannot_start(num_workers, why)
        return None

    def _is_affordable(self) -> bool:
        """Return whether an epoch with a worker may be tried, or is the setting that the training keeps."""
        policy, epoch_s = self._policy, self._live.epoch_s
        if policy.best == policy.target or epoch_s is None:
            return policy.best == policy.target
        return policy.budget.lost_s + SLOWER * epoch_s <= policy.budget.allowed_s(policy.elapsed()[0])
