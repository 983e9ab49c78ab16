"""What needs a CUDA device: run on a lent machine with `.venv/bin/pytest tests/gpu`."""

from __future__ import annotations

import pytest
import torch

from feedrate.trainables.config import LoaderConfig
from feedrate.trainables.failure import classify
from feedrate.trainables.measure import MeasureOptions, measure
from feedrate.trainables.table import table

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")


def test_trains_on_the_gpu_with_pinned_memory() -> None:
    """A trial trains on the first CUDA device and records its peak memory."""
    config = LoaderConfig(num_workers=2, batch_size=64, pin_memory=True)
    *_, last = measure(table(), config, MeasureOptions(max_trial_s=5))
    assert last.throughput().sps > 0
    assert last.gpu_peak_bytes is not None
    assert last.gpu_peak_bytes > 0


def test_out_of_memory_is_a_failure_of_its_own_kind() -> None:
    """CUDA out-of-memory is told apart from the workload's own exceptions."""
    with pytest.raises(torch.OutOfMemoryError) as caught:
        torch.empty(1 << 50, device="cuda")
    assert classify(caught.value, "warm").kind == "cuda-out-of-memory"
