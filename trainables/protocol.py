"""What the supervisor and a trial's child process send each other: requests, events, and the one loop that reads events.

Both ends are the same feedrate on the same host, so the format of a line may change with any version. A request is a JSON object
with `op`, an event is one with `event`; each is a line. The supervisor also sends the line "stop" to a child that it keeps.
Needs no torch, because the supervisor and the commands do not.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Generator, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

from feedrate.trainables.checking.described import Described
from feedrate.trainables.config import LoaderConfig
from feedrate.trainables.diagnose.reloaded import Reloaded
from feedrate.trainables.doubt import Doubt
from feedrate.trainables.failure import Failure
from feedrate.trainables.measuring.measure_options import MeasureOptions
from feedrate.trainables.message import Message, name_of, values_of
from feedrate.trainables.resolve import WorkloadRef


class ProtocolError(Exception):
    """A line that is no request or event of this version of feedrate, or events that end without a last one: a defect of feedrate."""


ACCOMPANYING = "accompanying"
"""The phase in which the ranks of a host do what rank 0, on another host, says."""

T = TypeVar("T", "Measured", "Checked", "Described", "LoadedAgain")
C = TypeVar("C")


# Requests


@dataclass(frozen=True, kw_only=True, slots=True)
class MeasureRequest(Message):
    """Measure one setting."""

    config: LoaderConfig
    options: MeasureOptions
    command: str = ""
    """The command line, which is shown to others who wait for the host. If it is empty, the workload's name is shown."""
    allocated_cpus: int | None = None
    """CPUs that Ray reserved for the trial; None asks the host."""
    gpus: tuple[int, ...] = ()
    """Numbers of the GPUs of a trial that shares its host; its lock is theirs. Empty locks the whole host."""
    wait_s: float = 0.0
    """How long to wait for a quiet host."""
    keep: bool = False
    """Whether the child may be kept for the next request, if making its step took long."""

    def to_json(self) -> dict[str, Any]:
        """Return a JSON object from which `from_json` makes an equal request."""
        return values_of(self) | {"config": self.config.to_dict(), "options": self.options.to_json()}

    @classmethod
    def from_json(cls, saved: Mapping[str, Any]) -> MeasureRequest:
        """Return the request in an object of `to_json`."""
        config, options = LoaderConfig.from_dict(saved["config"]), MeasureOptions.from_json(saved["options"])
        return cls(**{**saved, "config": config, "options": options, "gpus": tuple(saved["gpus"])})


@dataclass(frozen=True, kw_only=True, slots=True)
class DescribeRequest(Message):
    """Describe the workload without training it."""


@dataclass(frozen=True, kw_only=True, slots=True)
class AccompanyRequest(Message):
    """Train in the ranks of this host, for a measurement of rank 0 on another host, until it is over. Its last event is a failure."""


@dataclass(frozen=True, kw_only=True, slots=True)
class CheckRequest(Message):
    """Check whether changing the loader changes the data."""

    num_workers: int
    """Number of workers whose samples are compared with those that 0 workers deliver."""
    budget_s: float
    """About how long the check may take."""


@dataclass(frozen=True, kw_only=True, slots=True)
class RerunRequest(Message):
    """Load failed batches again, without workers."""

    doubt: Doubt
    failed: MeasureRequest
    """The request whose trial failed."""

    def to_json(self) -> dict[str, Any]:
        """Return a JSON object from which `from_json` makes an equal request."""
        return {"doubt": self.doubt.to_json(), "failed": self.failed.to_json()}

    @classmethod
    def from_json(cls, saved: Mapping[str, Any]) -> RerunRequest:
        """Return the request in an object of `to_json`."""
        return cls(doubt=Doubt.from_json(saved["doubt"]), failed=MeasureRequest.from_json(saved["failed"]))


