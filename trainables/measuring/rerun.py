"""Explain why a loader failed, and load its batches once more: which sample fails, and are the workers the cause?"""

from __future__ import annotations

import base64
import pickle
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from multiprocessing.reduction import ForkingPickler
from typing import Any

import torch
from torch._utils import ExceptionWrapper
from torch.utils.data import DataLoader, IterableDataset

from feedrate.trainables.diagnose import stacks
from feedrate.trainables.diagnose.hang_message import dropped, workers_hang
from feedrate.trainables.diagnose.output import output
from feedrate.trainables.diagnose.reloaded import BATCH, COLLATE, PICKLE, Reloaded
from feedrate.trainables.diagnose.settling import settle
from feedrate.trainables.doubt import Doubt
from feedrate.trainables.failure import Failure, TrialFailed, chain, classify, sentence
from feedrate.trainables.loader.build_loader import start_method
from feedrate.trainables.machine.process import tree_pids


def explain(error: BaseException, loader: DataLoader[Any], batches: Sequence[list[Any]], phase: str) -> TrialFailed:
    """Turn an exception that the loader raised into a `TrialFailed` that names the samples it was loading.

    Only a fresh process can find out whether the samples also fail without workers; the doubt in the result says what to try
    there. An error that did not come from loading is only classified. The caller raises the returned exception.

    Args:
        error: raised by iter(loader) or next(loader). The loader's workers may still be running.
        loader: map-style or iterable, with any collate_fn.
        batches: indices of the batches that may have failed; one batch if the order is known, none for an iterable dataset.
        phase: what the trial was doing.
    """
    failure = classify(error, phase, loader.batch_size)
    if isinstance(error, TrialFailed):
        return error
    if failure.kind == "unpicklable":
        return TrialFailed(_unpicklable(failure, loader))
    if failure.kind == "user-code" and _where(error) == "init":
        return TrialFailed(replace(failure, message=f"{failure.message} (raised by worker_init_fn, as the worker starts)"))
    if failure.kind == "hang":
        found = stacks.read(tree_pids()[1:])
        failure = replace(failure, stacks=stacks.text_of(found))
        message = f"no batch came for {loader.timeout:.0f} s"
        more = {"waits_for": workers_hang(found), "dropped": dropped(output()), "threads": _threads(loader)}
        doubt = _doubt("silent", message, loader, batches, **more)
        return TrialFailed(settle(failure, doubt, None), doubt)
    about = "killed" if failure.kind == "worker-killed" else "raised" if _where(error) == "fetch" else None
    if about is None or not batches or failure.kind not in ("worker-killed", "user-code"):
        return TrialFailed(failure)
    doubt = _doubt(about, failure.message, loader, batches)
    # after a SIGKILL, memory may have run out, and loading the batch again would exhaust it again
    is_tried = not (about == "killed" and "SIGKILL" in failure.message)
    return TrialFailed(settle(failure, doubt, None), doubt if is_tried else None)


def _doubt(about: str, message: str, loader: DataLoader[Any], batches: Sequence[list[Any]], **more: Any) -> Doubt:
    return Doubt(
        about=about,
        message=message,
        samples=_samples(batches),
        batches=_packed(batches),
        batch_size=loader.batch_size,
        num_workers=loader.num_workers,
        **more,
    )


def _threads(loader: DataLoader[Any]) -> list[str]:
    """Return the names of this process's threads that forked workers may need but lack, without those of torch and Python."""
    if start_method(loader) != "fork":
        return []
    own = [thread.name for thread in threading.enumerate() if thread is not threading.main_thread()]
    return [name for name in own if name != "QueueFeederThread" and "_pin_memory_loop" not in name]


def _packed(batches: Sequence[list[Any]]) -> str:
    """Encode indices of any type as text; if they cannot be pickled, encode no batch at all."""
    try:
        return base64.b64encode(pickle.dumps([list(batch) for batch in batches])).decode()
    except Exception:
        return base64.b64encode(pickle.dumps([])).decode()


def _where(error: BaseException) -> str | None:
    """Return what raised an error: init (worker_init_fn) or fetch (dataset or collate_fn); None for anything else."""
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


