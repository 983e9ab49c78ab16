"""End a command properly on SIGTERM and SIGHUP; if that takes too long, end the process anyway.

Batch systems and service managers send SIGTERM and kill some seconds later. Many send it to every process of a command, so
the local Ray may end before feedrate does, and calls into it then block for a minute. The handler raises an interrupt, like
Ctrl-C. A thread limits the time, because a blocked main thread runs no Python handler.
"""

from __future__ import annotations

import contextlib
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

SIGNALS = (signal.SIGTERM, signal.SIGHUP)
GRACE_S = 10.0
"""Time to end properly after the signal. A search needs about 3 s, or 7 s on a busy machine."""

_asked: int | None = None
_is_watched = False
_terminals: list[int] = []
_last_acts: list[Callable[[], None]] = []


class Interrupted(KeyboardInterrupt):
    """A KeyboardInterrupt whose message says how to continue."""

    def __init__(self, sentence: str, *, run: object = None, resume: str | None = None) -> None:
        super().__init__(sentence)
        self.facts = {"run": run, "resume": resume}


def asked() -> int | None:
    """Return the signal that asked this process to end; None if there was none."""
    return _asked


def ignore_further_signals() -> None:
    """Ignore SIGTERM and SIGHUP from now on, if one of them has already interrupted this process.

    Python restores the default handlers when it exits. On a busy machine, the second signal of `timeout` may come only then, and would
    replace the exit code.
    """
    if _asked is not None and threading.current_thread() is threading.main_thread():
        for number in SIGNALS:
            signal.signal(number, signal.SIG_IGN)


def end_on_signals() -> None:
    """Make SIGTERM and SIGHUP interrupt the main thread, unless other code already handles or ignores the signal."""
    global _is_watched
    if threading.current_thread() is not threading.main_thread():
        return
    ours = [number for number in SIGNALS if signal.getsignal(number) is signal.SIG_DFL]
    if ours and not _is_watched:
        reader, writer = os.pipe()
        os.set_blocking(writer, False)
        signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
        threading.Thread(target=_watch, args=(reader,), name="ending", daemon=True).start()
        _is_watched = True
        _terminals.extend(filter(os.isatty, (1, 2)))
    for number in ours:
        signal.signal(number, _interrupt)


@contextmanager
def handler_restored(number: int) -> Iterator[bool]:
    """Put back the handler that a signal has now, whatever is installed meanwhile. Yields whether this thread may install any: only the main one may."""
    is_main = threading.current_thread() is threading.main_thread()
    before = signal.getsignal(number)
    try:
        yield is_main
    finally:
        if is_main and before is not None:  # None: a program that embeds Python has set it
            signal.signal(number, before)


@contextmanager
def at_the_latest(act: Callable[[], None]) -> Iterator[None]:
    """Call `act` if the process has to be ended after GRACE_S while the context is open; the latest act is called first."""
    _last_acts.append(act)
    try:
        yield
    finally:
        _last_acts.remove(act)


def _interrupt(number: int, frame: object) -> None:
    global _asked
    if _asked is not None:  # `timeout` sends its signal twice, to its child and to the group
        return
    _asked = number
    for descriptor in _terminals:
        if not os.isatty(descriptor):  # the terminal was closed: printing would raise, and nobody would read it
            os.dup2(os.open(os.devnull, os.O_WRONLY), descriptor)
    signal.raise_signal(signal.SIGINT)


def _watch(reader: int) -> None:
    """Wait for a signal; if the process still runs GRACE_S later, call the functions given to `at_the_latest`, then end the process."""
    number = 0
    while number not in SIGNALS:
        number = os.read(reader, 1)[0]
    time.sleep(GRACE_S)
    for act in reversed(_last_acts):
        with contextlib.suppress(Exception):  # an error must not keep the other acts from running, and nobody would see it
            act()
    os._exit(128 + number)
