"""Compute rates from raw windows: an estimator that bursts do not mislead, its interval, and the rate over an epoch.

A window runs from one consumed batch to a later one. `produced` is the number of batches that the loader finished in that time.
The rate that lasts is the smaller of production and consumption: while prefetched batches are used up, production is the limit
(naive timing gives up to 11 times too much); while the queue fills behind a slow step, consumption is. Needs only NumPy and trend.py.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from feedrate.analysis.trend import Lasting, change_of, in_first_epoch, lasting, open_factor

RUN_SD_FRACTION = 0.015
"""Prior for the run-to-run standard deviation of one setting, as a fraction of its rate: 1.1 % was measured between
fresh starts on a quiet two-core machine, and 1.5 % leaves room for a noisier one."""

BOUNDARY_SD_FRACTION = 0.1
"""The same for the cost of an epoch boundary, which is mostly starting processes: plain loops over epochs of 12 batches, in which
boundaries took 60 % of the time, differed by 11 % from one fresh start to the next (docs/benchmarks.md, 2026-11-22)."""

ENOUGH_EPOCHS, FEW_EPOCHS = 5, 3
"""Number of measured whole epochs from which their rate replaces the one computed from windows; FEW_EPOCHS if the windows say little about an epoch."""

FEW_WINDOWS = 5
"""The spread of fewer windows cannot be known from these windows alone."""
WINDOW_SD_FRACTION = 0.15
"""Prior for that spread: measurements with one or two windows, in which 8 to 32 workers finish batches in turn, differed by 14 to
19 % from one fresh start to the next (91 trials of three landscapes, docs/benchmarks.md, 2026-11-26)."""
PRIOR_WINDOWS = 5
"""Number of windows that WINDOW_SD_FRACTION counts as, beside the measured ones, if those are few."""

# two-sided 95 % quantiles of Student's t for 1..30 degrees of freedom (NIST handbook, table 1.3.6.7.2)
_T975 = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228, 2.201, 2.179, 2.160, 2.145, 2.131,
         2.120, 2.110, 2.101, 2.093, 2.086, 2.080, 2.074, 2.069, 2.064, 2.060, 2.056, 2.052, 2.048, 2.045,
         2.042)  # fmt: skip


Z95 = 1.96
"""Half of a 95 % interval in standard deviations, for many observations; `t_quantile` is for few."""


def sd_of(half_width: float) -> float:
    """Return the standard deviation that belongs to half of a 95 % interval."""
    return half_width / Z95


@dataclass(frozen=True, kw_only=True, slots=True)
class Rate:
    """A rate in items per second with its 95 % interval."""

    sps: float
    low_sps: float
    high_sps: float

    @property
    def half_width_fraction(self) -> float:
        """Half of the interval's width as a fraction of the rate."""
        return (self.high_sps - self.low_sps) / 2 / self.sps

    @property
    def sd_fraction(self) -> float:
        """The standard deviation that belongs to the interval, as a fraction of the rate."""
        return sd_of(self.half_width_fraction)

    @classmethod
    def with_sd(cls, sps: float, sd_fraction: float) -> Rate:
        """Return a rate with the interval that belongs to a standard deviation, a fraction of the rate. Its lower end may be negative."""
        return cls(sps=sps, low_sps=sps * (1 - Z95 * sd_fraction), high_sps=sps * (1 + Z95 * sd_fraction))

    def widened(self, sd_fraction: float) -> Rate:
        """Return the same rate with a further standard deviation, a fraction of the rate, added on both sides of its interval."""
        more = Z95 * sd_fraction * self.sps
        below, above = (math.hypot(side, more) for side in (self.sps - self.low_sps, self.high_sps - self.sps))
        return Rate(sps=self.sps, low_sps=max(self.sps - below, 0.0), high_sps=self.sps + above)

    def scaled(self, factor: float) -> Rate:
        """Return another rate, this one times `factor`, with the same relative interval."""
        return Rate(sps=self.sps * factor, low_sps=self.low_sps * factor, high_sps=self.high_sps * factor)


def t_quantile(degrees: int) -> float:
    """Return the two-sided 95 % quantile of Student's t: a table up to 30 degrees, then Z95 + 2.45/degrees (within 0.001)."""
    if degrees < 1:
        return math.inf
    return _T975[degrees - 1] if degrees <= len(_T975) else Z95 + 2.45 / degrees


