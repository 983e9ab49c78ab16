"""analysis/estimate.py: the rate that lasts, with an interval that holds what it promises."""

import math

import numpy as np
import pytest
from synthetic import record

from feedrate.analysis.estimate import (
    Z95,
    Rate,
    copy_only_sps,
    cpu_item_s,
    epoch_factor,
    epoch_memory_bytes,
    naive_sps,
    record_rate,
    record_steady,
    sd_of,
    steady_rate,
    step_only_sps,
    t_quantile,
    used_cpu_item_s,
    widening,
)


def test_the_rate_of_exact_windows_is_exact() -> None:
    """Three windows of the same rate: no spread of their own, only the run-to-run prior is left."""
    rate = steady_rate([1.0, 2.0, 1.0], [640, 1280, 640], [10, 20, 10], [10, 20, 10])
    assert rate.sps == 640.0
    assert rate.half_width_fraction == pytest.approx(1.96 * 0.015)
    exact = steady_rate([1.0, 2.0], [640, 1280], [10, 20], [10, 20], run_sd_fraction=0.0)
    assert (exact.low_sps, exact.sps, exact.high_sps) == (640.0, 640.0, 640.0)


def test_the_interval_is_that_of_the_ratio_estimator() -> None:
    """Five windows worked by hand: mean 100, residuals 10, -10, 10, -10, 0: standard error sqrt(400 / 4 / 5), t(4) = 2.776."""
    batches = [110, 90, 110, 90, 100]
    rate = steady_rate([1.0] * 5, batches, batches, batches, run_sd_fraction=0.0)
    assert rate.sps == pytest.approx(100.0)
    assert rate.high_sps == pytest.approx(100.0 + 2.776 * math.sqrt(400 / 4 / 5))
    assert rate.low_sps == pytest.approx(200.0 - rate.high_sps)


def test_few_windows_are_pooled_with_what_is_known_of_their_spread() -> None:
    """One: t(5) = 2.571 times 15 %. Two of 110 and 90: (5 * 0.15^2 + 2 * 0.1^2) / 6, t(6) = 2.447, and not t(1) = 12.7."""
    one = steady_rate([1.0], [100], [1], [1], run_sd_fraction=0.0)
    assert one.half_width_fraction == pytest.approx(2.571 * 0.15)
    two = steady_rate([1.0, 1.0], [110, 90], [110, 90], [110, 90], run_sd_fraction=0.0)
    assert two.half_width_fraction == pytest.approx(2.447 * math.sqrt((5 * 0.15**2 + 0.02) / 6 / 2))
    alike = steady_rate([1.0] * 3, [101, 99, 100], [101, 99, 100], [101, 99, 100], run_sd_fraction=0.0)
    assert alike.half_width_fraction == pytest.approx(4.303 * 0.01 / math.sqrt(3))


@pytest.mark.parametrize(
    "windows",
    [
        ([], [], [], []),
        ([0.0], [1], [1], [1]),
        ([1.0], [0], [0], [0]),
        ([1.0], [1], [1], [0]),
        ([math.nan], [1], [1], [1]),
    ],
)
def test_windows_without_a_rate_are_refused(windows: tuple[list[float], list[int], list[int], list[int]]) -> None:
    """No window, no time, no batch, nothing produced: a sentence instead of a number."""
    with pytest.raises(ValueError, match="window"):
        steady_rate(*windows)


def test_a_draining_queue_does_not_count_as_throughput() -> None:
    """A loader of 100 batches/s, 64 ahead of a step of 400/s: naive reads four times too much, ours does not."""
    load_s, step_s, queue = 1 / 100, 1 / 400, 64
    window_batches, num_windows = 20, 4
    finished = [0.0] * queue + [load_s * (n + 1) for n in range(200)]  # the queue was full when the clock started
    now, consumed_at = 0.0, []
    for each in finished[: window_batches * num_windows]:
        now = max(now, each) + step_s
        consumed_at.append(now)
    edges = [0.0, *consumed_at[window_batches - 1 :: window_batches]]
    durations = np.diff(edges)
    made = [sum(0.0 < each <= edge for each in finished) for edge in edges]
    batches = [window_batches] * num_windows
    naive = naive_sps(durations[:3], [window_batches * 8] * 3) / 8
    assert naive > 350
    rate = steady_rate(durations[:3].tolist(), [160] * 3, batches[:3], np.diff(made)[:3].tolist())
    assert rate.sps / 8 == pytest.approx(100.0, rel=0.1)


