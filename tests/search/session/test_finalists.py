"""finalists.py: which settings are measured again, and in which order."""

from dataclasses import replace

import pytest
from synthetic import record

from feedrate.analysis.disqualified import Disqualified
from feedrate.analysis.estimate import Rate
from feedrate.analysis.rounds import Comparison, Round
from feedrate.search.session.finalists import (
    MAX_FINALISTS,
    MAX_ROUNDS,
    Candidate,
    candidate_of,
    choose,
    fit_into,
    next_round,
    rounds_s,
    rounds_time_s,
    stand_ins,
)
from feedrate.trainables.config import LoaderConfig


def candidate(num_workers, sps, *, half=0.03, batch_size=64, baseline=False, spent_s=10.0, memory=0.0):
    """A measured setting with an interval of that half-width."""
    return Candidate(
        config=LoaderConfig(num_workers=num_workers, batch_size=batch_size),
        rate=Rate(sps=sps, low_sps=sps * (1 - half), high_sps=sps * (1 + half)),
        spent_s=spent_s,
        memory_bytes=memory,
        is_baseline=baseline,
    )


def workers(chosen):
    return [each.config.num_workers for each in chosen]


YOURS = candidate(0, 400.0, baseline=True)


def test_the_fastest_comes_first_then_yours_the_surest_and_the_cheapest_that_may_be_as_good():
    """w12 reads more than w10, less surely; w6 is a little slower and cheaper; w2 is out of reach."""
    found = [YOURS, candidate(2, 800.0), candidate(6, 985.0), candidate(10, 1000.0), candidate(12, 1010.0, half=0.1)]
    assert workers(choose(found)) == [12, 0, 10, 6]


def test_of_a_rate_that_still_changes_only_the_lower_bound_counts():
    """It may go on falling."""
    falling = replace(candidate(12, 1010.0, half=0.1), is_changing=True)
    assert workers(choose([YOURS, candidate(10, 1000.0), falling])) == [10, 0, 12]


def test_the_surest_is_among_the_finalists_though_four_read_more():
    """Each of those may be lucky."""
    unsure = [candidate(number, 1200.0 + number, half=0.39) for number in (4, 8, 12, 16)]
    assert workers(choose([YOURS, *unsure, candidate(20, 1200.0)]))[:3] == [16, 0, 20]


def test_no_more_than_four_and_the_baseline():
    """A plateau of twenty settings is not measured again as a whole; its cheapest two are."""
    plateau = [candidate(number, 1000.0 + number / 10) for number in range(4, 24)]
    chosen = choose([YOURS, *plateau])
    assert len(chosen) == MAX_FINALISTS + 1
    assert {4, 5, 0, 23} <= set(workers(chosen))


def test_the_baseline_is_that_of_the_fastest_ones_batch_size():
    other = candidate(0, 300.0, batch_size=32, baseline=True)
    chosen = choose([other, YOURS, candidate(8, 1000.0), candidate(8, 700.0, batch_size=32)])
    assert YOURS in chosen
    assert other not in chosen


def test_a_rival_of_another_batch_size_is_a_finalist():
    """Rounds also decide which batch size is the fastest; the baseline at that size comes last, for the speed-up."""
    rival, other = candidate(8, 990.0, batch_size=128), candidate(0, 300.0, batch_size=128, baseline=True)
    chosen = choose([YOURS, candidate(8, 1000.0), rival, other])
    assert rival in chosen
    assert chosen[-1] == other


def test_that_nothing_beats_the_baseline_is_confirmed_too():
    """The fastest of the others is measured beside it, once the baseline is a finalist itself."""
    yours = candidate(4, 1000.0, baseline=True)
    assert workers(choose([yours, candidate(8, 700.0), candidate(2, 800.0)])) == [4, 2]


def test_there_is_nothing_to_confirm_with_one_setting():
    assert choose([YOURS]) == []
    assert choose([]) == []


def test_workers_that_repeat_data_are_no_finalists_except_as_the_baseline():
    yours = candidate(4, 2000.0, baseline=True)
    chosen = choose([yours, candidate(1, 500.0), candidate(8, 4000.0), candidate(0, 450.0)], disqualified=Disqualified(max_num_workers=1))
    assert workers(chosen) == [1, 4]


