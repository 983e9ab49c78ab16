"""The draw of the `gp` sampler: the untried setting that is expected to raise the best rate most, judged by a study's trials.

The same trials give the same draw. A setting that did not fit the machine rules out all settings that keep as many items in
flight.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
from threadpoolctl import ThreadpoolController

from feedrate.analysis.disqualified import NOTHING, Disqualified
from feedrate.analysis.rate_model import RateModel, fit_model
from feedrate.search.space.search_space import NAMES, SearchSpace
from feedrate.search.study.observed import Observed, Seen
from feedrate.search.study.surrogate import Settings, Surrogate
from feedrate.trainables.config import LoaderConfig

LEAST_OBSERVED = 2
"""Least number of measured rates for an expectation."""
LEAST_TO_DRAW = 3
"""Settings are chosen by their expected gain as soon as this many rates were measured, and at random before."""
MAX_ROWS = 2000
"""Largest number of settings that one draw considers. From a larger space it takes this many at random, and the neighbours of the best."""
MAX_OBSERVED = 60
"""Largest number of trials that the model uses, half of them the best and half the latest; its cost is cubic in their number."""


@dataclass(frozen=True, slots=True)
class Expectation:
    """The setting to try next, and what it is expected to gain."""

    config: LoaderConfig
    gain_fraction: float
    """By which fraction the best rate is expected to grow if this setting is measured."""
    surely_sps: float
    """The model's estimate of the best rate so far, less one standard deviation, because the highest measured rate may be luck."""


def most_promising(
    space: SearchSpace,
    observed: Observed,
    tried: AbstractSet[LoaderConfig],
    *,
    seed: int,
    disqualified: Disqualified = NOTHING,
) -> Expectation | None:
    """Return the untried setting with the highest expected gain.

    Args:
        space: the settings that may be tried.
        observed: the rates of the study's trials.
        tried: settings that must not be drawn.
        seed: seed of the random choice of settings to consider, if the space is too large to consider all.
        disqualified: settings that repeat data, so others need not be faster than they are.

    Returns:
        The setting and its expected gain; None if there are too few trials to learn from, or nothing is left to try.
    """
    if len(observed) < LEAST_OBSERVED:
        return None
    # the matrices have at most MAX_OBSERVED rows: a second BLAS thread doubles the processor time and saves no wall time
    with _blas().limit(limits=1, user_api="blas"):
        return _most_promising(space, observed, tried, seed, disqualified)


def predicted_sps(space: SearchSpace, observed: Observed, configs: Sequence[LoaderConfig]) -> list[float]:
    """Return the rates that the model of loading expects, in items per second, shape (configs,); empty while no rate is known."""
    if not len(observed) or not configs:
        return []
    seen = observed.latest_and_best(MAX_OBSERVED)
    model = _model(seen, _settings(space, space.numbers_of([each.config for each in seen])), observed)
    settings = _settings(space, space.numbers_of(configs))
    return [float(each) for each in np.exp(model.log_rate(settings.num_workers, settings.batch_size))]


def _model(seen: Sequence[Seen], settings: Settings, observed: Observed) -> RateModel:
    """Return the model of loading, fitted to the measured rates of these settings."""
    return fit_model(
        settings.num_workers.astype(int).tolist(),
        settings.batch_size.astype(int).tolist(),
        [each.log_sps for each in seen],
        observed.ceilings(),
        observed.cpu_time(),
        observed.num_cpus,
    )


@cache
def _blas() -> ThreadpoolController:
    return ThreadpoolController()  # cached, because it searches all libraries of the process


def _most_promising(
    space: SearchSpace, observed: Observed, tried: AbstractSet[LoaderConfig], seed: int, disqualified: Disqualified
) -> Expectation | None:
    seen = observed.latest_and_best(MAX_OBSERVED)
    configs = [each.config for each in seen]
    log_sps, sd = np.array([each.log_sps for each in seen]), np.array([each.sd for each in seen])
    settings = _settings(space, space.numbers_of(configs))
    surrogate = Surrogate(settings, log_sps, sd, _model(seen, settings, observed))
    rows = _rows(space, configs, log_sps, seed)
    numbers = space.numbers(rows)
    allowed = np.array([disqualified.allows(each.num_workers, each.persistent_workers) for each in configs])
    best, best_sd = surrogate.best_log_sps(allowed)
    gain = surrogate.expected_gain(_settings(space, numbers), best)
    gain[_does_not_fit(space, numbers, observed.too_large)] = -1.0
    for index in np.argsort(-gain, kind="stable"):
        config = space.config_at(int(rows[index]))
        if config not in tried:
            return Expectation(config, max(float(gain[index]), 0.0), math.exp(best - best_sd))
    return None


def _rows(space: SearchSpace, configs: Sequence[LoaderConfig], log_sps: Any, seed: int) -> Any:
    """Return the positions in the space of the settings to consider."""
    size = space.size()
    if size <= MAX_ROWS:
        return np.arange(size)
    rng = np.random.default_rng(seed)
    chosen = rng.choice(size, MAX_ROWS, replace=False)
    best = [configs[index] for index in np.argsort(-log_sps, kind="stable")[:3]]
    near = [space.rows_near(config) for config in best]
    return np.unique(np.concatenate([chosen, *near]))


def _settings(space: SearchSpace, numbers: Any) -> Settings:
    """Turn the numbers of `SearchSpace.numbers` into features, scaled so that a difference of 1 may matter for the rate."""
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


def _does_not_fit(space: SearchSpace, numbers: Any, too_large: Sequence[LoaderConfig]) -> Any:
    """Return which settings keep at least as many items in flight as a setting that did not fit the machine."""
    return _in_flight(numbers) >= min(_in_flight(space.numbers_of(too_large)), default=math.inf)


def _in_flight(numbers: Any) -> Any:
    column = {name: numbers[:, index] for index, name in enumerate(NAMES)}
    batches = np.where(column["num_workers"] == 0, 1.0, column["num_workers"] * np.maximum(column["prefetch_factor"], 1) + 1)
    return batches * np.maximum(column["batch_size"], 1)
