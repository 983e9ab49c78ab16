"""`ThisRank`: a process that is one rank of a training: it leads the other ranks, does what rank 0 says, or reports why it cannot."""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from types import FrameType

from feedrate.trainables.failure import Failure, classify
from feedrate.trainables.isolation.leaving import ignore_ended_workers
from feedrate.trainables.measuring.follower import Follower
from feedrate.trainables.ranks.lead import BLAME_S, Lead
from feedrate.trainables.ranks.rank import Rank, store_of_process_group
from feedrate.trainables.ranks.socket_link import SocketLink
from feedrate.trainables.ranks.store_link import StoreLink
from feedrate.trainables.sandbox.child_main import Kept
from feedrate.trainables.sandbox.launcher_protocol import RankFailed
from feedrate.trainables.script.launcher_link import LauncherLink

ENDED_S = 60.0
"""After its report, a rank waits this long to be ended, because its end could look like the cause of the failure."""


class ThisRank:
    """This process among the ranks.

    Args:
        rank: which one it is.
        link: to the launcher, which ends all ranks when one has failed.
    """

    def __init__(self, rank: Rank, link: LauncherLink) -> None:
        self.rank, self._link = rank, link

    @property
    def is_follower(self) -> bool:
        """Whether this is a rank other than rank 0."""
        return self.rank.number > 0

    def why_not(self, script_name: str) -> str | None:
        """Return why these ranks cannot be measured, as a sentence; None if they can. Call it while the script waits for a batch."""
        if not _is_dispatching():
            return None
        return (
            f"one process of {script_name} reads the batches of all its processes (Accelerate's dispatch_batches), and feedrate measures "
            "processes that read their own. Start the training with one process, or set dispatch_batches=False"
        )

    def why_no_store(self, script_name: str) -> str | None:
        """Return why these ranks, which run on several hosts, cannot talk with each other, as a sentence; None if they can."""
        if store_of_process_group() is not None:
            return None
        return f"{script_name} trains on several hosts without torch.distributed.init_process_group, and its ranks cannot talk with each other"

    def lead(self, descriptors: Sequence[int], *, by_store: bool) -> Lead:
        """Return rank 0's side of the measurement.

        Args:
            descriptors: of the sockets to ranks 1, 2, ...; none if the ranks talk through the store.
            by_store: whether they do, because they run on several hosts.
        """
        if not by_store:
            return Lead([SocketLink(each) for each in descriptors])
        store = StoreLink.connection(store_of_process_group())
        links = [StoreLink(store, number, is_lead=True) for number in range(1, self.rank.world_size)]
        return Lead(links, self.rank.local_world_size)

    def follow(self, descriptor: int | None, kept: Kept, device: str | None) -> None:
        """Do what rank 0 says; if that fails, report it to the launcher, because rank 0 may be waiting for this rank.

        Args:
            descriptor: of the socket to rank 0; None to talk to it through the store.
            kept: the workload, and this rank's own processes.
            device: where the model is.
        """
        assert kept.workload is not None
        number = self.rank.number
        link = StoreLink(StoreLink.connection(store_of_process_group()), number, is_lead=False) if descriptor is None else SocketLink(descriptor)
        follower = Follower(link, number, kept.workload, device, kept.pids)
        try:
            follower.serve()
        except BaseException as error:  # user code may raise anything, even SystemExit
            ignore_ended_workers()
            failure = classify(error, follower.phase, None if follower.config is None else follower.config.batch_size)
            time.sleep(BLAME_S)
            self.report(failure)

    def report(self, failure: Failure) -> None:
        """Report a failure of this rank to the launcher, and wait to be ended with all other ranks."""
        self._link.say(RankFailed(failure=failure))
        time.sleep(ENDED_S)


def _is_dispatching() -> bool:
    """Whether Accelerate reads the batch that is asked for now on behalf of all ranks."""
    frame: FrameType | None = sys._getframe(1)
    while frame is not None and not frame.f_code.co_qualname.startswith("DataLoaderDispatcher."):
        frame = frame.f_back
    return frame is not None
