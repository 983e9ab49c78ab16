"""`SnappingSampler`: draws whole settings, by expected gain or with Optuna's samplers, and none of them twice.

It differs from a plain TPESampler in three ways:
  - all dimensions of a setting are drawn at once. The setting is then made canonical and moved to the nearest untried one, *before*
    Optuna records it, so the study contains what was measured and never the same setting twice;
  - the draw for trial number n depends only on (seed, n, history): a restarted search, or a replay of the same measurements,
    gets the same suggestions;
  - dimensions that exist only with workers are drawn from the trials that had workers. TPESampler(group=True) would
    divide the space in the same way, but it keeps the ranges of the first trial for ever, so a range could not be extended.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from collections.abc import Set as AbstractSet
from copy import copy
from typing import Any

import numpy as np
from optuna import Study
from optuna.distributions import BaseDistribution, CategoricalDistribution, IntDistribution
from optuna.samplers import BaseSampler, RandomSampler
from optuna.trial import FrozenTrial, TrialState, create_trial

from feedrate.analysis.disqualified import NOTHING
from feedrate.search.space.domains import to_optuna
from feedrate.search.space.search_space import ALWAYS, NAMES, SearchSpace, applicable
from feedrate.search.study.compat import tpe_sampler
from feedrate.search.study.expectation import LEAST_TO_DRAW, Expectation, most_promising, predicted_sps
from feedrate.search.study.observed import Observed
from feedrate.trainables.config import LoaderConfig

KINDS = ("gp", "tpe", "random")


class SpaceExhaustedError(Exception):
    """An error: every setting of the space was tried."""


class SnappingSampler(BaseSampler):
    """An Optuna sampler over one search space.

    Args:
        space: the settings that may be drawn.
        seed: seed of all draws.
        kind: "gp" (expectation.py), "tpe" or "random".
        tried: returns the settings that must not be drawn again.
    """

    def __init__(
        self, space: SearchSpace, *, seed: int, kind: str = "tpe", tried: Callable[[], AbstractSet[LoaderConfig]]
    ) -> None:
        if kind not in KINDS:
            raise ValueError(f"--sampler must be one of {', '.join(KINDS)}, not {kind!r}")
        self._space = space
        self._distributions = to_optuna(space)
        self._seed = seed
        self._kind = kind
        self._tried = tried
        self.disqualified = NOTHING
        """Settings that repeat data, so others need not be faster than they are; set by the search."""
        self._observed = Observed()
        self._expected: tuple[tuple[int, int], Expectation | None] | None = None

    @property
    def space(self) -> SearchSpace:
        """The search space: the settings that may be drawn."""
        return self._space

    def use(self, space: SearchSpace) -> None:
        """Draw from another space from now on; it has the same choices, and its ranges contain the old ones."""
        self._space, self._distributions, self._expected = space, to_optuna(space), None

    def expectation(self, study: Study, number: int) -> Expectation | None:
        """Return the most promising setting for a trial number, and its expected gain; None while too little is known."""
        self._observed.learn(study.get_trials(deepcopy=False))
        told = self._observed.num_finished
        if self._expected is None or self._expected[0] != (number, told):
            seed = self._seed_of(number)
            found = most_promising(
                self._space, self._observed, self._tried(), seed=seed, disqualified=self.disqualified
            )
            self._expected = ((number, told), found)
        return self._expected[1]

    def predict(self, study: Study, configs: Sequence[LoaderConfig]) -> list[float]:
        """Return the items per second that the model of loading expects of settings; empty while no rate is known."""
        self._observed.learn(study.get_trials(deepcopy=False))
        return predicted_sps(self._space, self._observed, configs)

    def draw(self, study: Study, number: int) -> LoaderConfig | None:
        """Return the setting for a trial number; None if every setting was tried. Writes nothing to the study."""
        study = copy(study)  # a copy has no cached trials; Optuna renews its cache only in ask and tell of the same thread
        if self._kind == "gp" and (expected := self.expectation(study, number)) is not None and len(self._observed) >= LEAST_TO_DRAW:
            return expected.config
        inner = self._inner(number)
        drawn = self._draw_group(inner, study, ALWAYS)
        if drawn["num_workers"]:
            # draw all dimensions again, from the trials that had workers: the best prefetch_factor depends on num_workers
            drawn = self._draw_group(inner, study, NAMES)
        return self._space.nearest_untried(LoaderConfig(**drawn), self._tried())

    def distributions(self, config: LoaderConfig) -> dict[str, BaseDistribution]:
        """Return the distributions that a study records for a setting: of the dimensions that apply and whose range contains its value."""
        return {
            name: self._distributions[name]
            for name in applicable(config)
            if name in self._distributions and _holds(self._distributions[name], getattr(config, name))
        }

    # Optuna calls the following methods if other code asks the study: study.ask(), then trial.suggest_*

    def infer_relative_search_space(self, study: Study, trial: FrozenTrial) -> dict[str, BaseDistribution]:
        return self._distributions

    def sample_relative(
        self, study: Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        config = self.draw(study, trial.number)
        if config is None:
            raise SpaceExhaustedError("every setting of the search space was tried")
        return {name: getattr(config, name) for name in self.distributions(config)}

    def sample_independent(
        self, study: Study, trial: FrozenTrial, param_name: str, param_distribution: BaseDistribution
    ) -> Any:
        return self._inner(trial.number).sample_independent(study, trial, param_name, param_distribution)

    def _inner(self, number: int) -> BaseSampler:
        seed = self._seed_of(number)
        if self._kind != "tpe":
            return RandomSampler(seed=seed)
        return tpe_sampler(seed)

    def _seed_of(self, number: int) -> int:
        return int(np.random.SeedSequence([self._seed, number]).generate_state(1)[0])

    def _draw_group(self, inner: BaseSampler, study: Study, names: tuple[str, ...]) -> dict[str, Any]:
        free = {name: self._distributions[name] for name in names if name in self._distributions}
        free = {name: distribution for name, distribution in free.items() if not distribution.single()}
        trial = create_trial(state=TrialState.RUNNING)  # a placeholder: no sampler used here reads it
        drawn = inner.sample_relative(study, trial, free)  # empty until enough trials have been told
        for name, distribution in free.items():
            if name not in drawn:
                drawn[name] = inner.sample_independent(study, trial, name, distribution)
        return {name: self._space.values(name)[0] for name in names} | drawn


def _holds(distribution: BaseDistribution, value: Any) -> bool:
    if isinstance(distribution, IntDistribution):
        return bool(distribution.low <= value <= distribution.high)
    return isinstance(distribution, CategoricalDistribution) and value in distribution.choices
