"""`TrialRequest`: one trial that a session asks the engine for."""

from __future__ import annotations

from dataclasses import dataclass

from feedrate.trainables.config import LoaderConfig


@dataclass(frozen=True, kw_only=True, slots=True)
class TrialRequest:
    """One requested trial: a setting, or the settings of a confirmation round."""

    kind: str
    """search or confirm."""
    number: int
    """Number of the Optuna trial, or of the round."""
    configs: tuple[LoaderConfig, ...]
    origin: str
    measure_step: bool
    """Whether to time the training step alone, too, because the ceiling is not known yet at a batch size of the trial."""
    max_trial_s: float
    between_epochs: bool = False
    """Whether to time what a training script does between two epochs, too, because that is not known yet."""
    attempt: int = 1
    """Number of the attempt; 2 or more if the setting failed on other hosts, perhaps by their fault."""
    avoid: frozenset[str] = frozenset()
    """Ids of the hosts that must not measure it; empty leaves the choice to `HostHealth.closed`."""

    @property
    def key(self) -> tuple[str, int]:
        """Unique key of the request; trials and rounds are numbered separately."""
        return self.kind, self.number

    @property
    def config(self) -> LoaderConfig:
        """The setting that is to be measured; in a confirmation round, which measures several, the first of them."""
        return self.configs[0]
