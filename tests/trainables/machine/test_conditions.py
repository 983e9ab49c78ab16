"""conditions.py: what the machine did during the windows, from real counters and made-up files of the kernel."""

import os
import subprocess
import sys

import pytest

from feedrate.analysis.schema import COLUMN, fits
from feedrate.trainables.machine import conditions
from feedrate.trainables.machine.conditions import MachineClock, cache_state
from feedrate.trainables.machine.gpu_load import gpu_busy_fraction
from feedrate.trainables.machine.process import CpuClock
from feedrate.trainables.measurement import Measurement

CPU = CpuClock(total_s=0, busy_s=0, own_s=0)


def test_every_fact_is_a_column_and_a_field():
    """What a reading gives can be recorded under its name, with its type; nothing that is not known is a number."""
    begin = MachineClock.read()
    columns = MachineClock.read().columns_since(begin, 0.1)
    for name, value in columns.items():
        assert hasattr(Measurement(), name)
        assert value is None or fits(value, COLUMN[name].dtype)
        assert value is None or isinstance(value, str) or value >= 0
    nothing = MachineClock(cpu=CPU).columns_since(MachineClock(cpu=CPU), 1.0)
    assert nothing.keys() == columns.keys()
    assert {name for name, value in nothing.items() if value is not None} == {
        "foreign_cpu_fraction", "own_cpu_fraction", "steal_fraction",
    }  # fmt: skip


def test_what_a_child_read_counts_while_it_lives_and_after_its_end(tmp_path):
    """Bytes from storage and from read() calls, of a loader worker that is still there and of one that was waited for."""
    path, size = tmp_path / "data", 8 * 2**20
    path.write_bytes(os.urandom(size))
    with open(path, "rb") as stream:
        os.fsync(stream.fileno())
    code = f"""if True:
        import os, sys
        with open({str(path)!r}, "rb") as stream:
            os.posix_fadvise(stream.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
            stream.read()
        print(flush=True)
        sys.stdin.read()
    """
    before = MachineClock.read()
    if before.storage_read_bytes is None:
        pytest.skip("the kernel does not count reads")
    with subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as child:
        child.stdout.readline()
        alive = MachineClock.read().columns_since(before, 1.0)
    ended = MachineClock.read().columns_since(before, 1.0)
    for columns in (alive, ended):
        assert columns["read_call_bytes"] >= size
        if columns["storage_read_bytes"] == 0:
            pytest.skip(f"{tmp_path} lies on no storage")
        assert columns["storage_read_bytes"] >= 0.9 * size
        assert columns["cache_state"] == "mixed"


def test_the_trials_own_cpu_time_is_of_its_budget(monkeypatch):
    """A container's quota of 2 CPUs that is used up is all there is, however many CPUs the machine has."""
    monkeypatch.setattr(conditions.host, "cpu_budget", lambda: (2, "cgroup"))
    now = MachineClock(cpu=CpuClock(total_s=64, busy_s=4, own_s=4))
    assert now.columns_since(MachineClock(cpu=CPU), 2.0)["own_cpu_fraction"] == 1.0
    assert now.columns_since(MachineClock(cpu=CPU), 4.0)["own_cpu_fraction"] == 0.5


def test_pressure_is_the_share_of_time_that_somebody_waited(tmp_path):
    """The growth of each `some` total; a resource that the kernel does not tell about is not known."""
    (tmp_path / "cpu").write_text("some avg10=0.00 avg60=0.10 avg300=0.59 total=1000000\nfull avg10=0.00 total=7\n")
    (tmp_path / "io").write_text("some avg10=0.00 avg60=0.10 avg300=0.59 total=5000000\n")
    earlier = MachineClock(cpu=CPU, pressure_us=conditions._pressure_us(tmp_path))
    (tmp_path / "cpu").write_text("some avg10=9.00 avg60=9.10 avg300=9.59 total=1500000\nfull avg10=0.00 total=7\n")
    (tmp_path / "io").write_text("some avg10=0.00 avg60=0.10 avg300=0.59 total=99000000\n")
    columns = MachineClock(cpu=CPU, pressure_us=conditions._pressure_us(tmp_path)).columns_since(earlier, 2.0)
    assert (columns["psi_cpu_fraction"], columns["psi_io_fraction"], columns["psi_memory_fraction"]) == (
        0.25,
        1.0,
        None,
    )
    (tmp_path / "cpu").write_text("")
    (tmp_path / "io").write_text("some avg10=0.00 total=nonsense\n")
    assert conditions._pressure_us(tmp_path) == {}


def test_throttling_is_the_share_of_periods_that_ran_out(tmp_path):
    """Of the group up the hierarchy where it is worst; 0 without a quota, unknown where nothing is counted."""

    def stat(folder, periods, throttled):
        (tmp_path / folder).mkdir(parents=True, exist_ok=True)
        text = f"usage_usec 5\nnr_periods {periods}\nnr_throttled {throttled}\nthrottled_usec 123\n"
        (tmp_path / folder / "cpu.stat").write_text(text)

    def read():
        return MachineClock(cpu=CPU, throttled_periods=conditions._throttled_periods(tmp_path, membership))

    membership = tmp_path / "membership"
    membership.write_text("0::/pod/container\n")
    assert read().columns_since(read(), 1.0)["throttled_fraction"] is None
    stat("pod/container", 100, 10)
    stat("pod", 0, 0)
    before = read()
    assert read().columns_since(before, 1.0)["throttled_fraction"] == 0.0
    stat("pod/container", 120, 15)
    stat("pod", 10, 9)
    assert read().columns_since(before, 1.0)["throttled_fraction"] == pytest.approx(0.9)
    stat("pod", 0, 0)
    assert read().columns_since(before, 1.0)["throttled_fraction"] == pytest.approx(0.25)


