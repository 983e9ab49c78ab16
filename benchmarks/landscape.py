"""Landscapes: what every setting of a grid gives, measured or made up, and measurements drawn from one without a machine.

A measured one is the Parquet file of record_landscape.py. Three measurements know a setting to about 5 %, so that the highest of
many means is a lucky one: the truth of a setting is what it and its neighbours say together (`smoothed`). A made-up one follows the model of loading with quirks that
the model does not have; it is for looking at the search, no evidence.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from feedrate.analysis.estimate import RUN_SD_FRACTION, WINDOW_SD_FRACTION, Z95, t_quantile
from feedrate.trainables.config import LoaderConfig
from feedrate.trainables.measuring.training import LONG_AGREE, LONG_WINDOW_S, MIN_LONG_WINDOWS, MIN_WINDOWS

DIMENSIONS = ("batch_size", "num_workers", "prefetch_factor", "persistent_workers")
NEAREST = 5
WINDOW_SD = 0.03
BANDWIDTHS_S = (15.0, 30.0, 60.0, 120.0, 240.0, 480.0)
"""Over which a machine's drift may be smooth; the one that foretells left-out trials best is taken."""
SMOOTHED_FRACTION = 0.5
"""Settings below this share of the best mean keep their own: cliffs are no neighbours."""
LEAST_SMOOTHED = 10
CPU_SD = 0.1
"""Of the logarithm of the CPU time of an item, between trials of one setting; 0.05 to 0.16 in the recordings."""
STEP_CPUS = dict.fromkeys(("table", "objects", "images", "images-noisy"), 1.95)
"""CPUs that the step alone keeps busy, for recordings of before it was timed: the median of 25 trials of these workloads, 2026-11-29."""


@dataclass(frozen=True, slots=True)
class Point:
    """One setting of the grid."""

    config: LoaderConfig
    sps: float
    """The truth: from its measurements and its neighbours', the machine's drift taken out."""
    spent_s: float
    """Wall time of one trial of it."""
    window_sd: float = WINDOW_SD
    """Of log(rate) between the windows of one trial."""
    mean_sps: float = 0.0
    """Of its measurements alone; 0 where it was made up."""
    cpu_item_s: float | None = None
    """Of training process and workers; None where it is that of the landscape."""
    num_windows: int = 1
    """Of one trial of it, as it was recorded."""
    window_s: float = 0.0
    """Wall time of each of them."""

    def cheaper(self, enough_fraction: float) -> tuple[int, float]:
        """Number of windows and wall time of a trial that ends when its windows are expected to know the rate this well."""
        def enough(num: int) -> bool:
            half = t_quantile(num - 1) * self.window_sd / math.sqrt(num)
            return half <= enough_fraction if num >= MIN_WINDOWS else self.window_s >= LONG_WINDOW_S and LONG_AGREE * half <= enough_fraction

        num = next((each for each in range(MIN_LONG_WINDOWS, self.num_windows) if enough(each)), self.num_windows)
        return num, self.spent_s - self.window_s * (self.num_windows - num)


@dataclass(frozen=True, slots=True)
class Drift:
    """How the machine's speed changed while a landscape was recorded, whatever was measured: log(speed) against seconds."""

    times_s: Any = (0.0, 1.0)
    logs: Any = (0.0, 0.0)

    @property
    def length_s(self) -> float:
        """Of the recording."""
        return float(self.times_s[-1])

    def at(self, now_s: float) -> float:
        """log(speed) then; the recording is repeated."""
        return float(np.interp(now_s % self.length_s, self.times_s, self.logs))


