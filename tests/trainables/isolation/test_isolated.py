"""isolated.py: runs user code in its own process and leaves nothing behind."""

import atexit
import multiprocessing
import os
import time
from pathlib import Path

import psutil
import pytest
from torch.utils.data import DataLoader
from workloads import InWorker, Rows

from feedrate.trainables.failure import Failure
from feedrate.trainables.isolation.isolated import OutOfTime, goes_on, isolated


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


class Removes:
    """Removes a file when the process ends, as what is named in shared memory is removed."""

    def __init__(self, path):
        self.path = path
        path.write_text("in use")
        atexit.register(path.unlink)


def test_isolated_work_ends_with_its_exit_handlers(tmp_path):
    """Also where it hangs; those of this process are left to this process."""
    mine, theirs = tmp_path / "mine", tmp_path / "theirs"
    mine.write_text("still in use")
    handler = atexit.register(mine.unlink)
    try:
        assert isolated(lambda: Removes(theirs).path.read_text(), 10) == "in use"
        assert not theirs.exists()
        hung = isolated(lambda: (Removes(theirs), time.sleep(100)), 1.0)
        assert hung.kind == "hang"
        assert not theirs.exists()
        assert mine.exists()
    finally:
        atexit.unregister(handler)


def test_what_hangs_where_is_said():
    """A loader worker before the process that waits for it; by the user's own function."""

    def work():
        return list(DataLoader(InWorker(asleep), num_workers=2))

    assert "2 loader workers hang, one of them in asleep (test_isolated.py:" in isolated(work, 2.0).message
    assert isolated(asleep, 0.5).message.startswith("nothing came within 0 s: it hangs in asleep (test_isolated.py:")


def asleep():
    time.sleep(100)


def test_work_that_goes_on_is_slow_and_does_not_hang():
    """What was heard of a moment ago is no hang."""

    def work():
        while True:
            goes_on()
            time.sleep(0.05)

    with pytest.raises(OutOfTime):
        isolated(work, 1.0)
