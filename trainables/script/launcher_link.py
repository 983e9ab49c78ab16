"""`LauncherLink`: the connection of an interpreter to the launcher that started its command (trainables/sandbox/launcher.py)."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import socket
import sys
import time
from typing import Any

from feedrate.trainables.ranks.rank import Rank

RANK = "trains in a started process"
"""Message of a process that trains and that the script itself has started, as a rank of its training."""
MAX_RANKS = 250
"""The kernel sends at most 253 descriptors in one message."""
LEAVING_S = 2.0
"""Time for the launcher to end the processes around the training process."""


class LauncherLink:
    """Reports to the launcher what becomes of this interpreter; if the launcher dies, this process dies, too.

    Args:
        address: path of the launcher's socket.
        what: the first message.
        facts: its fields.
    """

    def __init__(self, address: str, what: str = "imports torch", **facts: Any) -> None:
        self.address = address
        self.rank = Rank.of_environment()
        self._owner = os.getpid()
        self._lifeline: socket.socket | None = None
        with contextlib.suppress(OSError):
            self._lifeline = self._connected()
            self.say(what, python=sys.executable, rank=self._rank(), **facts)
            # nothing is ever sent to this socket, so the only event on it is its end, for which the kernel sends SIGIO
            fcntl.fcntl(self._lifeline, fcntl.F_SETOWN, self._owner)
            fcntl.fcntl(self._lifeline, fcntl.F_SETFL, fcntl.fcntl(self._lifeline, fcntl.F_GETFL) | os.O_ASYNC)

    def say(self, what: str, **facts: Any) -> None:
        """Send a message, unless this is a process that the connection's owner has forked."""
        if self._lifeline is not None and os.getpid() == self._owner:
            with contextlib.suppress(OSError):
                self._lifeline.sendall(json.dumps({"says": what, "time_s": time.monotonic(), **facts}).encode() + b"\n")

    def receive_request(self) -> tuple[dict[str, Any], bytes, list[int]]:
        """Report that the training was found; return the launcher's options, the line of the first request, and descriptors.

        The first descriptor is that of the socket for events; for rank 0 of a training with several ranks, sockets to the other ranks
        follow. Any other rank gets an empty line and the socket to rank 0. The launcher answers when all ranks have reported.
        """
        with self._connected() as handover:
            handover.sendall(json.dumps({"says": "trains", "rank": self._rank()}).encode() + b"\n")
            data, descriptors, _, _ = socket.recv_fds(handover, 1 << 16, MAX_RANKS)
            while data.count(b"\n") < 2:
                data += handover.recv(1 << 16)
        header, _, line = data.partition(b"\n")
        return json.loads(header), line, list(descriptors)

    def leave(self) -> None:
        """Let the launcher end the processes between it and this one, because a shell script would go on with its next command."""
        with contextlib.suppress(OSError), self._connected() as goodbye:
            goodbye.settimeout(LEAVING_S)
            goodbye.sendall(json.dumps({"says": "leaves"}).encode() + b"\n")
            goodbye.recv(1)

    def _rank(self) -> dict[str, Any] | None:
        return None if self.rank is None else self.rank.to_json()

    def _connected(self) -> socket.socket:
        connection = socket.socket(socket.AF_UNIX)
        connection.connect(self.address)
        return connection
