"""`LauncherLink`: the connection of an interpreter to the launcher that started its command (trainables/sandbox/launcher.py)."""

from __future__ import annotations

import contextlib
import fcntl
import os
import socket

from feedrate.trainables.ranks.rank import Rank
from feedrate.trainables.sandbox.launcher_protocol import (
    Handover,
    ImportsTorch,
    IsImported,
    Leaves,
    Said,
    Trains,
    said_line,
)

MAX_RANKS = 250
"""The kernel sends at most 253 descriptors in one message."""
ANSWER_S = 10.0
"""Time for the launcher to act on a message and to answer it. It usually takes milliseconds, but more on a busy machine."""
LEAVING_S = 2.0
"""The same when the training process ends, which is killed if that takes long."""


class LauncherLink:
    """Reports to the launcher what becomes of this interpreter; if the launcher dies, this process dies, too.

    Args:
        address: path of the launcher's socket.
        first: the first message; None reports that this interpreter imports torch.
    """

    def __init__(self, address: str, first: Said | None = None) -> None:
        self.address = address
        self.rank = Rank.of_environment() or Rank.of_process_group()
        self._owner = os.getpid()
        self._lifeline: socket.socket | None = None
        with contextlib.suppress(OSError):
            self._lifeline = _connected(self.address)
            self.say(ImportsTorch(rank=self.rank) if first is None else first)
            # nothing is ever sent to this socket, so the only event on it is its end, for which the kernel sends SIGIO
            fcntl.fcntl(self._lifeline, fcntl.F_SETOWN, self._owner)
            fcntl.fcntl(self._lifeline, fcntl.F_SETFL, fcntl.fcntl(self._lifeline, fcntl.F_GETFL) | os.O_ASYNC)

    def join(self) -> None:
        """Report which rank this interpreter is, if only torch's process group says so. Call it when the script has made that."""
        if self.rank is None and (rank := Rank.of_process_group()) is not None:
            self.rank = rank
            self.say(ImportsTorch(rank=rank))

    def say(self, message: Said) -> None:
        """Send a message, unless this is a process that the connection's owner has forked."""
        if self._lifeline is not None and os.getpid() == self._owner:
            with contextlib.suppress(OSError):
                self._lifeline.sendall(said_line(message))

    def receive_request(self) -> tuple[Handover, bytes, list[int]]:
        """Report that the training was found; return the launcher's answer, the line of the first request, and descriptors.

        The first descriptor is that of the socket for events; for rank 0 of a training with several ranks, sockets to the other ranks
        follow. Any other rank gets an empty line and the socket to rank 0. If the ranks run on several hosts, no socket leads to another rank.
        The launcher answers when all ranks of its host have reported.
        """
        with _connected(self.address) as connection:
            connection.sendall(said_line(Trains(rank=self.rank)))
            data, descriptors, _, _ = socket.recv_fds(connection, 1 << 16, MAX_RANKS)
            while data.count(b"\n") < 2:
                data += connection.recv(1 << 16)
        answer, _, request = data.partition(b"\n")
        return Handover.from_line(answer), request, list(descriptors)

    def leave(self) -> None:
        """Let the launcher end the processes between it and this one, because a shell script would go on with its next command."""
        say_and_wait(self.address, Leaves(), LEAVING_S)


def say_and_wait(address: str, message: Leaves | IsImported, most_s: float = ANSWER_S) -> None:
    """Send a message on a connection of its own and wait until the launcher has acted on it.

    Args:
        address: path of the launcher's socket.
        message: one that the launcher answers.
        most_s: how long to wait for the answer.
    """
    with contextlib.suppress(OSError), _connected(address) as connection:
        connection.settimeout(most_s)
        connection.sendall(said_line(message))
        connection.recv(1)


def _connected(address: str) -> socket.socket:
    connection = socket.socket(socket.AF_UNIX)
    connection.connect(address)
    return connection