@dataclass(frozen=True, slots=True)
class Landscape:
    """A grid with the noise of its measurements."""

    name: str
    points: list[Point]
    residuals: list[Any]
    """log(measured / truth) of the measurements of each point, without drift: what fresh starts of one setting differ by."""
    ceilings: dict[int, float]
    """Batch size -> items per second of the training step alone."""
    cpu_item_s: float | None
    num_cpus: int
    baseline: LoaderConfig
    step_cpus: float | None = None
    """CPUs that the training step alone keeps busy; None if unknown."""
    load_cpu_item_s: float | None = None
    """CPU seconds of the thread that loads, for an item, without workers; None if unknown."""
    drift: Drift = field(default_factory=Drift)
    _places: Any = field(init=False, repr=False, compare=False)
    _noise: list[Any] = field(init=False, repr=False, compare=False)
    """Of each point: the residuals of itself and of those nearest to it, as three of its own say little."""

    def __post_init__(self) -> None:
        places = np.array([_place(point.config) for point in self.points])
        near = [np.abs(places - place).sum(axis=1).argsort(kind="stable")[:NEAREST] for place in places]
        object.__setattr__(self, "_places", places)
        object.__setattr__(self, "_noise", [np.concatenate([self.residuals[index] for index in indices]) for indices in near])

    @property
    def best(self) -> Point:
        """The fastest setting."""
        return max(self.points, key=lambda point: point.sps)

    @property
    def grid_s(self) -> float:
        """Time to measure the whole grid three times, which is what it takes to be as sure as a confirmed answer."""
        return 3 * sum(point.spent_s for point in self.points)

    def at(self, config: LoaderConfig) -> Point:
        """The nearest measured point."""
        return self.points[self._index(config)]

    def measure(self, config: LoaderConfig, rng: np.random.Generator, now_s: float, enough_fraction: float = 0.0) -> float:
        """Items per second of one fresh start at that time of the recording, in a trial that ends as `Point.cheaper` says."""
        index = self._index(config)
        point = self.points[index]
        num = point.cheaper(enough_fraction)[0]
        fewer = rng.normal(0, point.window_sd * math.sqrt(max(1 / num - 1 / point.num_windows, 0.0)))
        return point.sps * math.exp(float(rng.choice(self._noise[index])) + self.drift.at(now_s) + fewer)

    def _index(self, config: LoaderConfig) -> int:
        return int(np.abs(self._places - _place(config)).sum(axis=1).argmin())

    def values(self, name: str) -> list[Any]:
        """The grid's values of one dimension."""
        found = {getattr(point.config, name) for point in self.points if point.config.num_workers or name == "batch_size"}
        found |= {point.config.num_workers for point in self.points} if name == "num_workers" else set()
        return sorted(found)


def _place(config: LoaderConfig) -> Any:
    prefetch = config.prefetch_factor or 2
    return np.array([
        3.0 * math.log2(1 + config.num_workers), 5.0 * math.log2(config.batch_size or 1), math.log2(prefetch),
        0.5 * config.persistent_workers,
    ])  # fmt: skip


