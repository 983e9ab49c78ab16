"""accelerator.py on a machine without one: a stand-in for an accelerator other than CUDA, and the names that Ray gives GPUs."""

import json
import os
import subprocess
import sys

import pytest
import torch

from feedrate.trainables.machine import accelerator
from feedrate.trainables.machine.accelerator import StepTimer, device_name, num_accelerators, pick_device, synchronize
from feedrate.trainables.machine.host import cpu_model


class Event:
    """Of a device whose clock goes on by 2 ms with every event."""

    now_ms = 0.0

    def __init__(self, device, enable_timing):
        assert enable_timing
        self.device = device

    def record(self):
        Event.now_ms += 2.0
        self.at_ms = Event.now_ms

    def elapsed_time(self, end):
        return end.at_ms - self.at_ms


@pytest.fixture
def xpu(monkeypatch):
    """Two accelerators that torch drives by its common interface, and no CUDA; gives the devices that were waited for."""
    waited = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: True)
    monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda: torch.device("xpu"))
    monkeypatch.setattr(torch.accelerator, "device_count", lambda: 2)
    monkeypatch.setattr(torch.accelerator, "synchronize", waited.append)
    monkeypatch.setattr(torch.xpu, "get_device_name", lambda device: f"Data Center GPU Max {device.index}")
    monkeypatch.setattr(torch, "Event", Event)
    return waited


@pytest.mark.usefixtures("xpu")
def test_an_accelerator_of_another_make_is_trained_on():
    device = pick_device()
    assert (device, num_accelerators()) == (torch.device("xpu", 0), 2)
    assert device_name(device) == "Data Center GPU Max 0"
    assert pick_device("cpu") == torch.device("cpu")


def test_its_steps_are_timed_by_its_own_events(xpu):
    timer = StepTimer(pick_device())
    for _ in range(3):
        timer.end(timer.begin())
    synchronize(pick_device())
    assert xpu == [torch.device("xpu", 0)]
    assert timer.take_s() == pytest.approx(0.006)
    assert timer.take_s() == 0


@pytest.mark.skipif(torch.cuda.is_available() or torch.accelerator.is_available(), reason="there is an accelerator")
def test_without_one_the_cpu_trains_and_has_no_events():
    device = accelerator.pick_device()
    assert (device, num_accelerators(), device_name(device)) == (torch.device("cpu"), 0, cpu_model())
    synchronize(device)
    timer = StepTimer(device)
    timer.end(timer.begin())
    assert timer.take_s() is None


RAY = """
import json, os, sys
import ray
from feedrate.search.engine.ray_cluster import cluster
from feedrate.search.options import SearchOptions
from feedrate.search.engine.trial_template import _user_environment, gpu_numbers

def look(gpus):
    return os.environ.get("CUDA_VISIBLE_DEVICES"), gpu_numbers(), _user_environment({}, gpus)

with cluster(SearchOptions(), 2):
    remote = ray.remote(look)
    both = ray.get([remote.options(num_gpus=1, num_cpus=0).remote(1), remote.options(num_gpus=2, num_cpus=0).remote(1)])
    both.append(ray.get(remote.options(num_gpus=0, num_cpus=0).remote(0)))
print(json.dumps(both))
"""


@pytest.mark.parametrize(
    ("visible", "names"),
    [("4,7", ["4", "7"]), ("GPU-1f3a,MIG-aa02", ["GPU-1f3a", "MIG-aa02"])],
    ids=["numbers", "UUIDs"],
)
def test_a_trial_sees_the_gpus_that_ray_gave_it(visible, names, tmp_path):
    """However the node names them, they are counted from 0 on this node; a trial without a GPU sees none. Takes a Ray each, 5 s."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")} | {"HOME": str(tmp_path)}
    environment["CUDA_VISIBLE_DEVICES"] = visible
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", RAY], env=environment, check=True, capture_output=True, text=True)
    one, two, none = json.loads(done.stdout.splitlines()[-1])
    assert one[0] in names
    assert one[1] == [names.index(one[0])]
    assert one[2] == {}, "the trial's process inherits what Ray set"
    given = two[0].split(",")
    assert sorted(given) == names
    assert two[1:] == [[0, 1], {"CUDA_VISIBLE_DEVICES": given[0]}], "a whole node reserved for a trial on one GPU"
    assert none == ["", [], {"CUDA_VISIBLE_DEVICES": ""}]
