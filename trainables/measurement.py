"""`Measurement`: the raw observations of one setting. analysis/estimate.py computes every statistic from them."""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from typing import Any

from feedrate.analysis.estimate import Rate, epoch_rate, lasting_rate, lasting_windows
from feedrate.analysis.trend import Lasting
from feedrate.trainables.ranks.rank_windows import RankWindows, with_window
from feedrate.trainables.ranks.world_window import WorldWindow


@dataclass(slots=True)
class Windows:
    """The raw windows so far; the lists have equal length. A window begins when one batch has been trained and ends with a later one."""

    window_duration_s: list[float] = field(default_factory=list)
    window_num_batches: list[int] = field(default_factory=list)
    window_num_items: list[int] = field(default_factory=list)
    window_produced_batches: list[int] = field(default_factory=list)
    window_wait_s: list[float] = field(default_factory=list)
    window_step_s: list[float] | None = None
    expected_sd_fraction: float | None = None
    """Standard deviation that the rate of a window is expected to have, as a fraction of it; None if nothing says so."""
    ranks: tuple[RankWindows, ...] | None = None
    """What each rank did in the windows; None for a training with one process."""

    def add(
        self,
        *,
        duration_s: float,
        num_batches: int,
        num_items: int,
        produced_batches: int,
        wait_s: float,
        step_s: float | None = None,
    ) -> None:
        """Append one complete window; `step_s` is the time that the accelerator spent in training steps."""
        if step_s is not None:
            self.window_step_s = [*(self.window_step_s or []), step_s]
        self.window_duration_s.append(duration_s)
        self.window_num_batches.append(num_batches)
        self.window_num_items.append(num_items)
        self.window_produced_batches.append(produced_batches)
        self.window_wait_s.append(wait_s)

    def add_world(self, window: WorldWindow, *, step_s: float | None = None) -> None:
        """Append one complete window of a training with several ranks; `step_s` is that of rank 0's accelerator."""
        self.add(
            duration_s=window.duration_s,
            num_batches=window.num_batches,
            num_items=window.num_items,
            produced_batches=window.produced_batches,
            wait_s=window.wait_s,
            step_s=step_s,
        )
        self.ranks = with_window(self.ranks or (), window)

    def __len__(self) -> int:
        return len(self.window_duration_s)

    def rate(self, run_sd_fraction: float = 0.0) -> Rate:
        """Return the lasting rate with its interval; by default from the spread of the windows only, without run-to-run variance."""
        return lasting_rate(
            self.window_duration_s,
            self.window_num_items,
            self.window_num_batches,
            self.window_produced_batches,
            run_sd_fraction=run_sd_fraction,
            expected_sd_fraction=self.expected_sd_fraction,
        )

    def lasting(self) -> Lasting:
        """Return which windows count for the lasting rate, and whether the rate was still changing when they ended."""
        return lasting_windows(self.window_duration_s, self.window_num_batches, self.window_produced_batches)


@dataclass(slots=True, kw_only=True)
class Measurement:
    """The observations of one setting. The fields are columns of analysis/schema.py, which explains each of them."""

    windows: Windows = field(default_factory=Windows)
    settled: bool = False
    setup_s: float = 0.0
    iter_s: float = 0.0
    first_batch_s: float = 0.0
    settle_s: float = 0.0
    boundary_s: float = 0.0
    boundary_from: str = "estimated"
    between_epochs_s: float | None = None
    between_epochs_parts_s: dict[str, float] | None = None
    between_epochs_failure: str | None = None
    epoch_duration_s: list[float] | None = None
    epoch_num_items: list[int] | None = None
    first_step_s: float | None = None
    epoch_samples: int | None = None
    unit: str = "samples"
    cached_batch_failure: str | None = None
    step_returned: str | None = None
    step_only_num_items: list[int] | None = None
    step_only_duration_s: list[float] | None = None
    step_only_cpus: float | None = None
    load_item_s: float | None = None
    load_cpu_item_s: float | None = None
    load_delay_item_s: float | None = None
    collate_item_s: float | None = None
    handover_cpu_item_s: float | None = None
    batch_bytes: int | None = None
    sample_p50_s: float | None = None
    sample_p90_s: float | None = None
    sample_p99_s: float | None = None
    sample_max_s: float | None = None
    sample_correlation: float | None = None
    copy_only_num_items: list[int] | None = None
    copy_only_duration_s: list[float] | None = None
    loss_is_finite: bool | None = None
    tree_pss_bytes: int | None = None
    tree_uss_bytes: int | None = None
    tree_uss_growth_bytes_per_batch: float | None = None
    max_open_files: int | None = None
    effective_num_workers: int | None = None
    num_shards: int | None = None
    shm_bytes: int | None = None
    gpu_peak_bytes: int | None = None
    gpu_free_bytes: int | None = None
    foreign_cpu_fraction: float | None = None
    own_cpu_fraction: float | None = None
    steal_fraction: float | None = None
    throttled_fraction: float | None = None
    psi_cpu_fraction: float | None = None
    psi_io_fraction: float | None = None
    psi_memory_fraction: float | None = None
    storage_read_bytes: int | None = None
    read_call_bytes: int | None = None
    cache_state: str | None = None
    cold_refused: str | None = None
    start_method: str | None = None

    def throughput(self, objective: str = "epoch") -> Rate:
        """Return items per second with a 95 % interval from the windows: over whole epochs, or the steady rate.

        Raises:
            ValueError: no window is complete yet. Use a later measurement.
        """
        steady = self.windows.rate()
        if objective == "steady":
            return steady
        return epoch_rate(
            steady,
            boundary_s=self.boundary_s,
            epoch_samples=self.epoch_samples,
            duration_s=self.epoch_duration_s,
            num_items=self.epoch_num_items,
        )

    def columns(self) -> dict[str, Any]:
        """Return every observation as columns of a trial record."""
        named = {each.name: getattr(self, each.name) for each in fields(self) if each.name != "windows"}
        windows = {each.name: getattr(self.windows, each.name) for each in fields(Windows)}
        windows["ranks"] = None if self.windows.ranks is None else [each.to_json() for each in self.windows.ranks]
        listed = {name: list(values) if isinstance(values, list) else values for name, values in windows.items()}
        return named | listed | {"trend_fraction": self.windows.lasting().change_fraction}
