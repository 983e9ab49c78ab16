"""analysis/rounds.py on made-up rounds: the true ratios are known."""

import math
import random
from dataclasses import replace

import pytest

from feedrate.analysis.rounds import MIN_ROUNDS, Comparison, Finalist, Round, out_soon, rounds_of, standing
from feedrate.analysis.setting_cost import SettingCost


def rounds(true, num_rounds, *, noise=0.011, drift=0.05, seed=0, without=()):
    """Rounds of settings whose true rates are given; each round has a level of its own.

    `without` holds (round, setting) that were not measured.
    """
    rng = random.Random(seed)
    made = []
    for number in range(1, num_rounds + 1):
        level = math.exp(rng.gauss(0, drift))
        sps = {
            name: rate * level * math.exp(rng.gauss(0, noise))
            for name, rate in true.items()
            if (number, name) not in without
        }
        made.append(Round(number=number, sps=sps))
    return made


def finalists(**workers):
    """Finalists at one batch size whose cost is their number of workers."""
    return [Finalist(name=name, batch_size=64, cost=SettingCost(num_workers=number)) for name, number in workers.items()]


def test_a_ratio_is_seen_through_levels_that_differ_from_round_to_round():
    """20 % between rounds, 1.1 % inside: the ratio is right to 3 %, the rate itself only to the levels."""
    made = Comparison(rounds({"a": 1000.0, "b": 800.0}, 6, drift=0.2))
    ratio = made.ratio("a", "b")
    assert ratio.low_sps < 1.25 < ratio.high_sps
    assert ratio.half_width_fraction < 0.03
    assert made.rate("a").half_width_fraction > ratio.half_width_fraction
    inverse = made.ratio("b", "a")
    assert inverse.low_sps == pytest.approx(1 / ratio.high_sps)
    assert made.ratio("a", "a").high_sps == 1.0


@pytest.mark.parametrize("num_rounds", [3, 5, 8])
def test_the_interval_contains_the_true_ratio_in_95_of_100_searches(num_rounds):
    """Also with few rounds, where the noise known from before does most of the work."""
    inside = 0
    for seed in range(400):
        ratio = Comparison(rounds({"a": 1000.0, "b": 990.0, "c": 700.0}, num_rounds, seed=seed)).ratio("a", "b")
        inside += ratio.low_sps <= 1000 / 990 <= ratio.high_sps
    assert inside >= 0.93 * 400


def test_noise_above_what_was_known_widens_the_interval():
    """A machine with three times the usual noise is not trusted as if it were a quiet one."""
    quiet, noisy = (Comparison(rounds({"a": 1.0, "b": 1.0}, 8, noise=sd)).ratio("a", "b") for sd in (0.01, 0.04))
    assert noisy.half_width_fraction > 2 * quiet.half_width_fraction


def test_a_setting_that_left_or_joined_is_compared_through_the_others():
    """b left after round 3, c came with round 4: a was in all of them."""
    gone = [(number, "b") for number in (4, 5, 6)]
    late = [(number, "c") for number in (1, 2, 3)]
    made = Comparison(rounds({"a": 1000.0, "b": 900.0, "c": 950.0}, 6, seed=1, without={*gone, *late}))
    ratio = made.ratio("b", "c")
    assert ratio.low_sps < 900 / 950 < ratio.high_sps
    assert (made.num_rounds("a"), made.num_rounds("b"), made.num_rounds("d")) == (6, 3, 0)


def test_settings_that_never_met_are_not_compared():
    """No round, and no chain of rounds, relates a and c."""
    apart = [Round(number=1, sps={"a": 1.0, "b": 1.0}), Round(number=2, sps={"c": 5.0, "d": 5.0})]
    made = Comparison(apart)
    assert made.ratio("a", "c").high_sps == math.inf
    assert made.ratio("a", "unknown").high_sps == math.inf
    assert made.rate("unknown") is None


def test_nothing_is_said_before_there_are_enough_rounds():
    two = Comparison(rounds({"a": 1.0, "b": 2.0}, MIN_ROUNDS - 1))
    assert standing(two, finalists(a=1, b=2)) is None
    assert standing(Comparison([]), finalists(a=1)) is None


def test_the_cheapest_of_those_that_are_as_fast_is_the_answer():
    """w8 is the fastest, w4 half a percent slower, w2 much slower."""
    true = {"w2": 800.0, "w4": 995.0, "w8": 1000.0}
    now = standing(Comparison(rounds(true, 12, noise=0.008)), finalists(w2=2, w4=4, w8=8))
    assert (now.answer, set(now.tied), now.slower, now.decided) == ("w4", {"w4", "w8"}, ("w2",), True)


