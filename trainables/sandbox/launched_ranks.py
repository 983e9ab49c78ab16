"""`LaunchedRanks`: the ranks of one run of a training command: which of them have begun to train, and which one failed."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import time
from dataclasses import dataclass, field, replace
from pathlib import Path

from feedrate.trainables.failure import Failure
from feedrate.trainables.ranks.rank import Rank
from feedrate.trainables.sandbox.launcher_protocol import EndedIdle, Handover, Raised, RankFailed

SETTLED_S = 0.5
"""Time from the first report of a failure until its cause must have been seen."""
_ENDED_BY_OTHERS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
"""Signals with which launchers end the other ranks after one has failed."""


@dataclass(slots=True)
class LaunchedRanks:
    """What is known about the ranks. Empty for a training in one process."""

    num_hosts: int = 1
    """On how many hosts the ranks run; those of the others are not seen here."""
    first: dict[int, int] = field(default_factory=dict)
    """Pid of the first interpreter of each rank: helper processes of a rank inherit its variables."""
    waiting: dict[int, socket.socket] = field(default_factory=dict)
    """Connections of the ranks that have begun to train."""
    idle: dict[int, tuple[Rank, str]] = field(default_factory=dict)
    """Ranks that have ended without training, each with the reason."""
    finished: set[int] = field(default_factory=set)
    """Ranks whose end needs no explanation: they said how they ended."""
    blamed: list[tuple[float, Failure]] = field(default_factory=list)
    """Failures found so far, with a number that is lowest for the most likely cause of all of them."""
    since_s: float = 0.0
    """When the first of them was found."""
    watches: dict[int, Rank] = field(default_factory=dict)
    """Descriptors that become readable when the process of a rank has ended."""

    def begins(self, rank: Rank, pid: int) -> int | None:
        """Note an interpreter of a rank; return the descriptor of `watches` if it is the first one of this rank."""
        if rank.number in self.first:
            return None
        self.first[rank.number] = pid
        with contextlib.suppress(OSError):  # it has ended already
            watch = os.pidfd_open(pid)
            self.watches[watch] = rank
            return watch
        return None

    def close(self) -> None:
        """Stop watching."""
        for watch in self.watches:
            os.close(watch)
        self.watches.clear()

    def is_first(self, rank: Rank, pid: int) -> bool:
        """Return whether a process is the rank itself, and no helper that it started."""
        return self.first.get(rank.number) == pid

    def joins(self, rank: Rank, pid: int, connection: socket.socket) -> str | None:
        """Note that a process of a rank has begun to train; return a sentence if these ranks cannot be measured."""
        if rank.world_size != self.num_hosts * rank.local_world_size:
            return self._other_hosts(rank)
        if rank.number in self.waiting:
            return f"the command trains in two processes that are both rank {rank.number}. Start it with torchrun, which numbers its processes"
        if not self.is_first(rank, pid):
            return f"rank {rank.number} trains in another process than the one that imported torch first. Let the command start the script itself"
        self.waiting[rank.number] = connection
        return None

    def without_ranks(self) -> str:
        """Return why a training in one process cannot be measured on several hosts, as a sentence."""
        return f"the command trains in one process, and --hosts-per-trial {self.num_hosts} needs one that torchrun starts, as in -- torchrun --nproc-per-node 1 train.py"

    def _other_hosts(self, rank: Rank) -> str:
        """Return why ranks that run on another number of hosts than expected cannot be measured, as a sentence."""
        ranks = f"the command trains with {rank.world_size} ranks, {rank.local_world_size} of them on this host"
        if self.num_hosts == 1:
            return (
                f"{ranks}, and feedrate does not see the others. Start the training on one node, or let a search start it on several hosts of a "
                "cluster: feedrate search --hosts-per-trial 2 --address ADDRESS -- torchrun ..."
            )
        return (
            f"{ranks}, but --hosts-per-trial {self.num_hosts} needs a command that starts as many ranks on each of {self.num_hosts} hosts: torchrun without --standalone, "
            "--nnodes, --node-rank, --rdzv-... and --master-..., which feedrate sets"
        )

    def missing(self, rank: Rank) -> int:
        """Return how many of this rank's host have not begun to train."""
        return rank.local_world_size - len(self.waiting)

    def hand_over(self, handover: Handover, request: bytes, pipe: int) -> None:
        """Give the answer, the request, the socket for events and sockets to the other ranks to rank 0, and their other ends to these ranks."""
        head = handover.line()
        pairs = [] if handover.by_store else [socket.socketpair() for _ in range(len(self.waiting) - 1)]
        try:
            for number, connection in self.waiting.items():
                descriptors = [pipe, *(ours.fileno() for ours, _ in pairs)] if number == 0 else [pairs[number - 1][1].fileno()] if pairs else []
                with contextlib.suppress(OSError):  # the process has died, which the poll reports
                    socket.send_fds(connection, [head + (b"\n" if number else request)], descriptors)
        finally:
            for pair in pairs:
                for each in pair:
                    each.close()

    def raised(self, rank: Rank, message: Raised) -> None:
        """Note that a rank raised before it had trained."""
        self.finished.add(rank.number)
        failure = Failure(kind="user-code", phase="setup", message=message.sentence, traceback=message.traceback)
        self._blame(rank, failure, message.time_s)

    def ended_idle(self, rank: Rank, message: EndedIdle) -> None:
        """Note that a rank has ended without training. That is a failure if another rank trains."""
        self.finished.add(rank.number)
        self.idle[rank.number] = rank, message.sentence

    def failed(self, rank: Rank, message: RankFailed) -> None:
        """Note a failure that a rank has reported itself."""
        self.finished.add(rank.number)
        self._blame(rank, message.failure, message.time_s)

    def ended(self, watch: int, phase: str) -> None:
        """Note that the process behind a descriptor of `watches` has ended."""
        rank = self.watches.pop(watch)
        os.close(watch)
        if rank.number in self.finished:
            return
        how, is_consequence = "was killed, or ended by itself", False
        if (status := _status(self.first[rank.number])) is not None:
            code = os.waitstatus_to_exitcode(status)
            how = f"was killed by {signal.Signals(-code).name}" if code < 0 else f"ended by itself (exit status {code})"
            is_consequence = abs(code) % 128 in _ENDED_BY_OTHERS
        failure = Failure(kind="trainer-killed", phase=phase, message=f"{how}{', before it had trained' if phase == 'setup' else ''}")
        self._blame(rank, failure, float("inf") if is_consequence else 0.0)

    def cause(self, *, is_last: bool = False) -> Failure | None:
        """Return the most likely cause of the failures, and forget them; None while there is none, or while a likelier one may come.

        The end of a process is the cause of what others report about lost connections, which may be heard first.

        Args:
            is_last: no further failure can come.
        """
        for rank, sentence in self.idle.values() if self.waiting else ():
            self._blame(rank, Failure(kind="user-code", phase="setup", message=sentence), 0.0)
        found = min(self.blamed, key=lambda each: each[0], default=None)
        if found is None or (found[0] and not is_last and time.monotonic() < self.since_s + SETTLED_S):
            return None
        self.blamed.clear()
        return found[1]

    def _blame(self, rank: Rank, failure: Failure, order: float) -> None:
        self.since_s = self.since_s if self.blamed else time.monotonic()
        joint = ": " if failure.kind != "trainer-killed" else " "
        self.blamed.append((order, replace(failure, message=f"rank {rank.number}{joint}{failure.message}")))


def _status(pid: int) -> int | None:
    """Return the wait status of a process that has ended; None if its parent has waited for it already."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    return int(fields[-1]) if fields[0] == "Z" else None