def read(path: str | Path) -> Landscape:
    """A landscape that record_landscape.py measured."""
    rows = pd.read_parquet(path).sort_values("finished_unix_s", ignore_index=True)
    groups = rows.groupby(list(DIMENSIONS), dropna=False)
    # breaks of the recording apart
    drift = _drift(np.log(rows["sps"].to_numpy()), groups.ngroup().to_numpy(), rows["spent_s"].cumsum().to_numpy())
    rows["log"] = np.log(rows["sps"]) - drift.logs
    half = (rows["high_sps"] - rows["low_sps"]) / 2 / rows["sps"]
    rows["window_sd"] = [_window_sd(*each) for each in zip(half, rows["num_windows"], strict=True)]
    points, residuals = [], []
    groups = rows.groupby(list(DIMENSIONS), dropna=False)
    for key, group in groups:
        fields = {name: None if pd.isna(value) else value for name, value in zip(DIMENSIONS, key, strict=True)}
        config = LoaderConfig(**{name: int(value) if isinstance(value, float) else value for name, value in fields.items()})
        logs = group["log"]
        mean_sps = float(np.exp(logs.mean()))
        cpu_s = float(group["cpu_item_s"].median())
        num_windows = round(group["num_windows"].mean())
        points.append(Point(
            config, mean_sps, float(group["spent_s"].mean()), float(group["window_sd"].median()), mean_sps, cpu_s,
            num_windows=num_windows, window_s=float(group["timed_s"].mean()) / num_windows,
        ))  # fmt: skip
        residuals.append(((logs - logs.mean()) * math.sqrt(len(logs) / max(len(logs) - 1, 1))).to_numpy())
    points = [replace(point, sps=sps) for point, sps in zip(points, smoothed(points, residuals), strict=True)]
    ceilings = rows.dropna(subset=["step_only_sps"]).groupby("batch_size")["step_only_sps"].median()
    size = int(rows["batch_size"].iloc[rows["batch_size"].sub(64).abs().argmin()])
    return Landscape(
        name=Path(path).stem,
        points=points,
        residuals=residuals,
        ceilings={int(size): float(sps) for size, sps in ceilings.items()},  # type: ignore[call-overload]
        cpu_item_s=float(rows["cpu_item_s"].median()),
        num_cpus=int(rows["num_cpus"].iloc[0]),
        baseline=LoaderConfig(num_workers=0, batch_size=size),
        step_cpus=_median(rows, "step_only_cpus") or STEP_CPUS.get(Path(path).stem),
        load_cpu_item_s=_median(rows[rows["num_workers"] == 0], "load_cpu_item_s"),
        drift=drift,
    )


def _median(rows: pd.DataFrame, name: str) -> float | None:
    """The median of a column that older recordings lack; None for them."""
    return float(rows[name].median()) if name in rows and rows[name].notna().any() else None


def _window_sd(half: float, num_windows: int) -> float:
    """Standard deviation of log(rate) between the windows of a trial, from half of its interval, as a fraction."""
    if num_windows < 2:
        return WINDOW_SD_FRACTION
    within = math.sqrt(max(half**2 - (Z95 * RUN_SD_FRACTION) ** 2, 1e-6))
    return within * math.sqrt(num_windows) / t_quantile(num_windows - 1)


def _drift(logs: Any, settings: Any, times_s: Any) -> Drift:
    """What trials next to each other have in common, whatever their settings: log(rate) = setting + drift(time) + noise.

    The two are fitted in turn; drift is the mean of the other trials nearby, weighted by a Gaussian of their distance in time, so that
    no trial explains itself.
    """
    counts = np.bincount(settings)
    found: list[tuple[float, Any]] = [(float(_left(logs, settings, counts, np.zeros_like(logs)).var()), np.zeros_like(logs))]
    for width in BANDWIDTHS_S:
        weights = np.exp(-0.5 * ((times_s[:, None] - times_s[None, :]) / width) ** 2)
        np.fill_diagonal(weights, 0.0)
        weights /= np.maximum(weights.sum(axis=1, keepdims=True), 1e-9)
        drift = np.zeros_like(logs)
        for _ in range(50):
            means = np.bincount(settings, logs - drift) / counts
            drift = weights @ (logs - means[settings])
            drift -= drift.mean()
        found.append((float(_left(logs, settings, counts, drift).var()), drift))
    _, drift = min(found, key=lambda each: each[0])
    return Drift(times_s, drift)


def _left(logs: Any, settings: Any, counts: Any, drift: Any) -> Any:
    """What setting and drift do not explain."""
    return logs - drift - (np.bincount(settings, logs - drift) / counts)[settings]


