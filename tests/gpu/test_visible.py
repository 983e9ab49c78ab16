"""Which GPU a process may use, who else uses it, and a parent that has touched CUDA."""

import json
import os
import shutil
import subprocess
import sys

import pytest
import torch
from census import eventually

from feedrate.trainables.config import LoaderConfig
from feedrate.trainables.machine import conditions
from feedrate.trainables.machine.gpu_load import gpu_busy_fraction
from feedrate.trainables.measuring.measure_options import MeasureOptions
from feedrate.trainables.protocol import Measured, MeasureRequest
from feedrate.trainables.resolve import make_ref
from feedrate.trainables.sandbox.template import Template

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")

LOOK = """
import json
from feedrate.trainables.machine.accelerator import num_accelerators, pick_device
from feedrate.trainables.machine.gpu_load import gpu_busy_fraction
busy = gpu_busy_fraction()
print(json.dumps([num_accelerators(), str(pick_device()), busy]))
"""
BURN = """
import torch
square = torch.rand(8192, 8192, device="cuda")
print("burning", flush=True)
while True:
    for _ in range(20):
        square = square @ square / 8192
    torch.cuda.synchronize()
"""
TOUCHES = """
import torch
from feedrate.trainables.bundled.table import table

HELD = torch.ones(1, device="cuda")

def workload():
    return table(num_rows=2000)
"""


def listed():
    """index and UUID of every GPU, whatever CUDA_VISIBLE_DEVICES says: NVML does not look at it."""
    command = ["nvidia-smi", "--query-gpu=index,uuid", "--format=csv,noheader"]
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": ""}
    lines = subprocess.run(command, env=environment, check=True, capture_output=True, text=True).stdout.splitlines()
    return [tuple(part.strip() for part in line.split(",")) for line in lines]


def looked(visible):
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": visible}
    command = [sys.executable, "-c", LOOK]
    return json.loads(subprocess.run(command, env=environment, check=True, capture_output=True, text=True).stdout)


@pytest.mark.skipif(shutil.which("nvidia-smi") is None, reason="needs nvidia-smi")
def test_a_gpu_is_named_by_number_or_uuid_and_its_load_is_its_own():
    """As Ray and Slurm set the variable: a number, a whole UUID, or the beginning of one."""
    index, uuid = listed()[0]
    for name in (index, uuid):
        num_gpus, device, busy = looked(name)
        assert (num_gpus, device) == (1, "cuda:0")
        assert busy is None or 0 <= busy <= 1
    assert looked(uuid[:12])[:2] == [1, "cuda:0"]


def test_an_empty_variable_hides_every_gpu():
    """Then the CPU trains, and nobody asks what others do on GPUs that this process may not use."""
    assert looked("") == [0, "cpu", None]
    assert listed(), "NVML lists them all the same"


@pytest.mark.skipif(gpu_busy_fraction() is None, reason="this GPU does not tell its load (MIG, or no nvidia-smi)")
def test_a_gpu_that_others_use_is_noticed_and_waited_for():
    """By the driver's own count, before the trial has work there itself."""
    other = subprocess.Popen([sys.executable, "-c", BURN], stdout=subprocess.PIPE, text=True)
    try:
        assert other.stdout.readline() == "burning\n"
        assert eventually(lambda: (gpu_busy_fraction() or 0) >= conditions.BUSY_FRACTION)
        said = []
        conditions.wait_until_quiet(2.0, said.append)
        assert "of the trial's GPU" in said[0]
    finally:
        other.kill()
        other.communicate()


def test_a_module_that_touches_cuda_is_not_forked_from(tmp_path):
    """CUDA does not survive a fork: such a workload gets a new interpreter for each trial, and is measured."""
    (tmp_path / "touches.py").write_text(TOUCHES)
    template = Template(make_ref(f"{tmp_path}/touches.py:workload"))
    try:
        config = LoaderConfig(num_workers=2, batch_size=64, pin_memory=True)
        *_, event = template.run(MeasureRequest(config=config, options=MeasureOptions(max_trial_s=2.0)))
        assert isinstance(event, Measured), event
        assert event.columns["device"] == "cuda:0"
        assert not template.clean
    finally:
        template.close()


def test_forked_workers_of_a_trial_that_uses_cuda_load(tmp_path):
    """The trainer has CUDA before its workers are forked, which is fine as long as they do not touch it."""
    template = Template(make_ref("table"))
    try:
        for context in ("fork", "forkserver", "spawn"):
            config = LoaderConfig(num_workers=2, batch_size=64, pin_memory=True, multiprocessing_context=context)
            *_, event = template.run(MeasureRequest(config=config, options=MeasureOptions(max_trial_s=2.0)))
            assert isinstance(event, Measured), event
        assert template.clean
    finally:
        template.close()
