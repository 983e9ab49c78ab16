"""Rank 0 decides, and the other ranks take exactly as many steps, whatever it does and however late they are."""

import contextlib
import socket
import threading
import time

import pytest

from feedrate.trainables.failure import TrialFailed
from feedrate.trainables.ranks.lead import ALLOWED_S, MOST_AHEAD, Lead
from feedrate.trainables.ranks.mark import Mark
from feedrate.trainables.ranks.rank import Rank
from feedrate.trainables.ranks.rank_link import RankGone
from feedrate.trainables.ranks.socket_link import SocketLink


def mark(number, **changed):
    return Mark(**{"number": number, "time_s": float(number), "items": 4 * number, "wait_s": 0.0, "made": 0, "made_ahead": 0, "is_waiting": True, "num_asides": 0} | changed)


class Other:
    """Another rank, which takes every allowed step at once, or only when a test says so."""

    def __init__(self, descriptor, is_late=False):
        self.link, self.steps, self.heard = SocketLink(descriptor), 0, []
        self.may_step = threading.Event()
        if not is_late:
            self.may_step.set()
        self.thread = threading.Thread(target=self.run, daemon=True)

    def run(self):
        with contextlib.suppress(RankGone):
            self.follow()

    def follow(self):
        self.link.send({"pid": 1})
        while True:
            message = self.link.receive()
            if message is not None:
                self.heard.append(message["do"])
            if message is None or message["do"] == "start":
                self.may_step.wait(10)
                self.steps += 1
                if "start" in self.heard:
                    self.link.send(mark(self.steps).to_list())
            elif message["do"] == "end":
                self.link.send({"is_clean": True})
                return


@pytest.fixture
def world():
    """A lead with other ranks."""
    links, others = [], []

    def make(num=1, **options):
        pairs = [socket.socketpair() for _ in range(num)]
        links.extend(SocketLink(ours.detach()) for ours, _ in pairs)
        others.extend(Other(theirs.detach(), **options) for _, theirs in pairs)
        for each in others:
            each.thread.start()
        return Lead(links), others

    yield make
    for each in others:
        each.may_step.set()
    for each in links:
        each._socket.close()
    for each in others:
        each.thread.join(10)
        each.link._socket.close()


def train(lead, steps):
    for _ in range(steps):
        lead.next()
        lead.ahead()


def catch_up(lead):
    num = 0
    while lead.is_ahead():
        lead.next()
        num += 1
    return num


def test_the_others_take_as_many_steps_as_rank_0(world):
    lead, others = world(2)
    lead.start()
    train(lead, 7)
    num = 7 + catch_up(lead)
    assert num > 7
    assert lead.items(num) == 2 * 4 * num
    assert lead.end()
    assert [each.steps for each in others] == [num, num]


def test_few_long_steps_are_allowed_at_once(world):
    """Rank 0 has to take them, too, before it can do anything else."""
    lead, _ = world()
    lead.start()
    for _ in range(3):
        train(lead, 1)
        time.sleep(ALLOWED_S)
    assert catch_up(lead) == 1


def test_a_window_waits_for_the_last_rank(world):
    lead, (other,) = world(is_late=True)
    lead.start()
    train(lead, 3)
    threading.Timer(0.05, other.may_step.set).start()
    window = lead.window(mark(1, time_s=1.5), mark(3, time_s=2.5), 1)
    assert window.duration_s == 3.0 - 1.5
    assert window.num_items == 16


def test_rank_0_does_not_run_away_from_a_late_rank(world):
    lead, (other,) = world(is_late=True)
    lead.start()
    done = threading.Event()

    def run():
        train(lead, 3 * MOST_AHEAD)
        done.set()

    threading.Thread(target=run, daemon=True).start()
    assert not done.wait(0.1)
    other.may_step.set()
    assert done.wait(10)


def test_the_end_of_a_rank_is_a_failure_with_its_name(world):
    lead, others = world(2)
    lead.start()
    others[1].link._socket.shutdown(socket.SHUT_RDWR)
    with pytest.raises(TrialFailed, match="rank 2 ended in the middle"):
        train(lead, 5)


def test_a_step_on_the_cached_batch_is_taken_by_all(world):
    lead, (other,) = world()
    lead.set_up({}, {}, "", has_batch=True)
    seen = []
    step = lead.led(seen.append)
    for batch in range(3):
        step(batch)
    step.catch_up()
    assert seen == [0, 1, *[2] * (len(seen) - 2)]
    assert len(seen) > 3
    assert lead.end()
    assert other.steps == len(seen)


def test_which_rank_a_process_is():
    torchrun = {"RANK": "5", "WORLD_SIZE": "8", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "4"}
    assert Rank.of_environment(torchrun) == Rank(number=5, local_number=1, world_size=8, local_world_size=4)
    assert Rank.of_environment({"RANK": "0", "WORLD_SIZE": "2"}) == Rank(number=0, local_number=0, world_size=2, local_world_size=2)
    assert Rank.of_environment({"RANK": "0", "WORLD_SIZE": "1"}) is None
    assert Rank.of_environment({"RANK": "first", "WORLD_SIZE": "2"}) is None
    assert Rank.of_environment({}) is None
