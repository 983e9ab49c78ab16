"""Finds out why a loader failed by loading the batch once more, without workers: which sample, and whether it is the workers.

That is done in a forked probe, with a time limit: samples may hang or end the process, and then that is the answer.
"""

from __future__ import annotations

import contextlib
import os
import stat
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any

from torch.utils.data import DataLoader, IterableDataset

from feedrate.trainables import stacks
from feedrate.trainables.counting import CountingCollate
from feedrate.trainables.failure import Failure, TrialFailed, chain, classify
from feedrate.trainables.forked import Rerun, check_pickling, probe
from feedrate.trainables.hang import dropped, no_batch_because, workers_hang
from feedrate.trainables.loading import start_method
from feedrate.trainables.process import tree_pids

_BATCH, _COLLATE, _PICKLE = "the batch", "collate_fn", "pickling"


def explain(error: BaseException, loader: DataLoader[Any], batches: Sequence[list[int]], phase: str) -> Failure:
    """Turn what the loader raised into a `Failure` that says which sample, and what it needs to fail.

    Takes up to forked.PROBE_S. What did not come from loading is classified as it is.

    Args:
        error: raised by iter(loader) or next(loader). The loader's workers may still run.
        loader: map-style or iterable, with any collate_fn.
        batches: indices of the batches that may have failed; one where the order is known, none for an iterable dataset.
        phase: what the trial was doing.
    """
    failure = classify(error, phase, loader.batch_size)
    if isinstance(error, TrialFailed):
        return failure
    if failure.kind == "hang":
        return _silent(failure, loader, batches)
    if failure.kind == "unpicklable":
        return _unpicklable(failure, loader)
    if failure.kind == "worker-killed":
        return replace(failure, message=failure.message + _killed(failure, loader, batches))
    if failure.kind == "user-code" and (where := _where(error)):
        told = (
            " (raised by worker_init_fn, as the worker starts)"
            if where == "init"
            else _raised(failure, loader, batches)
        )
        return replace(failure, message=failure.message + told)
    return failure


def _where(error: BaseException) -> str | None:
    """What raised an error: init (worker_init_fn), fetch (dataset or collate_fn); None for something else."""
    text = "\n".join(str(link) for link in chain(error))
    frame = error.__traceback__
    if "init_fn(worker_id)" in text:
        return "init"
    if "in DataLoader worker process" in text:
        return "fetch"
    while frame is not None:
        if frame.tb_frame.f_code.co_filename.endswith("torch/utils/data/_utils/fetch.py"):
            return "fetch"
        frame = frame.tb_next
    return None


def _raised(failure: Failure, loader: DataLoader[Any], batches: Sequence[list[int]]) -> str:
    """What to add to an exception of the dataset's or collate_fn's."""
    if not batches:
        return ""
    again = rerun(loader, batches)
    samples = _samples(batches)
    source = {_COLLATE: f"by collate_fn for {samples}", _BATCH: f"for {samples}"}.get(again.doing, f"for {again.doing}")
    if again.outcome == "raised" and _type(again.error) == _type(failure.message):
        return f" (raised {source}; {'with 0 workers too' if loader.num_workers else 'each time'})"
    if again.outcome == "raised":
        return f" (raised for {samples}; with 0 workers {again.error} is raised {source})"
    if again.outcome == "passed":
        why = "with 0 workers they pass: look for what a worker has not" if loader.num_workers else "not each time"
        return f" (raised for {samples}; {why})"
    return f" (raised for {samples}{_trouble(again)})"


def _killed(failure: Failure, loader: DataLoader[Any], batches: Sequence[list[int]]) -> str:
    """What to add where a worker was killed; not tried again where memory ran out, as that would run out again."""
    if not batches:
        return ""
    told = f" (the loader waited for {_samples(batches)}"
    return told + ("" if "SIGKILL" in failure.message else _trouble(rerun(loader, batches))) + ")"


def _trouble(again: Rerun) -> str:
    if again.outcome == "died":
        return f"; {again.doing} ends the process with 0 workers too: {again.error}"
    if again.outcome == "hangs":
        return f"; {again.doing} hangs with 0 workers too"
    return ""


