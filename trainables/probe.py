"""Looks at what a loader delivers: which samples, in which order, made by which worker with which random numbers.

The user's dataset, sampler, worker_init_fn and generators are used as they are; collate_fn is not, samples are
hashed one by one instead. Run each look in a process of its own (isolated.py): owned generators go on otherwise.
"""

from __future__ import annotations

import itertools
import random
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset, IterableDataset, RandomSampler, SequentialSampler, get_worker_info

from feedrate.trainables.config import LoaderConfig
from feedrate.trainables.digest import digest
from feedrate.trainables.loading import build_loader, read_baseline, seed_everything
from feedrate.trainables.static_check import generator_states
from feedrate.trainables.workload import Workload

END = "end of the stream"
"""Key of the item after which a worker's stream is over."""


class Seen(NamedTuple):
    """One delivered sample."""

    key: Any
    """Its index; the digest for an iterable dataset."""
    digest: str
    """Hash of its bytes."""
    worker: int
    """Loader worker; -1 is the training process."""
    generators: dict[str, str]
    """Name of each random generator -> hash of its state after the sample was made; empty unless asked for."""


@dataclass(frozen=True, kw_only=True)
class Look:
    """What to deliver."""

    num_workers: int
    num_samples: int
    """Samples of an epoch at most; of each worker for an iterable dataset."""
    epochs: int = 2
    persistent_workers: bool = False
    in_order: bool = True
    same_index: bool = False
    """Fetch the first index `num_samples` times instead of the epoch: map-style only."""
    generators: bool = False
    """Also hash the state of every random generator after every sample."""
    neutral: bool = False
    """Seed the global generators alike before every sample, so that augmentation does not hide which sample it is."""
    max_s: float = 60.0
    """A stream is not read further after this many seconds."""
    seed: int = 0


Epoch = list[list[Seen]]
"""Batches of one epoch."""


@dataclass(frozen=True)
class Parts:
    """What a user's loader is made of."""

    dataset: Dataset[Any]
    batch_size: int | None
    sampler: Any
    batch_sampler: Any
    drop_last: bool
    collate_fn: Any
    worker_init_fn: Any
    generator: torch.Generator | None
    multiprocessing_context: Any

    @property
    def iterable(self) -> bool:
        """Whether there are no indices."""
        return isinstance(self.dataset, IterableDataset)

    @property
    def shuffles_all(self) -> bool | None:
        """Whether torch's own sampler gives every index once, shuffled (True) or not (False); None: another sampler."""
        if self.iterable or self.batch_size is None or type(self.batch_sampler) is not torch.utils.data.BatchSampler:
            return None
        if type(self.sampler) is SequentialSampler:
            return False
        own = type(self.sampler) is RandomSampler and not self.sampler.replacement
        return True if own and self.sampler.num_samples == len(self.dataset) else None  # type: ignore[arg-type]


def own_setting(workload: Workload, own: DataLoader[Any] | None) -> LoaderConfig:
    """The user's own batch size, start method and order: what is compared differs in its workers only.

    Args:
        workload: of either form.
        own: what make_loader() of the general form returned; None for the short form.
    """
    if own is None:
        return LoaderConfig(num_workers=0, batch_size=None if "batch_sampler" in workload.loader_kwargs else 32)
    return replace(read_baseline(own), pin_memory=False, persistent_workers=False)


def parts_of(workload: Workload, config: LoaderConfig, own: DataLoader[Any] | None) -> Parts:
    """The parts of the workload's loader with this setting, built as the user's own program builds it.

    Raises:
        TrialFailed: make_loader ignored the setting.
    """
    if own is None:
        kwargs = config.to_kwargs()
        if "batch_sampler" in workload.loader_kwargs:
            kwargs.pop("batch_size", None)
        loader = workload.make_loader(**kwargs)
        generator = loader.generator
    else:
        loader = build_loader(workload, config, seed=0)
        generator = None if own.generator is None else loader.generator
    return Parts(
        dataset=loader.dataset,
        batch_size=loader.batch_size,
        sampler=None if isinstance(loader.dataset, IterableDataset) else loader.sampler,
        batch_sampler=loader.batch_sampler,
        drop_last=loader.drop_last,
        collate_fn=loader.collate_fn,
        worker_init_fn=loader.worker_init_fn,
        generator=generator,
        multiprocessing_context=loader.multiprocessing_context,
    )