def test_a_filling_queue_does_not_count_either() -> None:
    """While the queue fills the loader is faster than it can last: the step is the limit."""
    rate = steady_rate([1.0] * 4, [80] * 4, [10] * 4, [14, 12, 10, 10])
    assert rate.sps == 80.0


def test_the_interval_covers_the_truth_19_times_in_20() -> None:
    """Batch means over 6 noisy windows, 2,000 seeded repetitions: between 93.5 % and 96.5 % hold the truth."""
    generator = np.random.default_rng(7)
    covered = 0
    for durations in generator.normal(1.0, 0.05, size=(2000, 6)):
        rate = steady_rate(durations.tolist(), [100] * 6, [10] * 6, [10] * 6, run_sd_fraction=0.0)
        covered += rate.low_sps <= 100.0 <= rate.high_sps
    assert 0.935 < covered / 2000 < 0.965


@pytest.mark.parametrize(
    ("degrees", "expected"),
    [(1, 12.706), (2, 4.303), (10, 2.228), (30, 2.042), (31, 2.0395), (40, 2.0211), (60, 2.0003), (120, 1.9799)],
)
def test_the_t_quantile_is_the_table_s(degrees: int, expected: float) -> None:
    """NIST's two-sided 95 % quantiles, exact to 30 degrees and within 0.001 beyond."""
    assert t_quantile(degrees) == pytest.approx(expected, abs=0.001)
    assert t_quantile(0) == math.inf


def test_the_epoch_rate_counts_the_boundary() -> None:
    """1,000 items at 100 a second and 2.5 s between epochs: 1,000 items in 12.5 s."""
    assert 100 * epoch_factor(100.0, 2.5, 1000) == pytest.approx(80.0)
    assert epoch_factor(100.0, 2.5, None) == 1.0
    measured = record(0, rate_sps=100.0, boundary_s=2.5, epoch_samples=1000)
    steady, epoch = record_steady(measured), record_rate(measured)
    assert steady is not None
    assert epoch is not None
    assert epoch.sps == pytest.approx(80.0)
    assert epoch.half_width_fraction > steady.half_width_fraction  # a boundary differs from run to run
    assert record_rate(measured, "steady") == steady


def test_a_failed_record_has_no_rate() -> None:
    """A crash never becomes a number."""
    assert record_rate(record(0, status="failed")) is None
    assert step_only_sps(record(0)) is None
    assert step_only_sps(record(0, step_only_sps=2000.0)) == pytest.approx(2000.0)


def test_cpu_time_of_loading_and_the_step_counts_no_threads_that_spin() -> None:
    """Without workers, 2 CPUs are busy for 10 ms an item; loading took 4 ms of CPU time, and the step 1 ms on one CPU."""
    facts = {"own_cpu_fraction": 1.0, "num_cpus": 2, "rate_sps": 200.0, "step_only_sps": 1000.0, "load_cpu_item_s": 0.004, "step_only_cpus": 1.0}
    assert cpu_item_s(record(0, num_workers=0, **facts)) == pytest.approx(0.005)
    assert used_cpu_item_s(record(0, num_workers=0, **facts), 200.0) == pytest.approx(0.010)
    assert cpu_item_s(record(0, num_workers=2, **facts)) == pytest.approx(0.010)
    assert cpu_item_s(record(0, num_workers=0, **facts | {"load_cpu_item_s": None})) == pytest.approx(0.010)
    assert cpu_item_s(record(0, num_workers=0, **facts | {"own_cpu_fraction": 0.1})) == pytest.approx(0.001)
    assert cpu_item_s(record(0, num_workers=0, **facts | {"own_cpu_fraction": None})) is None
    assert used_cpu_item_s(record(0, num_workers=0, **facts), None) is None


def test_the_copy_alone_is_the_median_of_its_blocks() -> None:
    """None on a CPU, where there is no copy."""
    blocks = {"copy_only_num_items": [100, 100, 100], "copy_only_duration_s": [1.0, 0.5, 10.0]}
    assert copy_only_sps(record(0) | blocks) == 100.0
    assert copy_only_sps(record(0)) is None


