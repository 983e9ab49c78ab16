"""`SeenLoader`: the DataLoaders that a script makes at one place, as one entry of the list that the user sees."""

from __future__ import annotations

import os
from dataclasses import dataclass, field, fields
from typing import Any

from feedrate.trainables.beside_loader import BesideLoader
from feedrate.trainables.checking.script_facts import LoaderFacts
from feedrate.trainables.diagnose.origin import Origin

MEASURED, IN_STEP, UNREAD, OTHER = "measured", "read in the same step", "not read", "left alone"
SETTINGS = ("batch_size", "shuffle", "num_workers", "pin_memory", "prefetch_factor", "persistent_workers", "drop_last")
"""Arguments of torch's constructor that are remembered and shown."""


@dataclass(slots=True)
class SeenLoader:
    """What is known about the loaders of one class that are made at one place: a script may make them anew in every epoch."""

    number: int
    origin: Origin
    """Who made them."""
    name: str
    """Name of the class."""
    call: str
    """The call as it stands in the script, with the arguments that the script gives; shown in the list of loaders."""
    data: tuple[str, int | None]
    """Class and length of the dataset."""
    num_made: int = 0
    num_batches: int = 0
    num_steps: int = 0
    """How often an optimizer stepped between two batches of these loaders."""
    role: str = UNREAD
    bound: dict[str, Any] = field(default_factory=dict)
    """Arguments of torch's constructor of the loader that was made last, by name."""

    @property
    def kept_workers(self) -> int:
        """Number of workers that stay alive between epochs (persistent_workers)."""
        return self.bound.get("num_workers", 0) if self.bound.get("persistent_workers") else 0

    def beside(self) -> BesideLoader:
        """Return the settings as those of a loader beside a measured one."""
        return BesideLoader(
            where=self.where,
            num_workers=self.bound.get("num_workers", 0),
            prefetch_factor=self.bound.get("prefetch_factor"),
            batch_size=self.bound.get("batch_size", 1),
            persistent_workers=bool(self.bound.get("persistent_workers")),
        )

    @property
    def framework(self) -> str | None:
        """What made the loaders for the user; None for torch itself."""
        return self.origin.framework

    @property
    def function(self) -> str:
        """Qualified name of the user's function that made them; empty at the top level of a file."""
        return self.origin.function

    @property
    def where(self) -> str:
        """The place as `train.py:41`, relative to the working directory if it is inside."""
        return self.origin.where

    def is_named(self, name: str) -> bool:
        """Return whether the user's `--loader` means this one: its number, or the end of its place."""
        if name.isdecimal():
            return int(name) == self.number
        path, _, line = name.rpartition(":")
        own = self.origin.path
        return line == str(self.origin.line) and (own == os.path.abspath(path) or own.endswith(os.sep + path))

    def facts(self) -> LoaderFacts:
        """Return the entry as others see it."""
        names = (each.name for each in fields(LoaderFacts))
        return LoaderFacts(**{name: getattr(self, name) for name in names})


def data_of(dataset: Any) -> tuple[str, int | None]:
    """Return class and length of a dataset; a length of None is not known."""
    try:
        return type(dataset).__name__, len(dataset)
    except Exception:  # it has no length, or computes it in a way that fails
        return type(dataset).__name__, None


def call_of(name: str, arguments: dict[str, Any]) -> str:
    """Return the call of a loader's class: its dataset's class, and the settings that were given."""
    words = [type(arguments["dataset"]).__name__ if "dataset" in arguments else "..."]
    words += [f"{key}={arguments[key]!r}" for key in SETTINGS if key in arguments]
    return f"{name}({', '.join(words)})"
