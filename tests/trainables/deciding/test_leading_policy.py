"""The decisions of a training in several ranks, replayed in one process with made-up times, a real store and the real board."""

import pytest
from torch.distributed import HashStore

from feedrate.trainables.deciding.following_policy import FollowingPolicy
from feedrate.trainables.deciding.leading_policy import JOIN_S, LeadingPolicy
from feedrate.trainables.ranks import rank_meeting
from feedrate.trainables.ranks.rank import Rank
from feedrate.trainables.ranks.rank_board import NUM_KEPT, RankBoard
from feedrate.trainables.ranks.rank_meeting import RankMeeting

STEP_S = 0.1


class Replay:
    """Ranks that end each step together.

    Rank r's loader delivers `rates[r](num_workers)` batches per second, and comes to another number of workers `late[r]` steps after it was asked to.
    """

    def __init__(self, rates, *, own=1, late=None, **options):
        self.now_s, self.num_steps, self.rates, self.late = 0.0, 0, rates, late or [0] * len(rates)
        self.policies = []
        for number in range(len(rates)):
            meeting = RankMeeting(Rank(number=number, local_number=number, world_size=len(rates), local_world_size=len(rates)), own)
            meeting._key = "the one board of this training"
            kind = FollowingPolicy if number else LeadingPolicy
            self.policies.append(kind(own, meeting=meeting, cpus=2, most=16, clock=lambda: self.now_s, **options))
        self.asked = [[own] * (1 + late) for late in self.late]

    @property
    def leader(self):
        return self.policies[0]

    def run(self, until_s, absent=()):
        while self.now_s < until_s:
            for policy, asked in zip(self.policies, self.asked, strict=True):
                asked.append(policy.target)
                del asked[0]
            now = [each[0] for each in self.asked]
            waits = [max(1 / rate(number) - STEP_S, 0) for rate, number in zip(self.rates, now, strict=True)]
            taken_s = max(waits) + STEP_S
            self.now_s += taken_s
            self.num_steps += 1
            for number in range(len(self.policies))[:: 1 if self.num_steps % 3 else -1]:  # ranks end a step in any order
                if number not in absent:
                    self.policies[number].observe(now[number], waits[number], taken_s - waits[number], lambda: 0)
        return self

    def kinds(self):
        return [each.kind for each in self.leader.decisions]


@pytest.fixture(autouse=True)
def store(monkeypatch):
    store = HashStore()
    monkeypatch.setattr(rank_meeting, "store_of_process_group", lambda: store)
    monkeypatch.setattr(rank_meeting, "ASK_PERIOD_S", 0.0)
    return store


def never(num_workers):
    return 100.0


def needs_two(num_workers):
    return 5.0 * max(num_workers, 0.5)


def test_rank_0_decides_for_all_on_the_waiting_of_the_slowest_rank(tmp_path):
    """Rank 0 itself never waits; the rank with the slow data waits half of the time until it has a second worker."""
    replay = Replay([never, needs_two, never]).run(120)
    assert {each.best for each in replay.policies} == {2} == {each.target for each in replay.policies}
    assert replay.leader.first["wait_fraction"] == pytest.approx(0.5)
    assert replay.leader.speedup[0] == pytest.approx(2, rel=0.05)
    assert replay.kinds()[-1] == "settled"
    facts = replay.leader.rank_facts()
    assert facts["slowest"] == 1 and facts["wait_fractions"][0] == facts["wait_fractions"][2] == 0.0
    assert all(not each.decisions for each in replay.policies[1:])
    assert [round(each.fraction_waited(), 2) for each in replay.policies] == [round(facts["wait_fractions"][1], 2)] * 2 + [0.0]


def test_a_window_has_only_batches_that_all_ranks_loaded_with_its_setting():
    """Rank 1 comes to a new number 30 steps later than rank 0, so the first steps of a setting are a mixture."""
    replay = Replay([never, needs_two], late=[0, 30]).run(400)
    assert replay.leader.best == 2
    rates = {number: {round(each.rate, 3) for each in windows} for number, windows in replay.leader.windows.items()}
    assert rates[2] == {10.0} and rates.get(1, {5.0}) == {5.0}


