"""`TrainingReport`: what became of a training whose loader was tuned or observed, as `train.json` in its run folder."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any

SCHEMA = "feedrate/train/1"
OBSERVES = "only observing, as asked"
"""Why the loader of a training with `--observe` was left alone."""


@dataclass(frozen=True, kw_only=True, slots=True)
class TrainingReport:
    """The facts of one training."""

    loader: str
    """The loader's class and place, for people."""
    dataloader: dict[str, Any]
    """The user's own setting, as arguments of `DataLoader`."""
    best: dict[str, Any]
    """The best setting, in the same way."""
    summary: dict[str, Any]
    """What was observed and decided (`TunedLoader.summary`); rates in batches per second."""
    num_decisions: int
    measured_on: dict[str, Any]
    """The host, as in best.json."""
    is_over: bool
    """Whether the interpreter ended by itself. If not, this is the state at the latest decision, or at most half a minute old."""
    origin: dict[str, Any] | None = None
    """Who made the loader: `where` (file:line), `function` and `framework`, as in best.json; None if it is not known, as in older files."""
    command: tuple[str, ...] = ()
    """The words with which the interpreter was started; empty in older files."""

    def to_json(self) -> str:
        """Return the content of the file."""
        return json.dumps({"schema": SCHEMA} | asdict(self), indent=2, allow_nan=False) + "\n"

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> TrainingReport:
        """Return the report in a file.

        Raises:
            ValueError: another version of feedrate wrote it.
        """
        if content.get("schema") != SCHEMA:
            raise ValueError(f"it has schema {content.get('schema')!r}, but this feedrate reads {SCHEMA!r}; use the feedrate that wrote it")
        found = {each.name: content[each.name] for each in fields(cls) if each.name in content}
        return cls(**{"origin": None} | found | {"command": tuple(found.get("command", ()))})