@pytest.mark.parametrize(
    ("storage", "calls", "dropped", "state"),
    [
        (0, 10**9, False, "warm"),
        (10**6, 10**9, False, "warm"),
        (10**9, 10**12, False, "warm"),  # 0.1 % of what was read
        (10**9, 10**9, False, "mixed"),
        (10**9, None, False, "mixed"),
        (10**9, 10**9, True, "cold"),
        (10**9, 2 * 10**9, True, "cold"),  # pipes are read as well
        (10**9, 3 * 10**9, True, "mixed"),  # most was read from files that were not dropped
        (0, 10**9, True, "warm"),  # dropped, but nothing came from storage after all
        (None, None, False, None),
        (None, None, True, None),
    ],
)
def test_the_cache_is_what_was_read_from_storage(storage, calls, dropped, state):
    """Warm when nothing that matters came from storage, cold when it was dropped on purpose and something did."""
    assert cache_state(storage, calls, dropped=dropped) == state


def test_a_counter_that_shrinks_is_no_negative_number():
    """A worker that was killed and not waited for takes its reads along."""
    earlier = MachineClock(cpu=CPU, storage_read_bytes=10, read_call_bytes=10)
    columns = MachineClock(cpu=CPU, storage_read_bytes=4, read_call_bytes=30).columns_since(earlier, 1.0)
    assert (columns["storage_read_bytes"], columns["read_call_bytes"]) == (0, 20)


@pytest.fixture
def readings(monkeypatch):
    """A host of two CPUs whose other processes take these shares of it, one look after the other; gives the seconds slept."""

    def make(*foreign):
        shares, now = iter(foreign), [0.0, 0.0]  # total and busy time
        slept = []

        def read(cpus=None):
            return CpuClock(total_s=now[0], busy_s=now[1], own_s=0)

        def sleep(seconds):
            slept.append(seconds)
            if seconds == conditions.LOOK_S:
                now[0] += 2 * seconds
                now[1] += 2 * seconds * next(shares)

        monkeypatch.setattr(conditions, "CpuClock", type("Clock", (), {"read": staticmethod(read)}))
        monkeypatch.setattr(conditions.time, "sleep", sleep)
        monkeypatch.setattr(conditions.time, "monotonic", lambda: sum(slept))
        return slept

    return make


def test_a_busy_host_is_waited_for(readings):
    """The trial waits until the host is quiet and reports that once, with the share of the CPUs that others use."""
    said = []
    slept = readings(0.8, 0.5, 0.05)
    conditions.wait_until_quiet(600.0, said.append)
    assert said == ["other processes use 80% of this host's CPUs (--wait sets how long to wait)"]
    assert sum(slept) == 3 * conditions.LOOK_S + 2 * conditions.LOOK_AGAIN_S


def test_a_host_that_stays_busy_is_measured_in_the_end(readings):
    said = []
    slept = readings(*[0.9] * 10)
    conditions.wait_until_quiet(10.0, said.append)
    assert 10.0 <= sum(slept) < 11.0
    assert len(said) == 1


@pytest.fixture
def nvidia_smi(monkeypatch, tmp_path):
    """Puts a program of that name on the PATH which answers as the real one does, and keeps what it was asked."""

    def put(answer, visible=None, code=0):
        program = tmp_path / "nvidia-smi"
        program.write_text(f"#!/bin/sh\necho \"$@\" >> {tmp_path}/asked\nprintf '{answer}'\nexit {code}\n")
        program.chmod(0o755)
        monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
        monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
        if visible is not None:
            monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
        return tmp_path / "asked"

    return put


@pytest.mark.parametrize(
    ("answer", "code", "fraction"),
    [("0\\n", 0, 0.0), ("7\\n93\\n", 0, 0.93), ("[N/A]\\n", 0, None), ("", 0, None), ("No devices were found\\n", 6, None)],
)
def test_what_others_do_on_a_gpu(nvidia_smi, answer, code, fraction):
    asked = nvidia_smi(answer, visible="2,3", code=code)
    assert gpu_busy_fraction() == fraction
    assert asked.read_text().split() == ["--query-gpu=utilization.gpu", "--format=csv,noheader,nounits", "--id=2,3"]


def test_no_gpu_is_asked_where_none_may_be_used(nvidia_smi):
    asked = nvidia_smi("93\\n", visible="")
    assert gpu_busy_fraction() is None
    assert not asked.exists()


def test_a_busy_gpu_is_waited_for(readings, nvidia_smi):
    said = []
    nvidia_smi("60\\n")
    readings(*[0.02] * 10)
    conditions.wait_until_quiet(5.0, said.append)
    assert said == ["other processes use 60% of the trial's GPU (--wait sets how long to wait)"]


def test_a_quiet_host_and_none_to_wait_for(readings):
    """One look; without --wait not even that."""
    said = []
    slept = readings(0.02)
    conditions.wait_until_quiet(600.0, said.append)
    assert slept == [conditions.LOOK_S]
    conditions.wait_until_quiet(0.0, said.append)
    assert slept == [conditions.LOOK_S]
    assert said == []
