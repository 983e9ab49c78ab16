"""budget.py: a clock that stands still while every trial waits."""

import pytest

from feedrate.search.session.budget import Budget


class Clock:
    now = 1000.0

    def __call__(self):
        return self.now


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def budget(clock):
    return Budget(60.0, clock)


def test_time_passes_where_nothing_waits(budget, clock):
    """Also between trials."""
    clock.now += 10
    budget.asked("a")
    clock.now += 10
    assert budget.seconds_left() == 40
    budget.ended("a")
    clock.now += 50
    assert budget.seconds_left() == -10
    assert budget.stood_s == 0


def test_waiting_for_a_turn_costs_nothing(budget, clock):
    """The trial's own time begins when it may begin, too."""
    budget.asked("a")
    budget.waits("a")
    clock.now += 500
    assert (budget.seconds_left(), budget.stood_s) == (60, 500)
    budget.proceeds("a")
    clock.now += 5
    assert budget.seconds_left() == 55
    assert budget.ended("a") == clock.now - 5


def test_time_passes_while_one_of_several_measures(budget, clock):
    """It stands still only when the last one waits."""
    budget.asked("a")
    budget.asked("b")
    budget.waits("a")
    clock.now += 10
    budget.waits("b")
    clock.now += 10
    budget.waits("b")
    budget.proceeds("a")
    clock.now += 10
    assert (budget.seconds_left(), budget.stood_s) == (40, 10)
    budget.ended("a")
    clock.now += 10
    assert budget.seconds_left() == 40, "only the waiting one is left"
    budget.ended("b")
    clock.now += 10
    assert budget.seconds_left() == 30


def test_what_is_not_under_way_changes_nothing(budget, clock):
    """News of a trial that ended, or was never asked for, may come late."""
    budget.waits("late")
    budget.proceeds("late")
    clock.now += 10
    assert budget.began_unix_s("late") == budget.ended("late") == clock.now
    assert budget.seconds_left() == 50