Request = MeasureRequest | DescribeRequest | AccompanyRequest | CheckRequest | RerunRequest
_REQUESTS: dict[str, type[Request]] = {
    "measure": MeasureRequest,
    "describe": DescribeRequest,
    "accompany": AccompanyRequest,
    "check": CheckRequest,
    "rerun": RerunRequest,
}


@dataclass(frozen=True, kw_only=True, slots=True)
class ChildTask:
    """A request as the supervisor sends it to a child: together with the workload."""

    request: Request
    workload: WorkloadRef
    lock_wait_s: float
    """How long to wait if another user holds the host's lock."""

    @property
    def trial(self) -> MeasureRequest | None:
        """The request to measure, if the task is a trial or reruns a failed one to find out why it failed; otherwise None."""
        request = self.request
        return request.failed if isinstance(request, RerunRequest) else request if isinstance(request, MeasureRequest) else None

    @property
    def config(self) -> LoaderConfig | None:
        """The setting of `trial`."""
        return None if self.trial is None else self.trial.config

    @property
    def keep(self) -> bool:
        """Whether the child may be kept for the next request."""
        if self.workload.command is not None:  # what a script does before it trains takes long, and is of no use to a measurement
            return isinstance(self.request, MeasureRequest | DescribeRequest)
        return isinstance(self.request, MeasureRequest) and self.request.keep

    def line(self) -> bytes:
        """Return the line for the socket."""
        head = {"op": name_of(self.request, _REQUESTS), "workload": self.workload.to_json(), "lock_wait_s": self.lock_wait_s}
        return json.dumps(head | {"request": self.request.to_json()}).encode() + b"\n"

    @classmethod
    def from_line(cls, line: bytes) -> ChildTask:
        """Return the task in a line.

        Raises:
            ProtocolError: the line is no request of this version of feedrate.
        """
        saved = json.loads(line)
        request = _class_of(saved["op"], _REQUESTS).from_json(saved["request"])
        return cls(request=request, workload=WorkloadRef.from_json(saved["workload"]), lock_wait_s=saved["lock_wait_s"])


# Events


@dataclass(frozen=True, kw_only=True, slots=True)
class Phase(Message):
    """A phase of the request begins."""

    name: str
    """The name of the phase: setup, warm, loader, measure, between epochs (only of a training script), teardown, accompanying (only of an `AccompanyRequest`), or rerun, in which the batch at which a trial failed is loaded again."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Waiting(Message):
    """The trial waits for its host."""

    why: str
    without_lock: bool = False
    """Whether the trial no longer waits, but goes on without the host's lock."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Silent(Message):
    """The child has sent nothing for a while. `Child` makes this event in the supervisor, every SILENT_S (hang_detector.py)."""

    phase: str
    waits: bool
    """Whether the child waits for its host."""
    silent_s: float


@dataclass(frozen=True, kw_only=True, slots=True)
class Progress(Message):
    """The measurement so far."""

    columns: dict[str, Any]
    """By the names of analysis/schema.py."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Checking(Message):
    """What `check` examines next."""

    name: str


@dataclass(frozen=True, kw_only=True, slots=True)
class LoadingAgain(Message):
    """What a rerun loads next."""

    doing: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Measured(Message):
    """The last event of a trial: its whole measurement."""

    columns: dict[str, Any]
    """By the names of analysis/schema.py."""
    kept: bool = False
    """Whether the child waits for another request."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Stopped(Message):
    """The last event of a trial that the supervisor stopped early."""

    kept: bool
    """Whether the child waits for another request."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Checked(Message):
    """The last event of `check`."""

    report: dict[str, Any]
    """As in checking/check.py."""


@dataclass(frozen=True, kw_only=True, slots=True)
class LoadedAgain(Message):
    """The last event of a rerun."""

    again: Reloaded

    def to_json(self) -> dict[str, Any]:
        """Return a JSON object from which `from_json` makes an equal event."""
        return self.again.to_json()

    @classmethod
    def from_json(cls, saved: Mapping[str, Any]) -> LoadedAgain:
        """Return the event in an object of `to_json`."""
        return cls(again=Reloaded.from_json(saved))


@dataclass(frozen=True, kw_only=True, slots=True)
class Failed(Message):
    """The last event of any request that failed."""

    failure: Failure
    usage: bool = False
    """Whether only the user can mend it, by changing the workload or the command: it is then no failure of the setting."""
    raised: bool = False
    """Whether user code raised an exception; only for `usage`."""
    doubt: Doubt | None = None
    """What a fresh process should find out to complete the failure's message. `Template` does so, and removes it."""

    def to_json(self) -> dict[str, Any]:
        """Return a JSON object from which `from_json` makes an equal event."""
        doubt = None if self.doubt is None else self.doubt.to_json()
        return {"failure": self.failure.columns(), "usage": self.usage, "raised": self.raised, "doubt": doubt}

    @classmethod
    def from_json(cls, saved: Mapping[str, Any]) -> Failed:
        """Return the event in an object of `to_json`."""
        doubt = None if saved["doubt"] is None else Doubt.from_json(saved["doubt"])
        return cls(**{**saved, "failure": Failure.from_columns(saved["failure"]), "doubt": doubt})