def steady_rate(
    duration_s: Sequence[float],
    num_items: Sequence[int],
    num_batches: Sequence[int],
    produced_batches: Sequence[int],
    *,
    run_sd_fraction: float = RUN_SD_FRACTION,
    expected_sd_fraction: float | None = None,
) -> Rate:
    """Return the lasting rate over windows of equal length, by batch means: the smaller of production and consumption.

    Args:
        duration_s: wall time of each window, shape (windows,).
        num_items: items consumed in each window, shape (windows,).
        num_batches: batches consumed in each window, shape (windows,).
        produced_batches: batches finished by the loader in each window, shape (windows,).
        run_sd_fraction: run-to-run standard deviation to add to the interval; 0 gives the windows' own interval.
        expected_sd_fraction: standard deviation that a window is expected to have, as a fraction of its rate; None if nothing says so.

    Raises:
        ValueError: there is no window, or a window has no duration or no batches. Measure longer.
    """
    duration = np.asarray(duration_s, dtype=float)
    batches = np.asarray(num_batches, dtype=float)
    if duration.size == 0 or not (duration > 0).all() or not (batches > 0).all():
        raise ValueError("no complete window was measured")
    items_per_batch = float(np.sum(num_items)) / float(batches.sum())
    produced = np.asarray(produced_batches, dtype=float)
    # decide once for all windows, not per window: the minimum of noisy values would be too low
    produced = min(produced, batches, key=np.sum) * items_per_batch
    mean = float(produced.sum() / duration.sum())
    if mean <= 0:
        raise ValueError("the loader finished no batch during the windows")
    # ratio estimator: the standard error of sum(produced)/sum(duration)
    residual = (produced - mean * duration) / duration.mean() / mean
    half = math.hypot(within_fraction(float((residual**2).sum()), duration.size, expected_sd_fraction), Z95 * run_sd_fraction) * mean
    return Rate(sps=mean, low_sps=max(mean - half, 0.0), high_sps=mean + half)


def widening(deviations: Sequence[float], half_widths: Sequence[float]) -> float:
    """Return by which factor the half of a mean's interval grows because its values differ by more than their own intervals explain (Birge).

    Args:
        deviations: of each value from their mean.
        half_widths: half of each value's 95 % interval, in the same unit.

    Returns:
        1 or more; 1 for one value.
    """
    if len(deviations) < 2:
        return 1.0
    misfit = sum((deviation / sd_of(half)) ** 2 for deviation, half in zip(deviations, half_widths, strict=True))
    return math.sqrt(max(1.0, misfit / (len(deviations) - 1)))


def lasting_windows(
    duration_s: Sequence[float], num_batches: Sequence[int], produced_batches: Sequence[int]
) -> Lasting:
    """Return which windows count for the lasting rate, and whether the rate was still changing when they ended (trend.py).

    Args:
        duration_s, num_batches, produced_batches: as for `steady_rate`.
    """
    return lasting(_batch_rates(duration_s, num_batches, produced_batches))


def lasting_rate(
    duration_s: Sequence[float],
    num_items: Sequence[int],
    num_batches: Sequence[int],
    produced_batches: Sequence[int],
    *,
    run_sd_fraction: float = RUN_SD_FRACTION,
    expected_sd_fraction: float | None = None,
) -> Rate:
    """Return the rate of the windows that count: those after a change that ended, otherwise the last ones (trend.END_WINDOWS).

    If the rate was still changing, its interval extends in the direction of the change: as far as the rate would get by
    another change like that of the second half of the windows.

    Args:
        duration_s, num_items, num_batches, produced_batches, run_sd_fraction, expected_sd_fraction: as for `steady_rate`.

    Raises:
        ValueError: as for `steady_rate`.
    """
    found = lasting_windows(duration_s, num_batches, produced_batches)
    counted = slice(found.first if sum(num_items[found.first :]) else 0, None)  # the step may have trained no items in those windows
    rate = steady_rate(
        duration_s[counted],
        num_items[counted],
        num_batches[counted],
        produced_batches[counted],
        run_sd_fraction=run_sd_fraction,
        expected_sd_fraction=expected_sd_fraction,
    )
    if not found.change_fraction:
        return rate
    further_sps = rate.sps * open_factor(_batch_rates(duration_s, num_batches, produced_batches))
    return Rate(sps=rate.sps, low_sps=min(rate.low_sps, further_sps), high_sps=max(rate.high_sps, further_sps))


