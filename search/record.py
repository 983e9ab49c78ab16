"""`SearchRecord`: the content of search.json, which says what a search was asked for, where it ran, and how it ended.

Only this file reads and writes search.json in search/. analysis/, which may not import it, reads the same file through `Run`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import MISSING, asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, Self, cast

from feedrate.analysis.disqualified import NOTHING, Disqualified
from feedrate.analysis.load import SEARCH_SCHEMA
from feedrate.analysis.run import Run
from feedrate.analysis.run_folder import RunError, RunFolder
from feedrate.search.options import SearchOptions
from feedrate.search.shipping.submission import Submission
from feedrate.search.space.search_space import SearchSpace
from feedrate.trainables.checking.script_facts import ScriptFacts
from feedrate.trainables.config import LoaderConfig
from feedrate.trainables.resolve import WorkloadRef

_WHEN_OVER = ("stop_reason", "unconfirmed_because")
"""Fields that are written when the search is finished, null or not."""
_WHEN_KNOWN = ("warm_start", "set_aside", "resumed_as", *_WHEN_OVER)
"""Fields that the search.json of a search that has just begun does not have yet."""


class OtherSchema(RunError):
    """A search.json that another version of feedrate, or another program, wrote."""

    def __init__(self, name: str, schema: object) -> None:
        super().__init__(f"{name} has schema {schema!r}, this feedrate resumes {SEARCH_SCHEMA!r} only")
        self.schema = schema


def _known(cls: Any, saved: Mapping[str, Any]) -> Any:
    """Return an instance of dataclass `cls` with the values of a JSON object; keys that are no fields of `cls` are ignored."""
    return cls(**{each.name: saved[each.name] for each in fields(cls) if each.name in saved})


class _Part:
    """A dataclass whose fields are JSON values."""

    __slots__ = ()

    def to_json(self) -> dict[str, Any]:
        """Return the object in search.json."""
        return asdict(cast(Any, self))

    @classmethod
    def from_json(cls, saved: Mapping[str, Any]) -> Self:
        """Return what an object in a search.json says; keys of other versions are ignored."""
        part: Self = _known(cls, saved)
        return part


@dataclass(frozen=True, kw_only=True, slots=True)
class SearchedWorkload:
    """The workload of a search."""

    ref: WorkloadRef
    name: str
    unit: str = "samples"
    """What the workload's step counts."""
    epoch_samples: int | None = None
    """Items of the user's epoch; None if it is not known."""
    script: ScriptFacts | None = None
    """The loaders of a training command."""

    @property
    def num_ranks(self) -> int:
        """Number of processes that train together on a host."""
        return 1 if self.script is None else self.script.num_ranks

    def to_json(self) -> dict[str, Any]:
        """Return the object in search.json."""
        script = None if self.script is None else self.script.to_json()
        more = {"name": self.name, "unit": self.unit, "epoch_samples": self.epoch_samples, "script": script}
        return {**self.ref.to_json(), **more}

    @classmethod
    def from_json(cls, saved: Mapping[str, Any]) -> SearchedWorkload:
        """Return the workload in a search.json."""
        more = {name: saved[name] for name in ("unit", "epoch_samples") if name in saved}
        if saved.get("script") is not None:
            more["script"] = ScriptFacts.from_json(saved["script"])
        return cls(ref=WorkloadRef.from_json(saved), name=saved["name"], **more)


@dataclass(frozen=True, kw_only=True, slots=True)
class Hardware:
    """The machine of the driver."""

    hostname: str | None = None
    cpu_model: str | None = None
    num_cpus: int | None = None
    gpus: tuple[str, ...] = ()
    """The model of each GPU."""

    def to_json(self) -> dict[str, Any]:
        """Return the object in search.json."""
        return asdict(self) | {"gpus": list(self.gpus)}

    @classmethod
    def from_json(cls, saved: Mapping[str, Any]) -> Hardware:
        """Return the machine in a search.json."""
        hardware: Hardware = _known(cls, {**saved, "gpus": tuple(saved.get("gpus", ()))})
        return hardware


@dataclass(frozen=True, kw_only=True, slots=True)
class TrialPlace(_Part):
    """Where the trials of a search run, and what each of them may use."""

    cpus: int | None = None
    gpus: int | None = None
    where: str = ""
    """For the user: hosts, CPUs and GPUs."""
    hardware: str | None = None
    """Hardware class of the hosts; None if they have several."""
    trials_per_host: int = 1


@dataclass(frozen=True, kw_only=True, slots=True)
class HostSetAside(_Part):
    """A host on which the search runs no more trials, because settings failed there that work elsewhere."""

    hostname: str
    host_id: str
    reason: str


@dataclass(frozen=True, kw_only=True, slots=True)
class ResumedAs(_Part):
    """A Ray Job that continued the search."""

    submission_id: str
    unix_s: float


