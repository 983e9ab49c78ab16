"""`Channel`: the supervisor's end of what it shares with a template process and the children of it."""

from __future__ import annotations

import fcntl
import json
import os
import socket
import tempfile
import time
import uuid
from typing import Any

from feedrate.trainables.isolation.sweeping import marked


class Channel:
    """A control socket, the output of the trials, their stacks, and the marker by which their processes are found.

    Args:
        show_output: the output goes to our stderr, and nothing of it is kept.
    """

    def __init__(self, *, show_output: bool) -> None:
        self.marker = uuid.uuid4().hex
        self.spare: set[int] = set()
        """Processes with the marker that live as long as the template."""
        self.log, self._stacks = (tempfile.TemporaryFile() for _ in range(2))  # noqa: SIM115 - live as long as the template
        fcntl.fcntl(self.log, fcntl.F_SETFL, os.O_APPEND)  # emptied for every request
        self.stacks_path = f"/proc/{os.getpid()}/fd/{self._stacks.fileno()}"
        """Where the processes write their stacks when they are asked for them."""
        self.control, self.theirs = socket.socketpair()
        self._show_output = show_output
        self._messages = b""

    def close(self) -> None:
        """Forget the output. The template ends when `control` is closed, which comes first."""
        self.log.close()
        self._stacks.close()

    def begin_request(self) -> None:
        """Forget the output and the stacks of the request before."""
        os.ftruncate(self.log.fileno(), 0)
        os.ftruncate(self._stacks.fileno(), 0)

    def message(self, deadline: float) -> dict[str, Any]:
        """The template's next message.

        Raises:
            EOFError: the template died. TimeoutError (an OSError): it stayed silent.
        """
        while b"\n" not in self._messages:
            self.control.settimeout(max(deadline - time.monotonic(), 0.001))
            data = self.control.recv(4096)
            if not data:
                raise EOFError
            self._messages += data
        line, _, self._messages = self._messages.partition(b"\n")
        message: dict[str, Any] = json.loads(line)
        return message

    def pids(self) -> set[int]:
        """The processes of the trial under way; those that live as long as the template are not among them."""
        return set(marked(self.marker)) - self.spare

    def output(self, num_bytes: int) -> str:
        """The end of this request's output; empty where it goes to our stderr."""
        if self._show_output or self.log.closed:
            return ""
        log = self.log.fileno()
        return os.pread(log, num_bytes, max(os.fstat(log).st_size - num_bytes, 0)).decode(errors="replace")

    def tail(self) -> str:
        """The last lines of this request's output, for a failure's sentence."""
        text = self.output(1500).strip()
        return f"; its last output: {text}" if text else ""
