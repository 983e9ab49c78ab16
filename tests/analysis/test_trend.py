"""analysis/trend.py: distinguishes a changing rate from a noisy one, on made-up windows with known noise."""

import random
import statistics

import pytest
from synthetic import record

from feedrate.analysis.estimate import (
    Rate,
    lasting_rate,
    rate_so_far,
    record_change,
    record_rate,
    record_steady,
    wait_fraction,
)
from feedrate.analysis.trend import MIN_WINDOWS, Lasting, critical, direction, in_first_epoch, lasting

USUAL_SD, NOISY_SD = 0.03, 0.15
"""Standard deviations between the windows of one trial: on a quiet machine, and where production comes in rounds of many workers."""


def noisy(levels, sd, seed):
    rng = random.Random(seed)
    return [level * max(rng.gauss(1, sd), 0.05) for level in levels]


@pytest.mark.parametrize("num", [5, 6, 9, 13, 20, 50])
@pytest.mark.parametrize(("sd", "most", "most_left"), [(USUAL_SD, 0.002, 0.001), (NOISY_SD, 0.025, 0.02)])
def test_noise_alone_is_no_trend(num, sd, most, most_left):
    """1,000 trials without a trend. At the usual noise hardly one shows any, as a tenth is what counts; at much noise one in fifty
    does, and hardly any is left changing, as the second half has to show it as well (except with 5 windows, which have no half)."""
    trials = [noisy([100.0] * num, sd, seed) for seed in range(1000)]
    assert statistics.fmean(direction(rates) != 0 for rates in trials) <= most
    left = [lasting(rates).change_fraction != 0 for rates in trials]
    assert statistics.fmean(left) <= (most_left if num == 5 else most_left / 2)


@pytest.mark.parametrize("num", [6, 8, 10, 13])
def test_critical_shares_are_those_that_noise_exceeds_once_in_200_times(num):
    """The listed values against 20,000 seeded draws; in between (13) a little rarer."""
    from feedrate.analysis.trend import _explained

    rng = random.Random(num)
    exceeded = statistics.fmean(_explained([rng.gauss(0, 1) for _ in range(num)]) >= critical(num) for _ in range(20_000))
    assert 0.003 < exceeded < 0.0065


def test_few_windows_say_nothing():
    assert lasting([1.0, 2.0, 3.0, 4.0]) == Lasting(0, None)
    assert direction([1.0, 2.0, 3.0, 4.0]) == 0
    assert MIN_WINDOWS == 5


def test_a_cache_that_has_filled_leaves_the_windows_after_it():
    """Four windows of a first epoch at a hundredth of the rate, one between, nine after: only those count, and nothing changes any more."""
    rates = noisy([1.0] * 4 + [40.0] + [100.0] * 9, USUAL_SD, 1)
    assert lasting(rates) == Lasting(5, 0.0, 1)
    assert lasting(noisy([100.0] * 3 + [60.0] * 9, USUAL_SD, 2)) == Lasting(3, 0.0, -1)


@pytest.mark.parametrize("num", [13, 20, 40])
def test_a_rate_that_goes_on_rising_or_falling_is_still_changing(num):
    """From 60 to 160 in a straight line: what counts is the end of it."""
    line = [60.0 + 100.0 * index / (num - 1) for index in range(num)]
    found = [lasting(noisy(line, USUAL_SD, seed)) for seed in range(20)]
    assert statistics.fmean((each.change_fraction or 0.0) > 1 for each in found) >= 0.9
    assert {each.first for each in found if each.change_fraction} == {num - 3}
    assert (lasting(noisy(line[::-1], USUAL_SD, 0)).change_fraction or 0.0) < -0.5


@pytest.mark.parametrize("at", [0, 6, 12])
def test_one_bad_window_is_no_trend(at):
    """A burst of load at the beginning, in the middle, at the end."""
    rates = noisy([100.0] * 13, USUAL_SD, 3)
    rates[at] /= 3
    assert direction(rates) == 0


def windows(rates, **columns):
    """A record whose windows of one second have these rates."""
    made = record(0, num_windows=len(rates), **columns)
    items = [round(rate) for rate in rates]
    counted = dict.fromkeys(("window_num_items", "window_num_batches", "window_produced_batches"), items)
    return made | counted | {"window_duration_s": [1.0] * len(rates), "window_wait_s": [0.5] * len(rates)}


RISING = [100.0 * 1.3**index for index in range(8)]


