"""`Survey`: facts about a workload and its loader, and what making them left behind, collected in the process that made them."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch.utils.data import DataLoader, IterableDataset

from feedrate.trainables.config import LoaderConfig
from feedrate.trainables.loader.baseline import read_baseline
from feedrate.trainables.loader.build_loader import build_loader, own_loader
from feedrate.trainables.loader.epoch_size import EpochSize, length_of
from feedrate.trainables.probing.leftovers import Leftovers, Snapshot
from feedrate.trainables.probing.probe import Parts, tells
from feedrate.trainables.probing.static_check import fork_unsafe, owned_generators, reseed_line
from feedrate.trainables.workload import Workload, WorkloadError

Make = Callable[[], Workload]
SHORT_BATCH_SIZE = 32
"""Batch size for the short form if the user named none."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Survey:
    """Facts about a workload and its loader. Picklable."""

    name: str
    unit: str
    is_short: bool
    notes: tuple[str, ...]
    """Sentences from the workload's own check."""
    setting: LoaderConfig
    """The loader's own setting."""
    fixed: tuple[str, ...]
    """Dimensions that the workload fixes."""
    is_iterable: bool
    batch_size: int | None
    drop_last: bool
    epoch_samples: int | None
    """The sampler's length, or else the dataset's."""
    dataset_samples: int | None
    """len(dataset); None if it has no length."""
    has_generator: bool
    """Whether the user's loader has its own random generator."""
    members: tuple[tuple[str, str], ...]
    """(path, description) of each member of the dataset that workers must not share."""
    owned: dict[str, str]
    """Path of each random generator of the dataset -> the line of a worker_init_fn that seeds it."""
    tells: tuple[str, ...]
    """Which objects have a `set_epoch` that a training loop may have to call (see `probe.tells`)."""
    left: Leftovers
    made_s: float
    """Seconds to make workload and loader."""


def make_parts(
    make: Make, config: LoaderConfig | None, has_generator: bool | None, *, checks: bool = False
) -> tuple[Parts, Survey]:
    """Make the workload and its loader, each once, in this process.

    Args:
        make: makes the workload.
        config: the loader's setting; None is the user's own.
        has_generator: from the survey of the user's own loader; None if this is the user's own.
        checks: run the workload's own check.

    Raises:
        WorkloadError: there is no loader or no data.
        TrialFailed: make_loader ignored the setting.
        Exception: whatever the user's code raises.
    """
    begin, before = time.monotonic(), Snapshot.now()
    workload = make()
    left = Leftovers.since(before)
    notes = tuple(workload.check()) if checks and workload.check is not None else ()
    torch.set_num_threads(1)  # torch's threads would not survive a fork, and a process that has them could not be forked for looks
    before = Snapshot.now()
    loader, has_generator = _loader(workload, config, has_generator)
    left += Leftovers.since(before)
    made_s = time.monotonic() - begin
    epoch = EpochSize.of_loader(loader)
    if epoch.is_empty or length_of(loader.dataset) == 0:
        raise _empty(workload)
    parts = Parts.of(loader, loader.generator if has_generator or workload.is_short else None)
    survey = Survey(
        name=workload.name,
        unit=workload.unit,
        is_short=workload.is_short,
        notes=notes,
        setting=read_baseline(loader),
        fixed=("batch_size",) if loader.batch_size is None else (),
        is_iterable=isinstance(loader.dataset, IterableDataset),
        batch_size=loader.batch_size,
        drop_last=loader.drop_last,
        epoch_samples=epoch.num_samples,
        dataset_samples=length_of(loader.dataset),
        has_generator=has_generator,
        members=tuple(fork_unsafe(loader.dataset)),
        owned={path: reseed_line(path, generator) for path, generator in owned_generators(loader.dataset).items()},
        tells=tuple(tells(parts)),
        left=left,
        made_s=made_s,
    )
    return parts, survey


def _loader(
    workload: Workload, config: LoaderConfig | None, has_generator: bool | None
) -> tuple[DataLoader[Any], bool]:
    """Make the loader; return it, and whether the user's own loader has a random generator.

    Raises:
        WorkloadError: there is no loader or no data.
    """
    if workload.is_short:
        if length_of(workload.dataset) == 0:  # torch's own sampler refuses an empty dataset
            raise _empty(workload)
        kwargs = (config or LoaderConfig(batch_size=SHORT_BATCH_SIZE)).to_kwargs()
        if "batch_sampler" in workload.loader_kwargs:
            kwargs.pop("batch_size", None)
        loader = workload.make_loader(**kwargs)
        return loader, loader.generator is not None
    if config is None:
        loader = own_loader(workload)
        return loader, loader.generator is not None
    return build_loader(workload, config, seed=0), bool(has_generator)


def _empty(workload: Workload) -> WorkloadError:
    return WorkloadError(f"the dataset of workload {workload.name!r} is empty")


def compared(setting: LoaderConfig, num_workers: int) -> LoaderConfig:
    """Return the user's own setting with another number of workers, so that compared loaders differ only in their workers."""
    return replace(setting, num_workers=num_workers, pin_memory=False, persistent_workers=False)
