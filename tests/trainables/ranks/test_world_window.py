"""The rate of several ranks is the items of all of them, from barrier to barrier on one clock."""

import itertools

import pytest

from feedrate.trainables.measurement import Windows
from feedrate.trainables.ranks.mark import Mark
from feedrate.trainables.ranks.rank_windows import RankWindows
from feedrate.trainables.ranks.world_window import WorldWindow


def rank(ends, waits, clock, *, items=4, is_waiting=True, made=None, ahead=None):
    """Marks of one rank whose steps end at these times, after these waits; `clock` is what it adds to them."""
    total = list(itertools.accumulate(waits))
    return [
        Mark(
            number=number,
            time_s=clock + end,
            items=items * number,
            wait_s=total[number],
            made=made[number] if made else 0,
            made_ahead=ahead[number] if ahead else 0,
            is_waiting=is_waiting,
            num_asides=0,
        )
        for number, end in enumerate(ends)
    ]


def window(ranks, first, last, cycle=1):
    return WorldWindow.between([each[first] for each in ranks], [each[last] for each in ranks], cycle)


def test_the_rate_is_the_items_of_all_ranks_between_barriers():
    """Rank 1 ends each step later than rank 0: the sum of what each would see alone is another rate."""
    fast = rank([0.0, 1.0, 2.0, 3.0], [0.0, 0.1, 0.1, 0.1], 100.0)
    late = rank([0.5, 1.5, 2.5, 4.5], [0.0, 0.6, 0.6, 1.6], 100.0)
    found = window([fast, late], 0, 3)
    assert found.duration_s == pytest.approx(4.0)
    assert found.num_items == 24
    assert found.num_batches == 3
    assert found.wait_s == pytest.approx(2.8)
    assert found.rank_wait_s == pytest.approx((0.3, 2.8))
    assert found.rank_step_s == pytest.approx((3.7, 1.2))


def test_ranks_with_other_batch_sizes_count_with_theirs():
    found = window([rank([0.0, 2.0], [0.0, 0.0], 0.0), rank([0.0, 2.0], [0.0, 0.0], 0.0, items=1)], 0, 1)
    assert found.rank_items == (4, 1)
    assert found.num_items == 5


def test_the_rank_that_makes_fewest_batches_limits_the_rate():
    """A queue that drains on one rank must not count as throughput of all."""
    steady = rank([0.0, 1.0, 2.0], [0.0, 0.0, 0.0], 0.0, is_waiting=False, made=[8, 8, 8])
    drains = rank([0.0, 1.0, 2.0], [0.0, 0.0, 0.0], 0.0, is_waiting=False, made=[8, 7, 7])
    assert window([steady, drains], 0, 2).produced_batches == 1
    assert window([steady, steady], 0, 2).produced_batches == 2


def test_batches_that_were_ready_behind_a_late_one_are_not_produced_in_the_window():
    held_up = rank([0.0, 1.0, 2.0], [0.0, 0.0, 0.0], 0.0, made=[5, 0, 0], ahead=[1, 0, 0])
    assert window([held_up], 0, 2).produced_batches == 1
    assert window([held_up], 1, 2).produced_batches == 1


def test_windows_hold_each_rank():
    windows = Windows()
    ranks = [rank([0.0, 1.0, 2.0], [0.0, 0.5, 0.25], 0.0), rank([0.0, 1.0, 2.0], [0.0, 0.25, 0.75], 0.0)]
    windows.add_world(window(ranks, 0, 1))
    windows.add_world(window(ranks, 1, 2))
    assert windows.ranks == (
        RankWindows(rank=0, window_wait_s=(0.5, 0.25), window_step_s=(0.5, 0.75), window_num_items=(4, 4)),
        RankWindows(rank=1, window_wait_s=(0.25, 0.75), window_step_s=(0.75, 0.25), window_num_items=(4, 4)),
    )
    assert windows.window_wait_s == [0.5, 0.75]
    assert windows.window_num_items == [8, 8]
    assert windows.rate().sps == pytest.approx(8.0)
    assert [RankWindows.from_json(each.to_json()) for each in windows.ranks] == list(windows.ranks)
