"""isolated.py: a piece of user code runs in a process of its own, and leaves nothing behind."""

import multiprocessing
import os
import time
from pathlib import Path

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


class Slow:
    """Keeps the feeder thread of a queue busy while it is pickled."""

    def __reduce__(self):
        time.sleep(0.3)
        return str, ()


def test_isolated_work_leaves_no_semaphore(tmp_path):
    """Not even those that the thread of a closed queue holds for a moment longer."""
    prefix = f"{os.getpid()}-{tmp_path.name}"

    def work():
        multiprocessing.current_process()._config["semprefix"] = f"/{prefix}"
        queue = multiprocessing.get_context("spawn").Queue()
        queue.cancel_join_thread()  # as DataLoader does
        queue.put(Slow())
        queue.close()
        return len(list(Path("/dev/shm").glob(f"sem.{prefix}*")))

    assert isolated(work, 60) > 0
    assert list(Path("/dev/shm").glob(f"sem.{prefix}*")) == []


def is_running(pid):
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False
