"""`Rank`: which of the processes of a distributed training this one is, according to its launcher."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True, kw_only=True, slots=True)
class Rank:
    """One process of a training with several."""

    number: int
    local_number: int
    """Its number on its host."""
    world_size: int
    """Number of ranks."""
    local_world_size: int
    """Number of ranks on this host."""

    @classmethod
    def of_environment(cls, environment: Mapping[str, str] = os.environ) -> Rank | None:
        """Return the rank that torchrun's variables name; None if they are not set, or if there is only one rank."""
        try:
            number, world_size = int(environment["RANK"]), int(environment["WORLD_SIZE"])
            local_number = int(environment.get("LOCAL_RANK", number))
            local_world_size = int(environment.get("LOCAL_WORLD_SIZE", world_size))
        except (KeyError, ValueError):
            return None
        if world_size < 2:
            return None
        return cls(number=number, local_number=local_number, world_size=world_size, local_world_size=local_world_size)

    def to_json(self) -> dict[str, Any]:
        """Return a JSON object from which `from_json` makes an equal rank."""
        return asdict(self)

    @classmethod
    def from_json(cls, saved: Mapping[str, Any] | None) -> Rank | None:
        """Return the rank in an object of `to_json`; None for None."""
        return None if saved is None else cls(**saved)
