"""host.py: what the host is, and what a trial may use of it."""

import os
from pathlib import Path

import pytest

from feedrate.trainables.machine import host
from feedrate.trainables.machine.host import cgroup_quota, cpu_budget, cpu_model, host_id, share_of_cpus


@pytest.mark.parametrize("named", [True, False])
def test_shares_of_the_cpus_have_none_in_common(monkeypatch, tmp_path, named):
    """Hyper-threads of one core are in one share, where the kernel tells them: CPUs 0 and 4 are core 0 here, 1 and 5 core 1, ..."""
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(8)))
    for cpu in range(8 if named else 0):
        folder = tmp_path / f"cpu{cpu}" / "topology"
        folder.mkdir(parents=True)
        (folder / "physical_package_id").write_text("0\n")
        (folder / "core_id").write_text(f"{cpu % 4}\n")
    shares = [share_of_cpus([gpu], 4, topology=tmp_path) for gpu in range(4)]
    assert shares == ([{0, 4}, {1, 5}, {2, 6}, {3, 7}] if named else [{0, 1}, {2, 3}, {4, 5}, {6, 7}])
    assert share_of_cpus([1, 3], 4, topology=tmp_path) == shares[1] | shares[3]
    assert len(share_of_cpus([1, 3], 4, 3, topology=tmp_path)) == 3
    assert len(share_of_cpus([0], 3, topology=tmp_path)) == 2


def test_a_host_has_one_name(monkeypatch):
    """Without FEEDRATE_HOST_ID a host has a short name that does not change."""
    monkeypatch.delenv("FEEDRATE_HOST_ID", raising=False)
    assert host_id() == host_id()
    assert len(host_id()) == 12
    monkeypatch.setenv("FEEDRATE_HOST_ID", "")
    assert len(host_id()) == 12
    monkeypatch.setenv("FEEDRATE_HOST_ID", "test")


V1 = {"cpu/cpu.cfs_quota_us": "400000\n", "cpu/cpu.cfs_period_us": "100000\n"}


@pytest.mark.parametrize(
    ("member", "files", "quota"),
    [
        ("0::/", {"cpu.max": "150000 100000\n"}, 1.5),
        ("0::/", {"cpu.max": "max 100000\n"}, None),
        ("0::/a/b", {"a/b/cpu.max": "max 100000\n", "a/cpu.max": "300000 100000\n", "cpu.max": "max 1\n"}, 3.0),
        ("0::/a/b", {"a/b/cpu.max": "200000 100000\n", "a/cpu.max": "300000 100000\n"}, 2.0),
        ("0::/a", {"a/cpu.max": "200000 100000\n", "b/cpu.max": "100000 100000\n"}, 2.0),
        ("0::/not/mounted/here", {"cpu.max": "250000 100000\n"}, 2.5),
        ("0::/../outside", {"cpu.max": "250000 100000\n"}, 2.5),
        ("0::/a", {"unified/a/cpu.max": "250000 100000\n"}, 2.5),
        ("1:cpu:/", V1, 4.0),
        ("3:cpuacct,cpu:/a", {"cpuacct,cpu/a/cpu.cfs_quota_us": "50000\n", "cpuacct,cpu/a/cpu.cfs_period_us": "100000\n"}, 0.5),
        ("1:cpu:/a", V1 | {"cpu/a/cpu.cfs_quota_us": "-1\n", "cpu/a/cpu.cfs_period_us": "100000\n"}, 4.0),
        ("1:cpu:/", V1 | {"cpu/cpu.cfs_quota_us": "-1\n"}, None),
        ("1:cpu:/", V1 | {"cpu/cpu.cfs_period_us": "0\n"}, None),
        ("0::/", {"cpu.max": "nonsense\n"}, None),
        ("", {"cpu.max": "150000 100000\n"}, 1.5),
        ("0::/", {}, None),
    ],
    ids=["v2", "v2-max", "parent", "own", "not-a-sibling", "container", "namespace", "hybrid", "v1", "v1-joint",
         "v1-parent", "v1-none", "v1-no-period", "broken", "no-membership", "nothing"],
)  # fmt: skip
def test_a_containers_quota_is_read(tmp_path, member, files, quota):
    """The smallest quota of this group and those around it, in CPUs, of cgroup v2 and v1; None where there is none."""
    for name, text in files.items():
        (tmp_path / "fs" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "fs" / name).write_text(text)
    membership = tmp_path / "membership"
    if member:
        membership.write_text(f"2:memory:/elsewhere\n{member}\n")
    assert cgroup_quota(tmp_path / "fs", membership) == quota


def test_the_budget_is_the_smallest_limit(monkeypatch):
    """Affinity, quota or Ray's share, whichever is smallest, is the budget and is named; a part of a CPU is one."""
    monkeypatch.setattr(host.os, "sched_getaffinity", lambda pid: {0, 1, 2, 3})
    monkeypatch.setattr(host.os, "cpu_count", lambda: 8)
    for quota, allocated, expected in [
        (None, None, (4, "affinity")),
        (0.5, None, (1, "cgroup")),
        (3.7, None, (3, "cgroup")),
        (1000.0, 1000, (4, "affinity")),
        (None, 2, (2, "ray")),
        (None, 4, (4, "ray")),  # affinity was narrowed to Ray's share
        (None, 0, (1, "ray")),
        (1.5, 2, (1, "cgroup")),
        (3.0, 2, (2, "ray")),
    ]:
        monkeypatch.setattr(host, "cgroup_quota", lambda quota=quota: quota)
        assert cpu_budget(allocated) == expected
    monkeypatch.setattr(host.os, "cpu_count", lambda: 4)
    monkeypatch.setattr(host, "cgroup_quota", lambda: None)
    assert cpu_budget(4) == (4, "affinity")  # all there is: nobody took any away


def test_the_processor_has_a_name():
    """Some name, as the kernel gives it."""
    assert cpu_model()
    assert Path("/proc/cpuinfo").exists() is False or "\n" not in cpu_model()


