"""sampler.py: draws are canonical, never repeated, and reproducible across a restart."""


import optuna
import pytest
from optuna.trial import TrialState, create_trial

from feedrate.search.space.domains import to_optuna
from feedrate.search.space.search_space import Choice, Range, SearchSpace
from feedrate.search.study.sampler import SnappingSampler
from feedrate.trainables.config import LoaderConfig

SPACE = SearchSpace.default(num_cpus=8, has_accelerator=True)
TINY = SearchSpace.default(
    num_cpus=8,
    has_accelerator=False,
    given={"num_workers": Range(0, 3), "batch_size": Choice((32,)), "prefetch_factor": Choice((2, 4))},
)


def rate(config):
    return 100.0 * min(config.num_workers + 1, 9) + config.batch_size / 10 + (config.prefetch_factor or 0)


def add(study, sampler, config, value):
    distributions = sampler.distributions(config)
    params = {name: getattr(config, name) for name in distributions}
    attrs = {"config": config.to_dict()}
    study.add_trial(create_trial(params=params, distributions=distributions, value=value, user_attrs=attrs))


def replay(seed, count, *, kind="tpe", space=SPACE, restart_at=None):
    """Draw settings one after another and tell the study each rate; optionally with a new sampler and study in between."""
    tried = []
    study = optuna.create_study(direction="maximize")
    sampler = SnappingSampler(space, seed=seed, kind=kind, tried=lambda: set(tried))
    for number in range(count):
        if number == restart_at:
            sampler = SnappingSampler(space, seed=seed, kind=kind, tried=lambda: set(tried))
            before, study = study, optuna.create_study(direction="maximize")
            study.add_trials(before.trials)
        config = sampler.draw(study, number)
        tried.append(config)
        if config is not None:
            add(study, sampler, config, rate(config))
    return tried


@pytest.mark.parametrize("kind", ["gp", "tpe", "random"])
def test_same_measurements_same_suggestions(kind):
    """The draws depend on seed, number and history alone, across a restart too."""
    first = replay(3, 30, kind=kind)
    assert replay(3, 30, kind=kind) == first
    assert replay(3, 30, kind=kind, restart_at=17) == first
    assert replay(4, 30, kind=kind) != first


@pytest.mark.parametrize("kind", ["gp", "tpe", "random"])
def test_never_twice_until_exhausted(kind):
    """Every setting of a small space is drawn once, and then the space is exhausted."""
    drawn = replay(0, TINY.size() + 1, kind=kind, space=TINY)
    assert drawn[-1] is None
    assert set(drawn[:-1]) == set(TINY.configs())
    assert len(drawn) == TINY.size() + 1


def test_settings_of_the_process_are_drawn_where_they_are_asked_for():
    """In every combination with workers, recorded as parameters of the study; never without workers."""
    given = {"num_workers": Range(0, 2), "batch_size": Choice((32,)), "prefetch_factor": Choice((2,))}
    opted = {"trainer_cpus": Choice((None, 1, 2)), "sharing_strategy": Choice((None, "file_system"))}
    space = SearchSpace.default(num_cpus=8, has_accelerator=False, given=given | opted)
    drawn = replay(0, space.size() + 1, space=space)
    assert set(drawn[:-1]) == set(space.configs())
    assert drawn[-1] is None
    sampler = SnappingSampler(space, seed=0, tried=set)
    config = LoaderConfig(num_workers=1, batch_size=32, trainer_cpus=2)
    assert opted.keys() <= sampler.distributions(config).keys()
    assert not opted.keys() & sampler.distributions(LoaderConfig(batch_size=32)).keys()


def test_settings_are_listed_and_canonical():
    """Whatever TPE draws between listed values, what comes out is a setting of the space."""
    given = {"batch_size": Choice(tuple(2**power for power in range(10))), "prefetch_factor": Range(1, 9)}
    space = SearchSpace.default(num_cpus=8, has_accelerator=True, given=given)
    assert all(space.contains(config) for config in replay(1, 40, space=space))


