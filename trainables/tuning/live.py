"""`live(loader)`: the same batches in the same order, from a loader whose number of workers is tuned while the training goes on."""

from __future__ import annotations

import os
import weakref
from collections.abc import Iterator
from typing import Any

from feedrate.trainables.deciding.budget import Budget
from feedrate.trainables.deciding.decision import Decision
from feedrate.trainables.deciding.following_policy import FollowingPolicy
from feedrate.trainables.deciding.leading_policy import LeadingPolicy
from feedrate.trainables.deciding.policy import Policy
from feedrate.trainables.machine.host import cpu_budget
from feedrate.trainables.machine.process import tree_cpu_s
from feedrate.trainables.ranks.rank import Rank
from feedrate.trainables.ranks.rank_meeting import RankMeeting
from feedrate.trainables.tuning.decision_log import DecisionLog
from feedrate.trainables.tuning.epoch import Epoch, Observed
from feedrate.trainables.tuning.stream_epoch import StreamEpoch, is_stream
from feedrate.trainables.tuning.suitable import why_left_alone
from feedrate.trainables.tuning.torchs import torchs_iterator
from feedrate.trainables.tuning.training_report import OBSERVES
from feedrate.trainables.tuning.tuned_loader import TunedLoader

LEAST_RANGE = 32
"""At least this many workers may be tried, as in a search: if workers wait for storage, more of them than CPUs are faster."""


def live(
    loader: Any,
    *,
    observe: bool = False,
    budget_fraction: float | None = None,
    folder: str | os.PathLike[str] | None = None,
    quiet: bool = False,
) -> Live:
    """Return the loader, tuned while the training goes on: `for batch in live(loader)`.

    Every sample comes once, in the order in which it would have come; `len`, `set_epoch` and all other attributes are the
    loader's own, and batch_size never changes. A loader whose workers cannot be changed without changing what it delivers (an iterable
    dataset with workers, a class with an `__iter__` of its own, a sampler that saves its state, ranks on several hosts) is only observed.

    In a training with several ranks, wrap the loader in each of them after `torch.distributed.init_process_group`; rank 0 decides for all.

    Args:
        loader: a torch DataLoader. Wrap it once, before the first epoch.
        observe: change nothing; `summary()` says what waiting cost.
        budget_fraction: share of the time that may be lost to slower settings; None is 2 %, and 5 minutes at most. 0 tries nothing.
        folder: where to append the decisions, as lines of live.jsonl; None writes none.
        quiet: print nothing. Otherwise each decision is a line on standard error.
    """
    why = OBSERVES if observe else why_left_alone(loader)
    policy = policy_of(loader, budget=Budget.of(budget_fraction), leave=why)
    return Live(TunedLoader(loader, policy, log_of(policy, folder, quiet=quiet)), loader)


def policy_of(loader: Any, *, budget: Budget, leave: str | None, folder: str | os.PathLike[str] | None = None) -> Policy:
    """Return the policy of a loader that nothing is known about yet; `folder` is where ranks may put a file by which they agree."""
    own, rank = int(getattr(loader, "num_workers", 0) or 0), Rank.here()
    num_ranks = 1 if rank is None else rank.local_world_size
    cpus = max(cpu_budget()[0] // num_ranks, 1)
    options: dict[str, Any] = {
        "cpus": cpus,
        "most": 1 if is_stream(loader) else max(LEAST_RANGE // num_ranks, cpus, own),
        "prefetch_factor": getattr(loader, "prefetch_factor", None) or 2,
        "budget": budget,
        "leave": leave,
    }
    if rank is None or rank.world_size != num_ranks:
        return Policy(own, cpu_s=tree_cpu_s, **options)
    kind = FollowingPolicy if rank.number else LeadingPolicy
    return kind(own, meeting=RankMeeting(rank, own, folder), **options)


def log_of(policy: Policy, folder: str | os.PathLike[str] | None, *, quiet: bool = False) -> DecisionLog:
    """Return where a policy's decisions are written: only rank 0 writes files."""
    return DecisionLog(None if policy.follows else folder, quiet=quiet)


class Live:
    """A loader and what decides its number of workers. Other attributes are the loader's.

    Args:
        tuned: the loader and its policy.
        loader: the loader, to keep it alive; None if others do.
    """

    def __init__(self, tuned: TunedLoader, loader: Any = None) -> None:
        self.tuned, self._kept = tuned, loader
        self._is_plain = tuned.policy.leave is not None
        self._epoch: weakref.ref[Epoch | StreamEpoch] | None = None
        if loader is not None:  # otherwise feedrate's hook ends the course
            weakref.finalize(self, _end_course, tuned, os.getpid())  # at the end of the interpreter, if not before

    def __iter__(self) -> Iterator[Any]:
        active = self._epoch() if self._epoch is not None else None
        if active is not None and not active.is_over:  # a second iteration beside the first
            if isinstance(active, Epoch) and self.tuned.is_persistent and self.tuned.own:  # torch begins its one iterator again
                return active.begin_again()
            if active.is_used():
                return torchs_iterator(self.tuned.loader)
            active.stand_aside()  # Lightning counts batches by itself, and drops an iteration after it has begun the next one
        if self._is_plain:
            return Observed(self.tuned)
        epoch = StreamEpoch(self.tuned) if is_stream(self.tuned.loader) else Epoch(self.tuned)
        self._epoch = weakref.ref(epoch)
        return epoch

    def __len__(self) -> int:
        return len(self.tuned.loader)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") or "tuned" not in self.__dict__:
            raise AttributeError(name)
        return getattr(self.tuned.loader, name)

    def set_epoch(self, epoch: int) -> None:
        """Call `set_epoch` of the loader, or of the samplers and the dataset in it that have one."""
        names = ("batch_sampler", "sampler", "dataset")
        for each in (self.tuned.loader, *(getattr(self.tuned.loader, name, None) for name in names)):
            if hasattr(each, "set_epoch"):
                each.set_epoch(epoch)
                if each is self.tuned.loader:
                    return

    def decisions(self) -> list[Decision]:
        """Return all decisions so far."""
        return list(self.tuned.policy.decisions)

    def summary(self) -> dict[str, Any]:
        """Return what was observed and decided so far: times in seconds, rates in batches per second."""
        return self.tuned.summary()

    def close(self) -> None:
        """End all workers now. They also end with the epoch, or with this object if the loader's workers are persistent."""
        self.tuned.end_course()
        self.tuned.close_pools()


def _end_course(tuned: TunedLoader, pid: int) -> None:
    """Count and write the last batches, unless this is a process that the training has forked."""
    if os.getpid() == pid:
        tuned.end_course()
