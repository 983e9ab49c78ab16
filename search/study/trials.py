"""Plain values with which the brain describes its trials: `KnownTrial`, `Ask`, `Counts`, `Reconciled`."""

from __future__ import annotations

from dataclasses import dataclass

from feedrate.trainables.config import LoaderConfig


@dataclass(frozen=True, slots=True)
class Ask:
    """A setting to measure, and the number of its trial."""

    number: int
    config: LoaderConfig
    origin: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Counts:
    """The number of trials in each state."""

    complete: int = 0
    pruned: int = 0
    failed: int = 0
    running: int = 0
    waiting: int = 0
    lost: int = 0

    @property
    def told(self) -> int:
        """Number of trials that have ended and are not lost, which `--max-trials` limits."""
        return self.complete + self.pruned + self.failed


@dataclass(kw_only=True, slots=True)
class KnownTrial:
    """A trial as the brain remembers it, so that it need not read the storage."""

    number: int
    trial_id: int
    config: LoaderConfig | None
    """None if nothing but the number is known any more."""
    origin: str
    run_id: str
    state: str
    """The trial's state: the name of a field of `Counts`."""
    value_sps: float | None = None
    is_blameless: bool = False
    """Whether the trial failed by the machine's fault, so that its setting may be drawn once more."""
    requeue_of: int | None = None
    """Number of the trial whose setting this trial measures again; None if there is none."""
    last_step: int = -1
    """Number of windows at the last report; -1 before the first one."""

    @property
    def is_open(self) -> bool:
        """Whether the trial has not ended yet."""
        return self.state in ("running", "waiting")


@dataclass(frozen=True, slots=True)
class Reconciled:
    """The result of `reconcile`: what the study did not know."""

    num_told: int
    """Number of records that the study learnt."""
    requeued: list[LoaderConfig]
    """Settings that were running, have no record, and will be measured again."""
