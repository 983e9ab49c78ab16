"""What the interpreters of a training command and their launcher send each other: what becomes of an interpreter, and how it goes on.

Each message is a JSON object on a line of its own. Those of interpreters have `says`; `Handover` is the launcher's answer to `Trains`, and an
empty line its answer to `Leaves` and `IsImported`. An interpreter runs the feedrate of its own environment, which may be another version than the launcher's,
so the launcher passes over kinds and fields that it does not know.
Every interpreter of the command imports this file: it imports little, and never torch.
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any, Self

from feedrate.trainables.failure import Failure
from feedrate.trainables.message import Message, name_of, values_of
from feedrate.trainables.ranks.rank import Rank

LOADER = "FEEDRATE_LOADER"
"""Environment variable with the loader that the user chose: its number, or file.py:line."""

# From an interpreter


@dataclass(frozen=True, kw_only=True, slots=True)
class _OfRank(Message):
    """A message with the rank of its process."""

    rank: Rank | None
    """None for a training in one process."""

    def to_json(self) -> dict[str, Any]:
        """Return a JSON object from which `from_json` makes an equal message."""
        return {"rank": None if self.rank is None else self.rank.to_json()}

    @classmethod
    def from_json(cls, saved: Mapping[str, Any]) -> Self:
        """Return the message in an object of `to_json`."""
        return cls(rank=Rank.from_json(saved["rank"]))


@dataclass(frozen=True, kw_only=True, slots=True)
class ImportsTorch(_OfRank):
    """An interpreter imports torch: the first message of a connection that lasts as long as its process. If the interpreter becomes a rank, it says so again."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Trains(_OfRank):
    """The training was found: the process asks for its request. It is the only message of its connection."""


@dataclass(frozen=True, kw_only=True, slots=True)
class TrainsInStartedProcess(Message):
    """A process trains that the script itself has forked."""


@dataclass(frozen=True, kw_only=True, slots=True)
class IsImported(Message):
    """A loader worker that was spawned imports the script, which trains while it is imported. The worker waits until that has been reported."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Raised(Message):
    """The script raised an exception before it had trained, which ends it."""

    sentence: str
    traceback: str
    time_s: float = field(default_factory=time.monotonic)
    """When it did, by the host's monotonic clock."""


@dataclass(frozen=True, kw_only=True, slots=True)
class EndedIdle(Message):
    """The script ended by itself without training."""

    sentence: str


@dataclass(frozen=True, kw_only=True, slots=True)
class RankFailed(Message):
    """This rank cannot go on."""

    failure: Failure
    time_s: float = field(default_factory=time.monotonic)
    """When it was found, by the host's monotonic clock."""

    def to_json(self) -> dict[str, Any]:
        """Return a JSON object from which `from_json` makes an equal message."""
        return values_of(self) | {"failure": self.failure.columns()}

    @classmethod
    def from_json(cls, saved: Mapping[str, Any]) -> RankFailed:
        """Return the message in an object of `to_json`."""
        return cls(**{**saved, "failure": Failure.from_columns(saved["failure"])})


@dataclass(frozen=True, kw_only=True, slots=True)
class Leaves(Message):
    """The process that trains is about to end, and waits until its launchers have got their signal."""


@dataclass(frozen=True, kw_only=True, slots=True)
class WithoutFeedrate(Message):
    """An interpreter cannot import feedrate, so script/hook/sitecustomize.py sends this message without this class."""

    python: str
    """Path of the interpreter."""
    why: str
    """The exception."""


Said = ImportsTorch | Trains | TrainsInStartedProcess | IsImported | Raised | EndedIdle | RankFailed | Leaves | WithoutFeedrate
_SAID: dict[str, type[Said]] = {
    "imports torch": ImportsTorch,
    "trains": Trains,
    "trains in a started process": TrainsInStartedProcess,
    "is imported": IsImported,
    "raised": Raised,
    "ended": EndedIdle,
    "failed": RankFailed,
    "leaves": Leaves,
    "without feedrate": WithoutFeedrate,
}


def said_line(message: Said) -> bytes:
    """Return the line for the socket."""
    return json.dumps({"says": name_of(message, _SAID), **message.to_json()}).encode() + b"\n"


def said_in(line: bytes) -> Said | None:
    """Return the message in a line; None for a kind of another version of feedrate."""
    saved = json.loads(line)
    kind = _SAID.get(saved["says"])
    if kind is None:
        return None
    return kind.from_json({each.name: saved[each.name] for each in fields(kind)})


# From the launcher


@dataclass(frozen=True, kw_only=True, slots=True)
class Handover(Message):
    """The launcher's answer to `Trains`; the line of the first request follows, which is empty for ranks other than rank 0."""

    threads: int | None
    """Torch's intra-op threads; None leaves the script's own."""
    began_unix_s: float
    """When the command was started."""
    by_store: bool = False
    """Whether the ranks talk through the store of torch's process group, because they run on several hosts; no socket comes with the answer then, but for rank 0's events."""

    def line(self) -> bytes:
        """Return the line for the socket."""
        return json.dumps(self.to_json()).encode() + b"\n"

    @classmethod
    def from_line(cls, line: bytes) -> Handover:
        """Return the answer in a line."""
        return cls.from_json(json.loads(line))
