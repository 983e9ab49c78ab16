"""`Observed`: the rates of a study's finished trials. Each trial is read once, because a finished trial never changes."""

from __future__ import annotations

import heapq
import math
import statistics
from bisect import insort
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from optuna.trial import FrozenTrial, TrialState

from feedrate.analysis.ceilings import Ceilings
from feedrate.analysis.cpu_time import CpuSeen, CpuTime
from feedrate.analysis.estimate import RUN_SD_FRACTION, Rate, sd_of
from feedrate.search.study.compat import constraints
from feedrate.search.study.pruner import HALF_WIDTH, LOW
from feedrate.trainables.config import LoaderConfig

STEP_ONLY = "step_only_sps"
"""User attribute: items per second of the training step alone at this batch size; absent if something disturbed it."""
CPU_ITEM = "cpu_item_s"
"""User attribute: CPU seconds of training process and workers per item."""
STEP_CPUS = "step_only_cpus"
"""User attribute: CPUs that the training step alone keeps busy."""
CHANGING = "still_changing"
"""User attribute: the rate was still changing when the trial ended, so it is not known precisely."""
NUM_CPUS = "num_cpus"
"""User attribute: number of CPUs that the trial was allowed to use."""
UNSURE_SD = 0.05
"""Standard deviation, as a fraction, of a rate without a known interval."""
MOST_SD = 0.15
"""Largest standard deviation of log(rate), however wide an interval is: measurements with few windows differed by this much from one
fresh start to the next (analysis/estimate.py)."""


@dataclass(frozen=True, slots=True, order=True)
class Seen:
    """The rate of one trial."""

    number: int
    config: LoaderConfig
    log_sps: float
    sd: float
    """Standard deviation of log_sps."""


class Observed:
    """The rates of a study's finished trials, with what else the model of loading needs. It grows with the study."""

    def __init__(self) -> None:
        self._num_known = 0
        self._open: list[int] = []
        self._seen: list[Seen] = []
        self._ceilings = Ceilings()
        self._cpu_seen: list[tuple[int, CpuSeen]] = []
        self._step_cpus: list[float] = []
        self.num_cpus: int | None = None
        """CPUs that a trial could use; None if no trial reports it."""
        self.too_large: list[LoaderConfig] = []
        """Settings that did not fit the machine."""

    def __len__(self) -> int:
        return len(self._seen)

    @property
    def num_finished(self) -> int:
        """Number of finished trials that were read, including those without a rate."""
        return self._num_known - len(self._open)

    def learn(self, trials: Sequence[FrozenTrial]) -> None:
        """Read the trials that finished since the last call; `trials` are all trials of the study, in order."""
        numbers = [*self._open, *range(self._num_known, len(trials))]
        self._num_known, self._open = len(trials), []
        for number in numbers:
            trial = trials[number]
            if trial.state.is_finished():
                self._take(number, trial)
            else:
                self._open.append(number)

    def latest_and_best(self, most: int) -> list[Seen]:
        """Return at most `most` rates: half of them are the latest ones, the other half the highest among the earlier ones."""
        if len(self._seen) <= most:
            return list(self._seen)
        late, early = self._seen[-most // 2 :], self._seen[: -most // 2]
        return heapq.nlargest(most // 2, early, key=lambda each: each.log_sps) + late

    def cpu_time(self) -> CpuTime | None:
        """Return the CPU time that the trials show; None if no trial reports it."""
        ceilings = self.ceilings()
        is_known = self._step_cpus and all(map(math.isfinite, ceilings.values()))
        return CpuTime.fit([seen for _, seen in self._cpu_seen], ceilings, statistics.median(self._step_cpus) if is_known else 0.0)

    def ceilings(self) -> dict[int, float]:
        """Return batch size (0 for none) -> items per second of the training step alone; infinite if a setting trained faster."""
        return {size or 0: self._ceilings.at(size) or math.inf for size in self._ceilings.timed}

    def _take(self, number: int, trial: FrozenTrial) -> None:
        attrs = trial.user_attrs
        if attrs.get(NUM_CPUS):
            self.num_cpus = max(attrs[NUM_CPUS], self.num_cpus or 0)
        if "config" not in attrs:
            return
        config = LoaderConfig.from_dict(attrs["config"])
        if attrs.get(CPU_ITEM):
            seen = CpuSeen(num_workers=config.num_workers, batch_size=config.batch_size or 0, cpu_item_s=attrs[CPU_ITEM])
            insort(self._cpu_seen, (number, seen))  # a resumed search learns them in this order, and must draw alike
        if attrs.get(STEP_CPUS):
            self._step_cpus.append(attrs[STEP_CPUS])
        if any(violation > 0 for violation in constraints(trial).values()):
            self.too_large.append(config)
        rate = _rate(trial, attrs)
        self._ceilings.learn(config.batch_size, attrs.get(STEP_ONLY), rate, disturbed=False)
        if rate is not None:
            sd = MOST_SD if attrs.get(CHANGING) else min(max(rate.sd_fraction, 0.005), MOST_SD)
            insort(self._seen, Seen(number, config, math.log(rate.sps), sd))


def _rate(trial: FrozenTrial, attrs: Mapping[str, Any]) -> Rate | None:
    """Return the rate of a trial; None if it has none."""
    if trial.state == TrialState.COMPLETE and trial.value is not None:
        sps, low = trial.value, attrs.get(LOW)
        sd = UNSURE_SD if low is None else sd_of(1 - low / sps)
    elif trial.state == TrialState.PRUNED and trial.last_step is not None and not constraints(trial):
        sps, half = trial.intermediate_values[trial.last_step], attrs.get(HALF_WIDTH)
        sd = UNSURE_SD if half is None else math.hypot(sd_of(half), RUN_SD_FRACTION)
    else:
        return None
    return Rate.with_sd(sps, sd) if sps > 0 else None
