"""The clean template process: it imports torch and the user's module once, then forks a child for every request.

A forked child runs user code 30 ms after the request; a new interpreter would first spend seconds on `import torch`.
`feedrate.trainables.sandbox.template` starts it as `python -P -m feedrate.trainables.sandbox.template_main FD`. FD is one end
of a socket pair, on which template_protocol.py is spoken. When the other end closes, however its owner died, the template ends
every child and then itself.

Top-level imports are few and fast, because a spawned loader worker imports this module again as its `__main__`.
"""

from __future__ import annotations

import contextlib
import fcntl
import multiprocessing
import os
import select
import shutil
import signal
import socket
import stat
import subprocess
import sys
from dataclasses import dataclass
from multiprocessing import resource_tracker
from typing import Any, NoReturn

from feedrate.trainables.diagnose import stacks
from feedrate.trainables.isolation.leaving import (
    EXIT_S,
    die_with_parent,
    forget_inherited_exits,
    leave,
    leave_on_sigterm,
)
from feedrate.trainables.isolation.sweeping import MARKER, marked, sweep
from feedrate.trainables.sandbox.compat import torch_folder_in
from feedrate.trainables.sandbox.template_protocol import Answer, Ended, Hello, Ready, Started, answer_line

TERMINATING = (signal.SIGTERM, signal.SIGHUP)
"""Signals that the template ignores, because it ends with its owner. systemd and Slurm send SIGTERM to every process; if it
killed the template, the template's folder would stay behind."""


def main(argv: list[str]) -> None:
    """Serve requests until the control socket closes; with `--once`, serve one request without forking."""
    stacks.install()
    control = socket.socket(fileno=int(argv[0]))
    hello = Hello.from_line(_receive_line(control))
    once = "--once" in argv
    if hello.cpus:
        os.sched_setaffinity(0, hello.cpus)
    if once:
        _run_once(control, hello)
        return
    resource_tracker.ensure_running()  # started here, so that it outlives killed children and unlinks their semaphores
    runs_script = hello.workload.command is not None
    before = _Before(_num_threads(), positioned_files()) if runs_script else _end_with_owner(control, hello)
    clean = _num_threads() <= before.num_threads and not _accelerator_touched() and not positioned_files() - before.files
    for number in TERMINATING:
        if signal.getsignal(number) == signal.SIG_DFL:
            signal.signal(number, signal.SIG_IGN)
    os.makedirs(hello.temp, 0o700, exist_ok=True)  # the owner chose the name, so it can remove the folder whenever it is interrupted
    _use_folder(hello.temp)
    launcher = _launcher(hello) if runs_script else None
    from feedrate.trainables.machine.process import tree_pids

    # for a moment after a program has been started, the kernel shows an empty environment, so it would not be found by the marker
    spare = {os.getpid(), *tree_pids(), *marked(os.environ[MARKER])}
    control.sendall(answer_line(Ready(clean=clean, spare=sorted(spare))))
    while True:
        line, descriptors = _receive_request(control)
        if not line:
            _last_sweep(hello)
            leave()
        if launcher is None:
            _serve(control, line, descriptors[0], hello, clean)
        else:
            _launch(launcher, control, line, descriptors[0], hello)


def _launcher(hello: Hello) -> Any:
    from feedrate.trainables.sandbox.launcher import Launcher

    return Launcher(hello.workload, hello.temp, num_hosts=hello.num_hosts)


def _launch(launcher: Any, control: socket.socket, request: bytes, pipe: int, hello: Hello) -> None:
    """Start the training command for a request, and wait until it has ended."""
    try:
        launcher.serve(
            control,
            request,
            pipe,
            hello.threads,
            lambda answer: control.sendall(answer_line(answer)),
            lambda pid, watch: _end_without_owner(hello, pid, watch),
        )
    except (BrokenPipeError, ConnectionResetError):
        _last_sweep(hello)
        leave()
    finally:
        os.close(pipe)


