"""`KnownTrial`, and what else the brain says about its trials: `Ask`, `Counts`, `Reconciled`. Plain values."""

from __future__ import annotations

from dataclasses import dataclass

from feedrate.trainables.config import LoaderConfig


@dataclass(frozen=True, slots=True)
class Ask:
    """A setting to measure."""

    number: int
    config: LoaderConfig
    origin: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Counts:
    """How many trials are in which state."""

    complete: int = 0
    pruned: int = 0
    failed: int = 0
    running: int = 0
    waiting: int = 0
    lost: int = 0

    @property
    def told(self) -> int:
        """What `--max-trials` counts."""
        return self.complete + self.pruned + self.failed


@dataclass(kw_only=True, slots=True)
class KnownTrial:
    """A trial as the brain remembers it, so that it need not ask the storage."""

    number: int
    trial_id: int
    config: LoaderConfig | None
    """None where only the number is left."""
    origin: str
    run_id: str
    state: str
    """A field of `Counts`."""
    value_sps: float | None = None
    is_blameless: bool = False
    """Failed by the machine's fault: the setting may be drawn once more."""
    requeue_of: int | None = None
    last_step: int = -1

    @property
    def is_open(self) -> bool:
        """Not told yet."""
        return self.state in ("running", "waiting")


@dataclass(frozen=True, slots=True)
class Reconciled:
    """What a study did not know."""

    num_told: int
    """Records that it learnt."""
    requeued: list[LoaderConfig]
    """Settings that were running, have no record, and will be measured anew."""
