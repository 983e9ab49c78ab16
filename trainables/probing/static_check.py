"""Inspect a dataset for objects that do not survive being copied into loader workers. Nothing is called or imported."""

from __future__ import annotations

import concurrent.futures
import functools
import hashlib
import io
import logging
import multiprocessing.managers
import multiprocessing.pool
import multiprocessing.process
import random
import socket
import sys
import threading
import types
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch

from feedrate.trainables.probing.finding import Finding
from feedrate.trainables.probing.leftovers import Leftovers

MAX_DEPTH = 5
MAX_OBJECTS = 2000
MAX_ITEMS = 32
"""Number of items per container to inspect: lists of files are long, and their items are all of one kind."""

OPEN_LATER = """def __getitem__(self, index):
    if self.file is None:  # None in __init__: opened by each worker for itself
        self.file = open(self.path, "rb")"""
MAKE_LATER = "make it in the worker, on first use or in worker_init_fn; keep tensors of a dataset in CPU memory"
MAX_NAMED = 5

GENERATORS = (np.random.Generator, np.random.RandomState, random.Random, torch.Generator)
_GLOBAL = {"random": random._inst, "numpy.random": np.random.mtrand._rand, "torch": torch.default_generator}
_THREADS = (
    threading.Thread,
    multiprocessing.process.BaseProcess,
    multiprocessing.pool.Pool,
    concurrent.futures.Executor,
)
_LOCKS = (type(threading.Lock()), type(threading.RLock()), threading.Condition, threading.Semaphore, threading.Event)
_HANDLES = {
    "sqlite3": "an open SQLite connection",
    "h5py": "an open HDF5 file",
    "lmdb": "an open LMDB environment",
    "zipfile": "an open zip file",
    "tarfile": "an open tar file",
    "psycopg": "a database connection",
    "psycopg2": "a database connection",
    "pymongo": "a database connection",
    "redis": "a database connection",
    "requests": "an HTTP session",
    "urllib3": "an HTTP connection pool",
    "botocore": "an S3 client",
    "grpc": "a gRPC channel",
}
"""First part of a type's module -> what its instances are. Matched by name, because feedrate does not depend on these libraries."""
_HARMLESS = ("ZipInfo", "TarInfo", "Row", "Empty", "Reference", "Retry", "Timeout", "Config")
_PLAIN = (str, bytes, int, float, complex, bool, type(None), np.ndarray, np.generic, type, types.ModuleType)
_STREAMS = (sys.stdin, sys.stdout, sys.stderr)
_MADE_FOR_SHARING = (logging.Logger, logging.Handler, multiprocessing.managers.BaseProxy, multiprocessing.managers.BaseManager)


def members(root: object) -> Iterator[tuple[str, Any]]:
    """Yield (path, object) for everything that an object holds: attributes and items, each once, up to a limit."""
    seen = {id(root)}
    waiting: list[tuple[str, Any, int]] = [("", root, 0)]
    while waiting:
        path, owner, depth = waiting.pop(0)
        for name, value in _inside(path, owner):
            if isinstance(value, _PLAIN) or id(value) in seen or len(seen) > MAX_OBJECTS:
                continue
            seen.add(id(value))
            yield name, value
            if depth < MAX_DEPTH and not _is_leaf(value):
                waiting.append((name, value, depth + 1))


def _inside(path: str, owner: Any) -> list[tuple[str, Any]]:
    found: list[tuple[str, Any]] = []
    if isinstance(owner, dict):
        found += [(f"{path}[{key!r}]", value) for key, value in list(owner.items())[:MAX_ITEMS]]
    elif isinstance(owner, (list, tuple, set, frozenset)):
        found += [(f"{path}[{number}]", value) for number, value in enumerate(list(owner)[:MAX_ITEMS])]
    elif isinstance(owner, types.FunctionType):
        names = zip(owner.__code__.co_freevars, owner.__closure__ or (), strict=True)
        found += [(f"{path} (its {name})", _content(cell)) for name, cell in names]
    elif isinstance(owner, functools.partial):
        held = [("func", owner.func), *enumerate(owner.args), *owner.keywords.items()]
        found += [(f"{path} (its {name})", value) for name, value in held]
    elif isinstance(owner, types.MethodType):
        found.append((f"{path}.__self__", owner.__self__))
    attributes = getattr(owner, "__dict__", None)
    if isinstance(attributes, dict):
        dot = f"{path}." if path else ""
        found += [(f"{dot}{name}", value) for name, value in list(attributes.items())]
    return found


def _content(cell: Any) -> Any:
    try:
        return cell.cell_contents
    except ValueError:
        return None  # the cell is empty so far


def _is_leaf(value: Any) -> bool:
    return isinstance(value, (*GENERATORS, *_MADE_FOR_SHARING, *_THREADS, io.IOBase, torch.Tensor)) or _unsafe(value) is not None


def owned_generators(dataset: object) -> dict[str, Any]:
    """Return path -> random generator for each generator that the dataset holds; torch does not reseed these in workers."""
    return {
        path: value
        for path, value in members(dataset)
        if isinstance(value, GENERATORS) and not any(value is each for each in _GLOBAL.values())
    }