def test_a_candidate_is_a_search_trial_that_ran_to_its_end():
    assert candidate_of(record(1, num_workers=4, rate_sps=500.0), "epoch").rate.sps == pytest.approx(500.0)
    assert candidate_of(record(1, origin="baseline"), "epoch").is_baseline
    for other in (record(1, status="pruned"), record(1, status="failed"), record(1, kind="confirm", round=1)):
        assert candidate_of(other, "epoch") is None


def test_as_many_as_there_is_time_for():
    """Three rounds of 10 s each: 60 s are two settings, 59 s none; a dear one is passed over for a cheap one."""
    found = [candidate(8, 1000.0), YOURS, candidate(4, 990.0, spent_s=50.0), candidate(6, 995.0)]
    assert workers(fit_into(found, 60.0)) == [8, 0]
    assert fit_into(found, 59.0) == []
    assert workers(fit_into(found, 90.0)) == [8, 0, 6]


def test_time_is_kept_for_rounds_up_to_half_of_the_budget():
    found = [candidate(8, 1000.0), YOURS, candidate(6, 995.0)]
    assert rounds_time_s(found, 300.0) == 90.0
    assert rounds_time_s(found, 130.0) == 60.0
    assert rounds_time_s(found, 100.0) == 0.0
    assert rounds_time_s([], 300.0) == 0.0


FAR_BEHIND = candidate(0, 20.0, baseline=True, spent_s=15.0)


def test_far_baselines_of_other_batch_sizes_are_known_by_yours():
    """Until rounds measure them: as slow, and longer by their batches up to what a trial takes at most. Not where yours is near."""
    sizes = [LoaderConfig(num_workers=0, batch_size=size) for size in (32, 128)]
    found = stand_ins([FAR_BEHIND, candidate(8, 200.0)], sizes, 20.0)
    assert [(each.config.batch_size, each.spent_s, each.rate.sps, each.is_baseline) for each in found] == [
        (32, 15.0, 20.0, True),
        (128, 20.0, 20.0, True),
    ]
    assert stand_ins([candidate(0, 80.0, baseline=True), candidate(8, 200.0)], sizes, 20.0) == []
    assert stand_ins([candidate(8, 200.0)], sizes, 20.0) == []


def test_rounds_with_far_baselines_are_paid_for_once():
    """Three rounds of the others, and two of the dearest baseline: only one of them will be measured."""
    other = candidate(0, 20.0, batch_size=128, baseline=True, spent_s=20.0)
    assert rounds_s([candidate(8, 200.0), candidate(16, 190.0, batch_size=128), FAR_BEHIND, other]) == 3 * 20.0 + 2 * 20.0
    assert rounds_s([candidate(8, 200.0), YOURS]) == 3 * 20.0
    assert rounds_s([]) == 0.0


def test_a_far_baseline_is_measured_beside_the_leader_alone():
    """Not in the first round, while nobody leads; then that of the leader's batch size; and until the speed-up is known to a
    twentieth, as a logarithm."""
    found = [candidate(8, 200.0), candidate(16, 205.0, batch_size=128), FAR_BEHIND, candidate(0, 20.0, batch_size=128, baseline=True)]

    def of_round(number, rates, num_rounds, **more):
        chosen = next_round(found, made(rates, num_rounds, **more), number, seed=0)
        return sorted((config.batch_size, config.num_workers) for config in chosen)

    assert of_round(1, {}, 0) == [(64, 8), (128, 16)]
    rates = {"b64 w8 p2": 200.0, "b128 w16 p2": 220.0}
    assert of_round(2, rates, 1) == [(64, 8), (128, 0), (128, 16)]
    rates["b128 w0"] = 20.0
    assert of_round(3, rates, 2) == [(128, 0), (128, 16)]  # w8 is out
    assert of_round(4, rates, 3) == []


def test_a_far_baseline_alone_beside_the_answer_is_measured_from_the_first_round():
    assert workers(sorted(
        [candidate(config.num_workers, 1.0) for config in next_round([candidate(8, 200.0), FAR_BEHIND], made({}, 0), 1, seed=0)],
        key=lambda each: each.config.num_workers,
    )) == [0, 8]  # fmt: skip


