"""`Submission`: what the driver of a submitted search knows about whoever submitted it.

It is kept in search.json, in case Ray has forgotten the job.
"""

from __future__ import annotations

import getpass
import json
import os
import socket
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

VARIABLE = "FEEDRATE_SUBMISSION"
"""Environment variable that passes a `Submission` as JSON to the driver of a submitted search."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Submission:
    """A search that was submitted to a cluster."""

    owner: str
    """user@host of whoever submitted it."""
    workload: str
    """Name of the workload, relative to the folder that was sent."""
    command: str
    """The command line of the search, without the values of --env."""
    way_on: str
    """The command that continues the search from where it was submitted."""
    fetch: str = ""
    """The command that copies the run folder to where it was submitted; empty if an older version submitted it."""
    submission_id: str = ""
    """Ray's id of the job; a search that was resumed has had several jobs."""
    env: tuple[str, ...] = ()
    """Names of the variables that were given with --env; their values are not stored here."""
    pip: tuple[str, ...] = ()
    """Requirements that were given with --pip."""

    def to_json(self) -> dict[str, Any]:
        """Return the submission as a JSON object, for search.json and the driver's environment."""
        return asdict(self)

    @classmethod
    def from_json(cls, fields: Mapping[str, Any]) -> Submission:
        """Return the submission in an object that `to_json` of this or a newer version made."""
        words = {name: str(fields[name]) for name in ("owner", "workload", "command", "way_on")}
        words |= {name: str(fields.get(name, "")) for name in ("fetch", "submission_id")}
        return cls(**words, env=tuple(fields.get("env", ())), pip=tuple(fields.get("pip", ())))

    @classmethod
    def from_environment(cls) -> Submission | None:
        """Return the submission whose driver this process is; None in other processes."""
        text = os.environ.get(VARIABLE)
        return cls.from_json(json.loads(text)) if text else None


def owner_here() -> str:
    """Return user@host of this process."""
    try:
        user = getpass.getuser()
    except (KeyError, OSError):  # in a container, the user may have no name
        user = str(os.getuid())
    return f"{user}@{socket.gethostname()}"