def test_the_rate_is_that_of_the_windows_that_count():
    """Not the mean of a cold and a warm cache, whose interval says nothing; waiting is that of the same windows."""
    rates = noisy([1.0] * 4 + [100.0] * 9, USUAL_SD, 4)
    found = record_steady(windows([1000 * rate for rate in rates]))
    assert found.sps == pytest.approx(100_000, rel=0.05)
    assert found.half_width_fraction < 0.05
    cold = windows([1000 * rate for rate in rates]) | {"window_wait_s": [1.0] * 4 + [0.25] * 9}
    assert wait_fraction(cold) == pytest.approx(0.25)


def test_an_interval_is_open_where_the_rate_goes():
    """Still rising: the rate is that of the last windows, and as much as it rose in its second half may still come."""
    made = windows(RISING)
    rate = record_steady(made)
    assert rate.sps == pytest.approx(statistics.fmean(RISING[-3:]), rel=0.01)
    assert rate.high_sps > 1.5 * rate.sps
    assert rate.low_sps > 0.7 * rate.sps
    assert record_change(made) == pytest.approx(1.3**5 - 1, rel=0.02)
    falling = lasting_rate([1.0] * 8, *[[round(each) for each in RISING[::-1]]] * 3)
    assert falling.low_sps < 0.7 * falling.sps
    assert falling.high_sps < 1.4 * falling.sps


def test_an_open_interval_stays_open_on_one_side():
    """A further standard deviation widens both sides, each from where it was."""
    wide = Rate(sps=100.0, low_sps=90.0, high_sps=300.0).widened(0.05)
    assert wide.low_sps == pytest.approx(100 - (10**2 + 9.8**2) ** 0.5)
    assert wide.high_sps == pytest.approx(100 + (200**2 + 9.8**2) ** 0.5)


def test_a_trial_that_rises_is_not_judged_yet():
    """Nor one that will soon see its samples for the second time; a falling one, and one whose epoch is long, is."""
    columns = windows(RISING) | {"boundary_s": 0.0}
    assert rate_so_far(columns, "steady", None) is None
    assert rate_so_far(windows(RISING[::-1]) | {"boundary_s": 0.0}, "steady", None) is not None
    flat = windows([100.0] * 5) | {"boundary_s": 0.0}
    assert rate_so_far(flat, "steady", 590) is None
    assert rate_so_far(flat, "steady", 50_000).sps == pytest.approx(100.0)


def test_a_short_first_epoch_is_seen_to_its_end():
    """And three windows of the second; one that takes longer than 6 s is not waited for."""
    assert in_first_epoch([1.0] * 3, [100] * 3, 500)
    assert in_first_epoch([1.0] * 7, [100] * 7, 500)
    assert not in_first_epoch([1.0] * 8, [100] * 8, 500)
    assert not in_first_epoch([1.0] * 3, [100] * 3, 700)
    assert not in_first_epoch([1.0] * 3, [100] * 3, None)


def test_whole_epochs_say_whether_their_rate_still_changes():
    """Workers that end with the epoch lose what they kept: every epoch is like the one before, whatever the windows show."""
    lost = windows(RISING, epoch_samples=1000, epoch_num_items=[1000] * 6, epoch_duration_s=[2.0, 2.1, 1.9, 2.0, 2.1, 2.0])
    assert record_change(lost) == 0.0
    assert record_rate(lost).sps == pytest.approx(500, rel=0.02)
    assert record_change(lost, "steady") > 1
    kept = lost | {"epoch_duration_s": [8.0, 6.0, 4.5, 3.0, 2.0, 1.5]}
    assert record_change(kept) > 1


def test_windows_in_which_nothing_was_trained_are_not_all_that_counts():
    """The step skips every batch from some point on, which is faster: the rate is what was trained in the whole time."""
    made = windows([10.0] * 5 + [100.0] * 6) | {"window_num_items": [10] * 5 + [0] * 6}
    assert record_steady(made).sps == pytest.approx(50 / 11, rel=0.01)


def test_a_warm_cache_that_ends_with_the_epoch_needs_timed_epochs():
    """The windows went on beyond the epoch and became fast; workers that end with it start cold again, which nothing shows here."""
    made = windows([100.0] * 4 + [9000.0] * 9, epoch_samples=400, boundary_from="estimated", num_workers=2)
    assert record_change(made) == pytest.approx(89.0)
    assert record_change(made, "steady") == 0.0
    assert record_change(made | {"persistent_workers": True}) == 0.0
    assert record_change(made | {"boundary_from": "measured"}) == 0.0
    assert record_change(made | {"epoch_samples": 10**6}) == 0.0
