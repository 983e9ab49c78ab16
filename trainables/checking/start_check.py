"""How loader workers start: can their arguments be pickled, how large are they, and how long does each start method take?"""

from __future__ import annotations

import io
import itertools
import os
import pickle
import time
from collections.abc import Callable, Collection
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar

import torch
from torch.utils.data import DataLoader

from feedrate.trainables.config import START_METHODS
from feedrate.trainables.diagnose.reloaded import Reloaded
from feedrate.trainables.diagnose.settling import settle
from feedrate.trainables.doubt import Doubt
from feedrate.trainables.failure import Failure, sentence
from feedrate.trainables.isolation.isolated import OutOfTime
from feedrate.trainables.loader.loader_watch import LoaderWatch
from feedrate.trainables.measuring.rerun import explain, rerun
from feedrate.trainables.probing.finding import Finding
from feedrate.trainables.probing.fresh_loader import FreshLoader
from feedrate.trainables.probing.probe import Parts
from feedrate.trainables.probing.static_check import members

T = TypeVar("T")

LARGE_BYTES = 100_000_000
START_LIMIT_S = 60.0
BATCH_TIMEOUT_S = {"fork": 15.0, "forkserver": 40.0, "spawn": 40.0}
"""Time for the first batch; forkserver and spawn import torch before it."""
EXPLAIN_S = 10.0
"""Time for finding out why no batch came, and for loading the batch again without workers."""
LEAST_S = 2.0
"""A start method is not tried if less time than this is left for its first batch."""
MODULE_LEVEL = """define it at the top level of a module, with def or class, instead of lambda or inside a function;
open in the worker, on first use, what can never be pickled (an open file, a lock)"""


class _Sink(io.RawIOBase):
    """Counts bytes and discards them."""

    num_bytes = 0

    def writable(self) -> bool:
        return True

    def write(self, data: Any) -> int:
        size = memoryview(data).nbytes
        self.num_bytes += size
        return size


class _Sizer(pickle.Pickler):
    """Counts the bytes of tensors separately, because workers get them through shared memory, without a copy."""

    def __init__(self, sink: _Sink) -> None:
        super().__init__(sink, protocol=pickle.HIGHEST_PROTOCOL)
        self.tensor_bytes = 0

    def reducer_override(self, item: Any) -> Any:
        if isinstance(item, torch.Tensor):
            self.tensor_bytes += item.numel() * item.element_size()
            return torch.empty, (0,)
        return NotImplemented


def pickled_bytes(item: Any) -> tuple[int, int]:
    """Return the bytes of the pickle, and the bytes of the tensors in it, which are shared.

    Raises:
        Exception: the item cannot be pickled.
    """
    sink = _Sink()
    sizer = _Sizer(sink)
    sizer.dump(item)
    return sink.num_bytes, sizer.tensor_bytes


def culprit(item: Any) -> str:
    """Return the path of the innermost member that cannot be pickled; empty if only the whole object cannot."""
    found = ""
    for path, value in members(item):
        if found and not path.startswith(found):
            continue
        try:
            pickled_bytes(value)
        except Exception:
            found = path
    return found


def problems(parts: Parts) -> tuple[int | None, int, dict[str, str]]:
    """Return the bytes of the pickled dataset (None if that fails) and of its tensors, and what cannot be pickled with the reason."""
    sizes: tuple[int, int] | None = None
    found = {}
    for name in ("dataset", "collate_fn", "worker_init_fn"):
        item = getattr(parts, name)
        try:
            size = pickled_bytes(item)
        except Exception as error:
            inner = culprit(item)
            found[f"{name}.{inner}" if inner else name] = sentence(error)
        else:
            sizes = size if name == "dataset" else sizes
    return (*(sizes or (None, 0)), found)


@dataclass(frozen=True, kw_only=True, slots=True)
class NoBatch:
    """Why a worker delivered no batch, and what to try without workers to find out more."""

    failure: Failure
    doubt: Doubt | None


def first_batch_s(parts: Parts, *, method: str, timeout_s: float) -> float | NoBatch:
    """Return the seconds from making a loader with one worker to its first batch, of at most two samples; or why none came.

    Args:
        parts: of the user's loader.
        method: start method of the worker.
        timeout_s: time for the batch.
    """
    order: dict[str, Any] = {"batch_size": min(parts.batch_size or 1, 2)}
    if not parts.iterable:
        if parts.batch_size is not None:
            order["sampler"] = list(itertools.islice(parts.sampler, 2))
        elif parts.batch_sampler is not None:
            order = {"batch_sampler": [list(next(iter(parts.batch_sampler)))[:2]]}
        else:
            order = {"batch_size": None, "sampler": list(itertools.islice(parts.sampler, 1))}
    elif parts.batch_size is None:
        order = {"batch_size": None}
    begin = time.monotonic()
    with open(os.devnull, "w") as nowhere:
        os.dup2(nowhere.fileno(), 2)  # hides what a worker prints when it cannot send a batch; the reason is found below
    loader: DataLoader[Any] = DataLoader(
        parts.dataset,
        num_workers=1,
        timeout=timeout_s,
        multiprocessing_context=method,
        collate_fn=parts.collate_fn,
        worker_init_fn=parts.worker_init_fn,
        **order,
    )
    watch = LoaderWatch(loader)
    try:
        next(iter(loader), None)
    except Exception as error:
        failed = explain(error, loader, watch.waited_for(in_order=True), "loader")
        return NoBatch(failure=failed.failure, doubt=failed.doubt)
    return time.monotonic() - begin


