"""What people use instead, driven on a landscape: stock OptunaSearch, Optuna alone, a grid, rules of thumb and the like."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from landscape import Landscape

from feedrate.search.options import ENOUGH_FRACTION
from feedrate.trainables.config import LoaderConfig


@dataclass(frozen=True, slots=True)
class Answer:
    """What a method says at some time."""

    elapsed_s: float
    config: LoaderConfig
    claimed: float
    """Gain over `against`."""
    against: LoaderConfig
    """The baseline: at the answer's batch size, or (methods that know of one only) the one they began with."""


Method = Callable[[Landscape, int], Iterator[Answer]]


class Tally:
    """Rates as a user of a plain optimiser keeps them: one reading a setting, the highest is the answer."""

    def __init__(self, landscape: Landscape, seed: int) -> None:
        self.landscape, self.rng, self.elapsed_s = landscape, np.random.default_rng([seed, 2]), 0.0
        self.began_s, self.sps = self.rng.uniform(0, landscape.drift.length_s), dict[LoaderConfig, float]()
        self.yours = self.measure(landscape.baseline)

    def measure(self, config: LoaderConfig) -> float:
        """One trial."""
        self.elapsed_s += self.landscape.at(config).cheaper(ENOUGH_FRACTION)[1]
        self.sps[config] = self.landscape.measure(config, self.rng, self.began_s + self.elapsed_s, ENOUGH_FRACTION)
        return self.sps[config]

    def answer(self) -> Answer:
        """The highest reading; its gain over the reading of the baseline."""
        best = max(self.sps, key=lambda config: self.sps[config])
        return Answer(self.elapsed_s, best, self.sps[best] / self.yours, self.landscape.baseline)


def _config(landscape: Landscape, params: dict[str, Any]) -> LoaderConfig:
    number = params["num_workers"]
    return LoaderConfig(
        num_workers=number,
        batch_size=params["batch_size"],
        prefetch_factor=params["prefetch_factor"] if number else None,
        persistent_workers=number > 0,
    )


def stock(landscape: Landscape, seed: int) -> Iterator[Answer]:
    """Ray's OptunaSearch with its defaults, driven as Tune drives it."""
    from ray import tune
    from ray.tune.search.optuna import OptunaSearch

    names = ("num_workers", "batch_size", "prefetch_factor")
    space = {name: tune.choice(landscape.values(name)) for name in names}
    search = OptunaSearch(space=None, metric="sps", mode="max", seed=seed)
    search.set_search_properties("sps", "max", space)
    tally = Tally(landscape, seed)
    for number in range(400):
        params = search.suggest(str(number))
        search.on_trial_complete(str(number), {"sps": tally.measure(_config(landscape, params))})
        yield tally.answer()


def plain_tpe(landscape: Landscape, seed: int) -> Iterator[Answer]:
    """Optuna's TPESampler, multivariate."""
    import optuna

    study = optuna.create_study(direction="maximize", sampler=optuna.samplers.TPESampler(seed=seed, multivariate=True))
    tally = Tally(landscape, seed)
    for _ in range(400):
        trial = study.ask()
        params = {name: trial.suggest_categorical(name, landscape.values(name)) for name in ("num_workers", "batch_size", "prefetch_factor")}
        study.tell(trial, tally.measure(_config(landscape, params)))
        yield tally.answer()


def at_random(landscape: Landscape, seed: int) -> Iterator[Answer]:
    """Settings of the grid in random order."""
    tally = Tally(landscape, seed)
    for index in np.tile(np.random.default_rng([seed, 3]).permutation(len(landscape.points)), 4):
        tally.measure(landscape.points[index].config)
        yield tally.answer()


def grid(landscape: Landscape, seed: int) -> Iterator[Answer]:
    """Every setting once, fewest workers first, as a loop would do it."""
    tally = Tally(landscape, seed)
    for point in 4 * landscape.points:
        tally.measure(point.config)
        yield tally.answer()


def rules(landscape: Landscape, seed: int) -> Iterator[Answer]:
    """The published rules of thumb, each measured once."""
    tally = Tally(landscape, seed)
    values = landscape.values("num_workers")
    for asked in (0, 2, 4, 8, 16, landscape.num_cpus):
        number = min(values, key=lambda each: abs(each - asked))
        tally.measure(_config(landscape, {"num_workers": number, "batch_size": landscape.baseline.batch_size, "prefetch_factor": 2}))
        yield tally.answer()


def cpu_count(landscape: Landscape, seed: int) -> Iterator[Answer]:
    """One worker a CPU, nothing measured but that and the baseline: the most quoted rule."""
    tally = Tally(landscape, seed)
    number = min(landscape.values("num_workers"), key=lambda each: abs(each - landscape.num_cpus))
    config = _config(landscape, {"num_workers": number, "batch_size": landscape.baseline.batch_size, "prefetch_factor": 2})
    tally.measure(config)
    yield Answer(tally.elapsed_s, config, tally.sps[config] / tally.yours, landscape.baseline)


def one_by_one(landscape: Landscape, seed: int) -> Iterator[Answer]:
    """One factor at a time: workers, then prefetching, then batch size, the best of each kept."""
    tally = Tally(landscape, seed)
    params: dict[str, Any] = {"num_workers": 0, "batch_size": landscape.baseline.batch_size, "prefetch_factor": 2}
    for name in ("num_workers", "prefetch_factor", "batch_size"):
        rates = {}
        for value in landscape.values(name):
            rates[value] = tally.measure(_config(landscape, params | {name: value}))
            yield tally.answer()
        params[name] = max(rates, key=lambda value: rates[value])


def bisection(landscape: Landscape, seed: int) -> Iterator[Answer]:
    """Workers by golden section over the grid's values, at the baseline's batch size."""
    tally = Tally(landscape, seed)
    values = landscape.values("num_workers")
    low, high = 0, len(values) - 1

    def rate(index: int) -> float:
        config = _config(landscape, {"num_workers": values[index], "batch_size": landscape.baseline.batch_size, "prefetch_factor": 2})
        return tally.sps[config] if config in tally.sps else tally.measure(config)

    while high - low > 2:
        left, right = low + (high - low) // 3, high - (high - low) // 3
        if rate(left) < rate(right):
            low = left
        else:
            high = right
        yield tally.answer()
    for index in range(low, high + 1):
        rate(index)
    yield tally.answer()


def told_the_best(landscape: Landscape, seed: int) -> Iterator[Answer]:
    """Not a method: the result of knowing the six best settings and only having to find out which is first, in rounds with the baseline.

    What noise leaves open to it, no search can know.
    """
    rng, elapsed_s = np.random.default_rng([seed, 4]), 0.0
    began_s = rng.uniform(0, landscape.drift.length_s)
    best = sorted(landscape.points, key=lambda point: -point.sps)[:6]
    logs: dict[LoaderConfig, list[float]] = {}
    while True:
        configs = [landscape.baseline, *(point.config for point in best if point.config != landscape.baseline)]
        for config in configs:
            elapsed_s += landscape.at(config).cheaper(ENOUGH_FRACTION)[1]
            logs.setdefault(config, []).append(math.log(landscape.measure(config, rng, began_s + elapsed_s, ENOUGH_FRACTION)))
        means = {config: statistics.fmean(each) for config, each in logs.items()}
        answer = max(means, key=lambda config: means[config])
        yield Answer(elapsed_s, answer, math.exp(means[answer] - means[landscape.baseline]), landscape.baseline)
