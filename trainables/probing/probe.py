"""Examine what a loader delivers: which samples, in which order, made by which worker with which random numbers.

The user's dataset, sampler, worker_init_fn and generators are used as they are. As a rule collate_fn is not called: samples are
hashed one by one instead. Run each look in a separate process (fresh_loader.py), because the dataset's own generators advance.
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

from feedrate.trainables.failure import TrialFailed, classify
from feedrate.trainables.isolation.isolated import goes_on
from feedrate.trainables.loader.build_loader import seed_everything
from feedrate.trainables.loader.epoch_size import num_indices
from feedrate.trainables.probing.digest import digest
from feedrate.trainables.probing.static_check import generator_states, members

SAMPLES_OF_BATCH = 2
"""Samples that are examined per batch of the user's batch sampler, few enough that every worker makes several batches."""
REST_OF_EPOCH_S = 0.2
"""A sampler or stream that does not end within this time is not read to its end."""
END = "end of the stream"
"""Key of the item that marks the end of a worker's stream."""


class Seen(NamedTuple):
    """One delivered sample."""

    key: Any
    """The sample's index; for an iterable dataset its digest."""
    digest: str
    """Hash of its bytes."""
    worker: int
    """Number of the loader worker; -1 is the training process."""
    generators: dict[str, str]
    """Name of each random generator -> hash of its state after the sample was made; empty unless requested."""
    num_samples: int = 1
    """More than 1 if a sampler yields lists of indices and the dataset reads each list at once."""


@dataclass(frozen=True, kw_only=True)
class Look:
    """One look at a loader: the samples to deliver, and how."""

    num_workers: int
    num_samples: int
    """Most samples per epoch; for an iterable dataset per worker."""
    items: tuple[Any, ...] | None = None
    """Sampler items that every epoch delivers instead of its own; map-style only."""
    fork: bool = False
    """Start workers by fork, whatever the user's loader uses: what they repeat does not depend on it."""
    told: str | None = None
    """Whose `set_epoch` to call before each epoch, as a training loop does: a member of `TOLD`; None calls nobody's."""
    epoch_numbers: tuple[int, ...] = (0, 1, 2)
    """The arguments for `set_epoch`."""
    collates: bool = False
    """Hash the batches that the user's collate_fn makes, instead of samples, because collate_fn may depend on the epoch."""
    to_the_end: bool = False
    """Also read the rest of a stream, for at most REST_OF_EPOCH_S, because the dataset may count its epochs at the end."""
    epochs: int = 2
    persistent_workers: bool = False
    in_order: bool = True
    same_index: bool = False
    """Fetch the first index `num_samples` times instead of an epoch; map-style only."""
    generators: bool = False
    """Also hash the state of every random generator after every sample."""
    neutral: bool = False
    """Seed the global generators to the same value before every sample, so that augmentation does not hide which sample it is."""
    max_s: float = 60.0
    """Stop reading a stream after this many seconds."""
    seed: int = 0


TOLD = ("samplers", "dataset")
"""Which objects may have a `set_epoch`: the sampler and batch sampler; or the dataset, datasets inside it, and collate_fn."""
Epoch = list[list[Seen]]
"""The batches of one epoch."""


