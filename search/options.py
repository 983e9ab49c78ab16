"""`SearchOptions`: how a search is run, as opposed to which settings it may try. Imports neither torch nor Ray."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from feedrate.trainables.config import LoaderConfig

if TYPE_CHECKING:
    from feedrate.trainables.protocol import Failed

OBJECTIVES = ("epoch", "steady")
SAMPLERS = ("gp", "tpe", "random")
PRECISIONS = ("bf16",)
SHARES = ("host",)
OWN_STEP = "is only for the short form of a workload. This workload builds its own step (from_loader), so do it in make_step"
ANY_ORDER = "--in-order false: batches arrive as soon as they are ready, not in the sampler's order, so every run sees a different order"
OWN_BATCHES = (
    "the workload's loader has batch_size=None, so its sampler or dataset makes the batches, and DataLoader has no batch size to "
    "set. Leave --batch-size out, or write one workload function per batch size and search each of them"
)
LOOKS = (5, 8, 13, 20)
"""Numbers of windows after which a trial may be stopped. An interval that is tested after every window overstates its confidence,
so there are few such tests."""

ENOUGH_FRACTION = 0.05
"""A trial that looks for good settings ends when half the width of the interval of its windows is below this fraction of the rate. Another fresh
start then says more than a longer trial (docs/benchmarks.md, "How long should a trial be?"). Rounds measure longer."""
WORTH_SAYING_S = 0.01
"""A shorter time between epochs is not worth a line."""


class UsageError(Exception):
    """An error for a request that cannot be met; the message says why and what to do instead. The command line exits with 2."""


class WorkloadFailed(UsageError):
    """An error for a workload whose own code failed before anything was measured; the message ends with its traceback.

    It is a UsageError because nothing was written. The command line was right, however, so the exit code is 1.
    """


def refusal(failed: Failed) -> UsageError:
    """Return the error for a failure that came before anything was measured."""
    sentence = failed.failure.message
    if failed.failure.traceback:
        sentence += f"\n{failed.failure.traceback}"
    return UsageError(sentence) if failed.usage and not failed.raised else WorkloadFailed(sentence)


class NothingFound(Exception):
    """An error for a search that ended without any setting that works; the message says why. The command line exits with 1."""

    def __init__(self, sentence: str, run: object = None) -> None:
        super().__init__(sentence)
        self.facts = {"run": run}


def between_epochs(columns: Mapping[str, Any]) -> str | None:
    """Return a sentence about the time that a training script needs between two epochs; None if it was not asked for."""
    if (why := columns.get("between_epochs_failure")) is not None:
        return f"the time between epochs is not known, because {why}"
    seconds, parts = columns.get("between_epochs_s"), columns.get("between_epochs_parts_s") or {}
    if seconds is None or seconds < WORTH_SAYING_S:
        return None
    from feedrate.analysis.sections import duration  # it imports pandas, which a wrong command line need not wait for

    told = sorted(parts.items(), key=lambda part: -part[1])
    of_which = [f"{duration(part_s)} in {name if name == 'torch.save' else f'the loop over the loader at {name}'}" for name, part_s in told]
    return f"between epochs: {duration(seconds)}" + (f", of which {' and '.join(of_which)}" if of_which else "")


def counted_anyway(step_returned: str) -> str:
    """Return a note about a step that did not return a number of items; `step_returned` is the name of the type that it returned."""
    return (
        f"step(batch) returned a {step_returned}, not a number of items, so feedrate counts samples instead (the first dimension of the "
        "first tensor in the batch). To count something else, return the number of items trained as an int; to count samples without "
        "this note, return None"
    )


@dataclass(frozen=True, kw_only=True, slots=True)
class SearchOptions:
    """The options that say how a search is run.

    Raises:
        ValueError: a value cannot work; the message names the option.
    """

    time_budget_s: float = 300.0
    """Wall time for the search itself, without making data and starting Ray."""
    max_trials: int | None = None
    """Largest number of settings to try: complete, stopped early and failed ones together. None leaves it to the time budget."""
    max_trial_s: float = 20.0
    """Longest wall time for loading and training in one trial."""
    objective: str = "epoch"
    """The rate to compare. epoch: over the user's whole epoch, including start-up; steady: between epoch boundaries."""
    epoch_samples: int | None = None
    """Items in the user's real epoch; None asks the dataset."""
    gpus_per_trial: int | None = None
    """GPUs that one trial reserves. None: 1 if the cluster has any, else 0."""
    hosts_per_trial: int = 1
    """Hosts on which the ranks of one trial run; `torchrun` is started on each of them."""
    cpus_per_trial: int | None = None
    """CPUs that one trial reserves. None: the node's CPUs divided by its GPUs, times the trial's GPUs."""
    pin_cpus: bool = True
    """Keep each trial to the CPUs that it reserved; False lets it use all CPUs of its node."""
    exclusive: bool = False
    """Reserve whole nodes, so that Ray places nothing else beside a trial."""
    share: str | None = None
    """host: run as many trials at once on a host as its GPUs allow, each on its own CPUs; None: one trial per host at a time."""
    wait_s: float | None = None
    """How long to wait until other processes leave a host alone. None means 10 minutes on a cluster that runs already, and 0 on a local Ray."""
    threads: int | None = None
    """torch's intra-op threads in the training process; None leaves it to torch."""
    address: str | None = None
    """Address of a running Ray cluster; None starts a local one and stops it afterwards."""
    require_token: bool = False
    """Refuse a cluster without token authentication."""
    hardware: str | None = None
    """Use only machines of this hardware class (reservation.py); None if the cluster has one class."""
    storage: str | None = None
    """Optuna database URL; None keeps a journal file in the run folder."""
    baseline: LoaderConfig | None = None
    """The setting that speed-ups are relative to. None: the setting of the user's own loader, else torch's default."""
    amp: str | None = None
    """Precision of the step in a workload's short form. bf16: forward and loss run under autocast; None: the model's own precision."""
    compile: bool = False
    """Compile the short form's model with torch.compile; compiling is not timed."""
    keep_going: bool = False
    """Try settings until max_trials or the end of the time budget, even if no further gain is expected."""
    confirm: bool = True
    """Measure finalists and baseline again in interleaved rounds before answering (finalists.py)."""
    allow_duplicates: bool = False
    """Also search settings that repeat data (duplicates.py)."""
    warm_start: str | None = None
    """An earlier run folder whose best settings are tried early (warm_start.py)."""
    sampler: str = "gp"
    """gp: try the setting with the highest expected gain under a model of loading (expectation.py); tpe, random: Optuna's samplers."""
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("time_budget_s", "max_trial_s"):
            if not getattr(self, name) > 0:
                raise ValueError(f"--{_flag(name)} must be positive, not {getattr(self, name):g}")
        for name, least in (
            ("max_trials", 1),
            ("epoch_samples", 1),
            ("cpus_per_trial", 1),
            ("hosts_per_trial", 1),
            ("threads", 1),
            ("gpus_per_trial", 0),
            ("wait_s", 0),
        ):
            value = getattr(self, name)
            if value is not None and value < least:
                raise ValueError(f"--{_flag(name)} must be {least} or more, not {value}")
        if self.exclusive and self.address is None:
            raise ValueError("--exclusive is only for a cluster (--address): a local Ray has the whole machine")
        if self.hosts_per_trial > 1 and self.address is None:
            raise ValueError(f"--hosts-per-trial {self.hosts_per_trial} is for a cluster (--address): a local Ray has one host")
        if self.hosts_per_trial > 1 and self.share is not None:
            raise ValueError("--hosts-per-trial and --share do not go together: a trial on several hosts has each of them for itself")
        if self.share not in (None, *SHARES):
            raise ValueError(f"--share must be {' or '.join(SHARES)}, not {self.share!r}")
        if self.share is not None and (self.exclusive or not self.pin_cpus):
            other = "--exclusive" if self.exclusive else "--cpus-per-trial all"
            raise ValueError(f"--share {self.share} gives each of several trials a part of the host, but {other} gives one trial the whole host: leave one of them out")
        if self.share is not None and self.gpus_per_trial == 0:
            raise ValueError(f"--share {self.share} runs one trial per GPU or group of GPUs at a time, so --gpus-per-trial must be 1 or more")
        if self.amp not in (None, *PRECISIONS):
            raise ValueError(f"--amp must be one of {', '.join(PRECISIONS)}, not {self.amp!r}")
        if self.objective not in OBJECTIVES:
            raise ValueError(f"--objective must be one of {', '.join(OBJECTIVES)}, not {self.objective!r}")
        if self.sampler not in SAMPLERS:
            raise ValueError(f"--sampler must be one of {', '.join(SAMPLERS)}, not {self.sampler!r}")

    def to_json(self) -> dict[str, Any]:
        """Return the options as a JSON object for search.json, without a password in the storage URL."""
        fields = asdict(self)
        fields["storage"] = without_password(self.storage) if self.storage else None
        return fields

    @classmethod
    def from_json(cls, fields: dict[str, Any]) -> SearchOptions:
        """Return the options inside a search.json; fields of newer versions are ignored."""
        known = {name: fields[name] for name in cls.__dataclass_fields__ if name in fields}
        if known.get("baseline") is not None:
            known["baseline"] = LoaderConfig.from_dict(known["baseline"])
        return cls(**known)


