"""search_space.py: every setting exists once, impossible spaces are refused, and the nearest untried setting is found."""

from dataclasses import replace

import pytest

from feedrate.search.space.search_space import Choice, Range, SearchSpace
from feedrate.trainables.config import LoaderConfig

TINY = {
    "num_workers": Range(0, 2),
    "batch_size": Choice((32, 64)),
    "pin_memory": Choice((False,)),
    "prefetch_factor": Choice((2, 4)),
    "persistent_workers": Choice((True, False)),
}

OPTED = {"sharing_strategy": Choice((None, "file_system")), "trainer_cpus": Choice((None, 1, 2))}


def space(**given):
    more = {"has_accelerator": given.pop("has_accelerator", True), "epoch_samples": given.pop("epoch_samples", None)}
    return SearchSpace.default(num_cpus=4, given=given, **more)


def test_defaults():
    """Nothing asked for: at least 0..32 workers, more on a big machine, and what was defaulted is known."""
    small = SearchSpace.default(num_cpus=2, has_accelerator=True)
    assert small.num_workers == Range(0, 32)
    assert SearchSpace.default(num_cpus=48, has_accelerator=True).num_workers == Range(0, 96)
    assert SearchSpace.default(num_cpus=512, has_accelerator=True).num_workers == Range(0, 128)
    assert small.batch_size == Choice((32, 64, 128))
    assert "num_workers" in small.defaulted
    assert "num_workers" not in space(num_workers=Range(0, 4)).defaulted


def test_every_setting_once():
    """configs() gives each canonical setting once, size() counts them, contains() knows them."""
    tiny = space(**TINY)
    configs = list(tiny.configs())
    assert len(configs) == len(set(configs)) == tiny.size() == 2 * (1 + 2 * 4)
    assert all(tiny.contains(config) for config in configs)
    assert not tiny.contains(LoaderConfig(num_workers=3, batch_size=32))
    assert not tiny.contains(LoaderConfig(num_workers=2, batch_size=32, prefetch_factor=3))
    assert tiny.contains(LoaderConfig(num_workers=0, batch_size=32))


def test_no_accelerator_no_pinning():
    """Without an accelerator pin_memory is not searched."""
    assert space(has_accelerator=False).pin_memory == Choice((False,))
    assert space(has_accelerator=False).size() * 2 == space().size()


def test_own_batch_sampler():
    """A batch size of None is one fixed value."""
    configs = list(space(**TINY | {"batch_size": Choice((None,))}).configs())
    assert {config.batch_size for config in configs} == {None}


def test_json_round_trip():
    """A space survives search.json."""
    opted = space(multiprocessing_context=Choice((None, "spawn")), in_order=Choice((True, False)), **OPTED)
    for one in (space(), space(**TINY), opted):
        assert SearchSpace.from_json(one.to_json()) == one


def test_the_search_json_of_an_older_feedrate_is_read():
    """It knew nothing of the sharing strategy or of the trainer's CPUs: they were what they are by default."""
    saved = space().to_json()
    del saved["sharing_strategy"], saved["trainer_cpus"]
    assert SearchSpace.from_json(saved) == space()


def test_settings_of_the_process_are_searched_when_asked_for():
    """Each of their values is a setting of its own with workers, and none without."""
    opted = space(**TINY, **OPTED, in_order=Choice((True, False)))
    configs = list(opted.configs())
    assert len(configs) == len(set(configs)) == opted.size() == 2 * (1 + 2 * 4 * 2 * 3 * 2)
    assert {config.trainer_cpus for config in configs} == {None, 1, 2}
    assert {config.sharing_strategy for config in configs} == {None, "file_system"}
    assert {config.trainer_cpus for config in configs if not config.num_workers} == {None}
    assert not space().contains(LoaderConfig(num_workers=2, batch_size=64, trainer_cpus=1))


def test_linuxs_own_sharing_strategy_is_the_default():
    """It may be named, and is the same setting."""
    assert space(sharing_strategy=Choice(("file_descriptor", "file_system"))) == space(sharing_strategy=OPTED["sharing_strategy"])


@pytest.mark.parametrize(
    ("name", "dimension", "words"),
    [
        ("num_workers", Range(-1, 4), "must be 0 or more"),
        ("prefetch_factor", Choice((0,)), "must be 1 or more"),
        ("batch_size", Choice((32, None)), "not a whole number"),
        ("pin_memory", Choice((1,)), "not one of true, false"),
        ("num_workers", Choice((True,)), "not a whole number"),
        ("workers", Range(0, 4), "these are: num_workers"),
        ("trainer_cpus", Choice((None, 0)), "must be 1 or more, not 0: none lets"),
        ("trainer_cpus", Range(1, 4), "takes a list of choices, not a range"),
        ("sharing_strategy", Choice(("memory",)), "not one of file_descriptor, file_system"),
    ],
)
def test_impossible_spaces(name, dimension, words):
    """A space that cannot work is refused when it is made, naming the dimension."""
    with pytest.raises(ValueError, match=words) as caught:
        space(**{name: dimension})
    assert name in str(caught.value)


