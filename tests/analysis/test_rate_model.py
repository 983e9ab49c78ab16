"""rate_model.py and surrogate.py on worlds that are known exactly."""

import math
from dataclasses import replace

import numpy as np
import pytest

from feedrate.analysis.cpu_time import CpuSeen, CpuTime
from feedrate.analysis.rate_model import RateModel, fit_model
from feedrate.search.study.surrogate import Settings, Surrogate

CEILINGS = {32: 900.0, 64: 1000.0, 128: 1050.0}
WORLD = RateModel(item_s=0.01, ceilings=CEILINGS, cpu_time=CpuTime(item_s=0.04), num_cpus=64)


def rates(model, num_workers, batch_size=64):
    workers = np.array(num_workers, dtype=float)
    return np.exp(model.log_rate(workers, np.full(workers.shape, float(batch_size))))


def test_workers_side_by_side_until_the_step_is_the_limit():
    """0 workers: loading and training in turn. 4 workers: four times what one loads. 32: the step, and never more."""
    none, one, four, many = rates(WORLD, [0, 1, 4, 32])
    assert none == pytest.approx(1 / (0.01 + 0.001))
    assert one == pytest.approx(100.0, rel=0.01)
    assert four == pytest.approx(400.0, rel=0.02)
    assert 900.0 < many < 1000.0


def test_the_cpus_are_a_limit_too():
    capped = replace(WORLD, cpu_time=CpuTime(item_s=0.128))
    assert rates(capped, [32])[0] < 500.0


def test_without_a_ceiling_workers_alone_count():
    free = RateModel(item_s=0.01, ceilings={})
    assert rates(free, [0, 8]) == pytest.approx([100.0, 800.0])


def test_three_trials_give_the_parameters():
    """Noise of 2 %; what 16 workers give is then known within 5 %, before anything like it was measured."""
    rng = np.random.default_rng(0)
    workers = [0, 2, 4]
    measured = np.log(rates(WORLD, workers)) + rng.normal(0, 0.02, 3)
    fitted = fit_model(workers, [64] * 3, measured.tolist(), CEILINGS, cpu_time=CpuTime(item_s=0.005), num_cpus=8)
    assert rates(fitted, [16])[0] == pytest.approx(rates(WORLD, [16])[0], rel=0.05)


def test_handing_batches_over_takes_cpu_time():
    """2 ms a batch and 0.05 ms an item: eight items a batch take six times the CPU time that many items a batch do."""
    handing = RateModel(item_s=1e-6, ceilings={}, cpu_time=CpuTime(item_s=0.00005, batch_s=0.002), num_cpus=1)
    assert rates(handing, [1, 1], 8) == pytest.approx([20_000 / 6] * 2, rel=0.01)
    assert rates(handing, [1, 1], 4000) == pytest.approx([20_000 / 1.01] * 2, rel=0.01)
    assert rates(handing, [0, 1], 0) == pytest.approx([1e6, 20_000], rel=0.01)


def test_many_more_workers_than_cpus_are_slower():
    crowded = RateModel(item_s=0.01, ceilings={}, cpu_time=CpuTime(item_s=0.005), num_cpus=2)
    found = rates(crowded, [2, 8, 16, 64])
    assert found[1] == found.max()
    assert found[3] == pytest.approx(400 / (1 + 0.04 * 5), rel=0.01)


def seen(num_workers, batch_size, cpu_item_s):
    return CpuSeen(num_workers=num_workers, batch_size=batch_size, cpu_item_s=cpu_item_s)


def test_cpu_time_is_that_of_items_and_that_of_batches():
    """1 ms an item and 16 ms a batch."""
    found = CpuTime.fit([seen(2, 32, 0.0015), seen(4, 64, 0.00125), seen(0, 64, 0.001)], {})
    assert (found.item_s, found.batch_s) == pytest.approx((0.001, 0.016))
    assert CpuTime.fit([seen(2, 64, 0.00125), seen(0, 64, 0.001)], {}) == CpuTime(item_s=0.001, batch_s=pytest.approx(0.016))
    assert CpuTime.fit([], {}) is None


def test_a_step_that_takes_less_per_item_in_larger_batches_takes_less_cpu_time_too():
    """A step takes 8 ms a batch on two CPUs; loading takes 1 ms an item, handing over 4 ms a batch. What 32 items a batch take follows from 64."""
    ceilings = {32: 32 / 0.008, 64: 64 / 0.008}
    trials = [seen(0, 64, 0.001 + 2 * 0.008 / 64), seen(2, 64, 0.001 + 2 * 0.008 / 64 + 0.004 / 64)]
    found = CpuTime.fit(trials, ceilings, step_cpus=2.0)
    assert (found.item_s, found.batch_s) == pytest.approx((0.001, 0.004))
    assert found.of_item([32, 64], [0.008 / 32, 0.008 / 64]) == pytest.approx([0.001 + 0.020 / 32, 0.001 + 0.020 / 64])


