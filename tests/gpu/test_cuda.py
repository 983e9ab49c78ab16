"""Training, out-of-memory and batch sizes on a CUDA device. Run with `.venv/bin/pytest tests/gpu`."""

from __future__ import annotations

import pytest
import torch

from feedrate.trainables.bundled.table import table
from feedrate.trainables.config import LoaderConfig
from feedrate.trainables.failure import classify
from feedrate.trainables.measuring.measure import measure
from feedrate.trainables.measuring.measure_options import MeasureOptions

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")


def test_trains_on_the_gpu_with_pinned_memory() -> None:
    """A trial trains on the first CUDA device and records its peak memory."""
    config = LoaderConfig(num_workers=2, batch_size=64, pin_memory=True)
    *_, last = measure(table(), config, MeasureOptions(max_trial_s=5))
    assert last.throughput().sps > 0
    assert last.gpu_peak_bytes is not None
    assert last.gpu_peak_bytes > 0
    assert last.gpu_free_bytes is not None and last.gpu_free_bytes > 0
    assert last.windows.window_step_s is not None
    assert len(last.windows.window_step_s) == len(last.windows)
    assert last.copy_only_duration_s


def test_out_of_memory_is_a_failure_of_its_own_kind() -> None:
    """CUDA out-of-memory has its own kind, apart from the workload's own exceptions."""
    with pytest.raises(torch.OutOfMemoryError) as caught:
        torch.empty(1 << 50, device="cuda")
    assert classify(caught.value, "warm").kind == "cuda-out-of-memory"


def test_a_batch_that_does_not_fit_names_the_batch_size() -> None:
    """A trial whose model runs out of the device's memory is a failure with the batch size, and the next one trains."""
    from feedrate.trainables.protocol import Failed, MeasureRequest
    from feedrate.trainables.resolve import make_ref
    from feedrate.trainables.sandbox.template import Template

    template = Template(make_ref("tests/fault_workloads.py:fills_the_accelerator"))
    try:
        for batch_size, kind in ((4096, "cuda-out-of-memory"), (4, None)):
            request = MeasureRequest(config=LoaderConfig(batch_size=batch_size), options=MeasureOptions(max_trial_s=2.0))
            *_, event = template.run(request)
            failure = event.failure if isinstance(event, Failed) else None
            assert (None if failure is None else failure.kind) == kind, event
            if failure is not None:
                assert failure.message.endswith("(batch_size was 4096)")
    finally:
        template.close()
