"""`RankLink`: the socket between rank 0 and another rank. Its two ends come from the launcher, and it has no address."""

from __future__ import annotations

import json
import socket
from typing import Any

TOKEN = b"."
"""Allows one more step. Any other message is a line with a JSON value."""


class RankGone(Exception):
    """The process at the other end of a link has ended."""


class RankLink:
    """One end of the socket.

    Args:
        descriptor: of the socket.
    """

    def __init__(self, descriptor: int) -> None:
        self._socket = socket.socket(fileno=descriptor)
        self._buffer = b""

    def send(self, message: Any) -> None:
        """Send a JSON value.

        Raises:
            RankGone: the other end is gone.
        """
        self._send(json.dumps(message).encode() + b"\n")

    def allow(self, num: int) -> None:
        """Allow the other end so many more steps.

        Raises:
            RankGone: the other end is gone.
        """
        self._send(num * TOKEN)

    def receive(self) -> Any:
        """Wait for the next message, and return it; None is a `TOKEN`.

        Raises:
            RankGone: the other end is gone.
        """
        while True:
            if self._buffer.startswith(TOKEN):
                self._buffer = self._buffer[1:]
                return None
            line, newline, rest = self._buffer.partition(b"\n")
            if newline:
                self._buffer = rest
                return json.loads(line)
            self._fill()

    def pending(self) -> list[Any]:
        """Return the lines that have come, without waiting.

        Raises:
            RankGone: the other end is gone.
        """
        try:
            self._fill(socket.MSG_DONTWAIT)
        except BlockingIOError:
            return []
        *lines, self._buffer = self._buffer.split(b"\n")
        return [json.loads(line) for line in lines]

    def _send(self, data: bytes) -> None:
        try:
            self._socket.sendall(data)
        except (BrokenPipeError, ConnectionResetError):
            raise RankGone("the other rank has ended") from None

    def _fill(self, flags: int = 0) -> None:
        try:
            data = self._socket.recv(1 << 16, flags)
        except ConnectionResetError:
            data = b""
        if not data:
            raise RankGone("the other rank has ended")
        self._buffer += data