def deliver(parts: Parts, look: Look) -> list[Epoch]:
    """Deliver epochs through torch's own DataLoader. Run it in `isolated`.

    Raises:
        Exception: whatever the dataset raises.
    """
    workers: dict[str, Any] = {}
    if look.num_workers:
        workers = {
            "persistent_workers": look.persistent_workers,
            "in_order": look.in_order,
            "multiprocessing_context": parts.multiprocessing_context,
            "worker_init_fn": _Init(parts.worker_init_fn),
        }
    echo = (_EchoStream if parts.iterable else _Echo)(parts.dataset, look, time.monotonic() + look.max_s)
    loader: DataLoader[Any] = DataLoader(
        echo,
        num_workers=look.num_workers,
        collate_fn=_as_they_are,
        generator=parts.generator,
        **_order(parts, look),
        **workers,
    )
    seed_everything(look.seed)
    for owner in (parts, parts.sampler, parts.batch_sampler):
        generator = getattr(owner, "generator", None)
        if isinstance(generator, torch.Generator):
            generator.manual_seed(look.seed)
    return [[batch if isinstance(batch, list) else [batch] for batch in loader] for _ in range(look.epochs)]


def _order(parts: Parts, look: Look) -> dict[str, Any]:
    """DataLoader's arguments that say which samples come in which batches."""
    num_samples = look.num_samples
    size = max(1, min(parts.batch_size or 8, num_samples // 8))  # several batches for every worker
    if parts.iterable:
        return {"batch_size": size}
    if look.same_index:
        if parts.batch_size is None and parts.batch_sampler is None:
            return {"batch_size": None, "sampler": [next(iter(parts.sampler))] * num_samples}
        first = next(iter(parts.sampler)) if parts.batch_size is not None else next(iter(parts.batch_sampler))[0]
        return {"batch_size": 1, "sampler": [first] * num_samples}
    if parts.shuffles_all is not None:
        num_samples = min(num_samples, len(parts.dataset))  # type: ignore[arg-type]
        few = range(num_samples)
        shuffled = (
            RandomSampler(few, generator=parts.sampler.generator) if parts.shuffles_all else SequentialSampler(few)
        )
        return {"batch_size": size, "sampler": shuffled}
    if parts.batch_size is None and parts.batch_sampler is not None:
        return {"batch_sampler": _First(parts.batch_sampler, num_samples)}
    if parts.batch_size is None:
        return {"batch_size": None, "sampler": _First(parts.sampler, num_samples)}
    return {"batch_size": size, "sampler": _First(parts.sampler, num_samples)}


class _First:
    """The beginning of a sampler, up to this many samples and four batches at least."""

    def __init__(self, sampler: Any, num_samples: int) -> None:
        self.sampler, self.num_samples = sampler, num_samples

    def __iter__(self) -> Iterator[Any]:
        num_samples = 0
        for number, item in enumerate(self.sampler):
            if num_samples >= self.num_samples and (number >= 4 or not isinstance(item, (list, tuple))):
                return
            num_samples += len(item) if isinstance(item, (list, tuple)) else 1
            yield item


class _Echo(Dataset[Seen]):
    """Delivers what is known of a sample instead of the sample."""

    def __init__(self, inner: Any, look: Look, until_s: float) -> None:
        self.inner, self.look, self.until_s = inner, look, until_s

    def __getitem__(self, index: Any) -> Seen:
        if self.look.neutral:
            _seed_alike()
        batched = getattr(self.inner, "__getitems__", None)  # what the loader calls where there is one
        single = not isinstance(index, (list, tuple))
        sample = batched([index]) if batched and single else self.inner[index]
        return self.seen(index if isinstance(index, int) else repr(index), digest(sample))

    def seen(self, key: Any, hashed: str) -> Seen:
        info = get_worker_info()
        states = generator_states(self.inner) if self.look.generators else {}
        return Seen(key, hashed, -1 if info is None else info.id, states)


class _EchoStream(_Echo, IterableDataset[Seen]):
    """The same for an iterable dataset, up to `look.num_samples` samples of each worker."""

    def __iter__(self) -> Iterator[Seen]:
        if self.look.neutral:
            _seed_alike()
        stream = iter(self.inner)
        for _ in range(self.look.num_samples):
            if self.look.neutral:
                _seed_alike()
            try:
                sample = next(stream)
            except StopIteration:
                yield self.seen(END, "")
                return
            hashed = digest(sample)
            yield self.seen(hashed, hashed)
            if time.monotonic() > self.until_s:
                return


class _Init:
    """Calls the user's worker_init_fn where `get_worker_info().dataset` is the user's own dataset."""

    def __init__(self, inner: Callable[[int], None] | None) -> None:
        self.inner = inner

    def __call__(self, worker_id: int) -> None:
        info = get_worker_info()
        object.__setattr__(info, "dataset", info.dataset.inner)  # type: ignore[union-attr]
        if self.inner is not None:
            self.inner(worker_id)


def _as_they_are(samples: Any) -> Any:
    return samples


def _seed_alike() -> None:
    random.seed(0)
    np.random.seed(0)
    torch.default_generator.manual_seed(0)


def samples_of(epoch: Epoch) -> list[Seen]:
    """The samples of an epoch in the order of delivery."""
    return [seen for seen in itertools.chain.from_iterable(epoch) if seen.key != END]