def _unpicklable(failure: Failure, loader: DataLoader[Any]) -> Failure:
    """Name the object that cannot be sent to spawned workers in the failure's message."""
    members = getattr(loader.dataset, "__dict__", {})
    parts = {f"dataset.{name}": value for name, value in members.items()}
    parts |= {"dataset": loader.dataset, "collate_fn": loader.collate_fn, "worker_init_fn": loader.worker_init_fn}
    what, why = "an object that workers need cannot be pickled", failure.cause[0] if failure.cause else ""
    for name, value in parts.items():
        try:
            check_pickling(value)
        except Exception as error:
            what, why = f"{name} cannot be pickled", sentence(error)
            break
    way_out = "use fork, or define the function or class at the top level of a module"
    message = f"{what}, which multiprocessing_context {start_method(loader)} requires: {why}; {way_out}"
    return replace(failure, message=message)


def rerun(loader: DataLoader[Any], doubt: Doubt, tell: Callable[[str], None]) -> Reloaded:
    """Load the batches of a doubt again in this process, without workers, and stop at the first one that fails.

    There is no time limit and no protection against a crash of user code: the caller runs this in a separate process.

    Args:
        loader: without workers, not iterated yet; its dataset and collate_fn are used.
        doubt: what to try. If the dataset is iterable, its first batch is loaded.
        tell: called with a description of each step before it begins.
    """
    doing = ""

    def note(what: str) -> None:
        nonlocal doing
        doing = what
        tell(what)

    try:
        for data in _fetched(loader, pickle.loads(base64.b64decode(doubt.batches)), note):
            note(COLLATE)
            batch = loader.collate_fn(data)
            if doubt.pickled:
                note(PICKLE)
                check_pickling(batch)
    except Exception as error:
        reportable = True
        try:
            check_pickling(ExceptionWrapper(where="in a rerun"))  # type: ignore[no-untyped-call]
        except Exception:
            reportable = False
        return Reloaded("raised", doing, sentence(error), reportable)
    return Reloaded("passed")


def _fetched(loader: DataLoader[Any], batches: Sequence[list[Any]], note: Callable[[str], None]) -> Iterator[Any]:
    """Yield what the dataset returns for each batch, in the form in which the loader passes it to collate_fn."""
    dataset: Any = loader.dataset
    collated: bool = loader._auto_collation  # False for batch_size=None
    if isinstance(dataset, IterableDataset):
        note("the first batch")
        stream = iter(dataset)
        yield [next(stream) for _ in range(loader.batch_size or 1)] if collated else next(stream)
        return
    for indices in batches:
        if not collated:
            note(f"sample {indices[0] if len(indices) == 1 else indices}")
            yield dataset[indices[0] if len(indices) == 1 else indices]
        elif getattr(dataset, "__getitems__", None):
            note(BATCH)
            yield dataset.__getitems__(indices)
        else:
            samples = []
            for index in indices:
                note(f"sample {index}")
                samples.append(dataset[index])
            yield samples


def _samples(batches: Sequence[list[Any]]) -> str:
    """Describe batches in words, in a text of bounded length."""
    texts = []
    for indices in batches[:2]:
        more = f", ... ({len(indices)} in all)" if len(indices) > 8 else ""
        texts.append(f"sample{'s' * (len(indices) != 1)} {', '.join(map(str, indices[:8]))}{more}")
    if len(batches) > 2:
        texts.append(f"{len(batches) - 2} other batches")
    return " or ".join(texts)


class _Nowhere:
    """A file that discards what is written to it."""

    def write(self, data: bytes) -> int:
        return len(data)


class _Pickler(ForkingPickler):
    """A pickler that works like a worker's queue but omits the contents of tensors, so it needs no shared memory and opens no files."""

    def reducer_override(self, value: Any) -> Any:
        return (int, ()) if isinstance(value, torch.UntypedStorage) else NotImplemented


def check_pickling(value: Any) -> None:
    """Raise the error that pickling this value for another process raises, if any."""
    _Pickler(_Nowhere(), pickle.HIGHEST_PROTOCOL).dump(value)