News = Phase | Waiting | Silent | Progress | Checking | LoadingAgain
"""Events after which more events follow."""
End = Measured | Stopped | Checked | LoadedAgain | Described | Failed
"""The last event of a request."""
Event = News | End
Events = Generator[Event, None, None]
"""The events of one request; closing it ends the request."""
_EVENTS: dict[str, type[Event]] = {
    "phase": Phase,
    "waiting": Waiting,
    "silent": Silent,
    "progress": Progress,
    "checking": Checking,
    "loading-again": LoadingAgain,
    "measured": Measured,
    "stopped": Stopped,
    "checked": Checked,
    "loaded-again": LoadedAgain,
    "described": Described,
    "failed": Failed,
}


def event_line(event: Event) -> bytes:
    """Return the line for the socket."""
    return json.dumps({"event": name_of(event, _EVENTS), **event.to_json()}).encode() + b"\n"


def write_event(event: Event, descriptor: int) -> None:
    """Write the line of an event to the socket with this descriptor, all of it."""
    data = event_line(event)
    while data:
        data = data[os.write(descriptor, data) :]


def event_of(line: bytes) -> Event:
    """Return the event in a line.

    Raises:
        ProtocolError: the line is no event of this version of feedrate.
    """
    saved = json.loads(line)
    name = saved.pop("event", None)
    return _class_of(name, _EVENTS).from_json(saved)


def read(events: Events, on_news: Callable[[News], bool | None]) -> Event:
    """Read the events of a request to their end, and return the last one.

    The last event also closes `events`, so the child has ended, or is kept, when this function returns it.

    Args:
        events: of `Template.run`.
        on_news: called with each earlier event. If it returns True, reading pauses and that event is returned; another call with
            the same `events` continues after it.

    Raises:
        ProtocolError: the events ended without a last one.
    """
    for event in events:
        if isinstance(event, End):
            events.close()
            return event
        if on_news(event):
            return event
    raise ProtocolError("the events of a request ended without a last one")


def outcome(events: Events, kind: type[T], on_news: Callable[[News], None] = lambda news: None) -> T | Failed:
    """Read the events of a request to their end, and return the last one, of the expected kind or a failure.

    Args:
        events: of `Template.run`.
        kind: the last event of a request that did not fail.
        on_news: called with each earlier event.

    Raises:
        ProtocolError: the last event is of another kind, or there is none.
    """
    last = read(events, on_news)
    if not isinstance(last, kind | Failed):
        raise ProtocolError(f"a request for {kind.__name__} ended with {last!r}")
    return last


def _class_of(name: object, classes: Mapping[str, type[C]]) -> type[C]:
    if not isinstance(name, str) or name not in classes:
        raise ProtocolError(f"{name!r} is not one of {', '.join(classes)}")
    return classes[name]
