"""`Submission`: what the driver of a submitted search knows of whoever submitted it, kept in search.json for when Ray has forgotten the job."""

from __future__ import annotations

import getpass
import json
import os
import socket
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

VARIABLE = "FEEDRATE_SUBMISSION"
"""Environment variable of a submitted search's driver: a `Submission` as JSON."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Submission:
    """A search that was handed to a cluster."""

    owner: str
    """user@host of whoever submitted it."""
    workload: str
    """As it is named in the folder that was sent."""
    command: str
    """What the search runs as; without values of --env."""
    way_on: str
    """The command that carries the search on, from where it was submitted."""
    env: tuple[str, ...] = ()
    """Names that were given with --env; the values are Ray's alone."""
    pip: tuple[str, ...] = ()
    """Requirements that were given with --pip."""

    def to_json(self) -> dict[str, Any]:
        """For search.json and the driver's environment."""
        return asdict(self)

    @classmethod
    def from_json(cls, fields: Mapping[str, Any]) -> Submission:
        """Read what `to_json` gave, of this version or a newer one."""
        words = {name: str(fields[name]) for name in ("owner", "workload", "command", "way_on")}
        return cls(**words, env=tuple(fields.get("env", ())), pip=tuple(fields.get("pip", ())))

    @classmethod
    def from_environment(cls) -> Submission | None:
        """Return the submission that this process is the driver of; None for other processes."""
        text = os.environ.get(VARIABLE)
        return cls.from_json(json.loads(text)) if text else None


def owner_here() -> str:
    """Return user@host of this process."""
    try:
        user = getpass.getuser()
    except (KeyError, OSError):  # a container's user without a name
        user = str(os.getuid())
    return f"{user}@{socket.gethostname()}"