def smoothed(points: Sequence[Point], residuals: Sequence[Any]) -> list[float]:
    """Posterior mean of each setting's rate: log(mean) = smooth(workers, batch size, prefetching) + own + noise.

    A Gaussian process (Matern 5/2 over logarithms of the numbers, plus a part that every setting has for itself), its scales and
    amplitudes by the marginal likelihood, the noise from repeats (Rasmussen and Williams, Gaussian Processes for Machine Learning, 2006, 5.4.1).
    A repeat that was left out is foretold better by it than by the mean of the others (docs/benchmarks.md).
    """
    rates = np.array([point.sps for point in points])
    kept = np.flatnonzero(rates > SMOOTHED_FRACTION * rates.max())
    if len(kept) < LEAST_SMOOTHED:
        return [float(each) for each in rates]
    counts = np.array([len(residuals[index]) for index in kept])
    # residuals were scaled up to the noise of one measurement
    noise = sum(float((residuals[index] ** 2).sum()) * (count - 1) / count for index, count in zip(kept, counts, strict=True))
    noise /= max(int((counts - 1).sum()), 1)
    logs = np.log(rates[kept])
    configs = [points[index].config for index in kept]
    numbers = np.array([
        [math.log2(1 + config.num_workers), math.log2(config.batch_size or 1), math.log2(config.prefetch_factor or 1), 3.0 * (config.num_workers == 0)]
        for config in configs
    ])  # fmt: skip
    best, truth = -math.inf, logs
    for *scales, amplitude, own in itertools.product((1, 2, 4), (1, 2, 4), (1, 2, 4, 8), (0.05, 0.1, 0.2, 0.4), (0.005, 0.02, 0.04, 0.08)):
        signal = amplitude**2 * _matern(numbers / np.array([*scales, 1.0])) + own**2 * np.eye(len(kept))
        cholesky = np.linalg.cholesky(signal + np.diag(noise / counts))
        solved = np.linalg.solve(cholesky, logs - logs.mean())
        evidence = float(-(solved @ solved) / 2 - np.log(np.diag(cholesky)).sum())
        if evidence > best:
            best, truth = evidence, logs.mean() + signal @ np.linalg.solve(cholesky.T, solved)
    rates[kept] = np.exp(truth)
    return [float(each) for each in rates]


def _matern(places: Any) -> Any:
    distance = math.sqrt(5) * np.sqrt(((places[:, None] - places[None, :]) ** 2).sum(axis=2))
    return (1 + distance + distance**2 / 3) * np.exp(-distance)


def made_up(
    name: str,
    *,
    item_s: float,
    step_item_s: float,
    step_s: float,
    cpu_item_s: float,
    num_cpus: int,
    noise: float = 0.015,
    crowding: float = 0.01,
    workers: Iterable[int] = (0, 1, 2, 3, 4, 6, 8, 12, 16, 24, 32),
    batch_sizes: Iterable[int] = (32, 64, 128),
    prefetch: Iterable[int] = (1, 2, 4),
) -> Landscape:
    """A world where workers side by side load an item in `item_s`, and a step takes step_s + step_item_s * batch_size.

    Beyond the CPUs every further worker costs `crowding`, and little prefetching costs a few percent. Trials take what
    trainables/measuring/training.py would (`_trial`).
    """
    points, ceilings = [], {}
    for size in batch_sizes:
        step = step_item_s + step_s / size
        ceilings[size] = 1 / step
        for number in workers:
            for ahead in prefetch if number else (None,):
                if number == 0:
                    sps = 1 / (item_s + step)
                else:
                    limits = (number / (item_s * 1.04), 0.9 * num_cpus / cpu_item_s, 1 / step)
                    sps = sum(limit**-5 for limit in limits) ** (-1 / 5)
                    sps *= 1 - 0.04 / (ahead or 1) / math.sqrt(number)
                    sps *= 1 - min(crowding * max(number - num_cpus, 0), 0.5) * (cpu_item_s / item_s > 0.2)
                config = LoaderConfig(
                    num_workers=number, batch_size=size, prefetch_factor=ahead, persistent_workers=number > 0
                )
                spent_s, num_windows, window_s = _trial(number, size, sps, item_s)
                points.append(Point(config, sps, spent_s, WINDOW_SD, num_windows=num_windows, window_s=window_s))
    residuals = np.random.default_rng(0).normal(0, noise, 400)
    baseline = LoaderConfig(num_workers=0, batch_size=64)
    return Landscape(name, points, [residuals] * len(points), ceilings, cpu_item_s, num_cpus, baseline)


