"""`Reloaded`: what became of a failed batch that was loaded again."""

from __future__ import annotations

from dataclasses import dataclass

BATCH, COLLATE, PICKLE = "the batch", "collate_fn", "pickling"
"""What a rerun is doing, beside `sample 17`."""


@dataclass(frozen=True, slots=True)
class Reloaded:
    """What became of a batch that was loaded again."""

    outcome: str
    """passed, raised, died, hangs, slow, or unmade: the workload or its loader could not be made."""
    doing: str = ""
    """`sample 17`, the batch (a dataset with __getitems__), collate_fn or pickling."""
    error: str = ""
    """What was raised, or the signal that the process died of."""
    reportable: bool = True
    """False for an exception that a worker cannot send."""
