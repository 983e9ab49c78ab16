"""`RatePoint`: a stretch of a training with one number of workers, as a line of live.jsonl."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

KIND = "rate"
"""What these lines have instead of the kind of a decision."""


@dataclass(frozen=True, kw_only=True, slots=True)
class RatePoint:
    """What happened between two points in time, raw: rates and shares are computed when somebody reads it."""

    num_workers: int
    """Number of workers that loaded these batches."""
    time_s: float
    """Seconds from the training's first batch to the end of the stretch."""
    step: int
    """Number of batches that the training has taken so far."""
    num_batches: int
    wait_s: float
    """Time in which the training waited for these batches."""
    step_s: float
    """Time in which it trained on them."""
    aside_s: float
    """Time in which the training did something else between two of these batches, such as a validation."""

    def to_json(self) -> dict[str, Any]:
        """Return the point as a line of live.jsonl."""
        return {"kind": KIND} | {name: round(value, 6) if isinstance(value, float) else value for name, value in asdict(self).items()}
