"""`BetweenEpochs`: what a script does after one epoch of its training and before the next one, and how long that takes."""

from __future__ import annotations

import contextlib
import os
import signal
import stat
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType
from typing import Any

import greenlet
import psutil

from feedrate.trainables.loader.epoch_size import length_of
from feedrate.trainables.measurement import Measurement
from feedrate.trainables.script.tap import Tap

READ_S = 5.0
"""Time for reading all other loaders. The rest of each of them is estimated from what was read."""
MOST_S = 30.0
"""What takes longer is not waited for."""
MOST_STEPS = 8
"""A script whose optimizers step more often without a batch of any loader trains on batches that it has kept."""
SAVING = "torch.save"

_BEGAN_UNIX_S = psutil.Process().create_time()
_OURS = str(Path(__file__).parents[1]) + os.sep
AGAIN, ENDED = "begins again", "ended"
"""How the time between two epochs ends as it should: with the next epoch, or with the script."""


class BetweenEpochs:
    """The time from the end of an epoch to the beginning of the next one: the script goes on by itself, and the measurement waits.

    Args:
        script: the greenlet of the script, which waits for a batch.
        measuring: the greenlet of the measurement.
    """

    def __init__(self, script: greenlet.greenlet, measuring: greenlet.greenlet) -> None:
        self._script, self._measuring, self._pid = script, measuring, os.getpid()
        self._began_s = time.perf_counter()
        self.seconds = 0.0
        """How long it took in all, including what is only estimated."""
        self.parts: dict[str, float] = {}
        """Seconds in the loop over each other loader, by its place, and in torch.save."""
        self.why_not: str | None = None
        """Why the time is not known; None if it is."""
        self.is_stranded = False
        """Whether the script no longer stands in its training loop, or has used a dataset in its own process."""
        self._taps: dict[Tap, tuple[float, float]] = {}
        """When each iteration of another loader began, and when it last gave a batch."""
        self._estimated_s = 0.0
        self._num_steps = 0

    def run(self) -> None:
        """Let the script's loop over its loader end, and return when `end` is called or the script begins the loader again."""
        before = place_of(self._script.gr_frame)
        late = f"it takes more than {MOST_S:.0f} s"
        overwrites = "the script writes over {}, which was there before. Run feedrate in a copy of the folder"
        with at_most(MOST_S, lambda: self.end(late)), no_overwriting(lambda path: self.end(overwrites.format(path))):
            how = self._script.throw(StopIteration)
        self._sum_up(how)
        self.is_stranded |= place_of(self._script.gr_frame) != before

    def end(self, how: str | BaseException) -> None:
        """Go back to the measurement for good, if the script runs now; otherwise do nothing.

        Args:
            how: ENDED, an exception of the script, or a clause that says why the time is not known.
        """
        if greenlet.getcurrent() is self._script and os.getpid() == self._pid:
            self._measuring.switch(how)

    def record(self, result: Measurement) -> None:
        """Write into a measurement how long the time was, or why that is not known."""
        result.between_epochs_failure = self.why_not
        if self.why_not is None:
            result.between_epochs_s, result.between_epochs_parts_s = self.seconds, self.parts

    def next_batch(self, tap: Tap, take: Callable[[Tap], Any]) -> Any:
        """Return the next batch of another loader, whose iteration is cut short when there is no more time to read.

        Raises:
            StopIteration: the loader has no more batches, or there is no more time.
        """
        now = time.perf_counter()
        begun, _ = self._taps.setdefault(tap, (now, now))
        self._taps[tap] = begun, now
        self._num_steps = 0
        self.is_stranded |= tap.loader.num_workers == 0  # what a dataset opens on first use, later workers would inherit
        if tap.num_batches and sum(until - since for since, until in self._taps.values()) > READ_S:
            tap.close()
            length = length_of(tap.loader)
            self._estimated_s += (now - begun) * max((length or 0) / tap.num_batches - 1, 0.0)
            self._add(tap.seen.where, (now - begun) * max((length or 0) / tap.num_batches, 1.0))
            del self._taps[tap]
            raise StopIteration
        try:
            return take(tap)
        except StopIteration:
            del self._taps[tap]
            self._add(tap.seen.where, time.perf_counter() - begun)
            raise

    def saved(self, seconds: float) -> None:
        """Note the time that a checkpoint took."""
        self._add(SAVING, seconds)

    def stepped(self) -> None:
        """Count a step of an optimizer: a script that trains on batches that it has kept would never come back."""
        self._num_steps += 1
        if self._num_steps > MOST_STEPS:
            self.end("the script goes on training without reading its loader")

    def _sum_up(self, how: str | BaseException) -> None:
        """Note how the time ended: as `end` says, or with AGAIN."""
        self.seconds = time.perf_counter() - self._began_s + self._estimated_s
        for tap, (since, until) in self._taps.items():  # the script left the loop before the loader's end
            self._add(tap.seen.where, until - since)
            tap.close()
        self._taps.clear()
        self.is_stranded |= how != AGAIN
        if isinstance(how, BaseException):
            self.why_not = f"the script raised {type(how).__name__}: {'; '.join(str(how).splitlines()[:1])}".strip(": ")
        elif how not in (AGAIN, ENDED):
            self.why_not = how

    def _add(self, name: str, seconds: float) -> None:
        self.parts[name] = self.parts.get(name, 0.0) + seconds


@contextlib.contextmanager
def at_most(seconds: float, late: Callable[[], None]) -> Iterator[None]:
    """Call a function on this thread if the body, or what it switches to, takes longer."""
    own = signal.signal(signal.SIGALRM, lambda number, frame: late())
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0.0)
        signal.signal(signal.SIGALRM, own)


_found: Callable[[str], None] | None = None
"""What is called with the path of a file that is about to be overwritten; None calls nothing."""
_hooks: list[Callable[[str, tuple[Any, ...]], None]] = []
"""The audit hook, once it is installed: Python cannot remove one."""


@contextlib.contextmanager
def no_overwriting(found: Callable[[str], None]) -> Iterator[None]:
    """Call a function when Python is about to overwrite, replace or remove a file that is older than this process."""
    global _found
    if not _hooks:
        _hooks.append(_audit)
        sys.addaudithook(_audit)
    _found = found
    try:
        yield
    finally:
        _found = None


def _audit(event: str, args: tuple[Any, ...]) -> None:
    if _found is None:
        return
    if (event == "open" and isinstance(args[2], int) and args[2] & (os.O_WRONLY | os.O_RDWR) and not args[2] & os.O_APPEND) or event in ("os.remove", "shutil.rmtree", "os.truncate"):
        will_write(args[0])
    elif event == "os.rename":
        will_write(args[1])


def will_write(path: object) -> None:
    """Notice that a path is about to be written; anything that is no path is ignored."""
    if _found is None or not isinstance(path, str | os.PathLike):
        return
    name = os.fspath(path)
    with contextlib.suppress(OSError, ValueError):
        state = os.stat(name)
        is_file = stat.S_ISREG(state.st_mode) or stat.S_ISDIR(state.st_mode)
        if is_file and state.st_mtime < _BEGAN_UNIX_S and "__pycache__" not in str(name):
            _found(str(name))


def place_of(frame: FrameType | None) -> list[tuple[Any, int]]:
    """Return where the script stands: the code and the line of each of its frames, without those of feedrate."""
    places = []
    while frame is not None:
        if not frame.f_code.co_filename.startswith(_OURS):
            places.append((frame.f_code, frame.f_lineno))
        frame = frame.f_back
    return places
