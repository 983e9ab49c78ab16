"""`WhichLoader`: which loaders a script makes and reads, and which of them is measured.

It is the loader that the user chose (`--loader`), otherwise the first one between two of whose batches an optimizer steps.
"""

from __future__ import annotations

import contextlib
import os
import weakref
from typing import Any

from feedrate.trainables.diagnose.origin import Origin
from feedrate.trainables.sandbox.launcher_protocol import LOADER
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


class WhichLoader:
    """The loaders of one interpreter, and the choice among them."""

    def __init__(self) -> None:
        self._pid = os.getpid()
        self.chosen = os.environ.get(LOADER)
        """The loader that the user chose; None if the steps of the optimizers decide."""
        self.seen: list[SeenLoader] = []
        self._recipes: dict[int, LoaderRecipe] = {}
        """By the loader's id, as long as the loader lives."""
        self._entries: dict[int, SeenLoader] = {}
        """The same, with the entries of the list."""
        self._latest: list[weakref.ref[Tap]] = []
        """The iterators of all loaders; the one that gave a batch most recently is the last."""

    def made(self, loader: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Remember a new loader, before its constructor runs."""
        if is_making() or os.getpid() != self._pid:
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

    def begins(self, loader: Any) -> SeenLoader:
        """Return the entry of a loader that the script begins to read."""
        self._recipes[id(loader)].is_read = True
        return self._enter(loader)

    def gave(self, tap: Tap, num_steps: int) -> None:
        """Count a batch.

        Args:
            tap: the iteration that gave it.
            num_steps: number of optimizer steps so far.
        """
        self._latest = [each for each in self._latest if each() not in (None, tap)] + [weakref.ref(tap)]
        tap.num_batches += 1
        tap.seen.num_batches += 1
        tap.seen.role = OTHER if tap.seen.role == UNREAD else tap.seen.role
        tap.num_steps_before = num_steps

    def is_measured(self, tap: Tap, num_steps: int) -> bool:
        """Return whether this iteration, which has given a batch and is asked for the next one, is that of the loader to measure.

        Args:
            tap: the iteration.
            num_steps: number of optimizer steps so far.
        """
        steps = num_steps - tap.num_steps_before
        tap.seen.num_steps += steps
        return tap.seen.is_named(self.chosen) if self.chosen is not None else steps > 0

    def choose(self, tap: Tap) -> None:
        """Let the loader of this iteration be measured; loaders whose batches were read after its latest one belong to the same step."""
        tap.seen.role = MEASURED
        began = next(number for number, each in enumerate(self._latest) if each() is tap)
        for each in self._latest[began + 1 :]:
            other = each()
            if other is not None and not other.is_over and other.seen is not tap.seen:
                other.seen.role = IN_STEP
        self._latest = []

    def why_none(self, script_name: str, num_steps: int) -> str:
        """Return a sentence that says why a script that has ended by itself had no loader to measure."""
        listed = "".join(f"\n  {each.number}. {each.where}  {each.call}: {self._done(each)}" for each in self.seen)
        if not self.seen:
            return (
                f"{script_name} ended without making a torch DataLoader, so there is nothing to measure here: feedrate measures scripts that "
                "read their batches from a torch.utils.data.DataLoader"
            )
        if self.chosen is not None:
            return f"{script_name} ended, and --loader {self.chosen} named none of which it read two batches:{listed}"
        if not num_steps and any(each.num_batches for each in self.seen):
            return (
                f"{script_name} ended, and no torch optimizer had stepped, so feedrate cannot tell which of its loaders feeds a training. "
                f"Choose one with --loader N:{listed}"
            )
        return (
            f"{script_name} ended before an optimizer had stepped between two batches of a DataLoader. Let it train for more batches, or "
            f"choose a loader with --loader N:{listed}"
        )

    @staticmethod
    def _done(seen: SeenLoader) -> str:
        return f"{seen.num_batches} batches read" if seen.num_batches else "not read"
