"""The clean template process: imports torch and the user's module once, then forks a child for every request.

A forked child runs user code 30 ms after it was asked for, where a new interpreter pays seconds for `import torch`
(RAY_OPTUNA.md 8). Started by `feedrate.trainables.supervise` as `python -m feedrate.trainables.template FD`, where FD
is one end of a socket pair: requests come in with the pipe for their events, {"started": pid}, {"ended": wait status}
and {"stray_threads": names} go out. When the other end closes, however its owner died, the template ends every child
and then itself.

Top-level imports stay light: a spawned loader worker imports this module again as its `__main__`.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import select
import signal
import socket
import subprocess
import sys
from typing import Any

MARKER = "FEEDRATE_TEMPLATE"
"""Environment variable that every process of a trial inherits from its template: how strays are found."""
_PR_SET_PDEATHSIG = 1


def main(argv: list[str]) -> None:
    """Serve requests until the control socket closes; `--once` serves one without forking."""
    control = socket.socket(fileno=int(argv[0]))
    hello = json.loads(_receive_line(control))
    once = "--once" in argv
    if hello.get("cpus"):
        os.sched_setaffinity(0, hello["cpus"])
    threads_before = _num_threads()
    if not once:
        threads_before = _import_everything(hello)
    stray = _num_threads() - threads_before
    clean = stray <= 0 and not _cuda_touched()
    control.sendall(json.dumps({"ready": True, "clean": clean}).encode() + b"\n")
    while True:
        line, descriptors = _receive_request(control)
        if not line:
            return
        request, pipe = json.loads(line), descriptors[0]
        if once:
            control.sendall(json.dumps({"started": os.getpid()}).encode() + b"\n")
            _become_child(os.getppid(), hello)
            from feedrate.trainables.child import run_request

            run_request(request, pipe)
            os._exit(0)
        _serve(control, request, pipe, hello, clean)


def _serve(control: socket.socket, request: dict[str, Any], pipe: int, hello: dict[str, Any], clean: bool) -> None:
    """Start a child, wait until it ends or the supervisor is gone, report how it ended."""
    pid = _fork(control, request, pipe, hello) if clean else _spawn(request, pipe, hello)
    os.close(pipe)
    watch = os.pidfd_open(pid)
    try:
        control.sendall(json.dumps({"started": pid}).encode() + b"\n")
        poll = select.poll()
        poll.register(watch, select.POLLIN)
        poll.register(control, select.POLLRDHUP)
        while True:
            ready = dict(poll.poll())
            if control.fileno() in ready:
                kill_group(pid)
                os.waitpid(pid, 0)
                kill_marked(os.environ[MARKER], spare={os.getpid()})
                sys.exit(0)
            if watch in ready:
                _, status = os.waitpid(pid, 0)
                control.sendall(json.dumps({"ended": status}).encode() + b"\n")
                return
    finally:
        os.close(watch)


def _fork(control: socket.socket, request: dict[str, Any], pipe: int, hello: dict[str, Any]) -> int:
    parent = os.getpid()
    pid = os.fork()
    if pid == 0:
        try:
            control.close()
            _become_child(parent, hello)
            from feedrate.trainables.child import run_request

            run_request(request, pipe)
        finally:
            os._exit(0)
    os.setpgid(pid, pid)  # both sides set it, so that neither can be too late
    return pid


def _spawn(request: dict[str, Any], pipe: int, hello: dict[str, Any]) -> int:
    """A new interpreter for one request: importing the user's module left threads or CUDA state behind."""
    ours, theirs = socket.socketpair()
    with ours, theirs:
        child = subprocess.Popen(
            [sys.executable, "-m", "feedrate.trainables.template", str(theirs.fileno()), "--once"],
            pass_fds=[theirs.fileno()],
            process_group=0,
        )
        ours.sendall(json.dumps(hello).encode() + b"\n")
        socket.send_fds(ours, [json.dumps(request).encode() + b"\n"], [pipe])
        _receive_line(ours)  # ready
        _receive_line(ours)  # started: it holds the request now
    child.returncode = 0  # waited for by pid
    return child.pid


def _become_child(parent: int, hello: dict[str, Any]) -> None:
    """Its own process group, ended with its template, plain signal handling, the user's folder and threads."""
    if os.getpgrp() != os.getpid():
        os.setpgid(0, 0)
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(1)
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    if hello.get("threads"):
        import torch

        torch.set_num_threads(hello["threads"])


def _import_everything(hello: dict[str, Any]) -> int:
    """Import torch, our child and the user's module; returns the number of threads before the user's module."""
    import torch._dynamo  # the first optimizer of a process imports it, which takes a second  # noqa: F401

    import feedrate.trainables.child  # noqa: F401
    from feedrate.trainables.resolve import WorkloadRef, preload

    before = _num_threads()
    with contextlib.suppress(BaseException):  # the child imports again and reports it with the user's traceback
        preload(WorkloadRef(**hello["workload"]))
    return before


def _num_threads() -> int:
    return len(os.listdir("/proc/self/task"))


def _cuda_touched() -> bool:
    torch = sys.modules.get("torch")
    return bool(torch is not None and torch.cuda.is_initialized())


def _receive_line(control: socket.socket) -> bytes:
    """Bytes up to a newline, read one at a time: what follows may carry a file descriptor."""
    line = b""
    while not line.endswith(b"\n"):
        byte = control.recv(1)
        if not byte:
            sys.exit(0)
        line += byte
    return line


def _receive_request(control: socket.socket) -> tuple[bytes, list[int]]:
    data, descriptors, _, _ = socket.recv_fds(control, 1, 1)
    if not data:
        return b"", []
    return data + _receive_line(control), list(descriptors)


def kill_group(pid: int) -> None:
    """SIGKILL a process group; one that is gone already is fine."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(pid, signal.SIGKILL)


def kill_marked(marker: str, *, spare: set[int]) -> int:
    """SIGKILL every process whose environment carries this marker, and return how many there were.

    Finds processes that left the trial's process group; the marker was in the environment that the template was
    executed with, so forked and executed descendants have it.
    """
    wanted = f"{MARKER}={marker}".encode()
    killed = 0
    for entry in os.listdir("/proc"):
        if not entry.isdigit() or int(entry) in spare:
            continue
        try:
            with open(f"/proc/{entry}/environ", "rb") as stream:
                if wanted not in stream.read().split(b"\0"):
                    continue
            os.kill(int(entry), signal.SIGKILL)
            killed += 1
        except OSError:
            continue
    return killed


if __name__ == "__main__":
    main(sys.argv[1:])
