"""`Launcher`: starts a training command with feedrate's hook in it, and hands a request to the process that trains.

The command may be a shell script or another launcher that starts Python at last. Every interpreter that imports torch connects
to the launcher's socket, and the one whose training was found gets the request and the socket for its events: from then on it
is the trial's child process, exactly as one that was forked from a template.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import socket
import struct
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any, NoReturn

from feedrate.trainables.diagnose.output import output_tail
from feedrate.trainables.failure import Failure
from feedrate.trainables.isolation.leaving import die_with_parent
from feedrate.trainables.isolation.sweeping import MARKER, marked
from feedrate.trainables.machine.process import tree_pids
from feedrate.trainables.protocol import ACCOMPANYING, Failed, Phase, write_event
from feedrate.trainables.ranks.rank import Rank
from feedrate.trainables.resolve import WorkloadRef
from feedrate.trainables.sandbox.launched_ranks import LaunchedRanks
from feedrate.trainables.sandbox.launcher_protocol import (
    LOADER,
    EndedIdle,
    Handover,
    ImportsTorch,
    IsImported,
    Leaves,
    Raised,
    RankFailed,
    Said,
    Trains,
    TrainsInStartedProcess,
    WithoutFeedrate,
    said_in,
)
from feedrate.trainables.sandbox.template_protocol import Ended, RankStarted, Started

ADDRESS = "FEEDRATE_LAUNCHER"
"""Environment variable with the path of the launcher's socket."""
HOOK = Path(__file__).parents[1] / "script" / "hook"
"""Folder with the sitecustomize.py that goes first on PYTHONPATH."""
SOCKET = "launcher"
"""Name of the socket in the template's temporary folder."""
MARKS = {"FEEDRATE": "1"}
"""Variables by which a script can see that it runs for a measurement."""
OFFLINE = {
    "WANDB_MODE": "offline", "WANDB_SILENT": "true", "COMET_START_ONLINE": "0", "NEPTUNE_MODE": "offline",
    "CLEARML_OFFLINE_MODE": "1", "SWANLAB_MODE": "offline",
}  # fmt: skip
"""Switches with which the usual experiment loggers keep to this machine; one that is set to "disabled" stays."""
FOLDERS = ("PET_LOG_DIR", "OMPI_MCA_orte_tmpdir_base", "PRTE_MCA_prte_tmpdir_base")
"""Environment variables that name the folder for temporary files of torchrun, Open MPI 4 and Open MPI 5. When these launchers are killed, their files stay."""
ORPHANS_S = 30.0
"""How long processes that the command left running may take to import torch."""
_CREDENTIALS = struct.Struct("3i")

Tell = Callable[[Started | RankStarted | Ended], None]
"""Sends an answer to the supervisor."""


class Launcher:
    """Starts the command once for each request that needs a new process.

    Args:
        ref: a workload with a command.
        folder: the template's temporary folder, which only this user can enter.
        num_hosts: on how many hosts the command is started at once, by a launcher on each, for ranks that train together.
    """

    def __init__(self, ref: WorkloadRef, folder: str, *, num_hosts: int = 1) -> None:
        self.ref, self.num_hosts = ref, num_hosts
        self.folder = folder
        self.address = os.path.join(folder, SOCKET)
        self.listener = socket.socket(socket.AF_UNIX)
        self.listener.bind(self.address)
        self.listener.listen(64)

    def serve(
        self, control: socket.socket, request: bytes, pipe: int, threads: int | None, tell: Tell, orphaned: Callable[[int, int], NoReturn]
    ) -> None:
        """Start the command and wait until it has ended.

        Args:
            control: the socket to the supervisor; when it closes, the supervisor is gone.
            request: a line for the process that trains.
            pipe: descriptor of the socket for that process's events; the caller closes it.
            threads: torch's intra-op threads for that process; None leaves the script's own.
            tell: sends `Started`, perhaps a second time with the pid of the process that trains, a `RankStarted` for each rank, and at last `Ended`.
            orphaned: ends everything when the supervisor is gone, given a pid and a pidfd; it does not return.
        """
        launch = _Launch(self, control, request, pipe, threads, tell, orphaned, LaunchedRanks(num_hosts=self.num_hosts))
        try:
            launch.run()
        finally:
            launch.close()

    def environment(self) -> dict[str, str]:
        """Return the environment of the command: the user's, the hook, and what keeps experiment loggers offline."""
        own = {name: value for name, value in os.environ.items() if name != LOADER}
        paths = [str(HOOK), *filter(None, [own.get("PYTHONPATH")])]
        offline = {name: value for name, value in OFFLINE.items() if own.get(name) != "disabled"}
        chosen = {} if self.ref.loader is None else {LOADER: self.ref.loader}
        own = dict.fromkeys(FOLDERS, self.folder) | own
        return own | offline | MARKS | chosen | {"PYTHONPATH": os.pathsep.join(paths), ADDRESS: self.address, "WANDB_DIR": self.folder}


