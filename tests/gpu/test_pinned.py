"""Batches in pinned memory, and copies that run beside the training step, on a CUDA device."""

import threading

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset

from feedrate.trainables.config import LoaderConfig
from feedrate.trainables.measuring.measure import measure
from feedrate.trainables.measuring.measure_options import MeasureOptions
from feedrate.trainables.measuring.step_and_loader_alone import time_copy
from feedrate.trainables.step import to_device
from feedrate.trainables.workload import Workload

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")


class Numbered(Dataset):
    """Rows (250_000,), a megabyte each, that hold their own index."""

    def __len__(self):
        return 512

    def __getitem__(self, index):
        return torch.full((250_000,), float(index)), index


def measured(make_step, **setting):
    def make_loader(**overrides):
        return DataLoader(Numbered(), **({"batch_size": 16} | overrides))

    workload = Workload.from_loader(name="numbered", make_loader=make_loader, make_step=make_step)
    config = LoaderConfig(**({"num_workers": 2, "batch_size": 16} | setting))
    *_, last = measure(workload, config, MeasureOptions(max_trial_s=3, measure_step=False))
    return last


@pytest.mark.parametrize("pin_memory", [True, False])
def test_the_step_gets_batches_as_the_setting_says(pin_memory):
    """Pinned ones come from a thread of the loader in the training process; without pin_memory there is no such thread."""
    seen = set()

    def make_step(context):
        def step(batch):
            if batch[0].device.type == "cpu":  # not the cached batch that warms the step
                pins = any("pin_memory" in thread.name for thread in threading.enumerate())
                seen.add((batch[0].is_pinned(), pins))
            batch[0].to(context.device, non_blocking=True).sum()

        return step

    assert measured(make_step, pin_memory=pin_memory).throughput().sps > 0
    assert seen == {(pin_memory, pin_memory)}


@pytest.mark.parametrize("pin_memory", [True, False])
def test_copies_on_a_side_stream_are_whole_and_counted(pin_memory):
    """A step that copies on a stream of its own, as prefetchers do: each batch arrives as it was sent, and counts."""
    sums, expected = [], []

    def make_step(context):
        side = torch.cuda.Stream()

        def step(batch):
            with torch.cuda.stream(side):
                rows = batch[0].to(context.device, non_blocking=True)
            torch.cuda.current_stream().wait_stream(side)
            rows.record_stream(torch.cuda.current_stream())
            sums.append(rows.mean(dim=1).sum())
            expected.append(float(batch[1].sum()))
            return len(rows)

        return step

    last = measured(make_step, pin_memory=pin_memory)
    torch.cuda.synchronize()
    assert [round(float(each)) for each in sums] == [round(each) for each in expected]
    assert sum(last.windows.window_num_items) == 16 * sum(last.windows.window_num_batches)
    assert all(step_s > 0 for step_s in last.windows.window_step_s)


def test_a_pinned_batch_is_copied_whole_without_blocking():
    """What the short form's step does; every nested tensor arrives."""
    pinned = {"rows": torch.arange(1 << 22).pin_memory(), "more": [torch.ones(3).pin_memory()]}
    moved = to_device(pinned, torch.device("cuda"))
    torch.cuda.synchronize()
    assert moved["rows"].is_cuda and moved["more"][0].is_cuda
    assert torch.equal(moved["rows"].cpu(), pinned["rows"])


@pytest.mark.parametrize("pinned", [True, False])
def test_the_copy_alone_is_timed_for_either_kind_of_batch(pinned):
    """As the loader hands it out."""
    blocks = time_copy((torch.zeros(64, 1 << 18), torch.zeros(64)), torch.device("cuda"), pinned=pinned)
    assert blocks is not None
    assert all(items % 64 == 0 for items in blocks[0])


def test_half_precision_trains_with_pinned_batches():
    """bf16 autocast around the short form's step, whose last loss is finite."""
    workload = Workload(
        name="numbered", dataset=Numbered(), model=lambda: nn.Linear(250_000, 512), loss=lambda output, target: output.square().mean(),
        optimizer=lambda parameters: torch.optim.SGD(parameters, lr=1e-9),
    )  # fmt: skip
    *_, last = measure(workload, LoaderConfig(num_workers=2, batch_size=16, pin_memory=True), MeasureOptions(max_trial_s=3, amp="bf16"))
    assert last.loss_is_finite
