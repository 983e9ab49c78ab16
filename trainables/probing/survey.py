"""`Survey`: facts about a workload and its loader, and what making them left behind, collected in the process that made them."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch.utils.data import DataLoader, IterableDataset

from feedrate.trainables.config import LoaderConfig
from feedrate.trainables.failure import Failure, TrialFailed
from feedrate.trainables.isolation.isolated import isolated
from feedrate.trainables.loader.baseline import read_baseline
from feedrate.trainables.loader.build_loader import build_loader, own_loader
from feedrate.trainables.loader.epoch_size import EpochSize, length_of
from feedrate.trainables.probing.leftovers import Leftovers, Snapshot
from feedrate.trainables.probing.probe import Parts, tells
from feedrate.trainables.probing.static_check import fork_unsafe, owned_generators, reseed_line
from feedrate.trainables.workload import Workload, WorkloadError

Make = Callable[[], Workload]
APART_LIMIT_S = 240.0
"""Longest time for `len` of the dataset and the other facts: less than that for making the workload (fresh_loader.py)."""
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


@dataclass(frozen=True, kw_only=True)
class Made:
    """A workload and its loader, each made once in this process, which has not touched the dataset since."""

    workload: Workload
    loader: DataLoader[Any]
    has_generator: bool
    """Whether the user's own loader has a random generator."""
    notes: tuple[str, ...]
    """Sentences from the workload's own check."""
    left: Leftovers
    """What making them left behind."""
    seconds: float

    @classmethod
    def now(cls, make: Make, config: LoaderConfig | None, has_generator: bool | None, *, checks: bool = False) -> Made:
        """Make the workload and its loader.

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
        seconds = time.monotonic() - begin
        return cls(workload=workload, loader=loader, has_generator=has_generator, notes=notes, left=left, seconds=seconds)

    @property
    def parts(self) -> Parts:
        """The parts of the loader."""
        return Parts.of(self.loader, self.loader.generator if self.has_generator or self.workload.is_short else None)

    def survey(self) -> Survey:
        """Collect facts in a process that ends, so that this one has not opened what loader workers would share (in `__len__`).

        If making the workload left threads or files behind, the dataset may need them, and a fork has no threads; then it happens here.

        Raises:
            WorkloadError: there is no data.
            TrialFailed: the user's code, such as `__len__`, failed.
        """
        found = isolated(self._survey, APART_LIMIT_S, WorkloadError) if self.left.is_nothing else self._survey()
        if isinstance(found, Failure):
            raise TrialFailed(found)
        return found

    def _survey(self) -> Survey:
        workload, loader = self.workload, self.loader
        members, owned = fork_unsafe(loader.dataset), owned_generators(loader.dataset)  # before `__len__`, which may open something
        epoch = EpochSize.of_loader(loader)
        if epoch.is_empty or length_of(loader.dataset) == 0:
            raise _empty(workload)
        return Survey(
            name=workload.name,
            unit=workload.unit,
            is_short=workload.is_short,
            notes=self.notes,
            setting=read_baseline(loader),
            fixed=("batch_size",) if loader.batch_size is None else (),
            is_iterable=isinstance(loader.dataset, IterableDataset),
            batch_size=loader.batch_size,
            drop_last=loader.drop_last,
            epoch_samples=epoch.num_samples,
            dataset_samples=length_of(loader.dataset),
            has_generator=self.has_generator,
            members=tuple(members),
            owned={path: reseed_line(path, generator) for path, generator in owned.items()},
            tells=tuple(tells(self.parts)),
            left=self.left,
            made_s=self.seconds,
        )


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
