"""What is said about trials: `Request` by the session, `Ask`, `Past`, `Counts`, `Reconciled` by the brain. Plain values."""

from __future__ import annotations

from dataclasses import dataclass

from feedrate.trainables.config import LoaderConfig


@dataclass(frozen=True, kw_only=True, slots=True)
class Request:
    """One trial that was asked for: a setting, or the settings of a confirmation round."""

    kind: str
    """search or confirm."""
    number: int
    """Of the Optuna trial, or of the round."""
    configs: tuple[LoaderConfig, ...]
    origin: str
    measure_step: bool
    max_trial_s: float
    attempt: int = 1
    """2 and more: the setting failed on other hosts, perhaps by their fault."""
    avoid: frozenset[str] = frozenset()
    """Host ids on which it is not to be measured; empty leaves the choice to `HostHealth.closed`."""

    @property
    def key(self) -> tuple[str, int]:
        """Tells requests apart: rounds are counted on their own."""
        return self.kind, self.number

    @property
    def config(self) -> LoaderConfig:
        """The setting; the first one of a round."""
        return self.configs[0]


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
class Past:
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
