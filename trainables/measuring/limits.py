"""Refuse a setting before its loader starts if it cannot fit on this machine: /dev/shm, open files, memory.

Workers send batches through shared memory: `prefetch_factor * num_workers` are in flight and one is in the training step. Each
tensor's storage is an open file descriptor. Without workers, nothing goes through shared memory.
"""

from __future__ import annotations

import math
import os
import resource
from collections.abc import Sequence
from typing import Any

import torch

from feedrate.trainables.beside_loader import BesideLoader
from feedrate.trainables.config import LoaderConfig
from feedrate.trainables.failure import Failure, TrialFailed
from feedrate.trainables.machine.memory_guard import available_bytes as memory_available_bytes
from feedrate.trainables.step import tensors

SHM_MARGIN = 1.3
"""Allowance for batches larger than the cached one, and for other processes that use /dev/shm."""
SPARE_FILES = 64
"""File descriptors of the training process itself: libraries, pipes and the dataset's own files."""
WORKER_BYTES = {"fork": 25e6, "spawn": 160e6, "forkserver": 160e6}
"""Memory that a worker process needs before it has loaded anything (measured)."""


def check_limits(
    config: LoaderConfig,
    storage_sizes: Sequence[int],
    *,
    free_shm_bytes: int | None = None,
    used_shm_bytes: int = 0,
    max_open_files: int | None = None,
    available_bytes: int | None = None,
    beside: Sequence[BesideLoader] = (),
    num_ranks: int = 1,
) -> None:
    """Refuse a setting whose batches in flight cannot fit.

    Only tensors count, and each storage counts once. The memory is a lower bound, because the memory that the dataset itself
    needs in a worker is not known before the worker runs.

    Args:
        config: the setting.
        storage_sizes: bytes of each storage of one batch of this size in host memory (see `storage_bytes`).
        free_shm_bytes: free space in /dev/shm; None asks the system, as for the other limits.
        used_shm_bytes: used space in /dev/shm, from which the message computes the size to set.
        max_open_files: the limit of file descriptors per process.
        available_bytes: memory that is still available.
        beside: other loaders of the same training. If their workers live at the same time, they and their batches need room, too.
        num_ranks: processes that train together on this host, each with a loader of its own; open files are limited in each of them.

    Raises:
        TrialFailed: kind shm-full, too-many-files or out-of-memory; the message says how to raise the limit.
    """
    if config.num_workers == 0:
        return
    sizes = list(storage_sizes)
    num_batches = (config.prefetch_factor or 2) * config.num_workers + 1
    others = [each for each in beside if each.lives_beside(config)]
    if free_shm_bytes is None:
        free_shm_bytes, used_shm_bytes = _shm_bytes()
    if max_open_files is None:
        max_open_files = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    if available_bytes is None:
        available_bytes = memory_available_bytes()
    others_bytes = sum(each.num_batches * each.batch_bytes(config, sum(sizes)) for each in others)
    _check_shm(num_ranks * num_batches, sum(sizes), free_shm_bytes, used_shm_bytes, num_ranks * others_bytes, _and(others))
    # ask torch and not the setting, because the user's own module may have set the strategy
    if torch.multiprocessing.get_sharing_strategy() == "file_descriptor":  # type: ignore[no-untyped-call]
        num_others = sum(each.num_batches for each in others)
        _check_files(num_batches + num_others, len(sizes), max_open_files, _and(others))
    _check_memory(config, num_batches, sizes, available_bytes, others, others_bytes, num_ranks)


def storage_bytes(batch: Any) -> list[int]:
    """Return the size of every storage behind a batch's tensors in host memory; a storage that views share counts once."""
    storages = {}
    for tensor in tensors(batch):
        if tensor.device.type == "cpu" and tensor.layout == torch.strided:
            storage = tensor.untyped_storage()
            storages[storage.data_ptr()] = storage.nbytes()
    return [size for size in storages.values() if size]


