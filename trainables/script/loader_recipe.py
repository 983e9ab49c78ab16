"""`LoaderRecipe`: how a script made one of its DataLoaders, so that it can be made again with other settings."""

from __future__ import annotations

import inspect
import os
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any

from feedrate.trainables.diagnose.stacks import Frame

_OURS = str(Path(__file__).parents[1]) + os.sep


@dataclass(slots=True)
class LoaderRecipe:
    """The class and the arguments of a loader."""

    cls: type
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    place: tuple[str, int]
    """File and line in the user's code at which the loader was made."""
    bound: dict[str, Any] | None = None
    """Arguments of torch's own constructor by name; None if a subclass does not call it."""

    def dataset(self) -> Any:
        """Return the loader's dataset; None if it is not known."""
        return (self.bound or {}).get("dataset")

    def make(self, **overrides: Any) -> Any:
        """Make a new loader as the script made it, by the same class and arguments, but with these settings.

        The settings replace arguments where they reach torch's constructor, so that a subclass need not pass them on.
        """
        if self.bound is None:
            parameters = inspect.signature(self.cls).parameters
            takes_any = any(each.kind is each.VAR_KEYWORD for each in parameters.values())
            taken = {name: value for name, value in overrides.items() if takes_any or name in parameters}
            return self.cls(*self.args, **(self.kwargs | taken))
        with Overriding(self.cls, overrides):
            return self.cls(*self.args, **self.kwargs)


@dataclass(slots=True)
class Overriding:
    """A context in which torch's constructor replaces arguments of the first new loader of a class."""

    cls: type
    overrides: Mapping[str, Any]
    outer: Overriding | None = field(default=None, init=False)

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
    if present is not None and type(loader) is present.cls and present.overrides:
        bound |= present.overrides
        if not bound.get("num_workers"):
            bound.pop("timeout", None)  # which torch refuses without workers
        present.overrides = {}
    return bound


def user_place() -> tuple[str, int]:
    """Return file and line of the innermost caller in the user's code; if there is none, of the innermost one outside of torch."""
    frame: FrameType | None = sys._getframe(1)
    outside: tuple[str, int] | None = None
    while frame is not None:
        path = frame.f_code.co_filename
        if Frame(path, frame.f_lineno, "").is_user:
            return path, frame.f_lineno
        if outside is None and not path.startswith(_OURS) and f"{os.sep}torch{os.sep}" not in path:
            outside = path, frame.f_lineno
        frame = frame.f_back
    return outside or ("?", 0)