def _flag(name: str) -> str:
    return name.removesuffix("_s").replace("_", "-") if name in ("time_budget_s", "wait_s") else name.replace("_", "-")


HIDDEN = "***"


def without_password(text: str) -> str:
    """Return a URL, or an argument that contains one, with its password replaced by ***, also if it is in the query (?password=)."""
    text = re.sub(r"(://[^:/@\s]*):\S*@", rf"\1:{HIDDEN}@", text)
    return re.sub(r"(?i)([?&][^=&\s]*pass[^=&\s]*=)[^&\s]*", rf"\1{HIDDEN}", text)


def parse_duration_s(text: str) -> float:
    """Return the seconds in a duration such as "90", "90s", "5m", "1.5h", "30d" or "40ms".

    Raises:
        ValueError: the text is no duration, or is negative.
    """
    if text.strip().startswith("-"):
        raise ValueError(f"must be 0 or more, not {text.strip()}")
    match = re.fullmatch(r"(\d+(?:\.\d*)?|\.\d+)\s*(ms|s|m|h|d)?", text.strip())
    if match is None:
        raise ValueError(f"{text!r} is not a duration: write 90s, 5m, 1h or 40ms")
    return float(match[1]) * {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}[match[2] or "s"]


def parse_config(text: str) -> LoaderConfig:
    """Return the setting in a text such as "num_workers=4,prefetch_factor=2,pin_memory=true".

    Raises:
        ValueError: an unknown name or an impossible value; the message lists the names.
    """
    fields: dict[str, Any] = {}
    known = LoaderConfig.__dataclass_fields__
    for part in filter(None, (part.strip() for part in text.split(","))):
        name, equals, value = (piece.strip() for piece in part.partition("="))
        if not equals or name not in known:
            raise ValueError(f"{part!r} is not a setting: write name=value with one of {', '.join(known)}")
        words = {"true": True, "false": False, "none": None}
        if isinstance(known[name].default, bool) and value.lower() not in ("true", "false"):
            raise ValueError(f"{name} is true or false, not {value!r}")
        fields[name] = (
            words[value.lower()] if value.lower() in words else int(value) if re.fullmatch(r"-?\d+", value) else value
        )
    return LoaderConfig(**{"batch_size": None, **fields})