def _run_once(control: socket.socket, hello: Hello) -> None:
    """Serve one request in this process, which was started for it as a new interpreter."""
    _use_folder(hello.temp)
    control.sendall(b"{}\n")
    line, descriptors = _receive_request(control)
    if not line:
        return
    resource_tracker.ensure_running()  # while this process is still in the template's process group, which is not killed
    with torch_folder_in(hello.temp):
        _become_child(os.getppid(), hello)
        control.sendall(b"{}\n")
        from feedrate.trainables.sandbox.child_main import run_request

    run_request(line, descriptors[0])
    leave()


def _use_folder(path: str) -> None:
    """Let loader workers, however they start, create their sockets in one folder, because a killed worker leaves its socket behind."""
    multiprocessing.current_process()._config["tempdir"] = path  # type: ignore[attr-defined]


def _last_sweep(hello: Hello, group: int | None = None) -> None:
    """End every process with the marker except this one, and remove the folder: the owner, which normally does this, is gone."""
    sweep(os.environ[MARKER], group=group, spare={os.getpid()}, helpers_s=0)
    shutil.rmtree(hello.temp, ignore_errors=True)


def _serve(control: socket.socket, request: bytes, pipe: int, hello: Hello, clean: bool) -> None:
    """Start a child, wait until it ends or the supervisor is gone, and report how the child ended."""
    pid = _fork(control, request, pipe, hello) if clean else _spawn(request, pipe, hello)
    os.close(pipe)
    watch = os.pidfd_open(pid)
    try:
        _tell(control, Started(pid=pid), hello, pid, watch)
        poll = select.poll()
        poll.register(watch, select.POLLIN)
        poll.register(control, select.POLLRDHUP)
        while True:
            ready = dict(poll.poll())
            if control.fileno() in ready:
                _end_without_owner(hello, pid, watch)
            if watch in ready:
                _, status = os.waitpid(pid, 0)
                _tell(control, Ended(status=status), hello, pid, watch)
                return
    finally:
        os.close(watch)


def _tell(control: socket.socket, answer: Answer, hello: Hello, pid: int, watch: int) -> None:
    """Send an answer; if the owner has died, end everything."""
    try:
        control.sendall(answer_line(answer))
    except (BrokenPipeError, ConnectionResetError):
        _end_without_owner(hello, pid, watch)


def _end_without_owner(hello: Hello, pid: int, watch: int) -> NoReturn:
    """Let the child run its exit functions, end every process that came from this one, then end this process."""
    with contextlib.suppress(ProcessLookupError):
        signal.pidfd_send_signal(watch, signal.SIGTERM)
    select.select([watch], [], [], EXIT_S)
    _last_sweep(hello, group=pid)
    with contextlib.suppress(ChildProcessError):  # it may have been waited for already
        os.waitpid(pid, 0)
    leave()


def _fork(control: socket.socket, request: bytes, pipe: int, hello: Hello) -> int:
    parent = os.getpid()
    pid = os.fork()
    if pid == 0:
        try:
            control.close()
            forget_inherited_exits()
            _become_child(parent, hello)
            from feedrate.trainables.sandbox.child_main import run_request

            run_request(request, pipe)
        finally:
            leave()
    os.setpgid(pid, pid)  # parent and child both set it, so that it is set in time whichever runs first
    return pid


def _spawn(request: bytes, pipe: int, hello: Hello) -> int:
    """Start a new interpreter for one request, because importing the user's module left threads, CUDA state or open files behind."""
    ours, theirs = socket.socketpair()
    with ours, theirs:
        child = subprocess.Popen(
            [sys.executable, "-P", "-m", "feedrate.trainables.sandbox.template_main", str(theirs.fileno()), "--once"],
            pass_fds=[theirs.fileno()],
        )
        theirs.close()
        ours.sendall(hello.line())
        _receive_line(ours)  # the new interpreter has started
        socket.send_fds(ours, [request], [pipe])
        _receive_line(ours)  # it now leads its own process group
    child.returncode = 0  # because the template waits for this process by its pid
    return child.pid


