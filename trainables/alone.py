"""The training step without loading, and loading without the training step: the two ceilings of a setting."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import torch
from torch.utils.data._utils.pin_memory import pin_memory  # what the loader itself calls

from feedrate.trainables.step import Step, count_items, count_samples, to_device
from feedrate.trainables.workload import Workload

BLOCKS = 9
BLOCK_S = 0.1


def loading_step(workload: Workload, batch: Any, step: Step, device: torch.device) -> Step:
    """A step that only copies to the device, and counts items in the unit in which the real step counts `batch`."""
    per_sample: float | None = None
    if not workload.is_short and batch is not None:
        items = step(batch)
        per_sample = None if items is None else items / count_samples(batch)

    def load(batch: Any) -> int | None:
        to_device(batch, device)
        return None if per_sample is None else round(per_sample * count_samples(batch))

    return load


def warm(step: Step, batch: Any, device: torch.device) -> float:
    """Three steps, fewer where they are slow: allocator, autotuning and threads are ready before anything is timed.

    Returns:
        Seconds of the first step, in which torch.compile compiles.
    """
    begin = time.perf_counter()
    first_s = 0.0
    for number in range(3):
        step(batch)
        synchronize(device)
        elapsed = time.perf_counter() - begin
        if number == 0:
            first_s = elapsed
        elif elapsed - first_s > 3:
            break
    return first_s


def time_step(step: Step, batch: Any, device: torch.device, max_s: float) -> tuple[list[int], list[float]]:
    """The step on a batch that is on the device already: items and seconds of each block."""
    return _blocks(lambda: count_items(batch, step(batch)), device, max_s)


def time_copy(batch: Any, device: torch.device, *, pinned: bool) -> tuple[list[int], list[float]]:
    """The copy of a host batch to the device, as the step of the short form does it: items and seconds of 3 blocks.

    Args:
        batch: on the host.
        device: where it goes.
        pinned: whether the loader hands out pinned batches: pageable ones are copied more slowly.
    """
    if pinned:
        batch = pin_memory(batch)  # type: ignore[no-untyped-call]
    items = count_samples(batch)

    def copy() -> int:
        to_device(batch, device)
        return items

    return _blocks(copy, device, 3 * BLOCK_S)


def _blocks(act: Callable[[], int], device: torch.device, max_s: float) -> tuple[list[int], list[float]]:
    """Blocks of BLOCK_S or one call: BLOCKS of them, fewer where calls take long."""
    num_items: list[int] = []
    durations_s: list[float] = []
    until = time.perf_counter() + max_s
    while len(durations_s) < BLOCKS and (time.perf_counter() < until or not durations_s):
        begin = time.perf_counter()
        items = 0
        while items == 0 or time.perf_counter() - begin < BLOCK_S:
            items += act()
        synchronize(device)
        num_items.append(items)
        durations_s.append(time.perf_counter() - begin)
    return num_items, durations_s


def synchronize(device: torch.device) -> None:
    """Wait until the device has done what it was given; a CPU has."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