@dataclass(slots=True)
class _Interpreter:
    """One connection: an interpreter of the command that has imported torch, or lacks feedrate."""

    connection: socket.socket
    pid: int
    buffer: bytes = b""
    rank: Rank | None = None
    """Of a training with several processes, if this connection lasts as long as its process."""

    @classmethod
    def accept(cls, listener: socket.socket) -> _Interpreter:
        connection, _ = listener.accept()
        pid, _, _ = _CREDENTIALS.unpack(connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size))
        return cls(connection, pid)

    def messages(self) -> list[Said] | None:
        """Return the messages that have come, without those of unknown kinds; None if the connection has closed."""
        try:
            data = self.connection.recv(1 << 16)
        except ConnectionResetError:
            data = b""
        if not data:
            return None
        *lines, self.buffer = (self.buffer + data).split(b"\n")
        return [message for line in lines if (message := said_in(line)) is not None]

    def answer(self) -> None:
        """Let an interpreter go on that waits until its message has been acted on."""
        with contextlib.suppress(OSError):
            self.connection.sendall(b"\n")


@dataclass(slots=True)
class _Launch:
    """One run of the command."""

    launcher: Launcher
    control: socket.socket
    request: bytes
    pipe: int
    threads: int | None
    tell: Tell
    orphaned: Callable[[int, int], NoReturn]
    ranks: LaunchedRanks
    began_unix_s: float = field(default_factory=time.time)
    poll: Any = field(default_factory=select.poll)
    interpreters: dict[int, _Interpreter] = field(default_factory=dict)
    """Connections by descriptor."""
    has_imported_torch: bool = False
    """Whether an interpreter with feedrate has imported torch."""
    raised: Raised | None = None
    """The last message of this kind, unless it is of a rank."""
    ended_idle: EndedIdle | None = None
    """The last message of this kind."""
    without_feedrate: WithoutFeedrate | None = None
    """The last message of this kind."""
    command: subprocess.Popen[bytes] | None = None
    command_watch: int = -1
    status: int | None = None
    """Wait status of the command, once it has ended."""
    trainer: int | None = None
    """Pid of the process that trains."""
    trainer_watch: int = -1

    def run(self) -> None:
        if not self._start():
            return
        self.poll.register(self.command_watch, select.POLLIN)
        self.poll.register(self.control, select.POLLRDHUP)
        self.poll.register(self.launcher.listener, select.POLLIN)
        until_s = float("inf")
        while not self._is_over(until_s):
            ready = {number for number, _ in self.poll.poll(50 if self.status is not None or self.ranks.blamed else None)}
            if self.control.fileno() in ready:
                self._end_without_owner()
            if self.launcher.listener.fileno() in ready:
                self._accept()
            for number in ready & self.interpreters.keys():
                self._listen(number)
            for watch in ready & self.ranks.watches.keys():
                self.poll.unregister(watch)
                self.ranks.ended(watch, "setup" if self.trainer is None else "measure")
            self._report_ranks(is_last=self.trainer_watch in ready)
            if self.command_watch in ready and self.status is None:
                self.poll.unregister(self.command_watch)
                self.status = os.waitpid(self._pid(), 0)[1]
                until_s = time.monotonic() + ORPHANS_S
            if self.trainer_watch in ready:
                self.tell(Ended(status=self._trainers_status()))
                return
        self._listen_to_the_last()
        self._report_ranks(is_last=True)
        _send(self.pipe, self._failure())
        self.tell(Ended(status=self.status or 0))

    def close(self) -> None:
        for interpreter in self.interpreters.values():
            interpreter.connection.close()
        self.ranks.close()
        for watch in (self.command_watch, self.trainer_watch):
            if watch >= 0:
                os.close(watch)

    def _pid(self) -> int:
        assert self.command is not None
        return self.command.pid

    def _start(self) -> bool:
        """Start the command; if that fails, report it and return False."""
        ref = self.launcher.ref
        assert ref.command is not None
        try:
            self.command = subprocess.Popen(
                list(ref.command),
                executable=sys.executable if ref.own_python else None,
                cwd=ref.cwd,
                env=self.launcher.environment(),
                stdin=subprocess.DEVNULL,
                process_group=0,
                preexec_fn=_become_command,  # noqa: PLW1509 - this process has one thread
            )
        except OSError as error:
            message = f"the command {ref.command[0]!r} cannot be started: {error.strerror}"
            _send(self.pipe, _failed(message, usage=True))
            self.tell(Started(pid=os.getpid()))
            self.tell(Ended(status=0))
            return False
        self.command.returncode = 0  # because this class waits for the process by its pid
        self.command_watch = os.pidfd_open(self._pid())
        self.tell(Started(pid=self._pid()))
        return True

    def _is_over(self, until_s: float) -> bool:
        """Whether the command has ended, and nothing that it left running can still begin to train."""
        if self.status is None or self.trainer is not None:
            return False
        if self.raised is not None or self.ended_idle is not None:
            return not any(_lives(each.pid) for each in self.interpreters.values())
        others = [pid for pid, is_helper in marked(os.environ[MARKER]).items() if pid != os.getpid() and not is_helper]
        return not others or time.monotonic() > until_s

    def _accept(self) -> None:
        interpreter = _Interpreter.accept(self.launcher.listener)
        self.interpreters[interpreter.connection.fileno()] = interpreter
        self.poll.register(interpreter.connection, select.POLLIN)

    def _listen(self, number: int) -> None:
        interpreter = self.interpreters[number]
        messages = interpreter.messages()
        if messages is None:
            self.poll.unregister(number)
            self.interpreters.pop(number).connection.close()
            return
        for message in messages:
            self._hear(interpreter, message)

    def _hear(self, interpreter: _Interpreter, message: Said) -> None:
        rank = interpreter.rank
        if rank is not None and not self.ranks.is_first(rank, interpreter.pid):
            rank = None
        match message:
            case Trains():
                self._hand_over(interpreter, message.rank)
            case ImportsTorch():
                interpreter.rank = message.rank
                if message.rank is not None:
                    self._begin_rank(message.rank, interpreter.pid)
                self.has_imported_torch = True
            case Raised() if rank is not None:
                self.ranks.raised(rank, message)
            case Raised():
                self.raised = message
            case RankFailed():
                if rank is not None:
                    self.ranks.failed(rank, message)
            case Leaves():
                self._end_launchers()
                interpreter.answer()
            case TrainsInStartedProcess():
                if self.trainer is None:
                    _send(self.pipe, _own_ranks(self.launcher.ref.target))
            case IsImported():
                _send(self.pipe, _unguarded(self.launcher.ref.target))
                interpreter.answer()
            case EndedIdle():
                if rank is not None:
                    self.ranks.ended_idle(rank, message)
                self.ended_idle = message
            case WithoutFeedrate():
                self.without_feedrate = message

    def _begin_rank(self, rank: Rank, pid: int) -> None:
        """Watch the process of a rank, unless another one is known to be that rank."""
        if (watch := self.ranks.begins(rank, pid)) is not None:
            self.poll.register(watch, select.POLLIN)
            self.tell(RankStarted(number=rank.number, pid=pid))

    def _report_ranks(self, *, is_last: bool) -> None:
        """Let the trial end if a rank has failed."""
        cause = self.ranks.cause(is_last=is_last)
        if cause is not None:
            before = cause.phase == "setup"
            raised = before and (cause.traceback is not None or cause.kind == "trainer-killed")
            tail = output_tail() if cause.kind == "trainer-killed" else ""
            _send(self.pipe, Failed(failure=replace(cause, message=cause.message + tail), usage=before, raised=raised))

    def _hand_over(self, interpreter: _Interpreter, rank: Rank | None) -> None:
        """Give the request and the socket for events to the process that trains, or to rank 0 as soon as all ranks train.

        Another process that trains, too, ends the trial.
        """
        if self.trainer is not None or (rank is None and self.ranks.waiting):
            message = (
                f"the command trains in several processes (pids {self.trainer} and {interpreter.pid}), and feedrate can measure only one. "
                "Start the training with one process, or let its processes call torch.distributed.init_process_group"
            )
            _send(self.pipe, _failed(message, usage=True))
            return
        if rank is None and self.launcher.num_hosts > 1:
            _send(self.pipe, _failed(self.ranks.without_ranks(), usage=True))
            return
        if rank is not None:
            self._begin_rank(rank, interpreter.pid)  # the interpreter has said so on its other connection, too, but that may be read later
            if (why := self.ranks.joins(rank, interpreter.pid, interpreter.connection)) is not None:
                _send(self.pipe, _failed(why, usage=True))
            elif not self.ranks.missing(rank):
                lowest = min(self.ranks.waiting)
                self._watch(self.ranks.first[lowest])
                self.ranks.hand_over(self._handover(), self.request, self.pipe)
                if lowest:  # rank 0, which reports how the measurement goes on, is on another host
                    _send(self.pipe, Phase(name=ACCOMPANYING))
            return
        self._watch(interpreter.pid)
        with contextlib.suppress(OSError):  # the process has died, which the poll reports
            socket.send_fds(interpreter.connection, [self._handover().line() + self.request], [self.pipe])

    def _handover(self) -> Handover:
        return Handover(threads=self.threads, began_unix_s=self.began_unix_s, by_store=self.launcher.num_hosts > 1)

    def _watch(self, pid: int) -> None:
        """Wait for the end of the process that trains from now on."""
        self.trainer = pid
        self.trainer_watch = os.pidfd_open(self.trainer)
        self.poll.register(self.trainer_watch, select.POLLIN)
        self.tell(Started(pid=self.trainer))

    def _listen_to_the_last(self) -> None:
        """Read what interpreters said before they ended."""
        while ready := dict(self.poll.poll(0)):
            if self.launcher.listener.fileno() in ready:
                self._accept()
            numbers = ready.keys() & self.interpreters.keys()
            for number in numbers:
                self._listen(number)
            if not numbers and self.launcher.listener.fileno() not in ready:
                return

    def _end_launchers(self) -> None:
        """End the processes between this one and the trainer, so that a shell script does not go on with its next command."""
        for pid in _ancestors(self.trainer):
            with contextlib.suppress(OSError):
                os.kill(pid, signal.SIGTERM)

    def _trainers_status(self) -> int:
        """Return the wait status of the process that trained; if another process is its parent, a status in the way of shells."""
        if self.trainer == self._pid():
            return os.waitpid(self._pid(), 0)[1] if self.status is None else self.status
        if self.status is None:
            select.select([self.command_watch], [], [], 0.5)
            self._end_launchers()
            helpers = {pid for pid, is_helper in marked(os.environ[MARKER]).items() if is_helper}  # they clean up after the others
            for pid in set(tree_pids(self._pid())) - helpers:
                with contextlib.suppress(OSError):
                    os.kill(pid, signal.SIGKILL)
            self.status = os.waitpid(self._pid(), 0)[1]
        code = os.waitstatus_to_exitcode(self.status)
        return code - 128 if 128 < code < 128 + signal.NSIG else self.status

    def _end_without_owner(self) -> NoReturn:
        """End the launchers, then the process that trains, after its exit functions."""
        if self.trainer is not None:
            self._end_launchers()
            self.orphaned(self.trainer, self.trainer_watch)
        self.orphaned(self._pid(), self.command_watch)

    def _failure(self) -> Failed:
        """Return the event that says why nothing could be measured."""
        assert self.status is not None
        target, code = self.launcher.ref.target, os.waitstatus_to_exitcode(self.status)
        if self.raised is not None:
            return _failed(self.raised.sentence, traceback=self.raised.traceback)
        if self.ended_idle is not None and code == 0:
            return _failed(self.ended_idle.sentence + output_tail())
        if self.without_feedrate is not None and not self.has_imported_torch:
            python = self.without_feedrate.python
            message = (
                f"{python} cannot import feedrate ({self.without_feedrate.why}). feedrate measures inside the script's own process, so install it "
                f"there: {python} -m pip install feedrate=={version('feedrate')}"
            )
            return _failed(message, usage=True)
        if code:
            how = f"was killed by {signal.Signals(-code).name}" if code < 0 else f"ended with exit status {code}"
            return _failed(f"the command `{target}` {how} before it had trained{output_tail()}")
        why = "never imported torch.utils.data. If it trains, Python must not ignore PYTHONPATH, as it does with -I, -E or -S"
        return _failed(f"the command `{target}` ended and {why}{output_tail()}")


