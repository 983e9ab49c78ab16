"""The decisions of a training, replayed with made-up times on a clock that is passed in."""

import math

import numpy as np
import pytest

from feedrate.trainables.deciding.budget import Budget
from feedrate.trainables.deciding.policy import Policy

STEP_S = 0.1


class Replay:
    """A training whose loader delivers `rate(num_workers, now)` batches per second, with noise from window to window.

    With `epoch_s`, the number of workers changes between two epochs of that length only.
    """

    def __init__(self, rate, own, *, cpus=8, noise=0.02, seed=0, drift=0.0, most=32, epoch_s=None, **options):
        self.rate, self.noise, self.drift, self.now_s = rate, noise, drift, 0.0
        self.random = np.random.default_rng(seed)
        self.policy = Policy(own, cpus=cpus, most=most, clock=lambda: self.now_s, **options)
        self._epoch_s, self._next_epoch_s, self._asked = epoch_s, 0.0, own
        self._window, self._level = None, 1.0

    def run(self, until_s):
        policy = self.policy
        while self.now_s < until_s:
            if self.now_s >= self._next_epoch_s:
                self._asked = policy.target
                if self._epoch_s is not None:
                    self._next_epoch_s = self.now_s + self._epoch_s
                    policy.interrupted()
            asked = self._asked
            window = asked, id(policy.windows[asked][-1]) if policy.windows.get(asked) else None
            if window != self._window:
                self._window, self._level = window, math.exp(self.noise * self.random.standard_normal() - self.noise**2 / 2)
            batch_s = max(1 / self.rate(asked, self.now_s), STEP_S)
            level = self._level * (1 + self.drift * self.now_s)
            self.now_s += batch_s * level
            policy.observe(asked, (batch_s - STEP_S) * level, STEP_S * level, lambda asked=asked, waits=batch_s > STEP_S: 0 if waits else 2 * asked)
        return self

    def kinds(self):
        return [each.kind for each in self.policy.decisions]

    def changes_for_the_worse(self):
        """Changes to a setting that is slower, or that needs more workers and is no faster."""
        policy, before, found = self.policy, self.policy.own, []
        for each in policy.decisions:
            if each.kind == "adopt":
                now = each.num_workers
                ratio = self.rate(now, 0) / self.rate(before, 0)
                if ratio < 0.98 or (now > before and ratio <= 1):
                    found.append((before, now))
                before = now
        return found


def test_where_nothing_waits_nothing_is_tried():
    replay = Replay(lambda workers, now: 20.0, 2).run(60)
    assert replay.kinds() == ["baseline", "enough"]
    assert replay.policy.budget.lost_s == 0
    assert "no loader can make it noticeably faster" in replay.policy.decisions[-1].reason


def test_a_waiting_training_gets_as_many_workers_as_it_needs_and_the_gain_is_confirmed():
    replay = Replay(lambda workers, now: 1.5 * max(workers, 0.8), 1).run(400)
    policy = replay.policy
    assert policy.best in (7, 8)
    assert replay.kinds()[:2] == ["baseline", "try"] and replay.kinds()[-1] == "settled"
    ratio, low, high = policy.speedup
    assert low < 10 / 1.5 < high and ratio == pytest.approx(10 / 1.5, rel=0.1)
    for decision in policy.decisions:
        assert decision.reason and decision.to_json()["step"] <= policy.num_batches


@pytest.mark.parametrize("seed", range(4))
def test_a_training_of_ten_minutes_that_waits_for_storage_loses_little(monkeypatch, seed):
    """Its own two workers deliver a sixteenth of what the best number does, so every second with them counts: it settles within a minute."""
    monkeypatch.setitem(globals(), "STEP_S", 0.025)
    replay = Replay(lambda workers, now: max(workers, 0.5) / 0.8, 2, cpus=2, noise=0.05, seed=seed).run(600)
    policy = replay.policy
    assert policy.best == 32
    assert next(each.time_s for each in policy.decisions if each.kind == "settled") < 60
    assert policy.num_batches > 0.94 * 600 / 0.025


@pytest.mark.parametrize(("own", "used_cpus", "first"), [(2, None, 4), (2, 0.2, 8), (2, 1.5, 4), (8, 2.0, 16)])
def test_workers_that_wait_for_storage_become_four_times_as_many_at_once(own, used_cpus, first):
    """If they compute, so many of them would share two CPUs."""
    replay = Replay(lambda workers, now: workers / 4, own, cpus=2, cpu_s=None if used_cpus is None else lambda: used_cpus * replay.now_s)
    replay.run(100)
    assert next(each.num_workers for each in replay.policy.decisions if each.kind == "try") == first
    assert replay.policy.best == 32


