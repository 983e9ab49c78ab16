"""The cached batch: one batch in host memory on which the step is warmed up and timed alone, read in a separate process.

The trial's own process must not touch the dataset before the loader forks its workers. Otherwise all workers would share
what `__getitem__` opens on first use (an archive, a connection, a cache), which never happens in the user's program.
"""

from __future__ import annotations

import contextlib
import io
import os
import pickle
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from feedrate.trainables.config import LoaderConfig
from feedrate.trainables.failure import Failure
from feedrate.trainables.isolation.isolated import isolated
from feedrate.trainables.loader.build_loader import cached_batch, seed_everything
from feedrate.trainables.measuring.limits import storage_bytes
from feedrate.trainables.workload import Workload

READ_S = 60.0
"""Time for making the dataset and reading one batch without workers; if it takes longer, the trial goes on without a cached batch."""


@dataclass(frozen=True, slots=True)
class CachedBatch:
    """A batch that was read before the trial, or the reason why there is none."""

    batch: Any = None
    storage_sizes: tuple[int, ...] = ()
    """Bytes of each storage behind the batch's tensors, as workers send them."""
    failure: Failure | None = None
    """Why there is no batch."""


def read_apart(make: Callable[[], Workload], config: LoaderConfig, *, seed: int, path: Path | None = None) -> CachedBatch:
    """Read one batch into host memory in a forked process, which makes the workload, reads the batch and ends.

    Args:
        make: makes the workload, or returns the existing one.
        config: only its batch size is used.
        seed: for the random numbers that the dataset draws.
        path: file that keeps the batch for the next trial with this workload and batch size, and is read if it exists;
            None keeps nothing. The file is written completely or not at all.
    """
    with contextlib.suppress(OSError):
        if path is not None:
            return CachedBatch(*pickle.loads(path.read_bytes()))
    read = isolated(lambda: _read(make, config, seed), READ_S)
    if isinstance(read, Failure):
        if config.num_workers == 0 and read.kind == "unpicklable":
            # no worker is forked here, and a batch that cannot be pickled can only be used without workers
            batch = cached_batch(make(), config)
            return CachedBatch(batch, tuple(storage_bytes(batch)))
        if read.kind == "hang":
            _keep(path, pickle.dumps((None, (), read)))  # so that other trials do not wait as long
        return CachedBatch(failure=read)
    _keep(path, read)
    return CachedBatch(*pickle.loads(read))


def _keep(path: Path | None, data: bytes) -> None:
    if path is not None:
        unfinished = path.with_suffix(f".{os.getpid()}")
        with contextlib.suppress(OSError):  # if the disk is full, the next trial reads the batch itself
            unfinished.write_bytes(data)
            unfinished.replace(path)


def _read(make: Callable[[], Workload], config: LoaderConfig, seed: int) -> bytes | Failure:
    with open(os.devnull, "w") as nowhere:  # the trial prints what the dataset prints, so print it only there
        os.dup2(nowhere.fileno(), 1)
        os.dup2(nowhere.fileno(), 2)
    seed_everything(seed)
    batch = cached_batch(make(), config)
    buffer = io.BytesIO()
    try:
        _Pickler(buffer, protocol=pickle.HIGHEST_PROTOCOL).dump((batch, tuple(storage_bytes(batch))))
    except Exception as error:
        return Failure(kind="unpicklable", phase="setup", message=f"the batch cannot be pickled: {type(error).__name__}: {error}")
    return buffer.getvalue()


class _Pickler(pickle.Pickler):
    """A pickler that copies a tensor if its storage is larger, because a sample may be a view of the whole dataset."""

    def reducer_override(self, value: Any) -> Any:
        if (
            isinstance(value, torch.Tensor)
            and value.layout == torch.strided
            and value.untyped_storage().nbytes() > value.numel() * value.element_size()
        ):
            alone = value.detach().clone(memory_format=torch.contiguous_format)
            return alone.__reduce_ex__(pickle.HIGHEST_PROTOCOL)  # type: ignore[no-untyped-call]
        return NotImplemented