@dataclass(frozen=True, kw_only=True, slots=True)
class SearchRecord:
    """The content of search.json. `dataclasses.replace` changes a field, and `write` replaces the file.

    What a newer version of feedrate wrote into the file, and this one does not know, is written again as it was.
    """

    study: str
    """Name of the Optuna study."""
    workload: SearchedWorkload
    objective: str = "epoch"
    argv: tuple[str, ...] = ()
    """The command line without the program; empty for a search that Python code started."""
    command: str = ""
    """The command line as one text."""
    created_unix_s: float
    owner: str | None = None
    """user@host of whoever started the search."""
    submission: Submission | None = None
    """How the search was submitted; None if it is not a Ray Job."""
    mirror: str | None = None
    """Address of the copy of the run folder."""
    finished: bool = False
    versions: Mapping[str, str] = field(default_factory=dict)
    hardware: Hardware = field(default_factory=Hardware)
    placement: TrialPlace = field(default_factory=TrialPlace)
    hosts: tuple[Mapping[str, Any], ...] = ()
    """The nodes of the cluster, as `Host.to_json` describes them; empty for a local Ray."""
    space: SearchSpace
    disqualified: Disqualified = NOTHING
    baseline: LoaderConfig
    options: SearchOptions
    warm_start: tuple[LoaderConfig, ...] | None = None
    """Settings of an earlier run that are tried first; None if none were asked for."""
    set_aside: tuple[HostSetAside, ...] = ()
    resumed_as: tuple[ResumedAs, ...] = ()
    stop_reason: str | None = None
    unconfirmed_because: str | None = None
    """Why there were no confirmation rounds; None if there were."""
    saved: Mapping[str, Any] | None = field(default=None, repr=False, compare=False)
    """The object that this record was read from; None for a new record."""

    @classmethod
    def read(cls, folder: RunFolder) -> SearchRecord:
        """Return the content of a run's search.json.

        Raises:
            RunError: the folder is no run, or its search.json is damaged or has another schema (`OtherSchema`).
        """
        return cls.from_json(folder.read_search(), folder.search)

    @classmethod
    def of(cls, run: Run) -> SearchRecord:
        """Return the content of the search.json of a run that was read for the report, in which every text is valid Unicode.

        Raises:
            RunError: it is damaged.
        """
        return cls.from_json(run.search, run.path / "search.json")

    @classmethod
    def from_json(cls, saved: Mapping[str, Any], name: str | Path = "search.json") -> SearchRecord:
        """Return the record in a JSON object; `name` is that of its file, for errors.

        Raises:
            RunError: the object is damaged or has another schema (`OtherSchema`).
        """
        if saved.get("schema") != SEARCH_SCHEMA:
            raise OtherSchema(str(name), saved.get("schema"))
        missing = [each.name for each in fields(cls) if each.default is MISSING and each.default_factory is MISSING and each.name not in saved]
        if missing:
            raise RunError(f"{name} is damaged: it has no {', '.join(missing)}. Restore it, or search again")
        try:
            known = {each: read(saved[each]) for each, read in _READERS.items() if each in saved}
            return cls(**known, saved=saved)
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise RunError(f"{name} is damaged ({type(error).__name__}: {error}). Restore it, or search again") from error

    @property
    def world_size(self) -> int:
        """Number of processes that train together in a trial, on all of its hosts."""
        return self.workload.num_ranks * self.options.hosts_per_trial

    def write(self, folder: RunFolder) -> None:
        """Replace a run's search.json."""
        folder.write_search(self.to_json())

    def to_json(self) -> dict[str, Any]:
        """Return the content of search.json. If the record was read from one, only what has changed since differs from it."""
        before = None if self.saved is None else SearchRecord.from_json(self.saved)
        content: dict[str, Any] = {"schema": SEARCH_SCHEMA} | dict(self.saved or {})
        defaults = {each.name: each.default for each in fields(self)}
        if before is None:
            changed = [each for each in _READERS if each not in _WHEN_KNOWN or getattr(self, each) != defaults[each]]
        else:
            changed = [each for each in _READERS if getattr(self, each) != getattr(before, each)]
        if self.finished and not (before is not None and before.finished):
            changed += [each for each in _WHEN_OVER if each not in changed]
        for each in changed:
            new, old = _encoded(getattr(self, each)), content.get(each)
            content[each] = {**old, **new} if isinstance(new, dict) and isinstance(old, dict) else new
        return content


def _each(read: Callable[[Any], Any]) -> Callable[[Any], Any]:
    return lambda saved: tuple(map(read, saved))


def _unless_none(read: Callable[[Any], Any]) -> Callable[[Any], Any]:
    return lambda saved: None if saved is None else read(saved)


def _same(saved: Any) -> Any:
    return saved


_READERS: dict[str, Callable[[Any], Any]] = {
    "study": _same,
    "workload": SearchedWorkload.from_json,
    "objective": _same,
    "argv": lambda saved: tuple(saved or ()),
    "command": _same,
    "created_unix_s": float,
    "owner": _same,
    "submission": _unless_none(Submission.from_json),
    "mirror": _same,
    "finished": bool,
    "versions": lambda saved: dict(saved or {}),
    "hardware": Hardware.from_json,
    "placement": TrialPlace.from_json,
    "hosts": tuple,
    "space": SearchSpace.from_json,
    "disqualified": lambda saved: Disqualified.from_json(saved or {}),
    "baseline": LoaderConfig.from_dict,
    "options": SearchOptions.from_json,
    "warm_start": _each(LoaderConfig.from_dict),
    "set_aside": _each(HostSetAside.from_json),
    "resumed_as": _each(ResumedAs.from_json),
    "stop_reason": _same,
    "unconfirmed_because": _same,
}
"""Each key of search.json, in the order in which a new file has them -> the function that reads its value."""


def _encoded(value: Any) -> Any:
    """Return the JSON value of a field."""
    if isinstance(value, tuple):
        return [_encoded(each) for each in value]
    if isinstance(value, LoaderConfig):
        return value.to_dict()
    if isinstance(value, Disqualified) and value.is_nothing:
        return None
    return value.to_json() if hasattr(value, "to_json") else value
