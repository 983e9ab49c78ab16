"""training.py: when the windows of a trial are enough, from recorded windows; nothing is trained."""

import math
from types import SimpleNamespace

import pytest
import torch
from torch.utils.data import DataLoader

from feedrate.trainables.measurement import Measurement
from feedrate.trainables.measuring.training import Training


def training(rates, *, seconds=1.0, epoch_samples=None, enough_fraction=0.015):
    """A training with all the time of the world, whose windows had these rates."""
    result = Measurement(epoch_samples=epoch_samples)
    made = Training(DataLoader([0]), None, None, torch.device("cpu"), result, 1e9, enough_fraction)
    made.deadline = math.inf
    for rate in rates:
        number = round(rate * seconds)
        result.windows.add(duration_s=seconds, num_batches=number, num_items=number, produced_batches=number, wait_s=0.0)
    return made


NOISY = [1000, 1100, 900, 1050, 950, 1080, 920, 1000, 1100, 900, 1050, 950, 1080]


def test_a_steady_rate_is_enough_soon():
    """Five short windows or three long ones that agree, six seconds of some that do not, or thirteen."""
    assert not training([1000] * 4, seconds=0.9).finished()
    assert not training([1000] * 2, seconds=3.0).finished()
    assert training([1000] * 3).finished()
    assert training([1000] * 3).steady()
    assert not training([1000, 1000, 1020], enough_fraction=0.05).finished()
    assert training([1000] * 5, seconds=0.35).finished()
    assert not training(NOISY[:6], seconds=0.35).finished()
    assert training(NOISY[:6]).finished()
    assert training(NOISY, seconds=0.35).finished()


def test_a_trial_of_a_search_needs_less():
    """These rates are known to 3.1 %: enough to compare settings, too little for `measure`."""
    rates = [1000, 1020, 980, 1030, 970]
    assert training(rates, seconds=0.35, enough_fraction=0.05).finished()
    assert not training(rates, seconds=0.35).finished()


def sampled(*, seconds=4.0, num_windows=1, num_samples=128, spread=0.1, first_batch_s=4.0, load_s=3.9, unit="samples", per_batch=128):
    """A training without workers, each of whose windows was one batch of 128 items, `num_samples` of which were timed."""
    result = Measurement(unit=unit, first_batch_s=first_batch_s)
    loaded = SimpleNamespace(num_batches=1, wall_s=load_s, num_samples=num_samples, sample_sd_fraction=lambda: spread)
    watch = SimpleNamespace(probe=SimpleNamespace(sums=lambda: loaded), samples_per_batch=lambda: per_batch, delivering=SimpleNamespace(num=None))
    made = Training(DataLoader([0]), watch, None, torch.device("cpu"), result, 1e9, 0.05)
    made.deadline = math.inf
    for _ in range(num_windows):
        result.windows.add(duration_s=seconds, num_batches=1, num_items=128, produced_batches=1, wait_s=0.0)
        made._after_window()
    return made


def test_one_long_window_without_workers_is_enough_if_its_samples_say_so():
    """Enough samples that are alike, nothing but loading, and a first batch that took as long; two windows say more than one."""
    assert sampled().finished()
    assert sampled().steady()
    assert sampled().result.windows.rate().half_width_fraction == pytest.approx(2.571 * 0.1 / math.sqrt(128))
    assert sampled(spread=0.25, num_windows=2).finished()
    for less in (
        {"spread": 0.25}, {"spread": None}, {"num_samples": 60}, {"first_batch_s": 5.0}, {"load_s": 3.0}, {"unit": "tokens"}, {"per_batch": 64},
        {"seconds": 2.0, "first_batch_s": 2.0, "load_s": 1.9},
    ):  # fmt: skip
        assert not sampled(**less).finished()
        assert not sampled(**less).steady()
    assert sampled(num_windows=3).result.windows.expected_sd_fraction is None


@pytest.mark.parametrize("num", [3, 4])
def test_a_few_long_windows_that_differ_go_on(num):
    """A trend shows from five windows on; until then, six seconds are not enough for windows that differ."""
    rising = training([1000, 1500, 2000, 2500][:num], seconds=2.0, enough_fraction=0.05)
    assert not rising.finished()
    assert not rising.steady()


@pytest.mark.parametrize("num", [6, 13, 20])
def test_a_rate_that_rises_goes_on(num):
    """A rate that still changes is measured until the trial's time is over, for any number and length of windows; a column records it."""
    rising = training([round(1000 * 1.2**index) for index in range(num)])
    assert not rising.finished()
    assert not rising.steady()
    assert rising.result.columns()["trend_fraction"] > 0.5
    rising.deadline = 0.0
    assert rising.finished()


def test_a_cache_that_has_filled_is_followed_by_as_many_windows_as_any_trial():
    """Those of before count neither as windows nor as time."""
    cold = [10] * 4
    assert not training([*cold, *NOISY[:4]], seconds=0.35).finished()
    assert not training([*cold, *NOISY[:9]], seconds=0.35).finished()
    warm = training([*cold, *[1000] * 5], seconds=0.35)
    assert warm.finished()
    assert warm.steady()
    assert warm.result.columns()["trend_fraction"] == 0.0
    assert warm.result.windows.rate().sps == pytest.approx(1000)


def test_a_short_first_epoch_is_waited_for():
    """What a dataset keeps shows when samples come again: 2,000 of 2,500 samples in, the rate says nothing of that yet."""
    assert not training([1000] * 5, seconds=0.4, epoch_samples=2500).finished()
    assert training([1000] * 10, seconds=0.4, epoch_samples=2500).finished()
    assert training([1000] * 5, seconds=0.4, epoch_samples=50_000).finished()
