"""idle_workers.py: which settings are not tried after a trial has shown that some of its workers deliver nothing."""

import pytest

from feedrate.search.space.idle_workers import IdleWorkers
from feedrate.search.space.search_space import Choice, Range, SearchSpace
from feedrate.trainables.config import LoaderConfig


def space(workers=None, **more):
    given = {"num_workers": workers or Range(0, 16), "batch_size": Choice((8,)), "prefetch_factor": Choice((2,)), "persistent_workers": Choice((True,))}
    return SearchSpace.default(num_cpus=8, has_accelerator=False, given=given, **more)


def workers_of(searched):
    return [config.num_workers for config in searched.configs()]


WINDOWS = {"window_num_items": [80, 80], "window_num_batches": [10, 10]}


@pytest.mark.parametrize(
    ("columns", "remark", "words", "left"),
    [
        ({"num_shards": 2}, "8 workers were asked for, 2 worked (the stream has 2 shards): more", "more than 2 workers", [0, 1, 2]),
        ({"epoch_samples": 15, **WINDOWS}, "(an epoch has 2 batches)", "more than 2 workers", [0, 1, 2]),
        ({"effective_num_workers": 1}, "8 workers were asked for, 1 worked (the others got no data)", "more than 1 worker", [0, 1]),
        # 16 files divided among 9 workers or more by rounding up keep 8 busy, and among 16 all of them
        ({"num_shards": 16, "epoch_samples": 9000, **WINDOWS}, "(the others got no data)", "with 3 to 8 workers", [0, 1, 2, *range(9, 17)]),
    ],
    ids=["shards", "batches", "one", "unknown"],
)
def test_settings_with_idle_workers_are_left_out(columns, remark, words, left):
    idle = IdleWorkers.of({"num_workers": 8, "effective_num_workers": 2} | columns)
    assert remark in idle.remark()
    assert words in idle.in_words()
    narrow = space().without(idle)
    assert workers_of(narrow) == left
    assert narrow.size() == len(left)
    assert SearchSpace.from_json(narrow.to_json()) == narrow
    assert not narrow.contains(LoaderConfig(num_workers=8, batch_size=8, persistent_workers=True))
    assert narrow.without(idle) is None


def test_there_is_nothing_to_say_if_all_work():
    assert IdleWorkers.of({"num_workers": 8, "effective_num_workers": 8}) is None
    assert IdleWorkers.of({"num_workers": 8, "effective_num_workers": None}) is None
    assert IdleWorkers.of({"num_workers": 0, "effective_num_workers": None}) is None


def test_the_smallest_number_of_workers_stays():
    """Somebody may ask for such settings only."""
    idle = IdleWorkers.of({"num_workers": 8, "effective_num_workers": 1})
    assert workers_of(space(Choice((4, 8))).without(idle)) == [4]


def test_a_trial_that_knows_more_replaces_one_that_knows_less():
    some = IdleWorkers.of({"num_workers": 8, "effective_num_workers": 4})
    more = IdleWorkers.of({"num_workers": 16, "effective_num_workers": 4})
    assert space().without(some).without(more).idle == (more,)
    assert space().without(more).without(some) is None
