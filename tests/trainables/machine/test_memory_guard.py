"""memory_guard.py: what is available on a machine and in its containers, and when a trial has taken too much."""

import os
import subprocess
import sys

import pytest

from feedrate.trainables.machine import memory_guard
from feedrate.trainables.machine.memory_guard import MemoryGuard, available_bytes, pss_bytes, total_bytes

MB = 1024**2


def test_what_is_available_is_the_least_of_machine_and_containers(tmp_path):
    """v2 and v1, page cache given back, a group without a limit left out, overdrawn ones 0, unreadable ones ignored."""
    meminfo = tmp_path / "meminfo"
    meminfo.write_text(f"MemTotal: 1000 kB\nMemAvailable:   {8000 * 1024} kB\n")
    v2, v1, free, over = (tmp_path / name for name in ("v2", "v1", "free", "over"))
    for folder, files in (
        (v2, {"memory.max": 1000 * MB, "memory.current": 700 * MB, "memory.stat": f"anon 5\ninactive_file {200 * MB}"}),
        (
            v1,
            {
                "memory.limit_in_bytes": 900 * MB,
                "memory.usage_in_bytes": 800 * MB,
                "memory.stat": f"inactive_file 1\ntotal_inactive_file {300 * MB}",
            },
        ),
        (free, {"memory.max": "max", "memory.current": 9000 * MB}),
        (over, {"memory.max": 10 * MB, "memory.current": 11 * MB}),
    ):
        folder.mkdir()
        for name, value in files.items():
            (folder / name).write_text(f"{value}\n")
    assert available_bytes(meminfo, []) == 8000 * MB
    assert available_bytes(meminfo, [v2]) == 500 * MB
    assert available_bytes(meminfo, [v2, v1]) == 400 * MB
    assert available_bytes(meminfo, [free, tmp_path / "none"]) == 8000 * MB
    assert available_bytes(meminfo, [over, v2]) == 0
    assert available_bytes(tmp_path / "none", []) is None


def test_this_machine_is_read():
    """What is available is part of what there is; a process has a size, one that ended has none."""
    assert 0 < available_bytes() <= total_bytes()
    assert pss_bytes(os.getpid()) > MB
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    assert pss_bytes(ended.pid) is None


@pytest.fixture
def machine(monkeypatch):
    """A machine with 100 GB, of which `left` are available, on which a trial of one process has `own`."""
    state = {"left": 50_000 * MB, "own": 0, "asked": 0}

    def pss(pid):
        state["asked"] += 1
        return state["own"]

    monkeypatch.setattr(memory_guard, "total_bytes", lambda: 100_000 * MB)
    monkeypatch.setattr(memory_guard, "available_bytes", lambda **_: state["left"])
    monkeypatch.setattr(memory_guard, "pss_bytes", pss)
    return state


def test_a_trial_that_takes_the_memory_is_ended_before_ray_would(machine):
    """Above Ray's 5 %; with the sizes and the way out. As long as there is enough, its memory is not even read."""
    watch = MemoryGuard()
    machine |= {"left": 6_500 * MB, "own": 43_000 * MB}
    assert watch.crossed([1]) is None
    assert machine["asked"] == 0
    machine["left"] = 5_500 * MB
    said = watch.crossed([1])
    assert said.startswith(
        "the trial took 45.1 GB of memory and left 5.8 GB of 104.9 GB available; feedrate ended it before"
    )
    assert "FEEDRATE_MIN_AVAILABLE_BYTES is 6.3 GB" in said
    assert said.endswith("use fewer workers, a smaller prefetch_factor or a smaller batch_size")
    watch = MemoryGuard()
    watch.way_out = "use a smaller batch_size"
    machine["left"] = 5_000 * MB
    assert watch.crossed([1]).endswith(": use a smaller batch_size")


def test_memory_that_others_took_is_not_the_trials(machine):
    """A small trial is not ended for somebody else's memory."""
    watch = MemoryGuard()
    machine |= {"left": 100 * MB, "own": 300 * MB}
    assert watch.crossed([1]) is None
    assert machine["asked"] == 1


def test_a_small_machine_keeps_most_of_its_memory(machine, monkeypatch):
    """At least 512 MiB are kept, at most a quarter."""
    for total, kept in ((100_000 * MB, 6_000 * MB), (4_000 * MB, 512 * MB), (1_000 * MB, 250 * MB)):
        monkeypatch.setattr(memory_guard, "total_bytes", lambda total=total: total)
        assert MemoryGuard().min_available_bytes == kept


def test_the_environment_sets_the_limits(machine, monkeypatch):
    """Bytes to be left, 0 for none; bytes for one trial; anything else is refused by name."""
    machine |= {"left": 0, "own": 700 * MB}
    monkeypatch.setenv(memory_guard.LIMIT_VARIABLE, "0")
    assert MemoryGuard.from_environment().crossed([1]) is None
    monkeypatch.setenv(memory_guard.TRIAL_VARIABLE, str(600 * MB))
    said = MemoryGuard.from_environment().crossed([1])
    assert "took 734 MB of memory, more than the 629 MB of FEEDRATE_MAX_TRIAL_BYTES" in said
    monkeypatch.setenv(memory_guard.LIMIT_VARIABLE, "2G")
    with pytest.raises(ValueError, match="FEEDRATE_MIN_AVAILABLE_BYTES must be a number of bytes, not '2G'"):
        MemoryGuard.from_environment()
