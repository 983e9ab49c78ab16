"""`TrialRequest`: one trial that a session asks the engine for."""

from __future__ import annotations

from dataclasses import dataclass

from feedrate.trainables.config import LoaderConfig


@dataclass(frozen=True, kw_only=True, slots=True)
class TrialRequest:
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
