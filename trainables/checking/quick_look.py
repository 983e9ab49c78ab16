"""`QuickLook`: which settings deliver the same data more than once, as far as a few samples tell."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, kw_only=True, slots=True)
class QuickLook:
    """Which settings deliver the same samples, or the same random numbers, more than once. Only a few samples were read to find out."""

    max_num_workers: int | None = None
    """Settings with more workers than this repeat data; None if no repetition was seen."""
    reason: str | None = None
    persistent_workers: bool | None = None
    """The only value of `persistent_workers` with which later epochs do not deliver the random numbers of the first one again; None if both values may be used."""
    epochs_reason: str | None = None
    notes: tuple[str, ...] = ()
    """Further sentences for the user."""

    def to_json(self) -> dict[str, Any]:
        """Return a JSON object without the notes."""
        names = ("max_num_workers", "reason", "persistent_workers", "epochs_reason")
        return {name: getattr(self, name) for name in names}

    @classmethod
    def from_json(cls, fields: Mapping[str, Any]) -> QuickLook:
        """Return the findings in an object of `to_json`."""
        return cls(**fields)