def made(rates, num_rounds):
    """Rounds without noise."""
    return Comparison([Round(number=number, sps=dict(rates)) for number in range(1, num_rounds + 1)])


def test_an_even_round_is_the_one_before_in_reverse():
    """Every finalist is in the first rounds; the order of a pair of rounds depends on the seed."""
    found = [candidate(number, 1000.0) for number in (2, 4, 6, 8, 10)]
    first, second, third = (next_round(found, made({}, 0), number, seed=3) for number in (1, 2, 3))
    assert len(set(first)) == 5
    assert second == first[::-1]
    orders = {tuple(next_round(found, made({}, 0), 1, seed=seed)) for seed in range(5)}
    assert len(orders) > 1
    assert sorted(config.num_workers for config in third) == [2, 4, 6, 8, 10]


def test_rounds_end_when_the_answer_is_clear():
    """w2 is clearly slower, so no setting is measured again."""
    found = [candidate(8, 1000.0), YOURS, candidate(2, 800.0)]
    rates = {"b64 w8 p2": 1000.0, "b64 w0": 400.0, "b64 w2 p2": 800.0}
    assert next_round(found, made(rates, 2), 3, seed=0)
    assert next_round(found, made(rates, 4), 5, seed=0) == []


def test_a_new_finalist_of_a_resumed_search_is_measured_whatever_was_known():
    """w12 was found after eight rounds of the others: dearer than the answer, and perhaps faster."""
    found = [candidate(8, 1000.0), YOURS, candidate(12, 1100.0)]
    rates = {"b64 w8 p2": 1000.0, "b64 w0": 400.0}
    assert len(next_round(found, made(rates, 8), 1, seed=0)) == 3
    assert LoaderConfig(num_workers=12, batch_size=64) in next_round(found, made(rates, 8), 4, seed=0)


def test_only_what_is_open_is_measured_on():
    """w6 is 1.5 % behind w8, and cheaper: those two go on without the baseline, which is far away."""
    found = [candidate(8, 1000.0), YOURS, candidate(6, 990.0)]
    rates = {"b64 w8 p2": 1000.0, "b64 w0": 400.0, "b64 w6 p2": 987.0}
    assert {config.num_workers for config in next_round(found, made(rates, 3), 4, seed=0)} == {6, 8}


def test_there_is_a_last_round():
    """Rounds end even if two settings cannot be distinguished; disturbed rounds are repeated."""
    found = [candidate(8, 1000.0), candidate(6, 990.0)]
    rates = {"b64 w8 p2": 1000.0, "b64 w6 p2": 982.0}
    assert next_round(found, made(rates, 3), MAX_ROUNDS, seed=0)
    assert next_round(found, made(rates, 3), MAX_ROUNDS + 1, seed=0) == []
    disturbed = [Round(number=9, sps=dict(rates), disturbed=True)]
    again = Comparison([Round(number=number, sps=dict(rates)) for number in (1, 2, 3)] + disturbed)
    assert next_round(found, again, MAX_ROUNDS + 1, seed=0)


def test_what_is_probably_slower_gets_no_further_rounds():
    """On a noisy machine, rounds cannot distinguish w4 and w12 from w8. w12 is 6 % slower and needs more workers, so further rounds of it would be of no use."""
    found = [candidate(8, 1000.0), candidate(4, 1000.0), candidate(12, 900.0)]
    scatter = [(1000.0, 1060.0, 1000.0), (1000.0, 940.0, 860.0), (1000.0, 1000.0, 980.0)]
    names = ("b64 w8 p2", "b64 w4 p2", "b64 w12 p2")
    comparison = Comparison([Round(number=number, sps=dict(zip(names, each, strict=True))) for number, each in enumerate(scatter, 1)])
    behind, half = comparison.log_ratio("b64 w12 p2", "b64 w8 p2")
    assert behind + half > 0, "not surely slower"
    assert {config.num_workers for config in next_round(found, comparison, 4, seed=0)} == {4, 8}
