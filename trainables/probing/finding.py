"""`Finding`: the answer to one question about the data, in plain words, with a fix to paste."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any

LEVELS = {
    "error": "a setting trains on different data",
    "warning": "can go wrong with some settings",
    "note": "worth knowing; the data are the same",
    "ok": "checked, nothing found",
}


@dataclass(frozen=True, kw_only=True, slots=True)
class Finding:
    """The answer to one question about the data."""

    name: str
    level: str
    """A key of `LEVELS`."""
    sentence: str
    fix: str | None = None
    """Python code to paste, or what to do."""
    evidence: dict[str, Any] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """Return a JSON object."""
        return asdict(self)
