"""Workloads whose rate is hard to measure, each with the setting it is measured at. Waiting is sleep: it costs no CPU.

Every function is a feedrate workload; `benchmarks/honesty.py` also trains each in a plain PyTorch loop.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset

from feedrate.trainables import Workload
from feedrate.trainables.step import StepContext

SETTINGS: dict[str, dict[str, Any]] = {
    "bursty": {"num_workers": 4, "batch_size": 16, "prefetch_factor": 8},
    "borderline": {"num_workers": 4, "batch_size": 16, "prefetch_factor": 8},
    "heavy-tailed": {"num_workers": 4, "batch_size": 8, "prefetch_factor": 2},
    "tiny": {"num_workers": 4, "batch_size": 8, "prefetch_factor": 2},
    "slow": {"num_workers": 2, "batch_size": 8, "prefetch_factor": 2},
    "ragged": {"num_workers": 2, "batch_size": 16, "prefetch_factor": 4},
}


class Waited(Dataset[torch.Tensor]):
    """Samples float32 (length(index), 8) that take `wait_s(index)` seconds to come."""

    def __init__(self, num_samples: int, wait_s: Callable[[int], float], length: Callable[[int], int]) -> None:
        self.num_samples, self.wait_s, self.length = num_samples, wait_s, length

    def __len__(self) -> int:
        return self.num_samples

    def __getitem__(self, index: int) -> torch.Tensor:
        time.sleep(self.wait_s(index))
        return torch.full((self.length(index), 8), float(index % 7))


def scattered(index: int) -> float:
    """0..1, the same for an index every time, without a pattern along indices."""
    return (index * 2654435761 % 2**32) / 2**32


def one(index: int) -> int:
    """Every sample is one item."""
    return 1


def tokens(index: int) -> int:
    """10 to 190 of them."""
    return 10 + int(180 * scattered(index))


def tokens_s(index: int) -> float:
    """40 us a token."""
    return tokens(index) * 4e-5


def _workload(
    name: str,
    num_samples: int,
    wait_s: Callable[[int], float],
    step_s: float,
    length: Callable[[int], int] = one,
    unit: str = "samples",
) -> Workload:
    dataset = Waited(num_samples, wait_s, length)

    def make_loader(**overrides: Any) -> DataLoader[torch.Tensor]:
        return DataLoader(dataset, **{"shuffle": True, "collate_fn": torch.cat, **SETTINGS[name], **overrides})

    def make_step(context: StepContext) -> Callable[[torch.Tensor], int]:
        model = nn.Linear(8, 8).to(context.device)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.001)

        def step(batch: torch.Tensor) -> int:
            optimizer.zero_grad()
            model(batch.to(context.device)).square().mean().backward()
            optimizer.step()
            time.sleep(step_s)
            return len(batch)

        return step

    return Workload.from_loader(name=name, make_loader=make_loader, make_step=make_step, unit=unit)


class Shards:
    """Waits of a worker that opens a shard for 160 ms and then has its next 32 samples at once."""

    def __init__(self) -> None:
        self.left: dict[int, int] = {}
        """Samples of the open shard, by process: each worker reads its own."""

    def __call__(self, index: int) -> float:
        worker = os.getpid()
        self.left[worker] = self.left.get(worker, 0) - 1
        if self.left[worker] >= 0:
            return 0.0
        self.left[worker] = 31
        return 0.16


def bursty() -> Workload:
    """Samples come in bursts: a worker opens a shard for 160 ms, and then has 32 of them at once."""
    return _workload("bursty", 100_000, Shards(), 0.001)


def borderline() -> Workload:
    """The loader is about 6 % slower than the step, so that a queue of ready batches takes hundreds of them to drain."""
    return _workload("borderline", 100_000, lambda index: 0.005, 0.0185)


def heavy_tailed() -> Workload:
    """One sample in fifty takes 30 times as long as the others."""
    return _workload("heavy-tailed", 100_000, lambda index: 0.06 if scattered(index) < 0.02 else 0.002, 0.005)


def tiny() -> Workload:
    """An epoch is 12 batches: most of the time goes into starting workers again."""
    return _workload("tiny", 96, lambda index: 0.002, 0.002)


def slow() -> Workload:
    """One batch takes 0.8 s, longer than a window is elsewhere."""
    return _workload("slow", 10_000, lambda index: 0.1, 0.02)


def ragged() -> Workload:
    """Sequences of 10 to 190 tokens that take time by their length; the unit is tokens."""
    return _workload("ragged", 100_000, tokens_s, 0.01, tokens, "tokens")


WORKLOADS: dict[str, Callable[[], Workload]] = {
    "bursty": bursty, "borderline": borderline, "heavy-tailed": heavy_tailed, "tiny": tiny, "slow": slow, "ragged": ragged,
}  # fmt: skip
