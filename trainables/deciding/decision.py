"""`Decision`: one decision about the loader of a running training, with its numbers and its reason."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True, kw_only=True, slots=True)
class Decision:
    """What was decided, and why."""

    kind: str
    """baseline, enough (nothing to gain), leave (may not be changed), try, adopt, reject, confirm, back, settled, look-again, failure or limit."""
    num_workers: int
    """Number of workers from now on."""
    reason: str
    """A sentence for people."""
    step: int
    """Number of batches that the training has taken so far."""
    time_s: float
    """Seconds since the training took its first batch."""
    numbers: dict[str, Any] = field(default_factory=dict)
    """The measured values behind the decision. Rates are in batches per second, intervals are 95 %."""

    def to_json(self) -> dict[str, Any]:
        """Return the decision as a line of live.jsonl."""
        names = ("kind", "num_workers", "reason", "step", "time_s", "numbers")
        return {name: getattr(self, name) for name in names} | {"time_s": round(self.time_s, 3)}
