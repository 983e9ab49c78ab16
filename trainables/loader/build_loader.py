"""Build the loader of one setting: seeded, and checked against the requested setting."""

from __future__ import annotations

import inspect
import itertools
import random
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader, IterableDataset

from feedrate.trainables.config import LoaderConfig
from feedrate.trainables.failure import Failure, TrialFailed, sentence, user_traceback
from feedrate.trainables.loader.epochs import EndlessSampler
from feedrate.trainables.loader.no_loader import why_no_loader
from feedrate.trainables.step import holds_nothing
from feedrate.trainables.workload import Workload, WorkloadError

MOST_PASSED_OVER = 20
"""Number of batches to try when looking for a batch that contains something to train on."""
_END = object()


def seed_everything(seed: int) -> None:
    """Seed Python, NumPy and torch in this process; torch derives the workers' seeds from the loader's generator."""
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)


def build_loader(workload: Workload, config: LoaderConfig, *, seed: int) -> DataLoader[Any]:
    """Build the workload's loader with this setting.

    The short form gets an endless sampler unless it has its own; the general form uses the user's loader as it is.

    Raises:
        TrialFailed: the dataset is empty, or the built loader does not have a setting that was requested (kind
            override-ignored).
    """
    kwargs = config.to_kwargs()
    seed_everything(seed)  # random numbers from the global generators must not depend on how many steps warmed up the model
    generator = torch.Generator().manual_seed(seed)
    if not workload.is_short:
        loader = _general_loader(workload, config)
        check_overrides(loader, config)
        if loader.generator is None:
            loader.generator = generator
        return loader
    fixed = {"generator": generator} | workload.loader_kwargs
    if "batch_sampler" in fixed:
        kwargs.pop("batch_size", None)
    elif not isinstance(workload.dataset, IterableDataset) and "sampler" not in fixed:
        shuffle = bool(fixed.pop("shuffle", True))
        num_samples = len(workload.dataset)  # type: ignore[arg-type]
        if num_samples == 0:
            raise no_batch(0)
        fixed["sampler"] = EndlessSampler(num_samples, shuffle=shuffle, seed=seed)
    return DataLoader(workload.dataset, collate_fn=workload.collate_fn, **fixed, **kwargs)


def no_batch(consumed: int) -> TrialFailed:
    """Return the failure of a loader that ends without delivering a batch.

    Args:
        consumed: number of batches that it delivered in earlier epochs.
    """
    if consumed:
        message = (
            f"the loader delivered {consumed} batches and then empty epochs: every iter(loader) must start it again"
        )
    else:
        message = "the loader delivers no batch at all: its dataset or sampler is empty, or drop_last drops the only batch"
    return TrialFailed(Failure(kind="user-code", phase="loader", message=message))


def _general_loader(workload: Workload, config: LoaderConfig) -> DataLoader[Any]:
    """Build the user's own loader with this setting.

    If make_loader accepts them, it also gets the options that the setting leaves at torch's default. Otherwise `DataLoader(...,
    **(mine | overrides))` would keep the user's values: another setting, or with 0 workers one that torch refuses.
    """
    own = _defaults(config)
    taken = inspect.signature(workload.make_loader).parameters.values()
    if not any(each.kind is each.VAR_KEYWORD for each in taken):
        own = {name: value for name, value in own.items() if name in {each.name for each in taken}}
    overrides = own | config.to_kwargs()
    try:
        loader = workload.make_loader(**overrides)
    except Exception as error:
        if not workload.has_made_a_loader:
            raise
        message = (
            f"make_loader of {workload.name!r} raised {sentence(error)} when it was called a second time in one process, "
            "although the first call worked: release whatever can exist only once (named shared memory, a port, a lock file), or create it outside "
            "of make_loader"
        )
        raise TrialFailed(
            Failure(kind="user-code", phase="loader", message=message, traceback=user_traceback(error))
        ) from error
    workload.has_made_a_loader = True
    if (why := why_no_loader(loader)) is not None:
        message = f"make_loader of {workload.name!r} {why}"
        raise TrialFailed(Failure(kind="user-code", phase="loader", message=message))
    return loader


