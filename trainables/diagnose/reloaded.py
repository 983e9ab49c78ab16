"""`Reloaded`: the outcome of loading a failed batch again."""

from __future__ import annotations

from dataclasses import dataclass

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
