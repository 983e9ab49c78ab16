"""`KeptBatches`: tells apart a step that keeps its batches and a limit that is too low for the batches in flight.

A batch from a loader worker is in shared memory, and each of its storages is an open file of the training process, for as
long as something references the tensor. A list of outputs, or a loss that was not detached, references it.
"""

from __future__ import annotations

import os
import resource
from dataclasses import replace
from typing import Any

from torch.utils.data import DataLoader

from feedrate.trainables.failure import Failure
from feedrate.trainables.machine.process import shm_used_bytes
from feedrate.trainables.measuring.limits import storage_bytes

HELD_FACTOR = 2
"""If more than this many times the batches in flight are held, the step must be keeping some."""


class KeptBatches:
    """The open files and shared memory that the training process held when training began.

    Args:
        loader: the loader whose batches are trained.
        batch: its first batch.
    """

    def __init__(self, loader: DataLoader[Any], batch: Any) -> None:
        self.in_flight = loader.num_workers * (loader.prefetch_factor or 2) + 1
        sizes = storage_bytes(batch)
        self._num_storages, self._num_bytes = max(len(sizes), 1), max(sum(sizes), 1)
        self._files, self._shm = _num_open_files(), shm_used_bytes() or 0

    def explain(self, failure: Failure, consumed: int) -> Failure:
        """Return the failure; if the step seems to hold the open files or the shared memory, say so in its message.

        Args:
            failure: of the loader, of any kind.
            consumed: number of batches that the step has trained.
        """
        if failure.kind not in ("too-many-files", "shm-full"):
            return failure
        by_files = (_num_open_files() - self._files) // self._num_storages
        by_shm = ((shm_used_bytes() or 0) - self._shm) // self._num_bytes
        held = min(by_files if failure.kind == "too-many-files" else by_shm, consumed)
        if held <= HELD_FACTOR * self.in_flight:
            return failure
        what = "open files" if failure.kind == "too-many-files" else "shared memory"
        message = (
            f"after {consumed:,} batches, about {held:,} of them still use {what}, although at most {self.in_flight} can be in flight: the "
            "step keeps the batches that it was given (in a list, or through a loss that was not detached). Release them, or keep copies "
            "(.clone(), .detach()); a higher limit only delays the failure"
        )
        return replace(failure, message=message)


def _num_open_files() -> int:
    try:
        return len(os.listdir("/proc/self/fd"))
    except OSError:  # listing the open files needs one more file descriptor
        return resource.getrlimit(resource.RLIMIT_NOFILE)[0]
