"""process.py: memory and CPU time of a real tree of processes."""

import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import psutil
import pytest
from census import eventually

from feedrate.trainables.machine.process import (
    CpuClock,
    Memory,
    growth_bytes_per_batch,
    shm_used_bytes,
    tree_memory,
    tree_pids,
)


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
    """Memory that a child, or its child, has touched is part of the tree's; more than this process's own may shrink meanwhile."""
    before = tree_memory()
    code = "import os\ndata = b'x' * 100_000_000\nif os.fork() == 0: more = b'y' * 100_000_000\nelse: os.wait()"
    with started(code) as child:
        after = tree_memory()
        child.communicate("\n\n")
    assert after.uss_bytes - before.uss_bytes > 60e6
    assert after.pss_bytes - before.pss_bytes > 60e6
    assert before.pss_bytes >= before.uss_bytes > 0


def test_the_tree_is_this_process_and_its_descendants():
    """Children and their children, also those that another thread started; not those that have ended."""
    found = []
    thread = threading.Thread(target=lambda: found.append(started("import os\nif os.fork() == 0: input()")))
    thread.start()
    thread.join()
    with found[0] as child:
        pids = tree_pids()
        assert pids[0] == os.getpid()
        assert set(pids) == {os.getpid(), *(each.pid for each in psutil.Process().children(recursive=True))}
        assert len(set(pids) & {child.pid, *(each.pid for each in psutil.Process(child.pid).children())}) == 2
        child.communicate("\n\n")
    assert child.pid not in tree_pids()


def test_a_kernel_without_lists_of_children_is_no_hindrance(monkeypatch):
    """Then psutil reads every process of the machine."""
    real = Path.read_bytes

    def read_bytes(path):
        if path.name == "children":
            raise FileNotFoundError(path)
        return real(path)

    with started("") as child:
        monkeypatch.setattr(Path, "read_bytes", read_bytes)
        assert {os.getpid(), child.pid} <= set(tree_pids())
        child.communicate("\n")


def test_the_most_open_files_of_one_process_are_counted():
    """A child with many open files counts for itself, not with the others'."""
    with started("files = [open('/proc/self/stat') for _ in range(300)]") as child:
        assert 300 < tree_memory().max_open_files < 300 + 100
        child.communicate("\n")


def test_a_forked_child_that_reads_a_list_copies_it():
    """Python counts references in the objects themselves: memory of its own grows with what a worker has looked at."""
    code = """if True:
        import os
        samples = [float(number) for number in range(1_000_000)]
        if os.fork() == 0:
            print(flush=True)
            input()
            kept = list(samples)
        else:
            os.wait()
    """
    with started(code) as child:
        first = tree_memory()
        child.stdin.write("\n")
        child.stdin.flush()
        child.stdout.readline()
        grown = growth_bytes_per_batch(first, tree_memory(), 10)
        child.communicate("\n\n")
    assert grown * 10 > 20e6


def test_growth_is_per_batch():
    """Bytes of memory of its own that each batch left behind; unknown without two readings and a batch."""
    first, last = Memory(pss_bytes=9, uss_bytes=1000), Memory(pss_bytes=9, uss_bytes=1600)
    assert growth_bytes_per_batch(first, last, 3) == 200.0
    assert growth_bytes_per_batch(last, first, 3) == -200.0
    assert growth_bytes_per_batch(None, last, 3) is growth_bytes_per_batch(first, None, 3) is None
    assert growth_bytes_per_batch(first, last, 0) is None


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


def test_stolen_time_is_neither_busy_nor_idle():
    """What the hypervisor took, of all time; never negative."""
    earlier = CpuClock(total_s=10, busy_s=5, own_s=2, steal_s=1)
    later = CpuClock(total_s=20, busy_s=5, own_s=2, steal_s=3)
    assert later.steal_fraction_since(earlier) == pytest.approx(0.2)
    assert earlier.steal_fraction_since(later) == 0
    assert CpuClock.read().steal_s >= 0


def test_a_foreign_process_is_seen():
    """CPU time that nobody of this tree used is foreign."""
    earlier, later = CpuClock(total_s=10, busy_s=5, own_s=2), CpuClock(total_s=20, busy_s=11, own_s=4)
    assert later.foreign_fraction_since(earlier) == pytest.approx(0.4)
    assert later.own_fraction_since(earlier, 2.0) == pytest.approx(min(1 / len(os.sched_getaffinity(0)), 1))