def test_ranks_that_have_nothing_to_gain_are_left_alone():
    replay = Replay([never, never]).run(60)
    assert replay.kinds() == ["baseline", "enough"]


def test_a_failure_in_one_rank_takes_all_back_to_the_users_own_setting():
    replay = Replay([never, needs_two]).run(30)
    assert [each.target for each in replay.policies] == [2, 2]
    decision = replay.policies[1].failed(2, "with 2 workers, loading failed (RuntimeError: no)")
    assert decision.reason.startswith("rank 1: with 2 workers, loading failed")
    assert replay.policies[1].target == 1
    replay.run(32)
    assert [each.target for each in replay.policies] == [1, 1] and replay.kinds()[-1] == "failure"
    assert "rank 1: with 2 workers, loading failed (RuntimeError: no)" in replay.leader.leave


@pytest.mark.parametrize("kind", ["leave", "limit"])
def test_a_rank_that_may_not_change_its_setting_lets_all_keep_theirs(kind):
    replay = Replay([never, needs_two]).run(5)
    if kind == "leave":
        replay.policies[1].leave_alone("the sampler keeps its place")
    else:
        replay.policies[1].cannot_start(2, "there is no room")
    replay.run(60)
    assert replay.kinds()[-1] == kind and [each.target for each in replay.policies] == [1, 1]


def test_a_rank_whose_loader_is_only_observed_still_says_how_long_it_waits():
    replay = Replay([never, needs_two], leave="only observing, as asked").run(60)
    assert replay.kinds() == ["baseline", "leave"] and replay.leader.first["wait_fraction"] == pytest.approx(0.5)


def test_a_rank_that_does_not_train_is_not_waited_for():
    replay = Replay([needs_two, needs_two]).run(JOIN_S + 5, absent=[1])
    assert replay.kinds() == ["leave"] and "not all of the 2 ranks have begun to train within a minute" in replay.leader.leave


def test_ranks_that_drift_apart_are_left_alone():
    replay = Replay([needs_two, needs_two]).run(2)
    replay.run(60, absent=[1])
    assert replay.kinds()[-1] == "leave" and f"more than {NUM_KEPT} steps apart" in replay.leader.leave


def test_without_a_store_the_number_of_workers_stays(monkeypatch):
    monkeypatch.setattr(rank_meeting, "store_of_process_group", lambda: None)
    replay = Replay([needs_two, needs_two]).run(10)
    assert replay.kinds() == ["leave"] and "no torch process group" in replay.leader.leave
    assert replay.leader.rank_facts() == {"world_size": 2}


def test_a_board_is_a_file_of_its_size_that_is_removed_once_all_have_opened_it(tmp_path):
    board = RankBoard.create(2, 3, tmp_path)
    assert board.path.stat().st_mode & 0o077 == 0 and board.asked() == (3, 3) and not board.are_all_here()
    other = RankBoard(board.path, 2, 1)
    board.remove()
    assert board.are_all_here() and not list(tmp_path.iterdir())
    for step in range(1, NUM_KEPT + 3):
        other.note(step, step / 8, 4)
    assert board.noted(1, 2) is None and board.noted(1, NUM_KEPT + 3) is None
    assert (board.noted(1, 5).wait_s, board.noted(1, 5).num_workers) == (0.625, 4)
    other.complain("failure", "é" * 2000)
    other.complain("limit", "too late")
    number, kind, reason = board.complaint()
    assert (number, kind) == (1, "failure") and set(reason) == {"é"}
    (tmp_path / "torn").write_bytes(b"1234")
    with pytest.raises(OSError, match="is not the board of 2 ranks"):
        RankBoard(tmp_path / "torn", 2, 0)
