"""`Measurement`: the raw observations of one setting. Every statistic of them is derived by analysis/estimate.py."""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from typing import Any

from feedrate.analysis.estimate import Rate, epoch_factor, steady_rate


@dataclass(slots=True)
class Windows:
    """Raw windows so far, each from one consumed batch to a later one; lists of equal length."""

    window_duration_s: list[float] = field(default_factory=list)
    window_num_batches: list[int] = field(default_factory=list)
    window_num_items: list[int] = field(default_factory=list)
    window_produced_batches: list[int] = field(default_factory=list)
    window_wait_s: list[float] = field(default_factory=list)

    def add(self, *, duration_s: float, num_batches: int, num_items: int, produced_batches: int, wait_s: float) -> None:
        """Append one complete window."""
        self.window_duration_s.append(duration_s)
        self.window_num_batches.append(num_batches)
        self.window_num_items.append(num_items)
        self.window_produced_batches.append(produced_batches)
        self.window_wait_s.append(wait_s)

    def __len__(self) -> int:
        return len(self.window_duration_s)

    def rate(self, run_sd_fraction: float = 0.0) -> Rate:
        """The lasting rate with an interval; by default the windows' own, without run-to-run variance."""
        return steady_rate(
            self.window_duration_s,
            self.window_num_items,
            self.window_num_batches,
            self.window_produced_batches,
            run_sd_fraction=run_sd_fraction,
        )


@dataclass(slots=True, kw_only=True)
class Measurement:
    """What was observed of one setting; the fields are columns of analysis/schema.py, where each is explained."""

    windows: Windows = field(default_factory=Windows)
    settled: bool = False
    setup_s: float = 0.0
    iter_s: float = 0.0
    first_batch_s: float = 0.0
    settle_s: float = 0.0
    boundary_s: float = 0.0
    epoch_samples: int | None = None
    unit: str = "samples"
    step_only_num_items: list[int] | None = None
    step_only_duration_s: list[float] | None = None
    tree_pss_bytes: int | None = None
    tree_uss_bytes: int | None = None
    shm_bytes: int | None = None
    gpu_peak_bytes: int | None = None
    foreign_cpu_fraction: float | None = None
    own_cpu_fraction: float | None = None
    start_method: str | None = None

    def throughput(self, objective: str = "epoch") -> Rate:
        """Items per second with the windows' own 95 % interval: epoch-amortised, or steady.

        Raises:
            ValueError: no window is complete yet. Take a later measurement.
        """
        steady = self.windows.rate()
        if objective == "steady":
            return steady
        return steady.scaled(epoch_factor(steady.sps, self.boundary_s, self.epoch_samples))

    def columns(self) -> dict[str, Any]:
        """Every observation as columns of a trial record."""
        named = {each.name: getattr(self, each.name) for each in fields(self) if each.name != "windows"}
        return named | {each.name: list(getattr(self.windows, each.name)) for each in fields(Windows)}