@dataclass(frozen=True)
class Parts:
    """The parts of a user's loader."""

    dataset: Dataset[Any]
    batch_size: int | None
    sampler: Any
    batch_sampler: Any
    drop_last: bool
    collate_fn: Any
    worker_init_fn: Any
    generator: torch.Generator | None
    multiprocessing_context: Any

    @classmethod
    def of(cls, loader: DataLoader[Any], generator: torch.Generator | None) -> Parts:
        """Return the parts of a loader, with the generator that the user gave it."""
        return cls(
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

    @property
    def iterable(self) -> bool:
        """Whether the dataset is an `IterableDataset`, which has no indices."""
        return isinstance(self.dataset, IterableDataset)

    @property
    def fetches_lists(self) -> bool:
        """Whether torch passes a whole batch of indices to the dataset (`__getitems__`)."""
        return self.batch_sampler is not None and bool(getattr(self.dataset, "__getitems__", None))

    @property
    def shuffles_all(self) -> bool | None:
        """Whether torch's own sampler yields every index once, shuffled (True) or not (False); None for any other sampler."""
        if self.iterable or self.batch_size is None or type(self.batch_sampler) is not torch.utils.data.BatchSampler:
            return None
        if type(self.sampler) is SequentialSampler:
            return False
        own = type(self.sampler) is RandomSampler and not self.sampler.replacement
        return True if own and self.sampler.num_samples == len(self.dataset) else None  # type: ignore[arg-type]


@dataclass(frozen=True, kw_only=True, slots=True)
class Pace:
    """The first samples of an epoch, and how long they take without workers."""

    items: tuple[Any, ...]
    """Items of the sampler, to use as `Look.items`; empty for an iterable dataset."""
    num_samples: int
    seconds: float
    is_torchs_own: bool
    """Whether the sampler is torch's own and yields every index once."""

    @property
    def sample_s(self) -> float:
        """Seconds per sample."""
        return self.seconds / max(self.num_samples, 1)


def pace(parts: Parts, max_samples: int, max_s: float, least_items: int = 0) -> Pace:
    """Read the first samples of an epoch, at least one, without workers. Run it in `isolated`.

    Args:
        parts: of the user's loader.
        max_samples, max_s: limits at which to stop, after the first sample.
        least_items: number of sampler items to return, even if not all of their samples are read.

    Raises:
        TrialFailed: the dataset raised an exception; the failure names the sample.
    """
    begin, count = time.monotonic(), 0
    items: list[Any] = []
    dataset: Any = parts.dataset
    source = ((None, sample) for sample in dataset) if parts.iterable else _indices(parts, max_samples)
    is_over, seconds = False, 0.0
    for item, index in source:
        if item is not None and not (items and items[-1] is item):
            items.append(item)
        if not is_over:
            digest(index if parts.iterable else _sample(dataset, index, parts.fetches_lists))
            goes_on()
            count, seconds = count + 1, time.monotonic() - begin
        is_over = count >= max_samples or time.monotonic() > begin + max_s
        if is_over and (parts.iterable or len(items) >= least_items):
            break
    return Pace(items=tuple(items), num_samples=count, seconds=seconds, is_torchs_own=parts.shuffles_all is not None)


def _indices(parts: Parts, max_samples: int) -> Iterator[tuple[Any, Any]]:
    """Yield (sampler item, sample index) from the beginning of an epoch; for torch's own sampler, spread over the whole dataset."""
    if parts.shuffles_all is not None:
        length = len(parts.dataset)  # type: ignore[arg-type]
        few = min(length, max_samples)
        yield from ((number * length // few, number * length // few) for number in range(few))
    elif parts.batch_size is None and parts.batch_sampler is not None:
        for batch in parts.batch_sampler:
            item = list(batch)[:SAMPLES_OF_BATCH]
            yield from ((item, index) for index in item)
    else:
        yield from ((index, index) for index in parts.sampler)


def _sample(dataset: Any, index: Any, batched: bool) -> Any:
    try:
        return dataset.__getitems__([index]) if batched else dataset[index]
    except Exception as error:
        failure = classify(error, "loader")
        raise TrialFailed(replace(failure, message=f"{failure.message} (raised for sample {index})")) from error


def tells(parts: Parts) -> list[str]:
    """Return which objects have a `set_epoch` that a training loop has to call: members of `TOLD`, the sampler first."""
    return [who for who in TOLD if _told(parts, who)]


def _told(parts: Parts, who: str) -> list[Any]:
    """Return the objects whose `set_epoch` is called; of nested datasets only the outermost that has one, and collate_fn."""
    samplers = [parts.sampler, parts.batch_sampler, getattr(parts.batch_sampler, "sampler", None)]
    inner = [value for _, value in members(parts.dataset) if isinstance(value, Dataset)]
    datasets = [each for each in (parts.dataset, *inner) if callable(getattr(each, "set_epoch", None))]
    asked = samplers if who == "samplers" else [*datasets[:1], parts.collate_fn]
    return list({id(each): each for each in asked if callable(getattr(each, "set_epoch", None))}.values())


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
            "multiprocessing_context": "fork" if look.fork else parts.multiprocessing_context,
            "worker_init_fn": _Init(parts.worker_init_fn),
        }
    echo = (_EchoStream if parts.iterable else _Echo)(parts, look, time.monotonic() + look.max_s)
    loader: DataLoader[Any] = DataLoader(
        echo,
        num_workers=look.num_workers,
        collate_fn=_Collating(parts, look) if look.collates else _seen,
        generator=parts.generator,
        **_order(parts, look),
        **workers,
    )
    seed_everything(look.seed)
    for owner in (parts, parts.sampler, parts.batch_sampler):
        generator = getattr(owner, "generator", None)
        if isinstance(generator, torch.Generator):
            generator.manual_seed(look.seed)
    epochs: list[Epoch] = []
    for number in range(look.epochs):
        for each in _told(parts, look.told) if look.told else ():
            each.set_epoch(look.epoch_numbers[number])
        epochs.append([])
        for batch in loader:
            epochs[-1].append(batch)
            goes_on()
    return epochs


def _order(parts: Parts, look: Look) -> dict[str, Any]:
    """Return the DataLoader arguments that decide which samples come in which batches."""
    num_samples = look.num_samples
    size = max(1, min(parts.batch_size or 8, num_samples // 8))  # small enough that every worker makes several batches
    if parts.iterable:
        return {"batch_size": size}
    if look.items is not None:
        return _fixed(parts, look.items)
    if look.same_index:
        if parts.batch_size is None and parts.batch_sampler is None:
            return {"batch_size": None, "sampler": [next(iter(parts.sampler))] * num_samples}
        first = next(iter(parts.sampler)) if parts.batch_size is not None else next(iter(parts.batch_sampler))[0]
        return {"batch_size": 1, "sampler": [first] * num_samples}
    if parts.shuffles_all:  # a sequential sampler is read below: its length would call the dataset's, in the process that forks workers
        few = range(min(num_samples, len(parts.dataset)))  # type: ignore[arg-type]
        return {"batch_size": size, "sampler": RandomSampler(few, generator=parts.sampler.generator)}
    if parts.batch_size is None and parts.batch_sampler is not None:
        return {"batch_sampler": _First(parts.batch_sampler, num_samples)}
    if parts.batch_size is None:
        return {"batch_size": None, "sampler": _First(parts.sampler, num_samples)}
    return {"batch_size": size, "sampler": _First(parts.sampler, num_samples)}


def _fixed(parts: Parts, items: tuple[Any, ...]) -> dict[str, Any]:
    if parts.batch_size is None:
        if parts.batch_sampler is not None:
            return {"batch_sampler": _Fixed(parts.batch_sampler, items)}
        return {"batch_size": None, "sampler": _Fixed(parts.sampler, items)}
    inner = parts.sampler if parts.shuffles_all is None else ()
    size = 1 if parts.fetches_lists else max(1, len(items) // 8)
    return {"batch_size": size, "sampler": _Fixed(inner, items)}


class _Fixed:
    """Begins and ends an epoch of the user's sampler, which may inform the dataset of it, but yields the same items each time."""

    def __init__(self, inner: Any, items: tuple[Any, ...]) -> None:
        self.inner, self.items = inner, items

    def __iter__(self) -> Iterator[Any]:
        return self._items(iter(self.inner))  # begin the inner sampler when torch asks for the iterator, as without this class

    def _items(self, inner: Iterator[Any]) -> Iterator[Any]:
        next(inner, None)
        yield from self.items
        _draw_rest(inner)

    def __len__(self) -> int:
        return len(self.items)


def _draw_rest(iterator: Iterator[Any]) -> None:
    until_s = time.monotonic() + REST_OF_EPOCH_S
    for _ in iterator:
        if time.monotonic() > until_s:
            return


class _First:
    """The beginning of a sampler: about this many samples, and at least four batches."""

    def __init__(self, sampler: Any, num_samples: int) -> None:
        self.sampler, self.num_samples = sampler, num_samples

    def __iter__(self) -> Iterator[Any]:
        num_samples = 0
        for number, item in enumerate(self.sampler):
            if num_samples >= self.num_samples and (number >= 4 or num_indices(item) == 1):
                return
            num_samples += num_indices(item)
            yield item


class _Delivered(NamedTuple):
    """The facts about a sample; also the sample itself if it is to be collated."""

    seen: Seen
    sample: Any


class _Echo(Dataset[Any]):
    """A dataset that delivers facts about a sample instead of the sample."""

    def __init__(self, parts: Parts, look: Look, until_s: float) -> None:
        self.inner: Any = parts.dataset
        self.fetches_lists, self.look, self.until_s = parts.fetches_lists, look, until_s

    def __getitem__(self, index: Any) -> _Delivered:
        if self.look.neutral:
            _seed_alike()
        sample = self.inner.__getitems__([index]) if self.fetches_lists else self.inner[index]
        delivered = self.delivered(index if isinstance(index, int) else repr(index), sample)
        return delivered._replace(seen=delivered.seen._replace(num_samples=num_indices(index)))

    def delivered(self, key: Any, sample: Any) -> _Delivered:
        info = get_worker_info()
        hashed = "" if key == END or self.look.collates else digest(sample)
        states = generator_states(self.inner) if self.look.generators else {}
        seen = Seen(hashed if key is None else key, hashed, -1 if info is None else info.id, states)
        return _Delivered(seen, sample if self.look.collates else None)


class _EchoStream(_Echo, IterableDataset[Any]):
    """The same for an iterable dataset, with at most `look.num_samples` samples per worker."""

    def __iter__(self) -> Iterator[_Delivered]:
        if self.look.neutral:
            _seed_alike()
        stream = iter(self.inner)
        for _ in range(self.look.num_samples):
            if self.look.neutral:
                _seed_alike()
            try:
                sample = next(stream)
            except StopIteration:
                yield self.delivered(END, None)
                return
            yield self.delivered(None, sample)
            if time.monotonic() > self.until_s:
                return
        if self.look.to_the_end:
            _draw_rest(stream)


class _Init:
    """Calls the user's worker_init_fn, for which `get_worker_info().dataset` is the user's own dataset instead of our wrapper."""

    def __init__(self, inner: Callable[[int], None] | None) -> None:
        self.inner = inner

    def __call__(self, worker_id: int) -> None:
        info = get_worker_info()
        object.__setattr__(info, "dataset", info.dataset.inner)  # type: ignore[union-attr]
        if self.inner is not None:
            self.inner(worker_id)


def _seen(delivered: _Delivered | list[_Delivered]) -> list[Seen]:
    """Return the facts about the samples of a batch, or about a single sample."""
    return [each.seen for each in ([delivered] if isinstance(delivered, _Delivered) else delivered)]


class _Collating:
    """Calls the user's collate_fn with a batch, or with a single sample if the loader forms no batches, and hashes the result."""

    def __init__(self, parts: Parts, look: Look) -> None:
        self.inner, self.is_single = parts.collate_fn, parts.fetches_lists

    def __call__(self, delivered: _Delivered | list[_Delivered]) -> list[Seen]:
        batch = [each for each in ([delivered] if isinstance(delivered, _Delivered) else delivered) if each.seen.key != END]
        if not batch:
            return []
        alone = self.is_single or isinstance(delivered, _Delivered)
        hashed = digest(self.inner(batch[0].sample if alone else [each.sample for each in batch]))
        return [batch[0].seen._replace(key=repr([each.seen.key for each in batch]), digest=hashed)]


def _seed_alike() -> None:
    random.seed(0)
    np.random.seed(0)
    torch.default_generator.manual_seed(0)


def samples_of(epoch: Epoch) -> list[Seen]:
    """Return the samples of an epoch in the order of delivery."""
    return [seen for seen in itertools.chain.from_iterable(epoch) if seen.key != END]