def _trial(number: int, size: int, sps: float, item_s: float) -> tuple[float, int, float]:
    """Wall time of a trial, how many windows it has time for, and the wall time of each, as trainables/measuring/training.py goes about it."""
    first_s, period_s = max(size * item_s, size / sps), max(number, 1) * size / sps
    settle_s = min(3 * period_s + 0.35, 5.0) if number else 0.35
    window_s = min(max(0.35, 4 * period_s) if 4 * period_s < 1 else max(1.0, period_s), max(20 / 6, size / sps))
    left_s = 15.0 - first_s - settle_s  # a quarter of 20 s is for the ends of epochs
    num_windows = max(min(int(left_s / window_s), 5), 1)
    return 3.0 + 0.15 * number + first_s + settle_s + num_windows * window_s, num_windows, window_s


MADE_UP = [
    made_up("waiting", item_s=0.04, step_item_s=0.001, step_s=0.004, cpu_item_s=0.003, num_cpus=16),
    made_up("cpu-bound", item_s=0.008, step_item_s=0.0003, step_s=0.006, cpu_item_s=0.008, num_cpus=8),
    made_up("two-cores", item_s=0.006, step_item_s=0.001, step_s=0.002, cpu_item_s=0.0075, num_cpus=2, crowding=0.02),
    made_up("compute-bound", item_s=0.0005, step_item_s=0.01, step_s=0.05, cpu_item_s=0.0105, num_cpus=8),
    made_up("cheap", item_s=0.00002, step_item_s=0.0001, step_s=0.001, cpu_item_s=0.0002, num_cpus=4, crowding=0.03),
    made_up("slow-samples", item_s=0.05, step_item_s=0.0002, step_s=0.004, cpu_item_s=0.004, num_cpus=2, noise=0.05),
    made_up("noisy", item_s=0.02, step_item_s=0.0008, step_s=0.004, cpu_item_s=0.004, num_cpus=8, noise=0.05),
]
"""Worlds for looking at the search."""


def columns_of(landscape: Landscape, config: LoaderConfig, sps: float, rng: np.random.Generator, *, step_only: bool, num_windows: int) -> dict[str, Any]:
    """What a trial of that run-level rate reports after its last window."""
    size = config.batch_size or 64
    num_items = [10 * size] * num_windows
    # windows differ as they did; the rate of all together is the one that was drawn
    spread = np.exp(rng.normal(0, landscape.at(config).window_sd, num_windows))
    durations = [float(each) for each in 10 * size / sps * spread / spread.mean()]
    columns: dict[str, Any] = {
        "window_duration_s": durations,
        "window_num_batches": [10] * num_windows,
        "window_num_items": num_items,
        "window_produced_batches": [10] * num_windows,
        "window_wait_s": [0.0] * num_windows,
        "settled": True,
        "boundary_s": 0.0,
        "num_cpus": landscape.num_cpus,
        "tree_pss_bytes": int(3e8 + 1e8 * config.num_workers + 2e5 * size * config.num_workers * (config.prefetch_factor or 0)),
    }
    cpu_item_s = landscape.at(config).cpu_item_s or landscape.cpu_item_s
    if cpu_item_s is not None:
        columns["own_cpu_fraction"] = min(cpu_item_s * math.exp(rng.normal(0, CPU_SD)) * sps / landscape.num_cpus, 1.0)
    if step_only and size in landscape.ceilings:
        ceiling = landscape.ceilings[size] * math.exp(rng.normal(0, 0.005))
        columns |= {"step_only_num_items": [100 * size] * 3, "step_only_duration_s": [100 * size / ceiling] * 3}
        columns |= {"step_only_cpus": landscape.step_cpus, "load_cpu_item_s": landscape.load_cpu_item_s}
    return columns


def cut(columns: dict[str, Any], num_windows: int) -> dict[str, Any]:
    """The same after fewer windows."""
    return {name: value[:num_windows] if name.startswith("window_") else value for name, value in columns.items()}
