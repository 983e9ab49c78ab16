"""`MeasuredScript`: what an interpreter of the training command has done so far with its loaders and optimizers, and when feedrate takes over."""

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

from feedrate.trainables.diagnose.origin import Origin
from feedrate.trainables.sandbox.launcher_protocol import LOADER, EndedIdle, Raised, TrainsInStartedProcess
from feedrate.trainables.script.launcher_link import LauncherLink
from feedrate.trainables.script.loader_recipe import LoaderRecipe, is_making
from feedrate.trainables.script.seen_loader import (
    IN_STEP,
    MEASURED,
    OTHER,
    SETTINGS,
    UNREAD,
    SeenLoader,
    call_of,
    data_of,
)
from feedrate.trainables.script.tap import Tap

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
        link: the connection to the launcher.
        control: makes what takes over, at the iteration whose loader is to be measured.
    """

    def __init__(self, link: LauncherLink, control: Callable[[MeasuredScript, Tap], Control]) -> None:
        self.link, self._control = link, control
        self.pid = os.getpid()
        self.chosen = os.environ.get(LOADER)
        self.seen: list[SeenLoader] = []
        self.num_steps = 0
        self.device: str | None = None
        """Where the parameters of the optimizer are that stepped last."""
        self.takeover: Control | None = None
        self.has_raised = self.has_reported_rank = False
        self._recipes: dict[int, LoaderRecipe] = {}
        """By the loader's id, as long as the loader lives."""
        self._entries: dict[int, SeenLoader] = {}
        """The same, with the entries of the list."""
        self._latest: list[weakref.ref[Tap]] = []
        """Iterations in the order of the latest batch that each gave."""
        self._ended_schedules: weakref.WeakSet[Any] = weakref.WeakSet()
        self._depth = 0
        """Above 0 while a loader of the script makes a batch, for which it may read other loaders."""
        self._excepthook = sys.excepthook
        sys.excepthook = self._on_exception
        atexit.register(self._at_exit)

    @property
    def name(self) -> str:
        """The script's file."""
        return os.path.basename(sys.argv[0]) or "the script"

    def made(self, loader: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Remember a new loader, before its constructor runs."""
        if is_making() or os.getpid() != self.pid:
            return
        key = id(loader)
        recipe = LoaderRecipe(type(loader), args, kwargs, Origin.of_caller(type(loader)))
        original = self._original_of(recipe) if recipe.origin.via else None
        if original is not None:
            self._entries[key] = original
        self._recipes[key] = recipe
        weakref.finalize(loader, self._forget, key).atexit = False

    def bound(self, loader: Any, bound: dict[str, Any]) -> None:
        """Remember the arguments of torch's own constructor."""
        if id(loader) in self._recipes and not is_making():
            self._recipes[id(loader)].bound = bound
            self._enter(loader)

    def _enter(self, loader: Any) -> SeenLoader:
        """Return the entry of a loader. Loaders that are made at one place are one, unless two of them with different data live at once."""
        key, recipe = id(loader), self._recipes[id(loader)]
        if key in self._entries:
            return self._entries[key]
        arguments = recipe.arguments()
        name, call = recipe.cls.__name__, call_of(recipe.cls.__name__, arguments)
        dataset = arguments.get("dataset")
        living = {self._entries[other].number for other in self._recipes if other in self._entries and self._recipes[other].dataset() is not dataset}
        for seen in self.seen:
            if (seen.origin, seen.name) == (recipe.origin, name) and (seen.number not in living or seen.data == data_of(dataset)):
                break
        else:
            seen = SeenLoader(len(self.seen) + 1, recipe.origin, name, call, data_of(dataset))
            self.seen.append(seen)
        seen.num_made += 1
        seen.bound = {name: value for name, value in arguments.items() if name in SETTINGS}
        if arguments.get("batch_sampler") is not None:
            seen.bound["batch_size"] = None
        self._entries[key] = seen
        return seen

    def _original_of(self, recipe: LoaderRecipe) -> SeenLoader | None:
        """Return the entry of the loader from which a framework makes this one: the first unread one of the same data; None if there is none."""
        dataset = None
        with contextlib.suppress(TypeError):  # wrong arguments, about which the constructor will complain
            dataset = recipe.dataset()
        for key, other in self._recipes.items():
            is_original = key in self._entries and not other.is_read and not other.is_remade
            if dataset is not None and is_original and other.dataset() is dataset:
                other.is_remade = recipe.is_remade = True
                return self._entries[key]
        return None

    def _forget(self, key: int) -> None:
        self._recipes.pop(key, None)
        self._entries.pop(key, None)

    def recipe_of(self, loader: Any) -> LoaderRecipe | None:
        """Return how this loader was made; None if its class made a copy of it."""
        return self._recipes.get(id(loader))

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
            LauncherLink(self.link.address, TrainsInStartedProcess())

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
        passes = self._depth or id(loader) not in self._recipes or (self.takeover is not None and self.takeover.is_serving())
        if passes:
            return own_iter(loader)
        self._recipes[id(loader)].is_read = True
        tap = Tap(self.next_batch, self._enter(loader), loader, own_iter)
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
        if tap.num_batches and self._is_measured(tap):
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
        self._latest = [each for each in self._latest if each() not in (None, tap)] + [weakref.ref(tap)]
        tap.num_batches += 1
        tap.seen.num_batches += 1
        tap.seen.role = OTHER if tap.seen.role == UNREAD else tap.seen.role
        tap.num_steps_before = self.num_steps
        return batch

    def _is_measured(self, tap: Tap) -> bool:
        steps = self.num_steps - tap.num_steps_before
        tap.seen.num_steps += steps
        return tap.seen.is_named(self.chosen) if self.chosen is not None else steps > 0

    def _take_over(self, tap: Tap) -> Any:
        tap.seen.role = MEASURED
        began = next(number for number, each in enumerate(self._latest) if each() is tap)
        for each in self._latest[began + 1 :]:
            other = each()
            if other is not None and not other.is_over and other.seen is not tap.seen:
                other.seen.role = IN_STEP
        self._latest = []
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
        """Report an exception that ends the script, then let Python print it; one of a training step goes to the measurement."""
        if os.getpid() == self.pid:
            if self.takeover is not None:
                self.takeover.raised(error)
            self.has_raised = True
            text = "".join(traceback.format_exception(error))
            self.link.say(Raised(sentence=self._sentence(error), traceback=text))
        self._excepthook(kind, error, trace)

    def _sentence(self, error: BaseException) -> str:
        lines = str(error).strip().splitlines()
        what = f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__
        if isinstance(error, EOFError) and "reading a line" in str(error):
            return f"{self.name} asks for input, which it cannot get here ({what}): give its answers as arguments of the command"
        return f"{self.name} raised {what}, before it had trained" + (NO_GPU if lacks_gpu(error) else "")

    def _at_exit(self) -> None:
        if os.getpid() != self.pid:
            return
        if self.takeover is not None:
            self.takeover.at_exit()
        elif not self.has_raised:
            self.link.say(EndedIdle(sentence=self._why_not_measured()))

    def _why_not_measured(self) -> str:
        """Return a sentence about a script that ended by itself."""
        listed = "".join(f"\n  {each.number}. {each.where}  {each.call}: {self._done(each)}" for each in self.seen)
        if not self.seen:
            return (
                f"{self.name} ended without making a torch DataLoader, so there is nothing to measure here: feedrate measures scripts that "
                "read their batches from a torch.utils.data.DataLoader"
            )
        if self.chosen is not None:
            return f"{self.name} ended, and --loader {self.chosen} named none of which it read two batches:{listed}"
        if not self.num_steps and any(each.num_batches for each in self.seen):
            return (
                f"{self.name} ended, and no torch optimizer had stepped, so feedrate cannot tell which of its loaders feeds a training. "
                f"Choose one with --loader N:{listed}"
            )
        return (
            f"{self.name} ended before an optimizer had stepped between two batches of a DataLoader. Let it train for more batches, or "
            f"choose a loader with --loader N:{listed}"
        )

    @staticmethod
    def _done(seen: SeenLoader) -> str:
        return f"{seen.num_batches} batches read" if seen.num_batches else "not read"


def lacks_gpu(error: BaseException) -> bool:
    """Return whether an exception is about a GPU that torch does not have."""
    place = traceback.extract_tb(error.__traceback__)[-1:]
    words = f"{error} {place[0].line if place else ''}".lower()
    if not any(word in words for word in ("cuda", "nvidia", "gpu")):
        return False
    torch: Any = sys.modules.get("torch")
    return torch is not None and not torch.cuda.is_available()
