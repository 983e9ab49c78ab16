"""`LoaderRecipe`: how a script made one of its DataLoaders, so that it can be made again with other settings."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from feedrate.trainables.diagnose.origin import Origin


@dataclass(slots=True)
class LoaderRecipe:
    """The class and the arguments of a loader."""

    cls: type
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    origin: Origin
    """Who made the loader."""
    bound: dict[str, Any] | None = None
    """Arguments of torch's own constructor by name; None if a subclass does not call it."""
    is_read: bool = False
    """Whether the script has begun to iterate the loader."""
    is_remade: bool = False
    """Whether a framework has made another loader from this one."""

    def arguments(self) -> dict[str, Any]:
        """Return the arguments of torch's constructor by name, or those of the class's own if that does not call torch's."""
        return self._own_arguments() if self.bound is None else self.bound

    def dataset(self) -> Any:
        """Return the loader's dataset; None if it is not known."""
        return self.arguments().get("dataset")

    def make(self, **overrides: Any) -> Any:
        """Make a new loader as the script made it, by the same class and arguments, but with these settings.

        The settings replace arguments where they reach torch's constructor, so that a subclass need not pass them on.
        """
        if self.bound is None:
            parameters = _constructor_of(self.cls).parameters
            takes_any = any(each.kind is each.VAR_KEYWORD for each in parameters.values())
            taken = {name: value for name, value in overrides.items() if takes_any or name in parameters}
            given = self._own_arguments()
            return self.cls(*given.pop("", ()), **replaced(given, taken))
        with Overriding(self.cls, overrides):
            return self.cls(*self.args, **self.kwargs)

    def _own_arguments(self) -> dict[str, Any]:
        """Return the arguments of the class's own constructor by name, and those that have none as a tuple under the empty name."""
        bound = _constructor_of(self.cls).bind(None, *self.args, **self.kwargs)
        found: dict[str, Any] = {}
        for number, (name, each) in enumerate(bound.signature.parameters.items()):
            if number == 0 or name not in bound.arguments:
                continue
            value = bound.arguments[name]
            if each.kind is each.VAR_KEYWORD:
                found |= value
            elif each.kind in (each.VAR_POSITIONAL, each.POSITIONAL_ONLY):
                found[""] = (*found.get("", ()), *(value if each.kind is each.VAR_POSITIONAL else (value,)))
            else:
                found[name] = value
        return found


def _constructor_of(cls: Any) -> inspect.Signature:
    """Return the signature of a class's `__init__`, as `inspect.signature(cls)` may be that of a `__new__` farther up."""
    return inspect.signature(cls.__init__)


def replaced(arguments: Mapping[str, Any], overrides: Mapping[str, Any]) -> dict[str, Any]:
    """Return a loader's arguments by name with other settings.

    Frameworks pass torch's own BatchSampler, where torch would make the same one from batch_size and drop_last. Then these take its
    place, so that the loader shows its batch size and can get another one.
    """
    found = dict(arguments)
    batches = found.get("batch_sampler")
    if batches is not None and type(batches) is sys.modules["torch.utils.data"].BatchSampler:
        del found["batch_sampler"]
        found.pop("shuffle", None)
        found |= {"sampler": batches.sampler, "batch_size": batches.batch_size, "drop_last": batches.drop_last}
    found |= overrides
    if not found.get("num_workers"):
        found.pop("timeout", None)  # which torch refuses without workers
    return found


@dataclass(slots=True)
class Overriding:
    """A context in which torch's constructor replaces arguments of the first new loader of a class."""

    cls: type
    overrides: Mapping[str, Any]
    outer: Overriding | None = field(default=None, init=False)
    is_done: bool = field(default=False, init=False)

    def __enter__(self) -> None:
        global _overriding
        self.outer, _overriding = _overriding, self

    def __exit__(self, *raised: object) -> None:
        global _overriding
        _overriding = self.outer


_overriding: Overriding | None = None


def is_making() -> bool:
    """Return whether feedrate makes a loader now, rather than the script."""
    return _overriding is not None


def bind(init: Callable[..., None], loader: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """Return the arguments of torch's constructor by name, with the settings of the present `Overriding`.

    Raises:
        TypeError: they do not fit, as torch would say.
    """
    bound = dict(inspect.signature(init).bind(loader, *args, **kwargs).arguments)
    del bound["self"]
    present = _overriding
    if present is None or present.is_done or type(loader) is not present.cls:
        return bound
    present.is_done = True
    return replaced(bound, present.overrides)
