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
from feedrate.trainables.ranks.rank import Rank
from feedrate.trainables.ranks.rank_link import RankLink
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

    def lead(self, descriptors: Sequence[int]) -> Lead:
        """Return rank 0's side of the measurement.

        Args:
            descriptors: of the sockets to ranks 1, 2, ...
        """
        return Lead([RankLink(each) for each in descriptors])

    def follow(self, descriptor: int, kept: Kept, device: str | None) -> None:
        """Do what rank 0 says; if that fails, report it to the launcher, because rank 0 may be waiting for this rank.

        Args:
            descriptor: of the socket to rank 0.
            kept: the workload, and this rank's own processes.
            device: where the model is.
        """
        assert kept.workload is not None
        follower = Follower(RankLink(descriptor), self.rank.number, kept.workload, device, kept.pids)
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
