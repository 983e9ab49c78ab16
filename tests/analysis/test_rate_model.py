"""rate_model.py and surrogate.py on worlds that are known exactly."""

import math

import numpy as np
import pytest

from feedrate.analysis.rate_model import RateModel, fit_model
from feedrate.search.study.surrogate import Settings, Surrogate

CEILINGS = {32: 900.0, 64: 1000.0, 128: 1050.0}
WORLD = RateModel(item_s=0.01, cap_sps=1600.0, ceilings=CEILINGS)


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
    capped = RateModel(item_s=0.01, cap_sps=500.0, ceilings=CEILINGS)
    assert rates(capped, [32])[0] < 500.0


def test_without_a_ceiling_workers_alone_count():
    free = RateModel(item_s=0.01, cap_sps=math.inf, ceilings={})
    assert rates(free, [0, 8]) == pytest.approx([100.0, 800.0])


def test_three_trials_give_the_parameters():
    """Noise of 2 %; what 16 workers give is then known within 5 %, before anything like it was measured."""
    rng = np.random.default_rng(0)
    workers = [0, 2, 4]
    measured = np.log(rates(WORLD, workers)) + rng.normal(0, 0.02, 3)
    fitted = fit_model(workers, [64] * 3, measured.tolist(), CEILINGS, cpu_item_s=0.005, num_cpus=8)
    assert rates(fitted, [16])[0] == pytest.approx(rates(WORLD, [16])[0], rel=0.05)


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
