"""Which untried setting is expected to raise the best rate most, from a study's trials: the `gp` sampler's draw.

The same trials give the same draw. Settings that did not fit the machine rule out those that keep as many items in
flight.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from typing import Any

import numpy as np
from optuna.trial import FrozenTrial, TrialState

from feedrate.analysis.estimate import RUN_SD_FRACTION
from feedrate.search.model import fit_model
from feedrate.search.pruner import HALF_WIDTH, LOW
from feedrate.search.space import NAMES, SearchSpace
from feedrate.search.surrogate import Settings, Surrogate
from feedrate.trainables.config import LoaderConfig

STEP_ONLY = "step_only_sps"
"""User attribute: items per second of the training step alone at this batch size."""
CPU_ITEM = "cpu_item_s"
"""User attribute: CPU seconds of trainer and workers for an item."""
NUM_CPUS = "num_cpus"
"""User attribute: CPUs the trial could use."""
LEAST_OBSERVED = 3
MAX_ROWS = 2000
"""Settings of the space that are looked at in one draw; of a larger space those beside the best ones, and others at random."""
MAX_OBSERVED = 60
"""Trials that are looked at, half of them the best and half the latest: solving for them is cubic in their number."""
UNSURE_SD = 0.05
"""Of a trial that was stopped and says nothing about its own interval."""


@dataclass(frozen=True, slots=True)
class Expectation:
    """What to try next."""

    config: LoaderConfig
    gain_fraction: float
    """By how much it is expected to raise the best rate."""
    surely_sps: float
    """The best rate so far as the model sees it, less one standard deviation: the highest reading may be lucky."""


def most_promising(
    space: SearchSpace,
    trials: Sequence[FrozenTrial],
    tried: AbstractSet[LoaderConfig],
    *,
    seed: int,
    max_num_workers: int | None = None,
) -> Expectation | None:
    """The untried setting with the highest expected gain.

    Args:
        space: what may be tried.
        trials: of the study; those with a rate count.
        tried: settings that must not be drawn.
        seed: of the choice where the space is too large to look at all of it.
        max_num_workers: a rate with more counts repeated data and is no rate to beat; None where none does.

    Returns:
        None while there are too few trials to learn from, or where nothing is left.
    """
    seen = [each for each in map(_seen, trials) if each is not None]
    if len(seen) < LEAST_OBSERVED:
        return None
    if len(seen) > MAX_OBSERVED:
        late, early = seen[-MAX_OBSERVED // 2 :], seen[: -MAX_OBSERVED // 2]
        seen = sorted(early, key=lambda each: -each[1])[: MAX_OBSERVED // 2] + late
    configs = [LoaderConfig.from_dict(each[0]) for each in seen]
    log_sps, sd = (np.array([each[index] for each in seen], dtype=float) for index in (1, 2))
    observed = _settings(space, space.numbers_of(configs))
    attrs = [trial.user_attrs for trial in trials]
    cpu_item_s = [trial[CPU_ITEM] for trial in attrs if trial.get(CPU_ITEM)]
    num_cpus = [trial[NUM_CPUS] for trial in attrs if trial.get(NUM_CPUS)]
    model = fit_model(
        observed.num_workers.astype(int).tolist(),
        observed.batch_size.astype(int).tolist(),
        log_sps.tolist(),
        _ceilings(attrs, seen),
        float(np.median(cpu_item_s)) if cpu_item_s else None,
        max(num_cpus, default=None),
    )
    surrogate = Surrogate(observed, log_sps, sd, model)
    rows = _rows(space, configs, log_sps, seed)
    numbers = space.numbers(rows)
    best, best_sd = surrogate.best_log_sps(math.inf if max_num_workers is None else max_num_workers)
    gain = surrogate.expected_gain(_settings(space, numbers), best)
    gain[_does_not_fit(space, numbers, trials)] = -1.0
    for index in np.argsort(-gain, kind="stable"):
        config = space.config_at(int(rows[index]))
        if config not in tried:
            return Expectation(config, max(float(gain[index]), 0.0), math.exp(best - best_sd))
    return None


def _ceilings(
    attrs: Sequence[Mapping[str, Any]], seen: Sequence[tuple[dict[str, Any], float, float]]
) -> dict[int, float]:
    """Batch size (0 for none) -> items per second of the training step alone; infinite where something trained faster."""
    ceilings: dict[int, float] = {}
    for trial in attrs:
        if trial.get(STEP_ONLY):  # load from elsewhere lowers it, nothing raises it
            size = int(trial["config"]["batch_size"] or 0)
            ceilings[size] = max(trial[STEP_ONLY], ceilings.get(size, 0.0))
    for setting, log_rate, log_sd in seen:
        size = int(setting["batch_size"] or 0)
        if log_rate - 2 * log_sd > math.log(ceilings.get(size, math.inf)):
            ceilings[size] = math.inf  # it was measured wrong
    return ceilings


def _seen(trial: FrozenTrial) -> tuple[dict[str, Any], float, float] | None:
    """Setting, log(rate) and its standard deviation; None where the trial has no rate."""
    attrs = trial.user_attrs
    if trial.state == TrialState.COMPLETE and trial.value is not None:
        sps, low = trial.value, attrs.get(LOW)
        sd = UNSURE_SD if low is None else (1 - low / sps) / 1.96
    elif trial.state == TrialState.PRUNED and trial.last_step is not None and not trial.constraints:
        sps, half = trial.intermediate_values[trial.last_step], attrs.get(HALF_WIDTH)
        sd = UNSURE_SD if half is None else math.hypot(half / 1.96, RUN_SD_FRACTION)
    else:
        return None
    if "config" not in attrs or not sps > 0:
        return None
    return attrs["config"], math.log(sps), min(max(sd, 0.005), 1.0)


def _rows(space: SearchSpace, configs: Sequence[LoaderConfig], log_sps: Any, seed: int) -> Any:
    """Positions of the settings to look at."""
    size = space.size()
    if size <= MAX_ROWS:
        return np.arange(size)
    rng = np.random.default_rng(seed)
    chosen = rng.choice(size, MAX_ROWS, replace=False)
    best = [configs[index] for index in np.argsort(-log_sps, kind="stable")[:3]]
    near = [space.rows_near(config) for config in best]
    return np.unique(np.concatenate([chosen, *near]))


def _settings(space: SearchSpace, numbers: Any) -> Settings:
    """Numbers of `SearchSpace.numbers` as features: a difference of 1 is one that may matter."""
    column = {name: numbers[:, index] for index, name in enumerate(NAMES)}
    workers, prefetch = column["num_workers"], column["prefetch_factor"]
    main = [0.7 * np.log2(1 + workers), 1.0 * (workers == 0), 0.5 * np.log2(np.maximum(column["batch_size"], 1))]
    rest = [0.35 * np.where(workers == 0, 1.0, np.log2(np.maximum(prefetch, 1)))]
    choices = [name for name in NAMES if name not in ("num_workers", "batch_size", "prefetch_factor")]
    for name in choices:
        rest += [0.5 * (column[name] == value) for value in range(1, len(space.values(name)))]
    return Settings(
        num_workers=workers, batch_size=column["batch_size"], main=np.stack(main, axis=1), rest=np.stack(rest, axis=1)
    )


def _does_not_fit(space: SearchSpace, numbers: Any, trials: Sequence[FrozenTrial]) -> Any:
    """Which settings keep as many items in flight as one that did not fit the machine."""
    too_large = [
        LoaderConfig.from_dict(trial.user_attrs["config"])
        for trial in trials
        if any(violation > 0 for violation in trial.constraints.values()) and "config" in trial.user_attrs
    ]
    return _in_flight(numbers) >= min(_in_flight(space.numbers_of(too_large)), default=math.inf)


def _in_flight(numbers: Any) -> Any:
    column = {name: numbers[:, index] for index, name in enumerate(NAMES)}
    batches = np.where(column["num_workers"] == 0, 1.0, column["num_workers"] * np.maximum(column["prefetch_factor"], 1) + 1)
    return batches * np.maximum(column["batch_size"], 1)