def test_of_equals_one_that_takes_much_more_cpu_time_is_not_the_cheapest():
    """w4 keeps CPUs busy for half as long again as w8 does, whose more workers mostly wait."""
    made = Comparison(rounds({"w4": 998.0, "w8": 1000.0}, 12, noise=0.008))
    costs = {name: SettingCost(num_workers=number, cpu_item_s=cpu_s) for name, number, cpu_s in (("w4", 4, 0.0045), ("w8", 8, 0.003))}
    now = standing(made, [Finalist(name=name, batch_size=64, cost=cost) for name, cost in costs.items()])
    assert (now.answer, now.decided) == ("w8", True)
    alike = [Finalist(name=name, batch_size=64, cost=replace(cost, cpu_item_s=0.003)) for name, cost in costs.items()]
    assert standing(made, alike).answer == "w4"


def test_it_is_open_while_a_cheaper_one_may_be_as_fast():
    """w4 is one percent behind: neither known to be within two percent nor known to be slower."""
    true = {"w4": 988.0, "w8": 1000.0}
    now = standing(Comparison(rounds(true, 3, seed=2)), finalists(w4=4, w8=8))
    assert (now.answer, now.undecided, now.decided) == ("w8", ("w4",), False)


def test_what_is_dearer_than_the_answer_need_not_be_known():
    """Whether w16 is 1 or 3 % slower does not change that w8 is the answer."""
    true = {"w8": 1000.0, "w16": 982.0}
    now = standing(Comparison(rounds(true, 3, noise=0.005, seed=1)), finalists(w8=8, w16=16))
    assert now.answer == "w8"
    assert now.decided


def test_another_batch_size_is_no_cheaper_spelling_of_the_answer():
    """A batch size changes training: what is tied at another one is not chosen for having fewer workers."""
    cost = SettingCost(num_workers=2)
    both = [Finalist(name="b64", batch_size=64, cost=replace(cost, num_workers=8)), Finalist(name="b32", batch_size=32, cost=cost)]
    now = standing(Comparison(rounds({"b64": 1000.0, "b32": 996.0}, 20, noise=0.004)), both)
    assert now.answer == "b64"
    assert set(now.tied) == {"b32", "b64"}


@pytest.mark.parametrize("noise", [0.011, 0.03])
def test_an_answer_more_than_two_percent_off_is_rare(noise):
    """Five settings as in a search's end, eight rounds: fewer than 5 in 100 answers are more than 2 % behind the best."""
    true = {"w2": 940.0, "w4": 965.0, "w6": 985.0, "w8": 1000.0, "w12": 1002.0}
    wrong = 0
    for seed in range(200):
        now = standing(
            Comparison(rounds(true, 8, noise=noise, seed=seed)), finalists(w2=2, w4=4, w6=6, w8=8, w12=12)
        )
        wrong += true[now.answer] < 0.98 * max(true.values())
    assert wrong <= 10


def record(name, number, position, foreign=0.02, **more):
    return name, 1000.0, {"kind": "confirm", "round": number, "position": position, "foreign_cpu_fraction": foreign} | more


def test_rounds_are_read_from_records():
    """Other kinds are passed over, and what was not measured is missing."""
    kept = [record("a", 1, 0), record("b", 1, 1), record("a", 2, 1), ("a", 999.0, {"kind": "search", "round": None})]
    made = rounds_of(kept)
    assert [(each.number, set(each.sps), each.disturbed) for each in made] == [(1, {"a", "b"}, False), (2, {"a"}, False)]


def test_a_round_that_others_disturbed_does_not_count_where_there_are_enough_quiet_ones():
    """One of five rounds had half of the CPUs taken while b was measured."""
    kept = [record(name, number, at) for number in range(1, 6) for at, name in enumerate("ab")]
    kept[3] = ("b", 300.0, {**kept[3][2], "foreign_cpu_fraction": 0.5})
    made = Comparison(rounds_of(kept))
    assert (made.num_disturbed, len(made.rounds)) == (1, 4)
    assert made.ratio("a", "b").sps == pytest.approx(1.0)
    shared = [(name, rate, {**row, "foreign_cpu_fraction": 0.31}) for name, rate, row in kept]
    assert Comparison(rounds_of(shared)).num_disturbed == 0


def test_what_is_far_behind_is_out_after_two_rounds():
    """20 % behind: no third round. 1 % behind: not yet."""
    two = Comparison(rounds({"far": 800.0, "near": 990.0, "best": 1000.0}, 2))
    assert out_soon(two, ["far", "near", "best"]) == {"far"}
    assert out_soon(Comparison(rounds({"far": 800.0, "best": 1000.0}, 1)), ["far", "best"]) == set()
    three = rounds({"far": 800.0, "near": 990.0, "best": 1000.0}, 4, noise=0.005, without={(3, "far"), (4, "far")})
    now = standing(Comparison(three), finalists(far=1, near=2, best=3))
    assert now.slower == ("far",)
    assert now.decided or now.undecided == ("near",)
