"""`RankLink`: one end of the link between rank 0 and another rank, over which the two send each other lines and tokens."""

from __future__ import annotations

import json
from typing import Any

TOKEN = b"."
"""Allows one more step. Any other message is a line with a JSON value."""


class RankGone(Exception):
    """The process at the other end of a link has ended."""


class RankLink:
    """What a socket (`SocketLink`) and the store of torch's process group (`StoreLink`) have in common."""

    def __init__(self) -> None:
        self._buffer = b""

    def send(self, message: Any) -> None:
        """Send a JSON value.

        Raises:
            RankGone: the other end is gone.
        """
        self._write(json.dumps(message).encode() + b"\n")

    def allow(self, num: int) -> None:
        """Allow the other end so many more steps.

        Raises:
            RankGone: the other end is gone.
        """
        self._write(num * TOKEN)

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
            self._buffer += self._read(waits=True)

    def pending(self) -> list[Any]:
        """Return the lines that have come, without waiting.

        Raises:
            RankGone: the other end is gone.
        """
        self._buffer += self._read(waits=False)
        *lines, self._buffer = self._buffer.split(b"\n")
        return [json.loads(line) for line in lines]

    def _write(self, data: bytes) -> None:
        """Send bytes.

        Raises:
            RankGone: the other end is gone.
        """
        raise NotImplementedError

    def _read(self, *, waits: bool) -> bytes:
        """Return bytes that have come; if there are none, wait for some, or return none.

        Raises:
            RankGone: the other end is gone.
        """
        raise NotImplementedError