def load_again(parts: Parts, *, doubt: Doubt) -> Reloaded:
    """Load again, without workers, what a worker failed to load."""
    size = doubt.batch_size or (None if parts.batch_sampler is None else 1)
    loader: DataLoader[Any] = DataLoader(parts.dataset, collate_fn=parts.collate_fn, batch_size=size)
    return rerun(loader, doubt, lambda doing: None)


def start_findings(
    loader: FreshLoader, seconds_left: Callable[[], float], known: Collection[str] = ()
) -> tuple[list[Finding], list[str]]:
    """Report on pickling and on each start method for this dataset; also return the start methods for which there was no time.

    Args:
        loader: made with workers.
        seconds_left: returns the time left for the rest of the check.
        known: start methods that are known to deliver no batch, and are not tried.
    """
    looked = _in_time(loader, problems, min(START_LIMIT_S, max(seconds_left(), LEAST_S)))
    if isinstance(looked, Failure):
        looked = (None, 0, {"dataset": looked.message})
    num_bytes, tensor_bytes, found_problems = looked
    startup_s: dict[str, float] = {}
    failures: dict[str, str] = {}
    skipped = []
    for method in START_METHODS:
        if method in known:
            continue
        if method != "fork" and found_problems:
            failures[method] = next(iter(found_problems.values()))
            continue
        timeout_s = min(BATCH_TIMEOUT_S[method], seconds_left() - LEAST_S)
        if timeout_s < LEAST_S:
            skipped.append(method)
            continue
        look = partial(first_batch_s, method=method, timeout_s=timeout_s)
        took = _in_time(loader, look, timeout_s + EXPLAIN_S)
        if isinstance(took, NoBatch):
            took = _whole(loader, took)
        if not isinstance(took, Failure):
            startup_s[method] = took
        elif took.kind == "hang" and timeout_s < BATCH_TIMEOUT_S[method]:  # it may just be slow
            skipped.append(method)
        else:
            failures[method] = took.message
    evidence = {"pickled_bytes": num_bytes, "tensor_bytes": tensor_bytes, "problems": found_problems}
    own = loader.survey.setting.multiprocessing_context
    found = [_pickling(num_bytes, found_problems, own, evidence), _start_up(startup_s, failures, own)]
    used = own or torch.multiprocessing.get_start_method()
    if used in failures and not (found_problems and used != "fork"):
        found.append(_loading(used, failures[used]))
    return found, skipped


def _whole(loader: FreshLoader, none: NoBatch) -> Failure:
    """Complete the failure's message by loading the batch without workers in a fresh process."""
    if none.doubt is None:
        return none.failure
    again = _in_time(loader, partial(load_again, doubt=none.doubt), EXPLAIN_S)
    if isinstance(again, Failure):
        again = Reloaded("hangs" if again.kind == "hang" else "died", "loading it", again.message)
    return settle(none.failure, none.doubt, again)


def _in_time(loader: FreshLoader, work: Callable[[Parts], T], limit_s: float) -> T | Failure:
    try:
        return loader.look(work, limit_s)
    except OutOfTime:
        return Failure(kind="hang", phase="loader", message=f"it took more than {limit_s:.0f} s")


def _loading(method: str, why: str) -> Finding:
    """Return the finding that the unchanged loader, with its collate_fn, delivers no batch."""
    return Finding(
        name="loading",
        level="error",
        sentence=f"a loader with one worker delivers no batch (start method {method}): {why}",
        evidence={"start_method": method, "why": why},
    )


def _pickling(num_bytes: int | None, problems: dict[str, str], own: str | None, evidence: dict[str, Any]) -> Finding:
    if problems:
        what = "; ".join(f"{name}: {why}" for name, why in problems.items())
        return Finding(
            name="pickling",
            level="error" if own in ("spawn", "forkserver") else "note",
            sentence=f"workers can only be forked: spawn and forkserver cannot pickle {what} (Python 3.14 and later start "
            "workers by forkserver unless multiprocessing_context says fork)",
            fix=MODULE_LEVEL,
            evidence=evidence,
        )
    assert num_bytes is not None
    if num_bytes > LARGE_BYTES:
        return Finding(
            name="pickling",
            level="note",
            sentence=f"the dataset pickles to {num_bytes / 1e6:,.0f} MB: spawn and forkserver copy it into every worker",
            fix="keep samples in files, or in one torch tensor, which workers share",
            evidence=evidence,
        )
    return Finding(
        name="pickling", level="ok", sentence=f"the dataset pickles to {_size(num_bytes)}", evidence=evidence
    )


def _size(num_bytes: int) -> str:
    for unit, factor in (("MB", 1e6), ("KB", 1e3)):
        if num_bytes >= factor:
            return f"{num_bytes / factor:,.1f} {unit}"
    return f"{num_bytes} bytes"


def _start_up(startup_s: dict[str, float], failures: dict[str, str], own: str | None) -> Finding:
    words = ", ".join(f"{method} {seconds:.2f} s" for method, seconds in startup_s.items())
    failed = "; ".join(f"{method} fails: {why}" for method, why in failures.items())
    text = f"time until the first batch of one worker: {words}" if words else "no start method was timed"
    return Finding(
        name="start-up",
        level="error" if own in failures else "note" if failures else "ok",
        sentence=f"{text}; {failed}" if failed else text,
        evidence={"startup_s": startup_s, "failures": failures},
    )