def test_memory_is_extrapolated_to_an_epoch() -> None:
    """Growth per batch times the batches that the windows left; an epoch that they held is over, and nothing shrinks."""
    known = {
        "tree_uss_bytes": 1000, "tree_uss_growth_bytes_per_batch": 10.0, "epoch_samples": 400,
        "window_num_batches": [2, 2], "window_num_items": [20, 20],
    }  # fmt: skip
    assert epoch_memory_bytes(record(0) | known) == 1000 + 10 * (40 - 4)
    assert epoch_memory_bytes(record(0) | known | {"epoch_samples": 30}) == 1000
    assert epoch_memory_bytes(record(0) | known | {"tree_uss_growth_bytes_per_batch": -10.0}) == 1000
    for name in ("tree_uss_bytes", "tree_uss_growth_bytes_per_batch", "epoch_samples", "window_num_batches"):
        assert epoch_memory_bytes(record(0) | known | {name: None}) is None
    assert epoch_memory_bytes(record(0) | known | {"window_num_items": [0, 0]}) is None


def test_an_epoch_of_boundaries_is_less_sure():
    """Starting workers takes another time in every run: the more of an epoch it is, the wider the interval."""
    steady = record_rate(record(0, rate_sps=1000.0), "steady")
    long = record_rate(record(0, rate_sps=1000.0, boundary_s=0.1, epoch_samples=1_000_000))
    short = record_rate(record(0, rate_sps=1000.0, boundary_s=0.1, epoch_samples=100))
    assert short.sps == pytest.approx(steady.sps / 2, rel=0.01)
    assert long.half_width_fraction == pytest.approx(steady.half_width_fraction, rel=0.01)
    assert short.half_width_fraction == pytest.approx(math.hypot(steady.half_width_fraction, 1.96 * 0.05), rel=0.01)


def test_whole_epochs_count_where_they_were_timed():
    """Five whole epochs are the rate over an epoch; fewer, or some that were cut short, are only a boundary."""
    whole = {"epoch_duration_s": [0.19] * 5, "epoch_num_items": [100] * 5, "epoch_samples": 100, "boundary_s": 0.05}
    assert record_rate(record(0, rate_sps=1000.0, **whole)).sps == pytest.approx(100 / 0.19)
    for less in ({"epoch_num_items": [50] * 5}, {"epoch_duration_s": [0.19] * 4, "epoch_num_items": [100] * 4}):
        assert record_rate(record(0, rate_sps=1000.0, **(whole | less))).sps == pytest.approx(100 / 0.15, rel=0.01)


def test_three_epochs_count_where_their_ends_take_most_of_them():
    """A steady rate of 1,000/s, known badly, says less of epochs at 180/s than three of those do, which agree."""
    ends = {"epoch_duration_s": [1.1, 1.15, 1.08], "epoch_num_items": [200] * 3, "epoch_samples": 200, "boundary_s": 0.91}
    badly = record(0, rate_sps=1000.0, noise_fraction=0.6)
    rate = record_rate(badly | ends)
    assert rate.sps == pytest.approx(600 / 3.33)
    assert rate.half_width_fraction < record_rate(badly | ends | {"epoch_duration_s": [1.1, 1.15], "epoch_num_items": [200] * 2}).half_width_fraction


def test_an_interval_and_a_standard_deviation_are_two_forms_of_one_thing():
    rate = Rate.with_sd(100.0, 0.05)
    assert (rate.low_sps, rate.high_sps) == pytest.approx((90.2, 109.8))
    assert rate.sd_fraction == pytest.approx(0.05)
    assert sd_of(rate.half_width_fraction) == rate.sd_fraction
    assert Rate(sps=100.0, low_sps=90.2, high_sps=109.8).sd_fraction == pytest.approx(0.05)


def test_values_that_differ_by_more_than_they_explain_widen_their_mean():
    """Two values whose own standard deviation is 1: at a distance of 2 they explain most of it, at 20 a twentieth."""
    assert widening([5.0], [Z95]) == 1.0
    assert widening([-0.1, 0.1], [Z95, Z95]) == 1.0
    assert widening([-10.0, 10.0], [Z95, Z95]) == pytest.approx(math.sqrt(200))
    assert widening([-10.0, 10.0], [10 * Z95, 10 * Z95]) == pytest.approx(math.sqrt(2))