def _become_child(parent: int, hello: Hello) -> None:
    """Give this process its own process group, let it die with its template, reset its signal handlers and set torch's number of threads."""
    if os.getpgrp() != os.getpid():
        os.setpgid(0, 0)
    die_with_parent()
    if os.getppid() != parent:
        os._exit(1)
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    if signal.getsignal(signal.SIGHUP) == signal.SIG_IGN:
        signal.signal(signal.SIGHUP, signal.SIG_DFL)
    leave_on_sigterm()
    if hello.threads:
        import torch

        torch.set_num_threads(hello.threads)


@dataclass(frozen=True, slots=True)
class _Before:
    """What this process had before it imported the user's module."""

    num_threads: int
    files: set[str]


def _end_with_owner(control: socket.socket, hello: Hello) -> _Before:
    """Import everything; SIGIO ends this process if the owner dies meanwhile, because an import may take minutes, or forever.

    The owner sends nothing to the template before it is ready, so the only event on the socket is that the owner has closed it.
    """
    flags = fcntl.fcntl(control, fcntl.F_GETFL)
    fcntl.fcntl(control, fcntl.F_SETOWN, os.getpid())
    fcntl.fcntl(control, fcntl.F_SETFL, flags | os.O_ASYNC)
    try:
        poll = select.poll()
        poll.register(control, select.POLLRDHUP)
        if poll.poll(0):
            sys.exit(0)
        return _import_everything(hello)
    finally:
        fcntl.fcntl(control, fcntl.F_SETFL, flags)


def _import_everything(hello: Hello) -> _Before:
    """Import torch, child_main and the user's module; return the state of the process before the user's module."""
    with torch_folder_in(hello.temp):
        import torch._dynamo  # the first optimizer in a process imports it, which takes a second  # noqa: F401

    import feedrate.trainables.sandbox.child_main  # noqa: F401
    from feedrate.trainables.resolve import preload

    before = _Before(_num_threads(), positioned_files())
    with contextlib.suppress(BaseException):  # the child imports the module again and reports the error with the user's traceback
        preload(hello.workload)
    return before


def positioned_files() -> set[str]:
    """Return the open files and sockets of this process whose position forked processes would share, without log files.

    Each is given as "descriptor target", as in /proc.
    """
    found = set()
    for number in os.listdir("/proc/self/fd"):
        with contextlib.suppress(OSError):
            mode = os.fstat(int(number)).st_mode
            appends = fcntl.fcntl(int(number), fcntl.F_GETFL) & (os.O_APPEND | os.O_WRONLY)
            if stat.S_ISSOCK(mode) or (stat.S_ISREG(mode) and not appends):
                found.add(f"{number} {os.readlink(f'/proc/self/fd/{number}')}")
    return found


def _num_threads() -> int:
    return len(os.listdir("/proc/self/task"))


def _accelerator_touched() -> bool:
    torch = sys.modules.get("torch")
    return torch is not None and (torch.cuda.is_initialized() or torch.xpu.is_initialized())


def _receive_line(control: socket.socket) -> bytes:
    """Return the bytes up to a newline, read one at a time, because later bytes may come with a file descriptor."""
    line = b""
    while not line.endswith(b"\n"):
        byte = _received(control)
        if not byte:
            sys.exit(0)
        line += byte
    return line


def _received(control: socket.socket) -> bytes:
    try:
        return control.recv(1)
    except ConnectionResetError:  # the owner died without reading everything that we sent
        return b""


def _receive_request(control: socket.socket) -> tuple[bytes, list[int]]:
    """Return a request and its descriptors; empty if the owner has closed the socket, or died without reading everything."""
    try:
        data, descriptors, _, _ = socket.recv_fds(control, 1, 1)
    except ConnectionResetError:
        data, descriptors = b"", []
    if not data:
        return b"", []
    return data + _receive_line(control), list(descriptors)


if __name__ == "__mp_main__":  # a spawned loader worker: from now on it can report what it is executing
    stacks.install()
if __name__ == "__main__":
    main(sys.argv[1:])