def test_learns():
    """After forty trials TPE draws mostly good settings, random does not."""
    tpe = [rate(config) for config in replay(5, 60)[40:]]
    assert sum(value > 850 for value in tpe) >= 18
    assert sum(tpe) > 1.1 * sum(rate(config) for config in replay(5, 60, kind="random")[40:])


def test_works_behind_plain_optuna():
    """study.ask and trial.suggest_* give the same moved settings, only the dimensions that they have."""
    drawn, distributions = [], to_optuna(TINY)
    sampler = SnappingSampler(TINY, seed=0, tried=lambda: set(drawn))
    study = optuna.create_study(direction="maximize", sampler=sampler)
    for _ in range(TINY.size()):
        trial = study.ask()
        params = {"num_workers": trial.suggest_int("num_workers", 0, 3)}
        if params["num_workers"]:
            for name in ("prefetch_factor", "persistent_workers"):
                params[name] = trial.suggest_categorical(name, distributions[name].choices)
        config = LoaderConfig(batch_size=32, **params)
        assert config not in drawn
        drawn.append(config)
        study.tell(trial, rate(config))
    assert set(drawn) == set(TINY.configs())


def test_outside_the_space():
    """A baseline outside the space is recorded by the dimensions that fit."""
    sampler = SnappingSampler(SPACE, seed=0, tried=set)
    config = LoaderConfig(num_workers=99, batch_size=64, prefetch_factor=3)
    assert set(sampler.distributions(config)) == {"batch_size", "pin_memory", "persistent_workers", "in_order"}
    assert set(sampler.distributions(LoaderConfig(num_workers=0, batch_size=64))) == {
        "num_workers",
        "batch_size",
        "pin_memory",
    }


def test_extended_range_is_searched():
    """A range that was extended in the middle of a study is searched to its new end."""
    tried = []
    narrow = SearchSpace.default(num_cpus=4, has_accelerator=False, given={"num_workers": Range(1, 8)})
    wide = SearchSpace.default(num_cpus=4, has_accelerator=False, given={"num_workers": Range(1, 32)})
    study = optuna.create_study(direction="maximize")
    for number in range(60):
        sampler = SnappingSampler(narrow if number < 20 else wide, seed=0, tried=lambda: set(tried))
        config = sampler.draw(study, number)
        tried.append(config)
        add(study, sampler, config, float(config.num_workers))
    assert max(config.num_workers for config in tried) > 24


def test_a_tell_is_seen_by_the_next_draw():
    """Optuna's per-thread cache of trials does not hide trials that ended meanwhile."""
    study = optuna.create_study(direction="maximize")
    sampler = SnappingSampler(SPACE, seed=0, tried=set)
    for config in list(SPACE.configs())[::60]:
        add(study, sampler, config, rate(config))
    sampler.draw(study, 99)
    for config in list(SPACE.configs())[1::60]:
        add(study, sampler, config, -rate(config))
    fresh = optuna.create_study(direction="maximize")
    fresh.add_trials(study.trials)
    assert sampler.draw(study, 100) == sampler.draw(fresh, 100)


def test_unknown_kind():
    """A sampler that does not exist is refused with those that do."""
    with pytest.raises(ValueError, match="gp, tpe, random"):
        SnappingSampler(SPACE, seed=0, kind="cma", tried=set)


def test_a_draw_after_a_thousand_trials():
    """It is none of them."""
    study = optuna.create_study(direction="maximize")
    configs = list(SPACE.configs())[:1000]
    sampler = SnappingSampler(SPACE, seed=0, tried=lambda: set(configs))
    for config in configs:
        add(study, sampler, config, rate(config))
    assert {trial.state for trial in study.trials} == {TrialState.COMPLETE}
    assert sampler.draw(study, 1000) not in configs