def generator_states(dataset: object) -> dict[str, str]:
    """Return path -> hash of a generator's state; the global generators, which torch seeds in workers, have their module's name."""
    return {
        path: hashlib.blake2b(repr(_state(generator)).encode(), digest_size=8).hexdigest()
        for path, generator in (_GLOBAL | owned_generators(dataset)).items()
    }


def _state(generator: Any) -> Any:
    if isinstance(generator, random.Random):
        return generator.getstate()
    if isinstance(generator, torch.Generator):
        return generator.get_state().cpu().numpy().tobytes()
    if isinstance(generator, np.random.RandomState):
        state = generator.get_state(legacy=False)
    else:
        state = generator.bit_generator.state
    return [(key, value.tobytes() if isinstance(value, np.ndarray) else value) for key, value in _flat(state)]


def _flat(state: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in state.items():
        if isinstance(value, dict):
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def reseed_line(path: str, generator: Any) -> str:
    """Return the line of a worker_init_fn that seeds this generator differently in every worker and epoch."""
    target = f"dataset.{path}"
    if isinstance(generator, torch.Generator):
        return f"{target}.manual_seed(torch.initial_seed())"
    if isinstance(generator, np.random.Generator):
        return f"{target} = np.random.default_rng(torch.initial_seed())"
    if isinstance(generator, np.random.RandomState):
        return f"{target}.seed(torch.initial_seed() % 2**32)"
    return f"{target}.seed(torch.initial_seed())"


def fork_unsafe(dataset: object) -> list[tuple[str, str]]:
    """Return (path, description) of each member that workers must not share with the process that made it."""
    found = []
    for path, value in members(dataset):
        what = _unsafe(value)
        if what is not None:
            found.append((path, what))
    return found


def _unsafe(value: Any) -> str | None:
    if isinstance(value, torch.Tensor):
        return "a CUDA tensor" if value.is_cuda else None
    if isinstance(value, (*_MADE_FOR_SHARING, *_PLAIN)) or any(value is each for each in _STREAMS):
        return None
    if isinstance(value, io.IOBase):
        return "an open file" if _has_descriptor(value) else None
    if isinstance(value, socket.socket):
        return "a socket" if value.fileno() >= 0 else None
    if isinstance(value, _THREADS):
        return f"a {type(value).__name__}, which workers do not have" if _has_started(value) else None
    if isinstance(value, _LOCKS):
        return f"a {type(value).__name__}, which may be held while workers are forked"
    kind = type(value)
    package = kind.__module__.partition(".")[0]
    if package in _HANDLES and kind.__name__ not in _HARMLESS:
        return f"{_HANDLES[package]} ({package}.{kind.__name__})"
    return None


def _has_started(value: Any) -> bool:
    """Whether a thread, process or pool of them exists already; an executor starts its threads on first use, in the worker."""
    if isinstance(value, threading.Thread):
        return value.is_alive()
    if isinstance(value, multiprocessing.process.BaseProcess):
        return value.ident is not None
    own = [getattr(value, name) for name in ("_threads", "_processes") if hasattr(value, name)]
    return any(own) or not own


def _has_descriptor(file: io.IOBase) -> bool:
    try:
        return not file.closed and file.fileno() >= 0
    except (OSError, ValueError):
        return False


def static(found: Sequence[tuple[str, str]], left: Leftovers) -> Finding:
    """Report whether the dataset holds objects that workers must not share with the process that made it.

    Args:
        found: the result of `fork_unsafe`.
        left: the threads and open files that making the dataset left behind, whichever object holds them.
    """
    parts = [f"dataset.{path} is {kind}" for path, kind in found[:MAX_NAMED]]
    if len(found) > MAX_NAMED:
        parts.append(f"{len(found) - MAX_NAMED} more attributes of the dataset are of this kind")
    if left.shared:
        parts.append(f"making the dataset leaves open {', '.join(left.shared[:MAX_NAMED])}")
    if left.threads:
        parts.append(f"making the dataset starts {threads_in_words(left)}, which forked workers do not have")
    evidence = {"members": dict(found), "open": list(left.shared), "threads": list(left.threads)}
    if not parts:
        words = "the dataset holds no open file, connection, thread, lock or CUDA tensor"
        return Finding(name="fork-unsafe", level="ok", sentence=words, evidence=evidence)
    is_file = any(" open " in f" {kind} " for _, kind in found) or (bool(left.shared) and not found)
    return Finding(
        name="fork-unsafe",
        level="warning",
        sentence=f"{'; '.join(parts)}: forked workers share open files and connections, and the position in them, and do not inherit threads",
        fix=OPEN_LATER if is_file else MAKE_LATER,
        evidence=evidence,
    )


def threads_in_words(left: Leftovers) -> str:
    """Return the names of the threads that making a dataset left behind, as a phrase."""
    return f"the thread{'s' * (len(left.threads) > 1)} {', '.join(left.threads[:MAX_NAMED])}"