def test_where_a_training_waits_for_most_of_its_time_no_further_window_of_its_setting_is_measured():
    """The four that showed it are enough for the comparison, too."""
    replay = Replay(lambda workers, now: workers / 4, 2, cpus=2).run(100)
    assert replay.policy.best == 32 and len(replay.policy.windows[2]) == 4


def test_after_too_large_a_step_a_smaller_one_is_tried():
    """Two workers hardly use the CPUs; eight of them are slower, four are faster."""
    replay = Replay(lambda workers, now: {2: 2.0, 4: 3.5, 8: 1.5}.get(workers, 1.0), 2, cpus=2, cpu_s=lambda: 0.1 * replay.now_s)
    replay.run(200)
    tried = [each.num_workers for each in replay.policy.decisions if each.kind == "try"]
    assert tried[:2] == [8, 4] and replay.policy.best == 4


def test_a_gain_that_the_comparisons_have_shown_together_is_not_measured_again():
    """Your own setting would cost the training most. A smaller gain is measured against it."""
    policy = Replay(lambda workers, now: 1.5 * max(workers, 0.8), 1).run(400).policy
    confirmed = [each for each in policy.decisions if each.kind == "confirm"]
    assert [each.numbers["num_pairs"] for each in confirmed] == [0]
    low, high = confirmed[0].numbers["ci95"]
    assert policy.speedup == (confirmed[0].numbers["ratio"], low, high) and low > 1.5
    policy = Replay(lambda workers, now: {2: 7.0}.get(workers, 6.0), 8, cpus=2).run(400).policy
    assert [each.numbers.get("num_pairs", 0) > 0 for each in policy.decisions if each.kind == "confirm"] == [False, True]
    assert policy.best == 2 and 1.02 < policy.speedup[0] < 1.5


def test_a_small_gain_that_was_beyond_doubt_once_stays_if_it_is_likely_the_second_time():
    """8 % at 10 % noise: going back whenever the confirmation alone leaves a doubt would give up half of such gains."""
    replays = [Replay(lambda workers, now: 7.0 * (1.08 if workers >= 2 else 1), 1, cpus=2, noise=0.1, most=4, seed=seed).run(300) for seed in range(100)]
    adopted = [replay for replay in replays if "adopt" in replay.kinds()]
    stays = [replay for replay in adopted if replay.policy.best > 1]
    assert len(adopted) >= 40 and len(stays) >= 0.8 * len(adopted)
    likely = [replay for replay in stays if replay.policy.speedup is None]
    assert likely and all("but likely, so 2 workers stay, not confirmed" in replay.policy.decisions[-2].reason for replay in likely)


def test_a_setting_that_seems_faster_is_compared_for_longer():
    """By 9 % at 8 % noise, which 16 pairs seldom show. Meanwhile it costs the training nothing. One that seems slower is left after 16."""
    found = [Replay(lambda workers, now: {2: 6.54}.get(workers, 6.0), 1, cpus=2, noise=0.08, seed=seed).run(600).policy for seed in range(10)]
    assert sum(policy.best == 2 for policy in found) >= 8
    ends = [each.numbers["num_pairs"] for policy in found for each in policy.decisions if each.kind in ("adopt", "reject")]
    assert max(ends) > 16
    slower = Replay(lambda workers, now: {2: 5.95}.get(workers, 6.0), 1, cpus=2, noise=0.08).run(600).policy
    assert max(each.numbers["num_pairs"] for each in slower.decisions if each.kind == "reject") <= 16


def test_fewer_workers_that_save_less_than_a_tenth_are_not_tried(monkeypatch):
    monkeypatch.setitem(globals(), "STEP_S", 0.025)
    policy = Replay(lambda workers, now: max(workers, 0.5) / 0.8, 16, cpus=2).run(400).policy
    assert policy.best == 32
    assert [each.num_workers for each in policy.decisions if each.kind == "try"] == [32]


def test_without_workers_the_waiting_itself_says_how_many_are_needed():
    replay = Replay(lambda workers, now: 1 / (0.3 + STEP_S) if not workers else workers / 0.3, 0).run(400)
    assert replay.policy.best in (3, 4)


@pytest.mark.parametrize(("with_worker", "best"), [(9.0, 1), (4.0, 0)])
def test_a_setting_that_can_change_between_epochs_only_is_compared_over_several_epochs(with_worker, best):
    """As that of an iterable dataset, for which one worker is the only other setting."""
    replay = Replay(lambda workers, now: with_worker if workers else 5.0, 0, most=1, epoch_s=8.0).run(250)
    assert replay.policy.best == best and replay.kinds()[-1] == "settled"
    assert (replay.policy.speedup is not None) == bool(best)
    assert [each.num_workers for each in replay.policy.decisions if each.kind == "try"] == [1]


