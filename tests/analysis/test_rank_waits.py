"""The rank that waits most is named, and a rank that is always slow is told from ranks that take turns."""

import pytest

from feedrate.analysis.ranks import rank_waits


def record(*waits, num=5):
    return {
        "window_duration_s": [1.0] * num,
        "ranks": [{"rank": number, "window_wait_s": each, "window_step_s": [1.0] * num, "window_num_items": [4] * num} for number, each in enumerate(waits)],
    }


def test_a_rank_that_is_slow_in_every_window():
    found = rank_waits(record([0.1] * 5, [0.5] * 5))
    assert (found.slowest, found.slowest_in, found.is_persistent) == (1, 5, True)
    assert found.fractions == pytest.approx((0.1, 0.5))
    assert found.sentence.startswith("rank 1 waits most for data, in 5 of 5 windows: rank 0 10%, rank 1 50%")


def test_ranks_that_take_turns():
    found = rank_waits(record([0.5, 0.1, 0.5, 0.1, 0.6], [0.1, 0.5, 0.1, 0.5, 0.1]))
    assert (found.slowest, found.slowest_in, found.is_persistent) == (0, 3, False)
    assert "changes from window to window" in found.sentence


def test_ranks_that_wait_equally_long():
    assert "2 ranks wait for data about equally long: rank 0 40%, rank 1 42%" in rank_waits(record([0.4] * 5, [0.42] * 5)).sentence


def test_one_process_and_senseless_records_have_no_ranks():
    assert rank_waits({"window_duration_s": [1.0], "ranks": None}) is None
    assert rank_waits({"window_duration_s": [1.0]}) is None
    assert rank_waits(record([0.1] * 4, [0.1] * 5)) is None
    assert rank_waits(record([0.1] * 5, ["long"] * 5)) is None
    assert rank_waits({"window_duration_s": [1.0], "ranks": [{"rank": 0}, {}]}) is None