def _defaults(config: LoaderConfig) -> dict[str, Any]:
    """Return the DataLoader arguments that `to_kwargs` leaves out, with torch's defaults."""
    without_workers: dict[str, Any] = {"prefetch_factor": None, "persistent_workers": False}
    return {"multiprocessing_context": None, "in_order": True} | ({} if config.num_workers else without_workers)


def check_overrides(loader: DataLoader[Any], config: LoaderConfig) -> None:
    """Refuse a loader that silently ignored an override.

    Raises:
        TrialFailed: the message names the option, the requested value and the loader's value.
    """
    asked_for = config.to_kwargs()
    if config.num_workers:
        asked_for = _defaults(config) | asked_for
    for name, asked in asked_for.items():
        shown: Any = getattr(loader, name)
        if name == "multiprocessing_context":
            shown = shown.get_start_method() if shown is not None else None
        if shown != asked:
            message = (
                f"make_loader did not apply {name}={asked!r}: the loader it returned has {name}={shown!r}. "
                f"Pass **overrides on to DataLoader, or keep {name} fixed with --{name.replace('_', '-')} {shown}"
            )
            raise TrialFailed(Failure(kind="override-ignored", phase="loader", message=message))


def own_loader(workload: Workload) -> DataLoader[Any]:
    """Build the loader that the user's make_loader returns without overrides: the baseline of the general form.

    Raises:
        WorkloadError: make_loader returned something other than a DataLoader.
    """
    loader = workload.make_loader()
    if (why := why_no_loader(loader)) is not None:
        raise WorkloadError(f"make_loader of workload {workload.name!r} {why}")
    return loader


def start_method(loader: DataLoader[Any]) -> str:
    """Return the start method of the loader's workers: its own, or else Python's."""
    return str((loader.multiprocessing_context or torch.multiprocessing).get_start_method())


def cached_batch(workload: Workload, config: LoaderConfig) -> Any:
    """Read one batch of the right size, on which the step is warmed up and timed alone. Call this in a process that ends.

    The short form reads at most 8 samples and repeats them, because fetching a whole batch can take seconds. The general
    form (and an iterable dataset) reads a batch from a loader without workers. Batches without anything to train on (None
    because a collate_fn dropped every sample, or tensors without elements) are skipped; at most MOST_PASSED_OVER are tried.

    Raises:
        TrialFailed: there is no batch.
    """
    batches = itertools.islice(_few_batches(workload, config), MOST_PASSED_OVER)
    first = next(batches, _END)
    if first is _END:
        raise no_batch(0)
    return next((batch for batch in itertools.chain([first], batches) if not holds_nothing(batch)), first)


def _few_batches(workload: Workload, config: LoaderConfig) -> Iterator[Any]:
    """Yield batches as the loader of this setting would, but without workers."""
    fixed = workload.loader_kwargs
    iterable = workload.is_short and isinstance(workload.dataset, IterableDataset)
    if not workload.is_short:
        yield from _general_loader(workload, LoaderConfig(num_workers=0, batch_size=config.batch_size))
    elif iterable or config.batch_size is None or "batch_sampler" in fixed:
        kwargs = LoaderConfig(num_workers=0, batch_size=config.batch_size).to_kwargs()
        if "batch_sampler" in fixed:
            kwargs.pop("batch_size", None)
        yield from workload.make_loader(**kwargs)
    else:
        dataset: Any = workload.dataset
        indices = iter(fixed["sampler"] if "sampler" in fixed else range(len(dataset)))
        while some := list(itertools.islice(indices, min(8, config.batch_size))):
            yield _repeated(dataset, some, config.batch_size, workload.collate_fn or torch.utils.data.default_collate)


def _repeated(dataset: Any, indices: list[Any], batch_size: int, collate: Callable[[Any], Any]) -> Any:
    """Make a batch from the samples at these indices, repeated until the batch is full."""
    if getattr(dataset, "__getitems__", None):  # torch passes its result to collate_fn unchanged
        return collate(dataset.__getitems__([indices[number % len(indices)] for number in range(batch_size)]))
    samples = [dataset[index] for index in indices]
    return collate([samples[number % len(samples)] for number in range(batch_size)])