def test_drift_is_no_gain():
    """Each window is slower than the one before it, as when a disk fills: that speaks for neither setting."""
    replay = Replay(lambda workers, now: 6.0, 2, drift=0.005, noise=0.01).run(300)
    assert "adopt" not in replay.kinds()
    assert replay.policy.best == 2


def test_a_far_slower_setting_is_left_within_a_window():
    replay = Replay(lambda workers, now: 5.0 if workers == 4 else 0.5, 4, cpus=4).run(200)
    rejected = [each for each in replay.policy.decisions if each.kind == "reject"]
    assert [each.numbers["num_pairs"] for each in rejected] == [1]
    assert replay.policy.best == 4


def test_more_workers_than_cpus_that_slow_each_other_become_fewer():
    replay = Replay(lambda workers, now: {2: 9.0}.get(workers, 6.0), 8, cpus=2).run(400)
    assert replay.policy.best == 2


def test_observing_changes_nothing():
    replay = Replay(lambda workers, now: 1.5 * workers, 1, leave="--observe was given").run(60)
    assert replay.policy.target == 1
    assert replay.kinds() == ["baseline", "leave"]
    assert replay.policy.fraction_waited() == pytest.approx(1 - STEP_S * 1.5, abs=0.01)


@pytest.mark.parametrize(
    ("rate", "own", "cpus", "num"),
    [
        (lambda workers, now: 6.0, 2, 8, 400),
        (lambda workers, now: 6.0 if workers == 2 else 5.8, 2, 8, 300),
        (lambda workers, now: {2: 9.0}.get(workers, 6.0), 8, 2, 300),
    ],
    ids=["all are equal", "the user's own is best", "too many workers"],
)
def test_at_15_percent_noise_changes_for_the_worse_are_rare_and_none_stays(rate, own, cpus, num):
    """1,000 trainings in all. Takes 20 s, because that many are needed to see what is rare."""
    replays = [Replay(rate, own, cpus=cpus, noise=0.15, seed=seed).run(250) for seed in range(num)]
    wrong = [replay for replay in replays if replay.changes_for_the_worse()]
    assert len(wrong) < 0.05 * num
    stays = [replay for replay in wrong if rate(replay.run(600).policy.best, 0) <= rate(own, 0) and replay.policy.best != own]
    assert stays == []


@pytest.mark.parametrize(("each", "none_s", "soon_s"), [(1.5, 9, 35), (4.6, 40, 90)])
def test_waiting_that_grows_is_looked_at_when_it_has_cost_ten_seconds_or_for_a_minute(each, none_s, soon_s):
    """Two workers deliver 30 % of what the step needs, or 92 % of it."""
    slow_s = 700.0
    replay = Replay(lambda workers, now: 20.0 if now < slow_s else each * workers, 2).run(slow_s + none_s)
    assert "look-again" not in replay.kinds()
    replay.run(slow_s + soon_s)
    assert replay.kinds().count("look-again") == 1
    replay.run(slow_s + 400)
    assert replay.policy.best in ((7, 8) if each < 2 else (3,))


def test_a_short_wait_is_not_looked_at():
    """Hysteresis: pauses of ten seconds are no lasting change."""
    replay = Replay(lambda workers, now: 1.5 if 700 < now % 800 < 710 else 20.0, 2).run(1700)
    assert replay.kinds() == ["baseline", "enough"]


def test_a_change_that_follows_a_small_growth_is_seen_as_soon():
    """The small growth was looked at, so another small one would have to wait for ten minutes; the change is great."""
    replay = Replay(lambda workers, now: 20.0 if now < 100 else 9.2 if now < 200 else 8.5 if now < 500 else 1.1 * workers, 2, cpus=2).run(500)
    num = replay.kinds().count("look-again")
    replay.run(525)
    assert replay.kinds().count("look-again") == num + 1
    replay.run(600)
    assert replay.policy.best >= 8


def test_waiting_that_has_fallen_again_costs_nothing_and_no_later_look():
    """A pause of 13 seconds; a lasting change three minutes after it is looked at, although ten minutes have not passed."""
    replay = Replay(lambda workers, now: 1.5 if 700 < now < 713 else 20.0 if now < 900 else 1.5 * workers, 2).run(890)
    assert replay.kinds() == ["baseline", "enough", "look-again", "baseline", "enough"]
    assert replay.policy.budget.lost_s == 0
    assert "fallen" in replay.policy.decisions[-1].reason
    replay.run(1300)
    assert replay.kinds().count("look-again") == 2 and replay.policy.best in (7, 8)


