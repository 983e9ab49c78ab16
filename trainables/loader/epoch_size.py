"""`EpochSize`: the size of a loader's epoch, from the lengths of its dataset, sampler and batch sampler."""

from __future__ import annotations

from collections.abc import Sized
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch.utils.data import BatchSampler, DataLoader, IterableDataset

SAME_FRACTION = 0.1
"""If the items trained per sample read differ from 1 by less than this, they count as 1: window edges and incomplete batches blur it."""


@dataclass(frozen=True, kw_only=True, slots=True)
class EpochSize:
    """The number of samples in an epoch, or of batches if only that is known; both None if neither is known."""

    num_samples: int | None = None
    num_batches: int | None = None

    @classmethod
    def of(cls, dataset: object, sampler: object, batch_sampler: object, batch_size: int | None) -> EpochSize:
        """Return the size of a DataLoader with these parts.

        The length of a sampler is a number of samples only if the loader itself groups single indices (it has a batch size), or
        if the sampler is torch's BatchSampler, whose own sampler has a length. If a loader has no batch size, any other
        sampler yields whole batches, or indices at which the dataset has whole batches.

        Args:
            dataset: map-style or iterable.
            sampler: the loader's; None is torch's own.
            batch_sampler: the loader's; None if it forms no batches, or if torch's own batch sampler does.
            batch_size: the loader's own; None if sampler or dataset form the batches.
        """
        if isinstance(dataset, IterableDataset):
            length = length_of(dataset)  # without a batch size, torch too takes it as a number of batches: len(loader)
            return cls(num_samples=length) if batch_size is not None else cls(num_batches=length)
        indices = batch_sampler if batch_sampler is not None else sampler
        if type(indices) is BatchSampler:
            length = length_of(indices.sampler)
            left_out = length % indices.batch_size if length is not None and indices.drop_last else 0
            return cls(num_samples=length_of(dataset) if length is None else length - left_out or length)
        if batch_size is None and indices is not None:
            length = length_of(indices)
            return cls(num_samples=length_of(dataset)) if length is None else cls(num_batches=length)
        if batch_size is None:  # torch's own sampler: each index is a batch
            return cls(num_batches=length_of(dataset))
        length = None if sampler is None else length_of(sampler)
        return cls(num_samples=length_of(dataset) if length is None else length)

    @classmethod
    def of_loader(cls, loader: DataLoader[Any]) -> EpochSize:
        """Return the size of this loader's epochs."""
        return cls.of(loader.dataset, loader.sampler, loader.batch_sampler, loader.batch_size)

    @property
    def is_empty(self) -> bool:
        """Whether there is certainly nothing to load."""
        return 0 in (self.num_samples, self.num_batches)

    def num_items(self, items_per_batch: float, samples_per_batch: float | None) -> int | None:
        """Return the number of items that an epoch trains; None if it is not known.

        Args:
            items_per_batch: items trained per batch, on average.
            samples_per_batch: indices per batch from the sampler, on average; None if not known. Samples that collate_fn or
                the step drops are not trained.
        """
        if self.num_samples is None:
            return None if self.num_batches is None else round(self.num_batches * items_per_batch)
        trained_fraction = items_per_batch / samples_per_batch if samples_per_batch else 1.0
        return self.num_samples if abs(trained_fraction - 1) < SAME_FRACTION else round(self.num_samples * trained_fraction)


def length_of(part: object) -> int | None:
    """Return `len` of a dataset or sampler; None if it has no length."""
    try:
        return len(part)  # type: ignore[arg-type]
    except (TypeError, NotImplementedError):
        return None


def num_indices(handed_out: object) -> int:
    """Return the number of samples in what a sampler yields for one batch: a list of indices in any form, or one index."""
    if isinstance(handed_out, (np.ndarray, torch.Tensor)):
        return handed_out.shape[0] if handed_out.ndim else 1
    if isinstance(handed_out, slice):
        bounds = (handed_out.start or 0, handed_out.stop, handed_out.step or 1)
        return len(range(*bounds)) if all(isinstance(bound, int) for bound in bounds) else 1
    return len(handed_out) if isinstance(handed_out, Sized) and not isinstance(handed_out, (str, bytes)) else 1
