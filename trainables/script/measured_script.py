"""`MeasuredScript`: what an interpreter of the training command does with its loaders and optimizers, how it ends, and when feedrate takes over."""

from __future__ import annotations

import atexit
import contextlib
import os
import sys
import traceback
import weakref
from collections.abc import Callable
from types import TracebackType
from typing import Any, Protocol

from feedrate.trainables.failure import user_traceback
from feedrate.trainables.sandbox.launcher_protocol import EndedIdle, Raised, TrainsInStartedProcess
from feedrate.trainables.script.launcher_link import LauncherLink
from feedrate.trainables.script.tap import Tap
from feedrate.trainables.script.which_loader import WhichLoader

NO_GPU = (
    ". It asks for a GPU, and torch has none that it can use on this machine: run feedrate where the training runs, or let the script train "
    "on the CPU"
)


class Control(Protocol):
    """What takes the control from the script (`Takeover`)."""

    def begin(self) -> Any:
        """Take the control, and return the first batch for the script."""

    def next_batch(self, tap: Tap) -> Any:
        """Return the next batch for the script."""

    def is_serving(self) -> bool:
        """Return whether the measurement runs now, and not the script."""

    def saves(self, path: object) -> None:
        """Note that the script is about to save something to a path or file object."""

    def saved(self, seconds: float) -> None:
        """Note that the script has saved something."""

    def stepped(self) -> None:
        """Count a step of an optimizer."""

    def raised(self, error: BaseException) -> None:
        """Let the measurement fail with an exception that ends the script."""

    def at_exit(self) -> None:
        """Do what is to be done when the interpreter ends."""


