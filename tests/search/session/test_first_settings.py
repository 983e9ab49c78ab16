"""first_settings.py: the settings before the sampler's first draw: their order, and which of them are skipped."""

import pytest

from feedrate.analysis.estimate import Rate
from feedrate.search.session.finalists import Candidate
from feedrate.search.session.first_settings import EARLY_SEEDS, Opening, is_twin
from feedrate.trainables.config import LoaderConfig

OWN = LoaderConfig(num_workers=0, batch_size=64)
OTHERS = [LoaderConfig(num_workers=0, batch_size=size) for size in (32, 128)]


def seed(num_workers, batch_size=64, **more):
    return LoaderConfig(num_workers=num_workers, batch_size=batch_size, **more)


def known(config, sps):
    """A setting measured to 5 %."""
    rate = Rate(sps=sps, low_sps=0.95 * sps, high_sps=1.05 * sps)
    return Candidate(config=config, rate=rate, spent_s=10.0, memory_bytes=0.0, is_baseline=config == OWN)


def nothing(configs):
    return []


def rest(opening, measured=(), predict=nothing, said=None):
    """All that comes, reviewed before each as a search does."""
    found, say = [], ([] if said is None else said).append
    opening.review(list(measured), predict, say)
    while (each := opening.next()) is not None:
        found.append(each)
        opening.review(list(measured), predict, say)
    return found


def test_the_own_setting_then_some_seeds_then_it_at_other_batch_sizes():
    """Where nothing is known yet, as on many machines at once, in the given order; nothing twice."""
    seeds = [OWN, *(seed(number) for number in (2, 4, 8, 16, 24, 32))]
    found = rest(Opening([OWN, *OTHERS], seeds))
    assert found[0] == (OWN, "baseline")
    assert [config.num_workers for config, _ in found[1 : 1 + EARLY_SEEDS]] == [2, 4, 8, 16]
    assert found[1 + EARLY_SEEDS : 3 + EARLY_SEEDS] == [(each, "baseline") for each in OTHERS]
    assert [config.num_workers for config, _ in found[3 + EARLY_SEEDS :]] == [24, 32]


def test_what_should_be_fast_comes_first():
    """In the given order where the expected rates are within a fifth."""
    expected = {2: 50.0, 4: 95.0, 8: 100.0, 16: 60.0}
    opening = Opening([OWN], [seed(number) for number in expected])
    opening.review([known(OWN, 25.0)], lambda configs: [expected[config.num_workers] for config in configs], print)
    assert opening.next() == (OWN, "baseline")
    found = rest(opening, [known(OWN, 25.0)], lambda configs: [expected[config.num_workers] for config in configs])
    assert [config.num_workers for config, _ in found] == [4, 8, 2, 16]


def test_what_cannot_reach_a_third_of_what_was_reached_is_left_out():
    """Two workers where one takes 40 ms for a sample, and the own setting at other batch sizes; 0 workers are always tried."""
    opening = Opening([seed(1), *OTHERS], [seed(0), seed(2), seed(8), seed(16)])
    assert opening.next() == (seed(1), "baseline")
    measured = [known(seed(1), 25.0), known(seed(12), 300.0)]
    said = []
    found = rest(opening, measured, lambda configs: [25.0 * max(config.num_workers, 1) for config in configs], said)
    assert sorted(config.num_workers for config, _ in found) == [0, 8, 16]
    assert {origin for _, origin in found} == {"seed"}
    assert said == [
        "left out for now: your own setting at other batch sizes, because at its own it is more than 3 times slower than b64 w12 p2",
        "skipped b64 w2 p2: expected 50/s, less than a third of the rate of b64 w12 p2",
    ]


@pytest.mark.parametrize(
    "twin", [seed(2, persistent_workers=True), seed(3), seed(2, prefetch_factor=8), seed(2, 128)], ids=lambda twin: twin.short()
)
def test_what_a_twin_was_measured_at_outweighs_what_is_expected(twin):
    """The model expects 10/s of 2 workers; nearly the same setting reads 150/s, half of the best one: it is tried."""
    best = seed(16)
    for rates, tried in (({best: 300.0}, []), ({best: 300.0, twin: 150.0}, [2])):
        opening = Opening([OWN], [seed(2)])
        assert opening.next() == (OWN, "baseline")
        opening.review([known(OWN, 25.0), known(best, 300.0)], lambda configs: [10.0 for _ in configs], print, rates)
        assert [config.num_workers for config in opening.ahead] == tried


def test_settings_that_differ_in_what_matters_are_no_twins():
    assert not is_twin(seed(2), seed(4))
    assert not is_twin(seed(0), seed(1))
    assert not is_twin(seed(2, 32), seed(2, 128))
    assert is_twin(seed(16), seed(18))


def test_what_is_near_is_not_left_out():
    """The own setting a little more than half as fast as the best: its other batch sizes may be better than anything."""
    opening = Opening([OWN, *OTHERS], [seed(8)])
    opening.next()
    assert [config for config, _ in rest(opening, [known(OWN, 120.0), known(seed(16), 200.0)])] == [seed(8), *OTHERS]


def test_what_is_ahead_is_known():
    opening = Opening([OWN, *OTHERS], [seed(8)])
    assert opening.ahead == [OWN, *OTHERS, seed(8)]
    rest(opening)
    assert opening.ahead == []
