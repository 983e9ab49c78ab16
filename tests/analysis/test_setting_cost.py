"""analysis/setting_cost.py: which of several equally fast settings is the cheapest."""

from feedrate.analysis.setting_cost import SettingCost, cheapest


def cost(num_workers, cpu_item_s=None, **others):
    return SettingCost(num_workers=num_workers, cpu_item_s=cpu_item_s, **others)


def test_fewer_workers_are_cheaper_then_less_prefetch_then_less_memory():
    assert cost(2).is_below(cost(4))
    assert cost(2, prefetch_factor=1).is_below(cost(2, prefetch_factor=2))
    assert cost(2, memory_bytes=1e9).is_below(cost(2, memory_bytes=2e9))
    assert not cost(2).is_below(cost(2))
    assert cheapest([cost(8), cost(2, prefetch_factor=4), cost(2, prefetch_factor=2)]) == 2


def test_much_more_cpu_time_outweighs_fewer_workers_and_a_little_more_does_not():
    """A quarter more is much."""
    assert cost(4, 0.004).is_below(cost(2, 0.005))
    assert not cost(2, 0.005).is_below(cost(4, 0.004))
    assert cost(2, 0.0049).is_below(cost(4, 0.004))
    assert cheapest([cost(2, 0.005), cost(4, 0.0045), cost(8, 0.004)]) == 1


def test_cpu_time_that_was_not_measured_is_not_compared():
    assert cost(2).is_below(cost(4, 0.001))
    assert cost(2, 0.009).is_below(cost(4))
    assert cheapest([cost(4, 0.001), cost(2)]) == 1
