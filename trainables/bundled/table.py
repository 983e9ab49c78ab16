"""The bundled workload `table`: rows that are already in memory, for which worker processes are only a cost.

Nothing is left to load, and sending batches between processes takes longer than making them, so 0 workers is fastest.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import torch
from torch import nn
from torch.utils.data import Dataset, default_collate

from feedrate.trainables.workload import Workload, WorkloadError

NUM_CLASSES = 10


class TableRows(Dataset[tuple[torch.Tensor, torch.Tensor]]):
    """(row, label) pairs in memory: row float32 (num_features,), label int64 (), 0..NUM_CLASSES-1.

    The label is the index of the largest of NUM_CLASSES fixed random sums of the row, so that there is something to learn.
    """

    def __init__(self, num_rows: int, num_features: int, epoch_samples: int) -> None:
        self.epoch_samples = epoch_samples
        fixed = torch.Generator().manual_seed(1)
        self.rows = torch.randn(num_rows, num_features, generator=fixed)
        self.labels = (self.rows @ torch.randn(num_features, NUM_CLASSES, generator=fixed)).argmax(dim=1)

    def __len__(self) -> int:
        return self.epoch_samples

    def __getitem__(self, index: int) -> tuple[torch.Tensor, torch.Tensor]:
        if not 0 <= index < self.epoch_samples:
            raise IndexError(index)
        row = index % len(self.rows)
        return self.rows[row], self.labels[row]

    def __getitems__(self, indices: list[int]) -> tuple[torch.Tensor, torch.Tensor]:
        """Return a whole batch with one look-up in each tensor; the loader prefers this to one `__getitem__` per sample."""
        which = torch.tensor(indices) % len(self.rows)
        return self.rows[which], self.labels[which]


def keep_batch(samples: Any) -> Any:
    """Collate single samples as torch does; return a batch from `__getitems__` unchanged."""
    return default_collate(samples) if isinstance(samples, list) else samples


def _mlp(num_features: int) -> nn.Module:
    """Make a narrow network: torch splits wider layers over threads, which wait milliseconds for each other on a busy machine."""
    hidden = (nn.Linear(num_features, 32), nn.ReLU(), nn.Linear(32, 32), nn.ReLU())
    return nn.Sequential(*hidden, nn.Linear(32, NUM_CLASSES))


def table(*, num_rows: int = 200_000, num_features: int = 64, epoch_samples: int | None = None) -> Workload:
    """Return the bundled workload `table`.

    Args:
        num_rows: number of rows in memory.
        num_features: numbers per row.
        epoch_samples: number of samples per epoch; the rows are cycled. None is every row once.

    Raises:
        WorkloadError: one of them is less than 1.
    """
    for name, value in (("num_rows", num_rows), ("num_features", num_features), ("epoch_samples", epoch_samples)):
        if value is not None and value < 1:
            raise WorkloadError(f"{name} must be 1 or more, not {value}")

    @cache
    def rows() -> TableRows:
        return TableRows(num_rows, num_features, num_rows if epoch_samples is None else epoch_samples)

    return Workload(
        name="table",
        dataset=rows,
        model=lambda: _mlp(num_features),
        loss=nn.CrossEntropyLoss(),
        optimizer=lambda parameters: torch.optim.SGD(parameters, lr=0.1, momentum=0.9),
        collate_fn=keep_batch,
    )