def _batch_rates(duration_s: Sequence[float], num_batches: Sequence[int], produced_batches: Sequence[int]) -> list[float]:
    """Return the batches per second of each window: of production or consumption, as in `steady_rate`."""
    batches = min(produced_batches, num_batches, key=sum)
    return [each / seconds if seconds > 0 else 0.0 for each, seconds in zip(batches, duration_s, strict=True)]


def within_fraction(squares: float, num_windows: int, expected_sd_fraction: float | None = None) -> float:
    """Return half of the 95 % interval of a mean over windows, as a fraction of the mean.

    For fewer than FEW_WINDOWS windows, Student's t makes the interval uselessly wide. Then their spread is pooled with the one that is
    expected (a scaled inverse chi-squared prior, Gelman et al., Bayesian Data Analysis, 2013, 3.3), if that is narrower.

    Args:
        squares: sum of the squared deviations of the windows' rates from their mean, as fractions of the mean.
        num_windows: at least 1.
        expected_sd_fraction: the spread that is expected; None is WINDOW_SD_FRACTION.
    """
    own = t_quantile(num_windows - 1) * math.sqrt(squares / (num_windows - 1) / num_windows) if num_windows > 1 else math.inf
    if num_windows >= FEW_WINDOWS:
        return own
    degrees = PRIOR_WINDOWS + num_windows - 1
    prior = WINDOW_SD_FRACTION if expected_sd_fraction is None else expected_sd_fraction
    variance = (PRIOR_WINDOWS * prior**2 + squares) / degrees
    return min(own, t_quantile(degrees) * math.sqrt(variance / num_windows))


def naive_sps(duration_s: Sequence[float], num_items: Sequence[int]) -> float:
    """Return the items consumed per second, as a stopwatch around the training loop would measure."""
    return float(np.sum(num_items) / np.sum(duration_s))


def epoch_factor(steady_sps: float, boundary_s: float, epoch_samples: int | None) -> float:
    """Return the rate over an epoch divided by the steady rate: N / (N + boundary * rate); 1 for an endless epoch.

    An epoch takes boundary + N / rate seconds.
    """
    if not epoch_samples:
        return 1.0
    return epoch_samples / (epoch_samples + boundary_s * steady_sps)


def epochs_rate(
    duration_s: Sequence[float] | None,
    num_items: Sequence[int] | None,
    epoch_samples: int | None,
    run_sd_fraction: float = 0.0,
    steady_sps: float = math.inf,
) -> Rate | None:
    """Return the rate over whole epochs that were timed one by one; None if they were cut short, or are too few.

    Five are enough, or three if boundaries take more than half of their time, because the steady rate then says less than they do.

    Args:
        duration_s: from the first batch of one epoch to that of the next, shape (epochs,).
        num_items: items trained in each epoch, shape (epochs,).
        epoch_samples: items of a whole epoch.
        run_sd_fraction: run-to-run standard deviation to add to the interval.
        steady_sps: rate between two epoch boundaries.
    """
    if not duration_s or not num_items or not epoch_samples:
        return None
    if min(num_items) <= 0 or np.mean(num_items) < 0.99 * epoch_samples:
        return None
    is_mostly_ends = 2 * sum(num_items) < steady_sps * sum(duration_s) < math.inf
    if len(duration_s) < (FEW_EPOCHS if is_mostly_ends else ENOUGH_EPOCHS):
        return None
    return lasting_rate(duration_s, num_items, num_items, num_items, run_sd_fraction=run_sd_fraction)


def epoch_rate(
    steady: Rate,
    *,
    boundary_s: float,
    epoch_samples: int | None,
    duration_s: Sequence[float] | None,
    num_items: Sequence[int] | None,
    run_sd_fraction: float = 0.0,
) -> Rate:
    """Return the rate over an epoch: from timed whole epochs if possible (`epochs_rate`), else from the steady rate and the boundary."""
    whole = epochs_rate(duration_s, num_items, epoch_samples, run_sd_fraction, steady.sps)
    return whole or steady.scaled(epoch_factor(steady.sps, boundary_s, epoch_samples))


_WINDOWS = ("window_duration_s", "window_num_items", "window_num_batches", "window_produced_batches")


