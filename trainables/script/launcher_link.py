"""`LauncherLink`: the connection of an interpreter to the launcher that started its command (trainables/sandbox/launcher.py)."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import socket
import sys
from typing import Any

RANK = "trains in a started process"
"""Message of a process that trains and that the script itself has started, as a rank of its training."""
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
        self._owner = os.getpid()
        self._lifeline: socket.socket | None = None
        with contextlib.suppress(OSError):
            self._lifeline = self._connected()
            self.say(what, python=sys.executable, **facts)
            # nothing is ever sent to this socket, so the only event on it is its end, for which the kernel sends SIGIO
            fcntl.fcntl(self._lifeline, fcntl.F_SETOWN, self._owner)
            fcntl.fcntl(self._lifeline, fcntl.F_SETFL, fcntl.fcntl(self._lifeline, fcntl.F_GETFL) | os.O_ASYNC)

    def say(self, what: str, **facts: Any) -> None:
        """Send a message, unless this is a process that the connection's owner has forked."""
        if self._lifeline is not None and os.getpid() == self._owner:
            with contextlib.suppress(OSError):
                self._lifeline.sendall(json.dumps({"says": what, **facts}).encode() + b"\n")

    def receive_request(self) -> tuple[dict[str, Any], bytes, int]:
        """Report that the training was found; return the launcher's options, the line of the first request and the descriptor for its events."""
        with self._connected() as handover:
            handover.sendall(json.dumps({"says": "trains"}).encode() + b"\n")
            data, descriptors, _, _ = socket.recv_fds(handover, 1 << 16, 1)
            while data.count(b"\n") < 2:
                data += handover.recv(1 << 16)
        header, _, line = data.partition(b"\n")
        return json.loads(header), line, descriptors[0]

    def leave(self) -> None:
        """Let the launcher end the processes between it and this one, because a shell script would go on with its next command."""
        with contextlib.suppress(OSError), self._connected() as goodbye:
            goodbye.settimeout(LEAVING_S)
            goodbye.sendall(json.dumps({"says": "leaves"}).encode() + b"\n")
            goodbye.recv(1)

    def _connected(self) -> socket.socket:
        connection = socket.socket(socket.AF_UNIX)
        connection.connect(self.address)
        return connection
