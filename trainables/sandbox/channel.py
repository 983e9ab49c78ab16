"""`Channel`: what the supervisor shares with a template process and the template's children."""

from __future__ import annotations

import fcntl
import os
import socket
import tempfile
import time
import uuid

from feedrate.trainables.isolation.sweeping import marked
from feedrate.trainables.sandbox.template_protocol import Answer, answer_in


class Channel:
    """A control socket, the trials' output, their stacks, and a marker in the environment that identifies their processes.

    Args:
        show_output: whether the trials' output goes to our stderr; if so, none of it is kept.
        log_path: file to which the trials' output is appended; None keeps that of the present request only.
    """

    def __init__(self, *, show_output: bool, log_path: str | None = None) -> None:
        self.marker = uuid.uuid4().hex
        self.spare: set[int] = set()
        """Processes with the marker that live as long as the template."""
        self._stacks = tempfile.TemporaryFile()  # noqa: SIM115 - lives as long as the template
        self.log = tempfile.TemporaryFile() if log_path is None else open(log_path, "ab+")  # noqa: SIM115
        self._is_kept, self._log_begin = log_path is not None, 0
        fcntl.fcntl(self.log, fcntl.F_SETFL, os.O_APPEND)  # because the file is emptied for every request
        self.stacks_path = f"/proc/{os.getpid()}/fd/{self._stacks.fileno()}"
        """File into which the processes write their stacks on request."""
        self.control, self.theirs = socket.socketpair()
        self._show_output = show_output
        self._answers = b""

    def close(self) -> None:
        """Discard the output. Close `control` first: the template ends when it closes."""
        self.log.close()
        self._stacks.close()

    def begin_request(self) -> None:
        """Discard what the child printed, and the stack traces it wrote, during the previous request."""
        if self._is_kept:
            self._log_begin = os.fstat(self.log.fileno()).st_size
        else:
            os.ftruncate(self.log.fileno(), 0)
        os.ftruncate(self._stacks.fileno(), 0)

    def answer(self, deadline: float) -> Answer:
        """Return the template's next answer.

        Raises:
            EOFError: the template died. TimeoutError (an OSError): no answer came before the deadline.
        """
        while b"\n" not in self._answers:
            self.control.settimeout(max(deadline - time.monotonic(), 0.001))
            try:
                data = self.control.recv(4096)
            except ConnectionResetError as error:  # the template died without reading everything that we sent
                raise EOFError from error
            if not data:
                raise EOFError
            self._answers += data
        line, _, self._answers = self._answers.partition(b"\n")
        return answer_in(line)

    def pids(self) -> set[int]:
        """Return the processes of the current trial, without those that live as long as the template."""
        return set(marked(self.marker)) - self.spare

    def output(self, num_bytes: int) -> str:
        """Return the end of this request's output; empty if the output goes to our stderr."""
        if self._show_output or self.log.closed:
            return ""
        log = self.log.fileno()
        size = os.fstat(log).st_size
        begin = max(size - num_bytes, self._log_begin)
        return os.pread(log, size - begin, begin).decode(errors="replace")

    def tail(self) -> str:
        """Return the last lines of this request's output, for a failure's message."""
        text = self.output(1500).strip()
        return f"; its last output: {text}" if text else ""
