"""The training step without loading, and loading without the training step: the two ceilings of a setting."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import torch
from torch.utils.data._utils.pin_memory import pin_memory  # what the loader itself calls

from feedrate.trainables.machine.accelerator import synchronize
from feedrate.trainables.step import Step, count_items, count_samples, is_count, to_device
from feedrate.trainables.workload import Workload

BLOCKS = 9
BLOCK_S = 0.1
Blocks = tuple[list[int], list[float]] | None
"""Items and seconds of each block; None where there are no items."""


def loading_step(workload: Workload, batch: Any, step: Step, device: torch.device) -> Step:
    """A step that only copies to the device, and counts items in the unit in which the real step counts `batch`.

    Args:
        workload: of either form.
        batch: a host batch; from None, or one that the step skips, nothing is learnt, and samples are counted.
        step: the real one, which is run once.
        device: where batches are copied.
    """
    items_per_sample: float | None = None
    if not workload.is_short and batch is not None:
        returned = step(batch)
        items = count_items(batch, returned) if is_count(returned) else 0
        items_per_sample = items / count_samples(batch) if items else None

    def load(batch: Any) -> int | None:
        to_device(batch, device)
        return None if items_per_sample is None or batch is None else round(items_per_sample * count_samples(batch))

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


def time_step(step: Step, batch: Any, device: torch.device, max_s: float) -> Blocks:
    """The step on a batch that is on the device already; None where it trains no item of it."""
    return _blocks(lambda: count_items(batch, step(batch)), device, max_s)


def time_copy(batch: Any, device: torch.device, *, pinned: bool) -> Blocks:
    """The copy of a host batch to the device, as the step of the short form does it, in 3 blocks; None for an empty one.

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


def _blocks(act: Callable[[], int], device: torch.device, max_s: float) -> Blocks:
    """Blocks of BLOCK_S or one call: BLOCKS of them, fewer where calls take long.

    A call may count no item: a step that accumulates gradients counts in some calls only, and one that skips the batch never.
    A block goes on until it has items, or the time is over.
    """
    num_items: list[int] = []
    durations_s: list[float] = []
    until = time.perf_counter() + max_s
    while len(durations_s) < BLOCKS and (time.perf_counter() < until or not durations_s):
        begin = time.perf_counter()
        items = 0
        while items == 0 or time.perf_counter() - begin < BLOCK_S:
            items += act()
            if items == 0 and time.perf_counter() >= until:
                synchronize(device)
                return (num_items, durations_s) if num_items else None
        synchronize(device)
        num_items.append(items)
        durations_s.append(time.perf_counter() - begin)
    return num_items, durations_s
