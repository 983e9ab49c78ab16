"""`HostFacts`: where a trial ran. Needs no torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any


@dataclass(frozen=True, kw_only=True, slots=True)
class HostFacts:
    """The host and the process in which a trial ran. The fields are columns of analysis/schema.py, which explains each of them."""

    device: str
    device_name: str
    host_id: str
    hostname: str
    num_cpus: int
    num_cpus_source: str
    torch_num_threads: int
    nice: int
    versions: Mapping[str, str]

    def columns(self) -> dict[str, Any]:
        """Return the facts as columns of a trial record."""
        return {each.name: getattr(self, each.name) for each in fields(self)}

    to_json = columns

    @classmethod
    def from_json(cls, columns: Mapping[str, Any]) -> HostFacts:
        """Return the facts in an object of `to_json`."""
        return cls(**columns)