def _and(others: Sequence[BesideLoader]) -> str:
    """Return the clause of a message that names the other loaders which need room; empty if there are none."""
    if not others:
        return ""
    num, where = sum(each.num_workers for each in others), " and ".join(each.where for each in others)
    return f" together with {num} worker{'s' * (num > 1)} of the loader{'s' * (len(others) > 1)} at {where}"


def _check_shm(num_batches: int, batch_bytes: int, free_bytes: int | None, used_bytes: int, others_bytes: int, and_others: str) -> None:
    need = round(SHM_MARGIN * (num_batches * batch_bytes + others_bytes))
    if free_bytes is None or need <= free_bytes:
        return
    size = math.ceil((used_bytes + need) / 2**30)
    message = (
        f"/dev/shm is too small: {num_batches} batches of {amount(batch_bytes)} and a margin of {SHM_MARGIN - 1:.0%}{and_others} need "
        f"{amount(need)}, but only {amount(free_bytes)} are free. Use docker run --shm-size={size}g, fewer workers or a smaller "
        "prefetch_factor"
    )
    raise TrialFailed(Failure(kind="shm-full", phase="loader", message=message))


def _check_files(num_batches: int, num_storages: int, limit: int, and_others: str) -> None:
    need = num_batches * num_storages + SPARE_FILES
    if limit == resource.RLIM_INFINITY or need <= limit:
        return
    message = (
        f"the limit of open files is too low: {num_batches} batches of {num_storages} tensors{and_others} need up to {need:,}, but the limit is "
        f"{limit:,}. Use ulimit -n {_round_up(need)}, the file_system sharing strategy, fewer workers or a smaller prefetch_factor"
    )
    raise TrialFailed(Failure(kind="too-many-files", phase="loader", message=message))


def _check_memory(
    config: LoaderConfig,
    num_batches: int,
    sizes: list[int],
    available_bytes: int | None,
    others: Sequence[BesideLoader],
    others_bytes: int,
    num_ranks: int,
) -> None:
    batch_bytes = sum(sizes)
    method = config.multiprocessing_context or torch.multiprocessing.get_start_method(allow_none=True) or "fork"
    worker_bytes = WORKER_BYTES.get(method, WORKER_BYTES["fork"])
    workers = config.num_workers * (worker_bytes + batch_bytes) + sum(each.num_workers for each in others) * worker_bytes + others_bytes
    # torch's allocator for pinned memory rounds every block up to a power of two and keeps it
    pinned = (num_batches + 1) * sum(_round_up(size) for size in sizes) if config.pin_memory else 0
    need = math.ceil(num_ranks * (workers + num_batches * batch_bytes + pinned))
    if available_bytes is None or need <= available_bytes:
        return
    message = (
        f"not enough memory: {num_ranks * config.num_workers} workers and {num_ranks * num_batches} batches of {amount(batch_bytes)}{_and(others)} need at least "
        f"{amount(need)}, but only {amount(available_bytes)} are available. Use fewer workers, a smaller prefetch_factor or a smaller batch"
    )
    raise TrialFailed(Failure(kind="out-of-memory", phase="loader", message=message))


def amount(num_bytes: float) -> str:
    """Format bytes with at most three digits: 71.3 MB, 9.2 GB."""
    for unit, size in (("TB", 1e12), ("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if num_bytes >= 0.9995 * size:
            value = num_bytes / size
            return f"{value:.{0 if value >= 99.95 else 1}f}".removesuffix(".0") + f" {unit}"
    return f"{num_bytes:.0f} bytes"


def _round_up(number: int) -> int:
    """Return the next power of two."""
    return 1 << (number - 1).bit_length() if number > 1 else 1


def _shm_bytes() -> tuple[int | None, int]:
    """Return the bytes free for us, and those used or reserved for root; None and 0 if there is no /dev/shm."""
    try:
        stat = os.statvfs("/dev/shm")
    except OSError:
        return None, 0
    return stat.f_bavail * stat.f_frsize, (stat.f_blocks - stat.f_bavail) * stat.f_frsize
