"""Read the user's own setting, the baseline, back from the loader that they built."""

from __future__ import annotations

from typing import Any

from torch.utils.data import DataLoader

from feedrate.trainables.config import LoaderConfig


def read_baseline(loader: DataLoader[Any]) -> LoaderConfig:
    """Return the setting of a loader that the user built."""
    context = loader.multiprocessing_context
    return LoaderConfig(
        num_workers=loader.num_workers,
        batch_size=loader.batch_size,
        pin_memory=bool(loader.pin_memory),
        prefetch_factor=loader.prefetch_factor,
        persistent_workers=loader.persistent_workers,
        multiprocessing_context=context.get_start_method() if context is not None else None,
        in_order=bool(getattr(loader, "in_order", True)),
    )
