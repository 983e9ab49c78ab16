"""Of several ranks that fail, one after the other, the first cause is reported: the others only lost their connection to it."""

import os
import select
import signal
import subprocess
import sys
import time

import pytest

from feedrate.trainables.failure import Failure
from feedrate.trainables.ranks.rank import Rank
from feedrate.trainables.sandbox.launched_ranks import SETTLED_S, LaunchedRanks
from feedrate.trainables.sandbox.launcher_protocol import EndedIdle, Raised, RankFailed


def rank(number):
    return Rank(number=number, local_number=number, world_size=3, local_world_size=3)


def raised(text, time_s):
    return Raised(sentence=text, traceback="", time_s=time_s)


@pytest.fixture
def ranks():
    """Ranks 0 to 2, each a process that sleeps; `end` lets one of them end and returns its watch."""
    found = LaunchedRanks()
    processes = [subprocess.Popen([sys.executable, "-S", "-c", "import time; time.sleep(100)"]) for _ in range(3)]
    watches = {number: found.begins(rank(number), each.pid) for number, each in enumerate(processes)}

    def end(number, how=signal.SIGKILL):
        os.kill(processes[number].pid, how)
        select.select([watches[number]], [], [], 10)
        return watches[number]

    yield found, end
    found.close()
    for each in processes:
        each.kill()
        each.wait()


def test_a_death_is_the_cause_of_what_others_report(ranks):
    found, end = ranks
    found.raised(rank(0), raised("the connection was closed", 1.0))
    assert found.cause() is None, "the cause may still come"
    found.ended(end(1), "measure")
    failure = found.cause()
    assert (failure.kind, failure.phase) == ("trainer-killed", "measure")
    assert failure.message == "rank 1 was killed by SIGKILL"


def test_an_exception_is_the_cause_of_the_signals_of_the_launcher(ranks):
    found, end = ranks
    found.ended(end(2, signal.SIGTERM), "setup")
    found.raised(rank(1), raised("train.py raised ValueError", 5.0))
    assert found.cause(is_last=True).message == "rank 1: train.py raised ValueError"


def test_the_first_exception_counts_and_is_reported_after_a_moment(ranks):
    found, _ = ranks
    found.raised(rank(2), raised("later", 7.0))
    found.raised(rank(1), raised("earlier", 6.0))
    found.since_s = time.monotonic() - SETTLED_S
    assert found.cause().message == "rank 1: earlier"


def test_a_failure_in_the_measurement_keeps_its_kind(ranks):
    found, _ = ranks
    failure = Failure(kind="hang", phase="measure", message="no batch came")
    found.failed(rank(1), RankFailed(failure=failure, time_s=1.0))
    assert found.cause(is_last=True) == Failure(kind="hang", phase="measure", message="rank 1: no batch came")


def test_a_rank_that_ends_without_training_is_a_failure_if_another_one_trains(ranks):
    found, _ = ranks
    found.ended_idle(rank(1), EndedIdle(sentence="train.py ended without making a torch DataLoader"))
    assert found.cause(is_last=True) is None
    assert found.joins(rank(0), found.first[0], None) is None
    assert found.cause().message.startswith("rank 1: train.py ended without")


def test_the_ranks_are_those_of_one_host_and_different(ranks):
    found, _ = ranks
    apart = Rank(number=0, local_number=0, world_size=8, local_world_size=4)
    assert "trains with 8 ranks, 4 of them on this host" in found.joins(apart, found.first[0], None)
    assert found.joins(rank(0), found.first[0], None) is None
    assert "two processes that are both rank 0" in found.joins(rank(0), found.first[0], None)
    assert found.missing(rank(0)) == 2
    assert "in another process than the one that imported torch first" in found.joins(rank(1), 1, None)
