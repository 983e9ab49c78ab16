"""Ranks on several hosts talk through the store of torch's process group, here a real TCPStore."""

import threading
from datetime import timedelta

import pytest
import torch.distributed as dist

from feedrate.trainables.ranks import store_link
from feedrate.trainables.ranks.lead import Lead
from feedrate.trainables.ranks.rank_link import RankGone
from feedrate.trainables.ranks.store_link import StoreLink


@pytest.fixture
def store():
    return dist.PrefixStore("default_pg/0", dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False))


@pytest.fixture
def ends(store):
    """Rank 0's end of a link and that of rank 3, each on a connection of its own."""
    return tuple(StoreLink(StoreLink.connection(store), 3, is_lead=is_lead) for is_lead in (True, False))


def test_messages_come_in_order_in_both_ways_and_nothing_piles_up(store, ends):
    lead, other = ends
    before = store.num_keys()
    lead.send({"do": "load"})
    lead.allow(2)
    lead.send({"do": "end"})
    assert [other.receive() for _ in range(4)] == [{"do": "load"}, None, None, {"do": "end"}]
    assert lead.pending() == []
    for first in range(0, 3 * store_link.RING_SIZE, 20):  # around the ring several times
        numbers = [[number, 0.5] for number in range(first, first + 20)]
        for each in numbers:
            other.send(each)
        assert lead.receive() == numbers[0]
        found = []
        while len(found) < 19:
            found += lead.pending()
        assert found == numbers[1:]
    assert store.num_keys() == before


def test_rank_0_waits_for_a_rank_that_has_not_begun(store):
    lead, found = StoreLink(StoreLink.connection(store), 1, is_lead=True), []
    assert lead.pending() == []
    waiting = threading.Thread(target=lambda: found.append(lead.receive()), daemon=True)
    waiting.start()
    StoreLink(StoreLink.connection(store), 1, is_lead=False).send({"pid": 1})
    waiting.join(10)
    assert found == [{"pid": 1}]


def test_waiting_goes_on_as_long_as_the_store_answers(ends, monkeypatch):
    monkeypatch.setattr(store_link, "LOOK_PERIOD", timedelta(milliseconds=20))
    lead, other = ends
    threading.Timer(0.2, lambda: lead.send("late")).start()
    assert other.receive() == "late"


def test_a_store_that_is_gone_is_noticed():
    server = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    client = dist.TCPStore("127.0.0.1", server.port, is_master=False, timeout=timedelta(seconds=2))
    link = StoreLink(client, 1, is_lead=False)
    assert not client.check(["x"])
    del server
    with pytest.raises(RankGone, match="the store of torch's process group is gone"):
        link.receive()


def test_the_clock_of_a_rank_on_another_host_is_corrected(ends):
    """It is 1,000 seconds ahead. Rank 0 asks for it several times, and takes it off the marks."""
    lead_end, other = ends

    def follow():
        other.send({"pid": 7})
        while (message := other.receive())["do"] == "clock":
            other.send({"clock_s": store_link.time.perf_counter() + 1000})
        other.receive()  # it begins to load
        other.send({"loaded": True})
        while (message := other.receive()) != {"do": "start"}:
            assert message is None
        other.send([1, store_link.time.perf_counter() + 1000, 16, 0.5, 0, 0, True, 0])
        other.receive()

    thread = threading.Thread(target=follow, daemon=True)
    thread.start()
    lead = Lead([lead_end], num_local=1)
    assert lead.pids == []  # it is no process of this host
    began_s = store_link.time.perf_counter()
    lead.set_up({}, {}, "", has_batch=False)
    lead.load()
    lead.start()
    (mark,) = lead.marks(1)
    lead_end.allow(1)
    assert began_s < mark.time_s < store_link.time.perf_counter()
    thread.join(10)
    assert not thread.is_alive()
