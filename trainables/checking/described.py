"""`Described`: what a workload is, as far as that can be seen without training it. Needs no torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

from feedrate.trainables.checking.quick_look import QuickLook
from feedrate.trainables.checking.script_facts import ScriptFacts
from feedrate.trainables.config import LoaderConfig
from feedrate.trainables.machine.host_facts import HostFacts


@dataclass(frozen=True, kw_only=True, slots=True)
class Described:
    """Facts about a workload and about the host on which it was made."""

    name: str
    unit: str
    """What `step` counts, for example samples."""
    is_short: bool
    """Whether the workload has the short form, whose loader and step feedrate makes."""
    iterable: bool
    epoch_samples: int | None
    """Items that all ranks together train in one epoch; None if it is not known."""
    baseline: LoaderConfig | None
    """The setting of the user's own loader; None for the short form, which has no loader of its own."""
    fixed: tuple[str, ...]
    """Names of the dimensions that the workload's loader does not let anybody set."""
    notes: tuple[str, ...]
    """Sentences for the user."""
    data: QuickLook
    """Which settings deliver the same data more than once, as far as a few samples tell."""
    facts: HostFacts
    num_gpus: int
    """Accelerators of the host that the workload can see."""
    script: ScriptFacts | None = None
    """Of a training command."""
    kept: bool = False
    """Whether the child waits for another request."""

    @property
    def own(self) -> LoaderConfig:
        """The setting of the user's own loader; for the short form torch's default, without a batch size."""
        return self.baseline or LoaderConfig(batch_size=None)

    @property
    def num_ranks(self) -> int:
        """Number of processes that train together on the host; 1 for any workload that is no training with several ranks."""
        return 1 if self.script is None else self.script.num_ranks

    @property
    def has_own_batches(self) -> bool:
        """Whether the workload's sampler or dataset makes the batches, so that there is no batch size to set."""
        return "batch_size" in self.fixed

    def to_json(self) -> dict[str, Any]:
        """Return a JSON object that `from_json` reads. Only the notes inside `data` are lost; `notes` repeats them."""
        named = {each.name: getattr(self, each.name) for each in fields(self)}
        baseline = None if self.baseline is None else self.baseline.to_dict()
        script = None if self.script is None else self.script.to_json()
        return named | {"baseline": baseline, "data": self.data.to_json(), "facts": self.facts.to_json(), "script": script}

    @classmethod
    def from_json(cls, saved: Mapping[str, Any]) -> Described:
        """Return the facts in an object of `to_json`."""
        baseline = saved["baseline"]
        typed: dict[str, Any] = {
            "baseline": None if baseline is None else LoaderConfig.from_dict(baseline),
            "fixed": tuple(saved["fixed"]),
            "notes": tuple(saved["notes"]),
            "data": QuickLook.from_json(saved["data"]),
            "facts": HostFacts.from_json(saved["facts"]),
            "script": None if saved["script"] is None else ScriptFacts.from_json(saved["script"]),
        }
        return cls(**{**saved, **typed})
