"""What a template process and its owner tell each other on the control socket, each a line of JSON.

`Hello` is the owner's first line, and the answer is `Ready`. Further lines of the owner are requests, each with the descriptor of a socket for
its events; the template answers `Started`, a `RankStarted` for each rank of a training with several, and at last `Ended`. Both sides are always the same version of feedrate.
Every spawned loader worker imports this file: it imports little, and never torch.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from feedrate.trainables.message import Message, name_of, values_of
from feedrate.trainables.resolve import WorkloadRef


@dataclass(frozen=True, kw_only=True, slots=True)
class Hello(Message):
    """What a template serves, and where."""

    workload: WorkloadRef
    cpus: Sequence[int] | None
    """CPUs on which the trials may run; None leaves the affinity as it is."""
    threads: int | None
    """Torch's intra-op threads; None leaves the workload's own."""
    temp: str
    """Path of the template's temporary folder, which the template makes and its owner removes too."""
    num_hosts: int = 1
    """On how many hosts a training command is started at once, for ranks that train together."""

    def to_json(self) -> dict[str, Any]:
        """Return a JSON object from which `from_json` makes an equal message."""
        return values_of(self) | {"workload": self.workload.to_json()}

    @classmethod
    def from_json(cls, saved: Mapping[str, Any]) -> Hello:
        """Return the message in an object of `to_json`."""
        return cls(**{**saved, "workload": WorkloadRef.from_json(saved["workload"])})

    def line(self) -> bytes:
        """Return the line for the socket."""
        return json.dumps(self.to_json()).encode() + b"\n"

    @classmethod
    def from_line(cls, line: bytes) -> Hello:
        """Return the message in a line."""
        return cls.from_json(json.loads(line))


@dataclass(frozen=True, kw_only=True, slots=True)
class Ready(Message):
    """The template has imported the workload's module, and waits for requests."""

    clean: bool
    """Whether the import left nothing that forked children must not share, such as threads: requests are then served by forks, otherwise by new interpreters."""
    spare: Sequence[int]
    """Processes with the template's marker that live as long as the template."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Started(Message):
    """A process serves the request now. A training command says so twice: for the command, and for the process that trains."""

    pid: int


@dataclass(frozen=True, kw_only=True, slots=True)
class RankStarted(Message):
    """A process of the training command is one of the ranks of the training."""

    number: int
    pid: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Ended(Message):
    """That process has ended; no message about its request follows."""

    status: int
    """As from os.waitpid."""


Answer = Ready | Started | RankStarted | Ended
_ANSWERS: dict[str, type[Answer]] = {"ready": Ready, "started": Started, "rank started": RankStarted, "ended": Ended}


def answer_line(answer: Answer) -> bytes:
    """Return the line for the socket."""
    return json.dumps({"says": name_of(answer, _ANSWERS), **answer.to_json()}).encode() + b"\n"


def answer_in(line: bytes) -> Answer:
    """Return the template's answer in a line."""
    saved = json.loads(line)
    return _ANSWERS[saved.pop("says")].from_json(saved)
