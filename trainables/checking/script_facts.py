"""`ScriptFacts` and `LoaderFacts`: what feedrate saw of a training script before it took over. Needs no torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True, kw_only=True, slots=True)
class LoaderFacts:
    """The DataLoaders of one class that the script makes at one place."""

    number: int
    """For --loader."""
    where: str
    """file:line."""
    name: str
    """Name of the class."""
    call: str
    """The call, with the settings that it gives."""
    num_made: int
    num_batches: int
    num_steps: int
    """Optimizer steps between the batches."""
    role: str
    """What is done with these loaders while one is measured."""
    kept_workers: int
    """Workers that stay alive between epochs."""
    framework: str | None = None
    """What made these loaders for the user, for example transformers; None for torch itself, and for the user's own subclass."""
    function: str = ""
    """Qualified name of the user's function that made them; empty at the top level of a file."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ScriptFacts:
    """A script, and the interpreter that runs it."""

    loaders: tuple[LoaderFacts, ...]
    chosen: str | None
    """The loader that the user named; None if feedrate chose it."""
    setup_s: float
    """Seconds from the start of the command to the takeover."""
    python: str
    """The interpreter."""
    device: str | None
    """Where the trained parameters are; None if no optimizer stepped."""
    num_ranks: int = 1
    """Number of processes that train together, all of them on this host."""

    def to_json(self) -> dict[str, Any]:
        """Return a JSON object from which `from_json` makes equal facts."""
        return asdict(self)

    @classmethod
    def from_json(cls, saved: Mapping[str, Any]) -> ScriptFacts:
        """Return the facts that `to_json` wrote as this JSON object."""
        return cls(**{**saved, "loaders": tuple(LoaderFacts(**each) for each in saved["loaders"])})
