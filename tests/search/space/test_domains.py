"""domains.py: a space as Ray Tune domains and as Optuna distributions."""

import subprocess
import sys
from dataclasses import replace

import pytest
from optuna.distributions import CategoricalDistribution, IntDistribution
from ray import tune

from feedrate.search.space.domains import from_tune, to_optuna, to_tune
from feedrate.search.space.search_space import NAMES, Choice, Range, SearchSpace


def back(domains):
    return from_tune(domains, num_cpus=4, has_accelerator=True)


def test_round_trip():
    """A space comes back from Tune's domains unchanged, but for who asked for it."""
    space = SearchSpace.default(num_cpus=4, has_accelerator=True)
    assert back(to_tune(space)) == replace(space, defaulted=frozenset())
    opted = {"in_order": tune.choice([True, False]), "sharing_strategy": "file_system", "trainer_cpus": tune.choice([None, 1])}
    space = back(opted)
    assert (space.sharing_strategy, space.trainer_cpus) == (Choice(("file_system",)), Choice((None, 1)))
    assert back(to_tune(space)) == replace(space, defaulted=frozenset())


def test_tune_excludes_the_upper_bound():
    """Range(0, 32) is randint(0, 33), which Tune never draws 33 from."""
    domain = to_tune(SearchSpace.default(num_cpus=4, has_accelerator=True))["num_workers"]
    assert (domain.lower, domain.upper) == (0, 33)
    assert back({"num_workers": tune.randint(2, 5)}).num_workers == Range(2, 4)


def test_constants_and_defaults():
    """A plain value is fixed, what is left out has its default."""
    space = back({"batch_size": 64, "pin_memory": False, "prefetch_factor": tune.choice([4, 2])})
    assert space.batch_size == Choice((64,))
    assert space.pin_memory == Choice((False,))
    assert space.prefetch_factor == Choice((2, 4))
    assert space.defaulted == {"num_workers", "persistent_workers"}


@pytest.mark.parametrize(
    "domain",
    [
        tune.uniform(0, 1),
        tune.qrandint(0, 8, 2),
        tune.lograndint(1, 9),
        tune.grid_search([1, 2]),
        tune.sample_from(lambda: 1),
    ],
)
def test_unsupported_domains(domain):
    """A domain that has no exact equal is refused, naming the dimension and what to use."""
    with pytest.raises(ValueError, match=r"^num_workers: .* is not supported as a domain; use tune\.randint"):
        back({"num_workers": domain})


def test_unknown_dimension():
    """A name that is no dimension is refused with the list of those that are."""
    with pytest.raises(ValueError, match=r"lr.*num_workers"):
        back({"lr": tune.choice([1])})


def test_optuna_distributions():
    """Ranges are integers with both ends, short lists categories of the real values, None is not searched."""
    space = SearchSpace.default(num_cpus=4, has_accelerator=True, given={"batch_size": Choice((None,))})
    distributions = to_optuna(space)
    assert distributions["num_workers"] == IntDistribution(0, 32)
    assert distributions["prefetch_factor"] == CategoricalDistribution((1, 2, 4, 8))
    never_asked = {"multiprocessing_context", "sharing_strategy", "trainer_cpus"}
    assert set(NAMES) - set(distributions) == {"batch_size", *never_asked}
    opted = SearchSpace.default(num_cpus=4, has_accelerator=True, given={"trainer_cpus": Choice((None, 2, 1))})
    assert to_optuna(opted)["trainer_cpus"] == CategoricalDistribution((None, 2, 1))
    wide = SearchSpace.default(num_cpus=4, has_accelerator=True, given={"batch_size": Range(8, 64)})
    assert to_optuna(wide)["batch_size"] == IntDistribution(8, 64, log=True)


def test_optuna_side_needs_no_ray():
    """The brain can be used where Ray is not loaded: replays of recorded landscapes start fast."""
    code = "import sys, feedrate.search.study.brain; sys.exit('ray' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
