"""Whether the number of workers of a loader can be changed during an epoch without changing what it delivers, and if not, why."""

from __future__ import annotations

import hashlib
import pickle
from typing import Any

from torch.utils.data import DataLoader, IterableDataset
from torch.utils.data.datapipes.datapipe import IterDataPipe, MapDataPipe

from feedrate.trainables.loader.no_loader import why_no_loader
from feedrate.trainables.probing.static_check import fork_unsafe, owned_generators
from feedrate.trainables.ranks.rank import Rank

_SIMPLE = (bool, int, float, str, bytes, type(None))
MAX_HELD = 8
MAX_STATE_BYTES = 256 * 2**20
"""Pickling more would hold up a training."""


def why_left_alone(loader: Any, *, reached_torch: bool = False) -> str | None:
    """Return why the loader's number of workers must stay, as a sentence; None if it can be changed.

    Args:
        loader: the user's loader.
        reached_torch: whether torch's own `__iter__` was called, by which a class with an `__iter__` of its own got its batches.
    """
    if why_no_loader(loader) is not None or not isinstance(loader, DataLoader):
        return "it is not a torch DataLoader, so it is only observed"
    kind = type(loader)
    if (kind.__iter__ is not DataLoader.__iter__ and not reached_torch) or kind._get_iterator is not DataLoader._get_iterator:
        return f"{kind.__name__} iterates in a way of its own, so its number of workers stays"
    if isinstance(loader.dataset, IterableDataset):
        if loader.num_workers:
            return "the dataset is iterable: another number of workers would deal its samples out in another order, so the number stays"
        if hasattr(loader.dataset, "state_dict"):
            return "the iterable dataset saves its state, which would be in the worker, so the number of workers stays 0"
    if isinstance(loader.dataset, (IterDataPipe, MapDataPipe)):
        return "the dataset is a data pipe, which torch shares out among workers, so the number of workers stays"
    if not getattr(loader, "in_order", True):
        return "in_order is False: which batches are in flight is not known, so the number of workers stays"
    samplers = (loader.batch_sampler, loader.sampler, getattr(loader.batch_sampler, "sampler", None))
    for each in (loader, *samplers):
        if hasattr(each, "state_dict"):
            name = type(each).__name__
            return f"{name} saves its state, which depends on how many batches workers load ahead, so the number of workers stays"
    return _why_not_together(loader)


def why_not_forked(dataset: Any) -> str | None:
    """Return why a dataset that this process has used must not be used by forked workers, as a sentence; None if it can be."""
    unsafe = fork_unsafe(dataset)
    if unsafe:
        path, what = unsafe[0]
        return f"dataset.{path} is {what}, which workers must not share with this process. Make it on first use, and start with num_workers=1"
    if generators := owned_generators(dataset):
        path = next(iter(generators))
        return f"dataset.{path} is a random generator. Each worker would draw the same numbers from a copy of it, so the number of workers stays 0"
    return None


def held_values(dataset: Any, *, name: str = "dataset") -> dict[str, Any]:
    """Return the attributes of a dataset or sampler, and of the datasets, transforms and samplers inside it, so that changes can be noticed.

    Simple values are compared by value, and other objects by identity, so that a cache may fill.
    """
    found: dict[str, Any] = {}
    waiting = [(name, dataset)]
    while waiting and len(found) < 256:
        path, owner = waiting.pop()
        for attribute, value in list(getattr(owner, "__dict__", {}).items()):
            place = f"{path}.{attribute}"
            found[place] = value if isinstance(value, _SIMPLE) else id(value)
            if attribute in ("dataset", "transform", "transforms", "target_transform", "sampler") and place.count(".") < MAX_HELD:
                waiting.append((place, value))
    return found


def changed(before: dict[str, Any], dataset: Any, *, name: str = "dataset") -> str | None:
    """Return the path of an attribute that has changed since `held_values`; None if none has."""
    now = held_values(dataset, name=name)
    if now == before:
        return None
    return next(path for path in {**now, **before} if path not in before or path not in now or now[path] != before[path])


def state_digest(dataset: Any) -> str | None:
    """Return a hash of everything that a dataset holds; None if it cannot be pickled or is large."""
    hashing = _Hashing()
    try:
        pickle.Pickler(hashing, protocol=pickle.HIGHEST_PROTOCOL).dump(dataset)
    except Exception:  # whatever its own code raises, or an OverflowError of ours
        return None
    return hashing.digest.hexdigest()


class _Hashing:
    """A file that keeps only a hash of what is written."""

    def __init__(self) -> None:
        self.digest, self._num = hashlib.blake2b(), 0

    def write(self, data: Any) -> int:
        size = memoryview(data).nbytes
        self._num += size
        if self._num > MAX_STATE_BYTES:
            raise OverflowError
        self.digest.update(data)
        return size


def _why_not_together(loader: DataLoader[Any]) -> str | None:
    """Return why the loaders of several ranks cannot be changed together, as a sentence; None if they can, or if there is one rank."""
    rank = Rank.here()
    if rank is None:
        return None
    if rank.world_size != rank.local_world_size:
        return f"{rank.world_size} ranks train on several hosts, and feedrate tunes ranks of one host, so the number of workers stays"
    if isinstance(loader.dataset, IterableDataset):
        return f"the dataset is iterable, so its workers could change between two epochs only, and the {rank.world_size} ranks might then train on with different numbers; the number stays"
    return None
