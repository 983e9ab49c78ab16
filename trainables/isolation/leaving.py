"""How a trial's process ends: the user's `atexit` functions run, then the process is gone, whatever else it holds.

`os._exit` alone would skip them, and what a dataset unlinks at exit (named shared memory, a lock file, a temporary
folder) would be in the way of the next trial.
"""

from __future__ import annotations

import atexit
import contextlib
import multiprocessing.process
import multiprocessing.util
import os
import signal
import sys
import weakref
from types import FrameType
from typing import Any, NoReturn

EXIT_S = 3.0
"""Time that a trial's process has for its exit functions; after that it is killed."""


def forget_inherited_exits() -> None:
    """Drop the exit functions that this process inherited when it was forked.

    They belong to the process that registered them: a temporary folder that the user's module made before the fork is
    still needed by the next trial. multiprocessing's own stays: it ends the loader workers of this process.
    """
    atexit._clear()
    for finalizer in list(weakref.finalize._registry):  # type: ignore[attr-defined]
        finalizer.atexit = False
    weakref.finalize._registered_with_atexit = False  # type: ignore[attr-defined]
    multiprocessing.process._children.clear()  # type: ignore[attr-defined]
    multiprocessing.util._finalizer_registry.clear()  # type: ignore[attr-defined]
    atexit.register(multiprocessing.util._exit_function)  # type: ignore[attr-defined]


def leave(status: int = 0) -> NoReturn:
    """Run the exit functions of this process, write what is buffered, and end it. Whoever waits for it kills it after EXIT_S."""
    with contextlib.suppress(ValueError):  # not the main thread
        signal.signal(signal.SIGTERM, signal.SIG_IGN)  # once is enough
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
    """Remove torch's SIGCHLD handler, which raises once for each dead loader worker, wherever this process is."""
    with contextlib.suppress(RuntimeError):
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
