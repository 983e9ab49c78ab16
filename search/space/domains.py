"""Translate a search space into Ray Tune's domains and Optuna's distributions, and Tune's domains back.

The meanings differ in these points:
  - bounds: `tune.randint(0, 33)` excludes 33; feedrate's Range(0, 32), `tune.qrandint` and Optuna's IntDistribution include the end.
  - conditions: Tune's domains are unconditional, and Optuna's parameters may differ from trial to trial. Here a setting with 0
    workers has no prefetch_factor, whatever was drawn for it.
  - constants: a plain value in Tune's param_space is fixed; Optuna would record it, but feedrate leaves it out of the study.
  - order: the values of `tune.choice` have no order; long lists of numbers are ordered for Optuna (see `to_optuna`).
  - None: a choice for Tune, a category for Optuna; a dimension whose only value is None is not searched.

Ray is imported only by the functions that need it: simulating a search on recorded landscapes needs Optuna, but not Ray.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from optuna.distributions import BaseDistribution, CategoricalDistribution, IntDistribution

from feedrate.search.space.dimension import LEAST, Choice, Dimension, Range
from feedrate.search.space.search_space import NAMES, SearchSpace

MAX_CATEGORIES = 8


def to_tune(space: SearchSpace) -> dict[str, Any]:
    """Return the dimensions as Ray Tune domains, including those with a single value, so that Tune's own tables show them."""
    from ray import tune

    domains: dict[str, Any] = {}
    for name in NAMES:
        match getattr(space, name):
            case Range(low, high):
                domains[name] = tune.randint(low, high + 1)
            case Choice(values):
                domains[name] = tune.choice(list(values))
    return domains


def from_tune(domains: Mapping[str, Any], *, num_cpus: int, has_accelerator: bool) -> SearchSpace:
    """Return the space that a user wrote as Ray Tune domains or plain values; a dimension that is not given has its default.

    Raises:
        ValueError: a name is not the name of a dimension, or a domain has no exact equivalent.
    """
    given = {name: _dimension(name, domain) for name, domain in domains.items()}
    return SearchSpace.default(num_cpus=num_cpus, has_accelerator=has_accelerator, given=given)


def to_optuna(space: SearchSpace) -> dict[str, BaseDistribution]:
    """Return the dimensions as Optuna distributions over the values themselves, without a dimension whose only value is None.

    A short list becomes a category although its numbers have an order, because over three or four values TPE's kernels for integers
    overlap too much (on simulated landscapes with 40 trials, the answers were 96.5 to 99.6 % of the optimum with
    categories and 94.8 to 99.0 % with logarithmic integers). A range or a long list becomes an integer, so that TPE learns
    from neighbours and a later search may extend it; the sampler moves a draw between listed values to the nearest one.
    """
    distributions: dict[str, BaseDistribution] = {}
    for name in NAMES:
        dimension: Dimension = getattr(space, name)
        values = dimension.values
        if name in LEAST and (isinstance(dimension, Range) or len(values) > MAX_CATEGORIES):
            # numbers of workers, which may be 0, are compared by difference, batch sizes and prefetch factors by ratio
            distributions[name] = IntDistribution(values[0], values[-1], log=name != "num_workers")
        elif values != (None,):
            distributions[name] = CategoricalDistribution(values)
    return distributions


def _dimension(name: str, domain: object) -> Dimension:
    from ray.tune.search import sample

    way_out = "use tune.randint(low, high), tune.choice([...]) or one value"
    if isinstance(domain, sample.Categorical):
        return Choice(tuple(domain.categories))
    if isinstance(domain, sample.Integer) and isinstance(domain.sampler, sample.Uniform):
        return Range(domain.lower, domain.upper - 1)
    if domain is None or isinstance(domain, bool | int | str):
        return Choice((domain,))
    kind = "grid_search" if isinstance(domain, dict) and "grid_search" in domain else type(domain).__name__
    if isinstance(domain, sample.Integer):
        kind = "a quantized or logarithmic integer"
    raise ValueError(f"{name}: {kind} is not supported as a domain; {way_out}")