def record_lasting(record: Mapping[str, Any]) -> Lasting:
    """Return which windows of a record count for its lasting rate, and whether that rate was still changing."""
    if not record.get("window_duration_s"):
        return Lasting(0, None)
    return lasting_windows(*(record[name] for name in _WINDOWS if name != "window_num_items"))


def record_change(record: Mapping[str, Any], objective: str = "epoch") -> float | None:
    """Return by how much the rate of `record_rate` had changed, as a fraction, if it was still changing when measuring ended.

    If `record_rate` is the rate of timed whole epochs, these decide; otherwise the windows do.

    Args:
        record: a record of `trials.jsonl`.
        objective: "epoch" or "steady".

    Returns:
        0 if the rate had stopped changing; None if too little was measured to tell. If workers end with the epoch, and the rate
        rose beyond one epoch, only timed epochs show what is kept; without any, the rate counts as still changing.
    """
    durations, items = record.get("epoch_duration_s") or (), record.get("epoch_num_items") or ()
    steady = record_steady(dict(record))
    steady_sps = math.inf if steady is None else steady.sps
    if objective != "steady" and epochs_rate(durations, items, record.get("epoch_samples"), 0.0, steady_sps) is not None:
        return lasting_windows(durations, items, items).change_fraction
    found = record_lasting(record)
    if found.direction > 0 and objective != "steady" and _loses_with_epochs(record):
        return change_of(_batch_rates(record["window_duration_s"], record["window_num_batches"], record["window_produced_batches"]))
    return found.change_fraction


def _loses_with_epochs(record: Mapping[str, Any]) -> bool:
    """Whether workers end with an epoch and lose what raised the rate, while windows went on beyond an epoch and no epoch was timed."""
    ends = bool(record.get("num_workers")) and not record.get("persistent_workers")
    epoch_samples = record.get("epoch_samples")
    return ends and record.get("boundary_from") == "estimated" and bool(epoch_samples) and sum(record["window_num_items"]) > (epoch_samples or 0)


def record_steady(record: dict[str, Any]) -> Rate | None:
    """Return the steady rate of one trial record; None if it has no window (a failed trial)."""
    if not record.get("window_duration_s"):
        return None
    return lasting_rate(*(record[name] for name in _WINDOWS), expected_sd_fraction=record.get("expected_sd_fraction"))


def record_rate(record: dict[str, Any], objective: str = "epoch") -> Rate | None:
    """Return the rate that the search maximises, over an epoch or steady; None if nothing was measured.

    Args:
        record: a record of `trials.jsonl`.
        objective: "epoch" or "steady".
    """
    steady = record_steady(record)
    if steady is None or objective == "steady":
        return steady
    epoch = epoch_rate(
        steady,
        boundary_s=record.get("boundary_s") or 0.0,
        epoch_samples=record.get("epoch_samples"),
        duration_s=record.get("epoch_duration_s"),
        num_items=record.get("epoch_num_items"),
        run_sd_fraction=RUN_SD_FRACTION,
    )
    return epoch.widened(BOUNDARY_SD_FRACTION * max(1 - epoch.sps / steady.sps, 0.0))


def rate_so_far(columns: Mapping[str, Any], objective: str, epoch_samples: int | None) -> Rate | None:
    """Return the rate of a running trial, with the interval that its windows give. The pause between two epochs is included once it is measured.

    Args:
        columns: window columns and `boundary_s`.
        objective: "epoch" or "steady".
        epoch_samples: items in an epoch; None if unknown.

    Returns:
        None while the rate rises, or may soon rise because samples come for the second time: it says nothing yet.
    """
    duration_s, num_items, *batches = (columns[name] for name in _WINDOWS)
    rises = (lasting_windows(duration_s, *batches).change_fraction or 0.0) > 0
    if rises or in_first_epoch(duration_s, num_items, epoch_samples):
        return None
    within = lasting_rate(duration_s, num_items, *batches, run_sd_fraction=0.0)
    return within if objective == "steady" else within.scaled(epoch_factor(within.sps, columns["boundary_s"], epoch_samples))


def step_only_sps(record: dict[str, Any]) -> float | None:
    """Return the items per second of the training step alone, on a cached batch; None if it was not measured.

    This is the median over blocks of steps, so that a burst of foreign load in one of them does not lower the ceiling.
    """
    if not record.get("step_only_duration_s"):
        return None
    return float(np.median(np.divide(record["step_only_num_items"], record["step_only_duration_s"])))


