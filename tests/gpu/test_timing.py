"""What a GPU changes about time and memory: start-up, kernels that run behind the program, an allocator that keeps blocks."""

import gc
import subprocess
import sys

import pytest
import torch
from torch.utils.data import DataLoader, TensorDataset

from feedrate.trainables.config import LoaderConfig
from feedrate.trainables.machine.accelerator import StepTimer, pick_device, synchronize
from feedrate.trainables.measuring.measure import measure
from feedrate.trainables.measuring.measure_options import MeasureOptions
from feedrate.trainables.workload import Workload

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")

PHASES = """
import torch
from feedrate.trainables.config import LoaderConfig
from feedrate.trainables.measuring.measure import measure
from feedrate.trainables.measuring.measure_options import MeasureOptions
from feedrate.trainables.bundled.table import table

def say(phase):
    started = torch.cuda.is_initialized()
    print(phase, started, started and torch.cuda.memory_reserved() > 0)

for _ in measure(table(), LoaderConfig(num_workers=0, batch_size=64), MeasureOptions(max_trial_s=2), say):
    pass
"""


def heavy():
    """Steps of some milliseconds of matrix products on a loader that takes next to nothing."""

    def make_loader(**overrides):
        return DataLoader(TensorDataset(torch.zeros(4096, 4)), **({"batch_size": 32} | overrides))

    def make_step(context):
        square = torch.rand(4096, 4096, device=context.device)

        def step(batch):
            product = square
            for _ in range(10):
                product = square @ product / 4096
            return len(batch[0])

        return step

    return Workload.from_loader(name="heavy", make_loader=make_loader, make_step=make_step)


def run(workload):
    *_, last = measure(workload, LoaderConfig(num_workers=0, batch_size=32), MeasureOptions(max_trial_s=4))
    return last


def test_cuda_is_started_and_memory_reserved_before_the_loader_is():
    """In a fresh process, as a trial has one; nothing of it is in a window."""
    lines = subprocess.run([sys.executable, "-c", PHASES], check=True, capture_output=True, text=True).stdout.split("\n")
    phases = {line.split()[0]: line.split()[1:] for line in lines if line}
    assert phases["loader"] == phases["measure"] == ["True", "True"]


def test_events_add_up_to_the_wall_time_of_a_step_bound_window():
    """The program only queues kernels; a window ends when they have run, so that both clocks agree."""
    windows = run(heavy()).windows
    for step_s, duration_s in zip(windows.window_step_s, windows.window_duration_s, strict=True):
        assert 0.5 * duration_s < step_s <= 1.02 * duration_s


def test_the_step_alone_is_timed_to_its_end():
    """Not to the moment at which its kernels were queued: as long as in training, where nothing else is done."""
    last = run(heavy())
    alone = sum(last.step_only_duration_s) / sum(last.step_only_num_items)
    windows = last.windows
    assert alone > 0.5 * sum(windows.window_step_s) / sum(windows.window_num_items)


def test_the_allocator_does_not_grow_and_is_left_as_it_was():
    """The second trial of a process has the first one's peak, and the memory is free afterwards."""
    run(heavy())  # the libraries keep a workspace from here on
    gc.collect()
    before, peaks = torch.cuda.memory_allocated(), []
    for _ in range(2):
        torch.cuda.reset_peak_memory_stats()
        last = run(heavy())
        peaks.append(last.gpu_peak_bytes)
        assert last.gpu_free_bytes + last.gpu_peak_bytes <= torch.cuda.mem_get_info()[1]
        del last
        gc.collect()
        assert torch.cuda.memory_allocated() == before
    assert peaks[0] == peaks[1]


def test_torchs_common_interface_is_that_of_the_same_device():
    """What accelerators of other makes are driven by (accelerator.py) does the same on this one."""
    assert torch.accelerator.is_available()
    assert torch.accelerator.current_accelerator().type == pick_device().type == "cuda"
    device = pick_device()
    torch.accelerator.synchronize(device)
    begin, end = (torch.Event(device, enable_timing=True) for _ in range(2))
    square = torch.rand(4096, 4096, device=device)
    timer = StepTimer(device)
    begin.record()
    pair = timer.begin()
    for _ in range(20):
        square = square @ square / 4096
    timer.end(pair)
    end.record()
    synchronize(device)
    assert 0 < timer.take_s() <= begin.elapsed_time(end) / 1000 + 1e-4