def _failed(message: str, *, usage: bool = False, traceback: str | None = None) -> Failed:
    """Return the failure of a command that ended before anything was measured. With `usage` the command line is to blame, otherwise the user's code."""
    failure = Failure(kind="user-code", phase="setup", message=message, traceback=traceback)
    return Failed(failure=failure, usage=True, raised=not usage)


def _unguarded(target: str) -> Failed:
    message = (
        f"the script of `{target}` trains when it is imported, and loader workers that start by spawn or forkserver import it: put the code "
        'that trains under `if __name__ == "__main__":`, or let workers start by fork'
    )
    return Failed(failure=Failure(kind="user-code", phase="loader", message=message))


def _own_ranks(target: str) -> Failed:
    message = (
        f"the script of `{target}` trains in processes that it forks, and feedrate sees only processes that start with an interpreter of "
        "their own. Let the script start them with torch.multiprocessing.spawn, or train in one process (many scripts have an option for that)"
    )
    return _failed(message, usage=True)


def _send(pipe: int, event: Failed | Phase) -> None:
    with contextlib.suppress(OSError):  # the supervisor is gone, which the poll reports
        write_event(event, pipe)


def _ancestors(pid: int | None) -> list[int]:
    """Return the processes between a process and this one, the outermost first; none if this one is not an ancestor."""
    found: list[int] = []
    while pid and pid != os.getpid():
        try:
            fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        except OSError:
            return []
        pid = int(fields[1])
        found.append(pid)
    return found[-2::-1] if pid else []


def _lives(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def _become_command() -> None:
    """Let the new process die with this one, and give it the signal handlers that it would have in a shell."""
    die_with_parent()
    for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGINT):
        signal.signal(number, signal.SIG_DFL)
