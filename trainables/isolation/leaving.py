"""How a trial's process ends: it runs the user's `atexit` functions and then exits, even if threads or workers still run.

`os._exit` alone would skip these functions. Then whatever a dataset unlinks at exit (named shared memory, a lock file, a
temporary folder) would be in the way of the next trial.
"""

from __future__ import annotations

import atexit
import contextlib
import ctypes
import multiprocessing.process
import multiprocessing.util
import os
import signal
import sys
import weakref
from types import FrameType
from typing import Any, NoReturn

_PR_SET_PDEATHSIG = 1  # linux/prctl.h
EXIT_S = 3.0
"""Time that a trial's process has for its exit functions; then it is killed."""


def die_with_parent() -> None:
    """Let the kernel kill this process when the thread that started it ends. The caller then checks that its parent still lives."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def forget_inherited_exits() -> None:
    """Remove the exit functions that this process inherited when it was forked.

    They belong to the process that registered them: for example, the next trial still needs a temporary folder that the
    user's module made before the fork. multiprocessing's own exit function stays, because it ends this process's workers.
    """
    atexit._clear()
    for finalizer in list(weakref.finalize._registry):  # type: ignore[attr-defined]
        finalizer.atexit = False
    weakref.finalize._registered_with_atexit = False  # type: ignore[attr-defined]
    multiprocessing.process._children.clear()  # type: ignore[attr-defined]
    multiprocessing.util._finalizer_registry.clear()  # type: ignore[attr-defined]
    atexit.register(multiprocessing.util._exit_function)  # type: ignore[attr-defined]


def leave(status: int = 0) -> NoReturn:
    """Run this process's exit functions, flush its output, and end it. If that takes more than EXIT_S, the waiting process kills it."""
    with contextlib.suppress(ValueError):  # raised if this is not the main thread
        for number in (signal.SIGTERM, signal.SIGINT):  # neither a second signal nor one that the end of the parent causes may interrupt the exit functions
            signal.signal(number, signal.SIG_IGN)
        ignore_ended_workers()
    with contextlib.suppress(BaseException):
        atexit._run_exitfuncs()
    with contextlib.suppress(BaseException):
        sys.stdout.flush()
        sys.stderr.flush()
    os._exit(status)


def leave_on_sigterm() -> None:
    """Make SIGTERM run the exit functions of this process; processes that it forks die of SIGTERM as usual."""
    owner = os.getpid()

    def on_sigterm(number: int, frame: FrameType | None) -> Any:
        if os.getpid() == owner:
            leave(128 + number)
        signal.signal(number, signal.SIG_DFL)
        os.kill(os.getpid(), number)

    signal.signal(signal.SIGTERM, on_sigterm)


def ignore_ended_workers() -> None:
    """Remove torch's SIGCHLD handler, which raises once for each dead loader worker, wherever the process happens to be."""
    with contextlib.suppress(RuntimeError):
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
