"""Time the training step without loading, and load without training: the two ceilings of a setting."""

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
"""Items and seconds of each timed block; None if the step trained no items."""


def loading_step(workload: Workload, batch: Any, step: Step, device: torch.device) -> Step:
    """Return a step that only copies to the device, and counts items in the unit that the real step uses for `batch`.

    Args:
        workload: of either form.
        batch: a batch in host memory. If it is None, or the real step skips it, its unit is not known and samples are counted.
        step: the real step; it is run once on `batch`.
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
    """Run three steps (two if they are slow), so that allocator, autotuning and threads are ready before anything is timed.

    Returns:
        Seconds of the first step, which includes compilation by torch.compile.
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
    """Time the step on a batch that is already on the device; return None if the step trains no item of it."""
    return _blocks(lambda: count_items(batch, step(batch)), device, max_s, lambda: getattr(step, "num_asides", 0))


def time_copy(batch: Any, device: torch.device, *, pinned: bool) -> Blocks:
    """Time the copy of a batch from host to device three times, as the short form's step copies it; None for an empty batch.

    Args:
        batch: on the host.
        device: where it is copied.
        pinned: whether the loader returns pinned batches; others are copied more slowly.
    """
    if pinned:
        batch = pin_memory(batch)  # type: ignore[no-untyped-call]
    items = count_samples(batch)

    def copy() -> int:
        to_device(batch, device)
        return items

    return _blocks(copy, device, 3 * BLOCK_S)


def _blocks(act: Callable[[], int], device: torch.device, max_s: float, num_asides: Callable[[], int] = lambda: 0) -> Blocks:
    """Time BLOCKS blocks, each of BLOCK_S or at least one call; fewer blocks if calls take long.

    A call may train no item: a step that accumulates gradients counts items only in some calls, and one that skips the batch
    never. A block goes on until it has items, or until the time is over. A block in which `num_asides` rises is discarded, because
    a training script did something else in it; if time runs out before, it counts.
    """
    num_items: list[int] = []
    durations_s: list[float] = []
    until = time.perf_counter() + max_s
    while len(durations_s) < BLOCKS and (time.perf_counter() < until or not durations_s):
        begin, asides = time.perf_counter(), num_asides()
        items = 0
        while items == 0 or time.perf_counter() - begin < BLOCK_S:
            items += act()
            if items == 0 and time.perf_counter() >= until:
                synchronize(device)
                return (num_items, durations_s) if num_items else None
        synchronize(device)
        if num_asides() > asides and time.perf_counter() < until:
            continue
        num_items.append(items)
        durations_s.append(time.perf_counter() - begin)
    return num_items, durations_s