class MeasuredScript:
    """The state of one interpreter.

    Args:
        address: path of the launcher's socket.
        control: makes what takes over, at the iteration whose loader is to be measured.
        is_spawned: whether the script started this interpreter, which then connects only when it becomes a rank or trains: most
            spawned processes are loader workers.
    """

    def __init__(self, address: str, control: Callable[[MeasuredScript, Tap], Control], *, is_spawned: bool) -> None:
        self._address, self._control = address, control
        self._link = None if is_spawned else LauncherLink(address)
        self.pid = os.getpid()
        self.loaders = WhichLoader()
        self.num_steps = 0
        self.device: str | None = None
        """Where the parameters of the optimizer are that stepped last."""
        self.takeover: Control | None = None
        self.has_raised = self.has_reported_rank = False
        self._ended_schedules: weakref.WeakSet[Any] = weakref.WeakSet()
        self._depth = 0
        """Above 0 while a loader of the script makes a batch, for which it may read other loaders."""
        self._excepthook = sys.excepthook
        sys.excepthook = self._on_exception
        atexit.register(self._at_exit)

    @property
    def link(self) -> LauncherLink:
        """The connection to feedrate's launcher, which is made unless there is one."""
        if self._link is None:
            self._link = LauncherLink(self._address)
        return self._link

    def joined(self) -> None:
        """Note that the script has made torch's process group, which says which rank this process is."""
        if os.getpid() == self.pid:
            self.link.join()

    @property
    def name(self) -> str:
        """The script's file."""
        return os.path.basename(sys.argv[0]) or "the script"

    def stepped(self, optimizer: Any, args: Any, kwargs: Any) -> None:
        """Count a step of an optimizer."""
        if os.getpid() != self.pid:
            self._report_rank()
            return
        self.num_steps += 1
        if self.takeover is not None:
            self.takeover.stepped()
            return
        with contextlib.suppress(Exception):
            self.device = str(optimizer.param_groups[0]["params"][0].device)

    def _report_rank(self) -> None:
        """Report that a process trains which the script has forked, unless the script itself trains, too."""
        if self.takeover is None and not self.has_reported_rank:
            self.has_reported_rank = True
            LauncherLink(self._address, TrainsInStartedProcess())

    def outlives(self, schedule: Any, error: Exception) -> bool:
        """Return whether the training goes on although its learning-rate schedule raised.

        It does while the script is measured, if the schedule has worked before: the script then takes more steps than it planned,
        and some schedules (OneCycleLR) have no learning rate for these. The last one stays.
        """
        if self.takeover is None or os.getpid() != self.pid or getattr(schedule, "last_epoch", 0) <= 1:
            return False
        if schedule not in self._ended_schedules:
            self._ended_schedules.add(schedule)
            print(
                f"feedrate: the schedule {type(schedule).__name__} raised {type(error).__name__}: {error}. While it is measured, the script "
                "takes more steps than it planned, so it goes on with the last learning rate",
                file=sys.stderr,
                flush=True,
            )
        return True

    def opened(self, loader: Any, own_iter: Callable[[Any], Any]) -> Any:
        """Return the iterator that the script gets for a loader."""
        passes = self._depth or self.loaders.recipe_of(loader) is None or (self.takeover is not None and self.takeover.is_serving())
        if passes:
            return own_iter(loader)
        tap = Tap(self.next_batch, self.loaders.begins(loader), loader, own_iter)
        if self.takeover is None:
            tap.open(apart=loader.num_workers == 0)
        return tap

    def next_batch(self, tap: Tap) -> Any:
        """Return the next batch for the script.

        Raises:
            StopIteration: the epoch is over, or a loader that is not measured has given the one batch that it gives.
        """
        if os.getpid() != self.pid:
            return tap.take()
        if self.takeover is not None:
            return self.takeover.next_batch(tap)
        if tap.num_batches and self.loaders.is_measured(tap, self.num_steps):
            return self._take_over(tap)
        return self.taken(tap)

    def taken(self, tap: Tap) -> Any:
        """Return the next batch of the loader's own iteration, and count it."""
        self._depth += 1
        try:
            batch = tap.take()
        except StopIteration:
            tap.is_over = True
            raise
        finally:
            self._depth -= 1
        self.loaders.gave(tap, self.num_steps)
        return batch

    def _take_over(self, tap: Tap) -> Any:
        self.loaders.choose(tap)
        self.takeover = self._control(self, tap)
        return self.takeover.begin()

    def saves(self, path: object) -> None:
        """Note that the script is about to save something to a path or file object."""
        if self.takeover is not None and os.getpid() == self.pid:
            self.takeover.saves(path)

    def saved(self, seconds: float) -> None:
        """Record that the script has saved something, so that the time of this step does not count."""
        if self.takeover is not None and os.getpid() == self.pid:
            self.takeover.saved(seconds)

    def _on_exception(self, kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
        """Report an exception that ends the script, then let Python print it."""
        self.raised(error)
        self._excepthook(kind, error, trace)

    def raised(self, error: BaseException) -> None:
        """Report an exception that ends this process; one of a training step goes to the measurement."""
        if os.getpid() != self.pid:
            return
        if self.takeover is not None:
            self.takeover.raised(error)
        if not self.has_raised and self._link is not None:  # if there is no link, the script reports what its process raised
            self._link.say(Raised(sentence=self._sentence(error), traceback=user_traceback(error)))
        self.has_raised = True

    def _sentence(self, error: BaseException) -> str:
        lines = str(error).strip().splitlines()
        if type(error).__name__ == "ProcessRaisedException":  # of torch.multiprocessing.spawn: the traceback of the process
            lines = lines[-1:]
        what = f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__
        if isinstance(error, EOFError) and "reading a line" in str(error):
            return f"{self.name} asks for input, which it cannot get here ({what}): give its answers as arguments of the command"
        return f"{self.name} raised {what}, before it had trained" + (NO_GPU if lacks_gpu(error) else "")

    def _at_exit(self) -> None:
        if os.getpid() != self.pid:
            return
        if self.takeover is not None:
            self.takeover.at_exit()
        elif not self.has_raised and self._link is not None:
            self._link.say(EndedIdle(sentence=self.loaders.why_none(self.name, self.num_steps)))

def lacks_gpu(error: BaseException) -> bool:
    """Return whether an exception is about a GPU that torch does not have."""
    place = traceback.extract_tb(error.__traceback__)[-1:]
    words = f"{error} {place[0].line if place else ''}".lower()
    if not any(word in words for word in ("cuda", "nvidia", "gpu")):
        return False
    torch: Any = sys.modules.get("torch")
    return torch is not None and not torch.cuda.is_available()
