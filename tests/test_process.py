"""process.py: memory and CPU time of a real tree of processes."""

import os
import subprocess
import sys
import time

import pytest
from census import eventually

from feedrate.trainables.process import CpuClock, shm_used_bytes, tree_memory


def started(code):
    """A child process that prints a line when it has done its work, and then waits."""
    child = subprocess.Popen(
        [sys.executable, "-c", code + "\nprint(flush=True)\ninput()"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    child.stdout.readline()
    return child


def test_memory_of_children_counts():
    """Memory that a child, or its child, has touched is part of the tree's."""
    before = tree_memory()
    code = "import os\ndata = b'x' * 60_000_000\nif os.fork() == 0: more = b'y' * 60_000_000\nelse: os.wait()"
    with started(code) as child:
        after = tree_memory()
        child.communicate("\n\n")
    assert after.uss_bytes - before.uss_bytes > 60e6
    assert after.pss_bytes - before.pss_bytes > 60e6
    assert before.pss_bytes >= before.uss_bytes > 0


def test_shared_memory_in_use_is_seen():
    """A file in /dev/shm adds its size."""
    before = shm_used_bytes()
    if before is None:
        pytest.skip("no /dev/shm here")
    path = f"/dev/shm/feedrate-test-{os.getpid()}"
    try:
        with open(path, "wb") as stream:
            stream.write(bytes(30_000_000))
        assert shm_used_bytes() - before > 15e6  # others come and go
    finally:
        os.unlink(path)


def busy(seconds):
    end = time.process_time() + seconds
    while time.process_time() < end:
        pass


def test_own_time_is_not_foreign():
    """CPU time of this process is its own; with one busy process it is at most its share of all CPUs."""
    earlier, begin = CpuClock.read(), time.perf_counter()
    busy(0.5)
    now, wall_s = CpuClock.read(), time.perf_counter() - begin
    assert now.own_s - earlier.own_s >= 0.4
    assert 0 < now.own_fraction_since(earlier, wall_s) <= 1
    assert 0 <= now.foreign_fraction_since(earlier) <= 1


def test_time_of_children_is_own_also_when_they_have_ended():
    """A child's CPU time counts while it lives and after it was waited for."""
    earlier = CpuClock.read()
    with started("import time\nwhile time.process_time() < 0.6: pass") as child:
        assert CpuClock.read().own_s - earlier.own_s >= 0.5
        child.communicate("\n")
    assert eventually(lambda: child.poll() is not None)
    assert CpuClock.read().own_s - earlier.own_s >= 0.5


def test_fractions_stay_within_bounds():
    """A child that vanished with its time, or a clock that stood still, gives 0 and not a negative number."""
    earlier, later = CpuClock(total_s=10, busy_s=5, own_s=5), CpuClock(total_s=12, busy_s=7, own_s=4)
    assert later.own_fraction_since(earlier, 1.0) == 0
    assert later.foreign_fraction_since(earlier) == 1
    assert earlier.foreign_fraction_since(earlier) == 0


def test_a_foreign_process_is_seen():
    """CPU time that nobody of this tree used is foreign."""
    earlier, later = CpuClock(total_s=10, busy_s=5, own_s=2), CpuClock(total_s=20, busy_s=11, own_s=4)
    assert later.foreign_fraction_since(earlier) == pytest.approx(0.4)
    assert later.own_fraction_since(earlier, 2.0) == pytest.approx(min(1 / len(os.sched_getaffinity(0)), 1))
