"""`Disqualified`: settings whose workers repeat data, so that their rates do not count and they cannot be the answer."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import pandas as pd


@dataclass(frozen=True, kw_only=True, slots=True)
class Disqualified:
    """Settings that repeat data, as in `disqualified` of search.json; none by default."""

    max_num_workers: int | None = None
    """Settings with more workers than this repeat data; None if no number of workers does."""
    reason: str | None = None
    persistent_workers: bool | None = None
    """The only value with which workers do not repeat the first epoch; None if both values may be used."""
    epochs_reason: str | None = None

    @classmethod
    def of(cls, search: Mapping[str, Any]) -> Disqualified:
        """Return the disqualified settings of a search.json, or of the `search` of a best.json."""
        return cls.from_json(search.get("disqualified") or {})

    @classmethod
    def from_json(cls, saved: Mapping[str, Any]) -> Disqualified:
        """Read a JSON object; ignore keys of a later version."""
        return cls(**{name: saved[name] for name in cls.__dataclass_fields__ if name in saved})

    def to_json(self) -> dict[str, Any]:
        """Return a JSON object."""
        return asdict(self)

    @property
    def is_nothing(self) -> bool:
        """Whether every setting is allowed."""
        return self.max_num_workers is None and self.persistent_workers is None

    def allows(self, num_workers: int, persistent_workers: bool) -> bool:
        """Return whether a setting may be the answer."""
        if self.max_num_workers is not None and num_workers > self.max_num_workers:
            return False
        return not num_workers or self.persistent_workers in (None, persistent_workers)

    def true_rates(self, table: pd.DataFrame) -> pd.Series[bool]:
        """Return which rows of a table with a column num_workers have a rate that counts no sample twice."""
        return table["num_workers"].le(sys.maxsize if self.max_num_workers is None else self.max_num_workers).astype(bool)

    def allowed(self, table: pd.DataFrame) -> pd.Series[bool]:
        """Return which rows of a table with the columns num_workers and persistent_workers may be the answer."""
        few = self.true_rates(table)
        if self.persistent_workers is None:
            return few
        same = (table["persistent_workers"] == self.persistent_workers).fillna(False).astype(bool)
        return few & (same | table["num_workers"].eq(0).astype(bool))

    def in_words(self) -> list[tuple[str, str]]:
        """Return (which settings, reason) for each group of settings that is not allowed."""
        found = []
        if self.max_num_workers is not None:
            found.append((f"settings with {plural_workers(self.max_num_workers)}", self.reason or "workers repeat data"))
        if self.persistent_workers is not None:
            which = f"settings with workers and persistent_workers={not self.persistent_workers}"
            found.append((which, self.epochs_reason or "workers repeat the first epoch"))
        return found


def plural_workers(most: int) -> str:
    """Return "more workers than this" in words."""
    return f"more than {most} worker{'s' * (most > 1)}" if most else "workers"


NOTHING = Disqualified()
"""Every setting is allowed."""
