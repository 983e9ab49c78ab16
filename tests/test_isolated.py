"""isolated.py: a piece of user code runs in a process of its own, and leaves nothing behind."""

import os
import time

import psutil
from torch.utils.data import DataLoader
from workloads import Rows

from feedrate.trainables.failure import Failure
from feedrate.trainables.isolated import isolated


def test_isolated_work_leaves_this_process_alone():
    """What it changes is not seen here; what it returns, raises or dies of is."""
    seen = []
    assert isolated(lambda: (seen.append(1), len(seen))[1], 10) == 1
    assert seen == []
    raised = isolated(lambda: 1 / 0, 10)
    assert isinstance(raised, Failure)
    assert raised.message == "ZeroDivisionError: division by zero"
    died = isolated(lambda: os._exit(3), 10)
    assert "ended by itself (exit status 3)" in died.message
    hung = isolated(lambda: time.sleep(100), 0.2)
    assert hung.kind == "hang"


def test_isolated_work_leaves_no_process():
    """Loader workers that are still there when the work is done are ended."""

    def work():
        iterator = iter(DataLoader(Rows(), num_workers=2, persistent_workers=True))
        next(iterator)
        return [worker.pid for worker in iterator._workers]

    pids = isolated(work, 60)
    deadline = time.monotonic() + 10
    while (left := [pid for pid in pids if is_running(pid)]) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert len(pids) == 2
    assert left == []


def is_running(pid):
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False
