"""observed.py: each trial is read once, in any order of finishing."""

import random

from optuna.trial import TrialState, create_trial

from feedrate.search.study.observed import Observed
from feedrate.trainables.config import LoaderConfig


def trial(number, *, finished=True):
    attrs = {
        "config": LoaderConfig(num_workers=number % 7, batch_size=32).to_dict(), "low_sps": 90.0 + number,
        "step_only_sps": 1000.0 + number % 5, "cpu_item_s": 0.001 + 0.0001 * (number % 11), "num_cpus": 4,
    }  # fmt: skip
    return create_trial(state=TrialState.COMPLETE, value=100.0 + (number * 37) % 50, user_attrs=attrs) if finished else create_trial(state=TrialState.RUNNING)


def test_what_finishes_out_of_order_is_the_same_in_the_end():
    """Eight slots: trials finish in another order than they began. A resumed search sees all at once and must draw alike."""
    num_trials, rng = 150, random.Random(2)
    at_once, growing, finished = Observed(), Observed(), set()
    at_once.learn([trial(number) for number in range(num_trials)])
    for begun in range(1, num_trials + 9):
        running = [number for number in range(min(begun, num_trials)) if number not in finished]
        if running and (len(running) >= 8 or begun > num_trials):
            finished.update(rng.sample(running, 1))
        growing.learn([trial(number, finished=number in finished) for number in range(min(begun, num_trials))])
        assert growing.num_finished == len(finished)
    growing.learn([trial(number) for number in range(num_trials)])
    assert growing.latest_and_best(60) == at_once.latest_and_best(60)
    assert len(growing) == len(at_once) == num_trials
    assert (growing.cpu_time(), growing.num_cpus) == (at_once.cpu_time(), 4)
    assert growing.ceilings() == at_once.ceilings() == {32: 1004.0}


def test_half_are_the_highest_and_half_the_latest():
    observed = Observed()
    observed.learn([trial(number) for number in range(100)])
    kept = observed.latest_and_best(10)
    assert [each.number for each in kept[5:]] == [95, 96, 97, 98, 99]
    early = sorted(range(95), key=lambda number: -((number * 37) % 50))[:5]
    assert {each.log_sps for each in kept[:5]} == {each.log_sps for each in observed.latest_and_best(100) if each.number in early}
