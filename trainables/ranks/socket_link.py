"""`SocketLink`: the link between two ranks of one host. Its two ends come from the launcher, and it has no address."""

from __future__ import annotations

import socket

from feedrate.trainables.ranks.rank_link import RankGone, RankLink


class SocketLink(RankLink):
    """One end of a socket.

    Args:
        descriptor: of the socket.
    """

    def __init__(self, descriptor: int) -> None:
        super().__init__()
        self._socket = socket.socket(fileno=descriptor)

    def _write(self, data: bytes) -> None:
        try:
            self._socket.sendall(data)
        except (BrokenPipeError, ConnectionResetError):
            raise RankGone("the other rank has ended") from None

    def _read(self, *, waits: bool) -> bytes:
        try:
            data = self._socket.recv(1 << 16, 0 if waits else socket.MSG_DONTWAIT)
        except BlockingIOError:
            return b""
        except ConnectionResetError:
            data = b""
        if not data:
            raise RankGone("the other rank has ended")
        return data