def test_too_many_settings():
    """A space too large to enumerate is refused with the way out."""
    with pytest.raises(ValueError, match="list a few choices"):
        space(batch_size=Range(1, 50_000))


def test_no_more_workers_than_an_epoch_has_batches():
    """200 samples are 20 batches of 10 and 4 of 50: the 21st and the 5th worker would have nothing to do."""
    short = space(batch_size=Choice((10, 50)), epoch_samples=200)
    assert short.num_workers == Range(0, 20)
    most = {size: max(config.num_workers for config in short.configs() if config.batch_size == size) for size in (10, 50)}
    assert most == {10: 20, 50: 4}
    assert not short.contains(LoaderConfig(num_workers=5, batch_size=50))
    assert short.contains(LoaderConfig(num_workers=5, batch_size=10))
    assert short.extended(LoaderConfig(num_workers=20, batch_size=10)) is None
    assert space(epoch_samples=1_000_000) == replace(space(), epoch_samples=1_000_000)
    drawn = short.nearest_untried(LoaderConfig(num_workers=16, batch_size=50), set())
    assert drawn.num_workers <= 4


def test_explicit_numbers_of_workers_are_limited_too_and_one_is_left():
    asked = space(batch_size=Choice((50,)), num_workers=Choice((2, 8, 16)), epoch_samples=200)
    assert {config.num_workers for config in asked.configs()} == {2}
    only = space(batch_size=Choice((50,)), num_workers=Choice((8, 16)), epoch_samples=200)
    assert {config.num_workers for config in only.configs()} == {8}


def test_prefetching_beyond_the_epoch_is_one_setting():
    """4 batches: 2 workers fetch all of them from 2 ahead on, 4 workers from 1 on; each such setting is there once, and folds to it."""
    short = space(batch_size=Choice((50,)), prefetch_factor=Choice((1, 2, 4, 8)), epoch_samples=200)
    ahead = {count: {config.prefetch_factor for config in short.configs() if config.num_workers == count} for count in (1, 2, 4)}
    assert ahead == {1: {1, 2, 4}, 2: {1, 2}, 4: {1}}
    configs = list(short.configs())
    assert len(configs) == len(set(configs)) == short.size()
    assert all(short.contains(config) and short.fold(config) == config for config in configs)
    deep = LoaderConfig(num_workers=2, batch_size=50, prefetch_factor=8)
    assert short.fold(deep) == LoaderConfig(num_workers=2, batch_size=50, prefetch_factor=2)
    assert not short.contains(deep)
    assert space().fold(deep) == deep
    assert SearchSpace.from_json(short.to_json()) == short


def test_nearest_is_itself():
    """An untried setting is its own nearest one; a value that is not listed goes to a listed neighbour."""
    whole = space()
    config = LoaderConfig(num_workers=5, batch_size=64, prefetch_factor=4)
    assert whole.nearest_untried(config, set()) == config
    unlisted = LoaderConfig(num_workers=5, batch_size=64, prefetch_factor=5)
    assert whole.nearest_untried(unlisted, set()) == config


def test_nearest_ties_go_to_fewer_workers():
    """One worker less and one more are equally near: the cheaper one is taken, then the other."""
    whole = space()
    config = LoaderConfig(num_workers=5, batch_size=64, prefetch_factor=4)
    fewer = whole.nearest_untried(config, {config})
    more = whole.nearest_untried(config, {config, fewer})
    assert (fewer.num_workers, more.num_workers) == (4, 6)


def test_no_workers_is_far_from_one_worker():
    """Losing the worker processes is a large step, although it is one step in num_workers."""
    whole = space(num_workers=Range(0, 32))
    config = LoaderConfig(num_workers=1, batch_size=64, prefetch_factor=4)
    assert whole.nearest_untried(config, {config}).num_workers == 2


def test_exhaustion_visits_every_setting():
    """Asking again and again gives every setting once, then None."""
    tiny, tried = space(**TINY), set()
    while (config := tiny.nearest_untried(LoaderConfig(num_workers=1, batch_size=32), tried)) is not None:
        assert config not in tried
        tried.add(config)
    assert tried == set(tiny.configs())


def test_the_ranks_of_a_host_share_the_default_range():
    """Each rank has workers of its own, so what one process may have is divided; an epoch's batches are those of one rank."""
    most = [SearchSpace.default(num_cpus=64, has_accelerator=True, num_ranks=number).num_workers.high for number in (1, 4, 8)]
    assert most == [128, 32, 16]
    given = {"batch_size": Choice((10,))}
    assert SearchSpace.default(num_cpus=2, has_accelerator=True, given=given, epoch_samples=400, num_ranks=4).num_workers == Range(0, 8)
    assert SearchSpace.default(num_cpus=2, has_accelerator=True, given=given, epoch_samples=120, num_ranks=4).num_workers == Range(0, 3)