def test_a_small_difference_between_rates_does_not_make_half_of_the_cpus_useless():
    """Workers wait for 10 ms an item; with 8 of them, waiting in order costs 6 %. CPUs take 0.1 ms an item, so 16 workers load twice as much."""
    workers = [0, 2, 8]
    log_sps = np.log([1 / 0.0101, 200.0, 750.0])
    fitted = fit_model(workers, [64] * 3, log_sps.tolist(), {64: 10_000.0}, cpu_time=CpuTime(item_s=0.0004), num_cpus=2)
    assert fitted.efficiency > 0.7
    assert rates(fitted, [16])[0] == pytest.approx(1500, rel=0.1)


@pytest.mark.parametrize(
    "trials",
    [
        [seen(0, 64, 0.001)],
        [seen(0, 64, 0.005), seen(2, 64, 0.001)],  # threads of the step spin while batches are loaded
        [seen(2, 64, 0.001), seen(4, 64, 0.001)],
        [seen(2, 32, 0.001), seen(2, 64, 0.0011)],  # noise: more in larger batches
        [seen(2, 32, 0.002), seen(2, 64, 0.001)],  # as if all were done once per batch
        [seen(2, 32, 0.003), seen(2, 64, 0.001)],
        [seen(2, 0, 0.001)],
    ],
)
def test_any_measured_cpu_time_gives_possible_ones(trials):
    found = CpuTime.fit(trials, {})
    times = [each.cpu_item_s for each in trials]
    assert 0.05 * min(times) <= found.item_s <= max(times)
    assert 0 <= found.batch_s < 1


def settings(num_workers, batch_size=64):
    workers = np.array(num_workers, dtype=float)
    sizes = np.full(workers.shape, float(batch_size))
    main = np.stack([0.7 * np.log2(1 + workers), 1.0 * (workers == 0), 0.5 * np.log2(sizes)], axis=1)
    return Settings(num_workers=workers, batch_size=sizes, main=main, rest=np.zeros((len(workers), 1)))


def surrogate(num_workers, log_sps, sd=0.02, model=WORLD):
    return Surrogate(settings(num_workers), np.asarray(log_sps), np.full(len(num_workers), sd), model)


def test_it_goes_through_what_was_measured_and_is_unsure_elsewhere():
    """A world 20 % slower than modelled from 4 workers on."""
    measured = [0, 1, 2, 4, 8]
    log_sps = np.log(rates(WORLD, measured)) - np.array([0, 0, 0, 0.2, 0.2])
    fitted = surrogate(measured, log_sps, sd=0.005)
    mean, sd = fitted.predict(settings([4, 8, 32]))
    assert mean[:2] == pytest.approx(log_sps[3:], abs=0.02)
    assert sd[2] > 2 * sd[0]


def test_noise_is_taken_setting_by_setting():
    """A reading of ±50 % moves the mean less than one of ±1 %."""
    measured = [2, 4, 8]
    log_sps = np.log(rates(WORLD, measured)) + np.array([0, 0.3, 0])
    sure, unsure = (
        Surrogate(settings(measured), log_sps, np.array([0.01, sd, 0.01]), WORLD).predict(settings([4]))[0][0]
        for sd in (0.01, 0.25)
    )
    assert sure - log_sps[1] > -0.05
    assert unsure < sure - 0.1


def test_nothing_is_gained_beyond_the_ceiling():
    """At 99 % of the step's own rate more workers are not worth a trial, however unsure; far below they are."""
    measured = [0, 2, 4, 8]
    log_sps = np.log([90.0, 200.0, 400.0, 990.0])
    fitted = surrogate(measured, log_sps)
    gain = fitted.expected_gain(settings([12, 16, 32]), math.log(990.0))
    assert (gain < 0.03).all()
    slow = surrogate([0, 2, 4], np.log(rates(WORLD, [0, 2, 4])))
    assert slow.expected_gain(settings([12]), math.log(rates(WORLD, [4])[0]))[0] > 0.5


def test_the_best_counts_only_what_is_allowed():
    fitted = surrogate([0, 2, 4], np.log(rates(WORLD, [0, 2, 4])))
    assert fitted.best_log_sps(np.array([True, True, False]))[0] == pytest.approx(math.log(200.0), abs=0.05)
    assert fitted.best_log_sps(np.zeros(3, dtype=bool))[0] == -math.inf