def test_the_first_look_again_comes_at_once_and_the_second_one_waits_for_ten_minutes():
    """A training of ten minutes that changes in its middle is tuned again. A small change soon after that is not followed."""
    replay = Replay(lambda workers, now: 20.0 if now < 100 else 1.5 * workers if now < 400 else 1.16 * workers, 2).run(109)
    assert "look-again" not in replay.kinds()
    replay.run(390)
    assert replay.kinds().count("look-again") == 1 and replay.policy.best in (7, 8)
    replay.run(715)
    assert replay.kinds().count("look-again") == 1
    replay.run(1100)
    assert replay.kinds().count("look-again") == 2 and replay.policy.best > 8


@pytest.mark.parametrize("seed", range(4))
def test_a_training_that_becomes_another_one_is_followed_at_once(seed):
    """Noise of 15 % uses up what the first look may lose, and makes waiting grow a little now and then. Then two workers deliver a fifth of what the step needs."""
    replay = Replay(lambda workers, now: (9.0 if workers == 1 else 11.0) if now < 300 else 1.1 * workers, 1, cpus=2, noise=0.15, seed=seed).run(300)
    replay.run(600)
    late = [each for each in replay.policy.decisions if each.time_s > 300 and each.kind == "look-again"]
    assert late and late[0].time_s < 335
    assert replay.policy.best >= 8
    assert replay.policy.budget.lost_s < 10.0 * replay.policy.budget.num_looks + 5.0


def test_a_setting_that_was_kept_is_not_measured_against_the_users_own_again():
    """A look that finds nothing better leaves everything as it was."""
    replay = Replay(lambda workers, now: min(1.5 * workers, 12.0) if now < 700 else min(1.2 * workers, 8.0) if workers < 32 else 7.0, 2).run(690)
    policy = replay.policy
    assert policy.best in (7, 8) and policy.speedup is not None
    kept, num_confirmed, speedup = policy.best, replay.kinds().count("confirm"), policy.speedup
    replay.run(1500)
    assert "look-again" in replay.kinds()
    assert (policy.best, replay.kinds().count("confirm"), policy.speedup) == (kept, num_confirmed, speedup)


def test_time_lost_to_slower_settings_is_bounded():
    """Each number of workers is slower than the user's own, and noise hides by how much."""
    budget = Budget(fraction=0.0, least_s=3.0)
    replay = Replay(lambda workers, now: 6.0 if workers == 2 else 5.7, 2, noise=0.1, budget=budget).run(600)
    assert replay.policy.best == 2
    assert budget.lost_s < 3.0 + 3.0  # the three pairs of a comparison that has begun are completed


def test_the_budget_grows_with_the_training_up_to_its_limit():
    budget = Budget()
    assert (budget.allowed_s(10), budget.allowed_s(3600), budget.allowed_s(1e6)) == (10, 72, 300)


def test_a_dead_worker_ends_the_search_at_the_users_own_setting():
    replay = Replay(lambda workers, now: 1.5 * workers, 1).run(25)
    policy = replay.policy
    assert policy.target != 1
    decision = policy.failed(policy.target, "a worker was killed")
    assert (decision.kind, decision.num_workers, policy.target, policy.best) == ("failure", 1, 1, 1)
    replay.run(900)
    assert policy.target == 1 and replay.kinds()[-1] == "failure"


def test_a_setting_that_does_not_fit_is_not_tried_again_nor_a_larger_one():
    replay = Replay(lambda workers, now: 1.5 * workers, 1)
    policy = replay.policy
    while policy.target == 1:
        replay.run(replay.now_s + 0.1)
    refused = policy.target
    assert policy.cannot_start(refused, "/dev/shm is too small").kind == "reject"
    replay.run(300)
    assert all(each.num_workers < refused for each in policy.decisions if each.kind == "try" and each.time_s > 25)
    assert replay.kinds()[-1] == "settled"


@pytest.mark.parametrize("num_workers", [0, 4])
def test_batches_that_are_counted_together_make_the_same_windows(num_workers):
    """Whole production cycles at once, or batch by batch."""
    found = []
    for grouped in (False, True):
        now_s = 0.0
        policy = Policy(num_workers, cpus=4, most=8, leave="only observing", clock=lambda: now_s)  # noqa: B023 - called at once
        while policy.num_batches < 20_000:
            num = 1
            while grouped and policy.num_batches >= 4 and (num < 12 or not policy.is_whole(num)):
                num += 1
            now_s += 0.001 * num
            policy.observe(num_workers, 0.0004 * num, 0.0006 * num, lambda: 0, num)
        found.append((policy.first["batches_per_s"], policy.first["wait_fraction"], len(policy.decisions)))
    assert found[0] == pytest.approx(found[1])
    assert found[0][:2] == pytest.approx((1000, 0.4))
