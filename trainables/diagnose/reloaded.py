"""`Reloaded`: the outcome of loading a failed batch again."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

BATCH, COLLATE, PICKLE = "the batch", "collate_fn", "pickling"
"""What a rerun may be doing; otherwise it is loading one sample, for example `sample 17`."""


@dataclass(frozen=True, slots=True)
class Reloaded:
    """The outcome of loading a batch again."""

    outcome: str
    """passed, raised, died, hangs, slow, or unmade (the workload or its loader could not be made)."""
    doing: str = ""
    """What the rerun was doing: `sample 17`, the batch (if the dataset has __getitems__), collate_fn or pickling."""
    error: str = ""
    """The exception that was raised, or the signal that killed the process."""
    reportable: bool = True
    """False for an exception that a worker cannot send, because it cannot be pickled."""

    def to_json(self) -> dict[str, Any]:
        """Return a JSON object from which `from_json` makes an equal outcome."""
        return asdict(self)

    @classmethod
    def from_json(cls, saved: Mapping[str, Any]) -> Reloaded:
        """Return the outcome in an object of `to_json`."""
        return cls(**saved)