def used_cpu_item_s(record: Mapping[Any, Any], steady_sps: float | None) -> float | None:
    """Return the CPU seconds that training process and workers used per item, at a record's steady rate; None if they were not measured."""
    used, num_cpus = record.get("own_cpu_fraction"), record.get("num_cpus")
    return float(used * num_cpus / steady_sps) if steady_sps and used and num_cpus else None


def cpu_item_s(record: Mapping[str, Any]) -> float | None:
    """Return the CPU seconds that loading and training an item cost, as one record shows (see `without_spinning`); None if they were not measured."""
    steady = record_steady(dict(record))
    used_s = used_cpu_item_s(record, None if steady is None else steady.sps)
    step_cpus, step_sps = record.get("step_only_cpus"), step_only_sps(dict(record))
    step_cpu_s = None if step_cpus is None or step_sps is None else step_cpus / step_sps
    return None if used_s is None else without_spinning(used_s, record["num_workers"], record.get("load_cpu_item_s"), step_cpu_s)


def without_spinning(used_s: float, num_workers: int, load_cpu_item_s: float | None, step_cpu_s: float | None) -> float:
    """Return the CPU seconds that an item costs, of those that a trial used per item.

    Without workers, a trial's CPU time includes threads of the step that spin while a batch is loaded. If loading by itself and the
    step by itself were timed, and their sum is lower, that sum is returned.

    Args:
        used_s: CPU seconds of training process and workers per item.
        num_workers: of the trial.
        load_cpu_item_s: CPU seconds of loading an item; None if it was not timed.
        step_cpu_s: CPU seconds of the step alone for an item; None if it was not timed.
    """
    if num_workers or load_cpu_item_s is None or step_cpu_s is None:
        return used_s
    return min(used_s, load_cpu_item_s + step_cpu_s)


def copy_only_sps(record: dict[str, Any]) -> float | None:
    """Return the items per second of copying cached batches to the accelerator alone; None if it was not measured."""
    if not record.get("copy_only_duration_s"):
        return None
    return float(np.median(np.divide(record["copy_only_num_items"], record["copy_only_duration_s"])))


LEAST_HEADROOM_FRACTION = 0.1
"""Share of the accelerator's memory that an answer must leave free: longer samples, or a validation loop, need more than a trial did."""


def gpu_headroom_fraction(record: Mapping[Any, Any]) -> float | None:
    """Return the share of the accelerator's memory that was free beside the allocator's peak (0..1); None on a CPU."""
    free, peak = record.get("gpu_free_bytes"), record.get("gpu_peak_bytes")
    if free is None or peak is None or math.isnan(free) or math.isnan(peak) or free + peak <= 0:
        return None
    return float(free / (free + peak))


def epoch_memory_bytes(record: dict[str, Any]) -> float | None:
    """Return the memory of trainer and workers at the end of the user's epoch, extrapolated from its growth in the windows.

    Forked workers copy a dataset's pages as they touch them, so a short trial shows only a part of the memory of a whole
    epoch. The growth ends when everything is copied; the result assumes that it does not end. If the memory shrinks, the result
    assumes that it stays.

    Returns:
        Bytes; None if memory, its growth or the epoch's length is not known.
    """
    used, growth = record.get("tree_uss_bytes"), record.get("tree_uss_growth_bytes_per_batch")
    epoch_samples, batches = record.get("epoch_samples"), record.get("window_num_batches")
    if used is None or growth is None or not epoch_samples or not batches or not sum(record["window_num_items"]):
        return None
    in_epoch = epoch_samples * sum(batches) / sum(record["window_num_items"])
    return float(used + max(growth, 0.0) * max(in_epoch - sum(batches), 0.0))


def wait_fraction(record: dict[str, Any]) -> float:
    """Return the share of the time in which the training step waited for batches (0..1), in the windows that count.

    The accelerator's own clock decides if there is one, because the host runs ahead of it; otherwise the time inside
    next(loader) counts.
    """
    first = record_lasting(record).first
    taken_s = np.sum(record["window_duration_s"][first:])
    if record.get("window_step_s"):
        return float(max(1 - np.sum(record["window_step_s"][first:]) / taken_s, 0.0))
    return float(np.sum(record["window_wait_s"][first:]) / taken_s)