def _silent(failure: Failure, loader: DataLoader[Any], batches: Sequence[list[int]]) -> Failure:
    """Why no batch came until the loader's timeout."""
    found = stacks.read(tree_pids()[1:])
    again = rerun(loader, batches, pickled=True)
    failure = replace(failure, stacks=stacks.text_of(found))
    waited = f"no batch came for {loader.timeout:.0f} s"
    if again.outcome == "raised" and not again.reportable:
        message = f"{again.error} (raised for {again.doing}; {waited}, because the exception itself cannot be pickled)"
        return replace(failure, kind="user-code", message=message)
    why = again.error if again.outcome == "raised" and again.doing == _PICKLE else dropped(_output())
    if why:
        kind, message = no_batch_because(why)
        return replace(failure, kind=kind, message=message)
    what = workers_hang(found)
    if what is None:
        message = f"{waited}, and no loader worker is at work on one{_trouble(again)}"
    else:
        message = f"{waited}: {what}{_trouble(again)}"
        message += "" if again.outcome in ("hangs", "died") else "; raise --max-trial-s if it is only slow"
    return replace(failure, message=message)


def _output() -> str:
    """The end of what this process and its workers printed; empty where that is no file."""
    with contextlib.suppress(OSError):
        if stat.S_ISREG(os.fstat(2).st_mode):
            with open("/proc/self/fd/2", "rb") as file:
                file.seek(max(os.fstat(2).st_size - (1 << 16), 0))
                return file.read().decode(errors="replace")
    return ""


def _unpicklable(failure: Failure, loader: DataLoader[Any]) -> Failure:
    """Name what cannot be sent to spawned workers."""
    collate = loader.collate_fn.inner if isinstance(loader.collate_fn, CountingCollate) else loader.collate_fn
    members = getattr(loader.dataset, "__dict__", {})
    parts = {f"dataset.{name}": value for name, value in members.items()}
    parts |= {"dataset": loader.dataset, "collate_fn": collate, "worker_init_fn": loader.worker_init_fn}

    def act(tell: Callable[[str], None]) -> None:
        for name, value in parts.items():
            tell(name)
            check_pickling(value)

    again = probe(act)
    what = f"{again.doing} cannot be pickled" if again.outcome == "raised" else "what workers need cannot be pickled"
    why = again.error or (failure.cause[0] if failure.cause else "")
    message = f"{what}, which multiprocessing_context {start_method(loader)} needs: {why}; use fork, or a function or class of a module's top level"
    return replace(failure, message=message)


def rerun(loader: DataLoader[Any], batches: Sequence[list[int]], *, pickled: bool = False) -> Rerun:
    """Load batches again as the loader would without workers, in a probe, up to the first that does not pass.

    Args:
        loader: whose dataset and collate_fn are used.
        batches: indices; none loads the first batch of an iterable dataset.
        pickled: also pickle each batch, as a worker does to hand it over.
    """
    dataset: Any = loader.dataset
    collated: bool = loader._auto_collation  # False for batch_size=None

    def fetched(tell: Callable[[str], None]) -> Iterator[Any]:
        if isinstance(dataset, IterableDataset):
            tell("the first batch")
            stream = iter(dataset)
            yield [next(stream) for _ in range(loader.batch_size or 1)] if collated else next(stream)
        for indices in () if isinstance(dataset, IterableDataset) else batches:
            if not collated:
                tell(f"sample {indices[0] if len(indices) == 1 else indices}")
                yield dataset[indices[0] if len(indices) == 1 else indices]
            elif getattr(dataset, "__getitems__", None):
                tell(_BATCH)
                yield dataset.__getitems__(indices)
            else:
                samples = []
                for index in indices:
                    tell(f"sample {index}")
                    samples.append(dataset[index])
                yield samples

    def act(tell: Callable[[str], None]) -> None:
        for data in fetched(tell):
            tell(_COLLATE)
            batch = loader.collate_fn(data)
            if pickled:
                tell(_PICKLE)
                check_pickling(batch)

    return probe(act)


def _samples(batches: Sequence[list[int]]) -> str:
    """Batches in words, of bounded length."""
    texts = []
    for indices in batches[:2]:
        more = f", ... ({len(indices)} in all)" if len(indices) > 8 else ""
        texts.append(f"sample{'s' * (len(indices) != 1)} {', '.join(map(str, indices[:8]))}{more}")
    if len(batches) > 2:
        texts.append(f"{len(batches) - 2} other batches")
    return " or ".join(texts)


def _type(text: str) -> str:
    """The exception's type without its module: torch's copy of a traceback has the module, `sentence` has not."""
    return text.partition(":")[0].rpartition(".")[2]
