"""static_check.py: finds what workers must not share in a dataset, without calling the dataset."""

import functools
import io
import logging
import multiprocessing
import random
import sqlite3
import sys
import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch
from looks import found
from workloads import Rows, short

from feedrate.trainables.probing.static_check import fork_unsafe, members, owned_generators


def test_an_open_file_is_found(tmp_path):
    """Forked workers share its position; a file that is closed, or that each worker opens, is fine."""
    path = tmp_path / "rows.bin"
    path.write_bytes(b"x" * 64)
    dataset = Rows()
    with path.open("rb") as dataset.file:
        finding = found(short(dataset))["fork-unsafe"]
        assert finding["level"] == "warning"
        assert finding["evidence"]["members"] == {"file": "an open file"}
        assert "self.file = open(self.path" in finding["fix"]
    assert found(short(dataset))["fork-unsafe"]["level"] == "ok"


def test_connections_and_locks_are_found():
    """By the names of their types: nothing is imported for it."""
    dataset = Rows()
    dataset.lock, dataset.inside = threading.Lock(), {"db": sqlite3.connect(":memory:")}
    members = found(short(dataset))["fork-unsafe"]["evidence"]["members"]
    dataset.inside["db"].close()
    assert members == {
        "lock": "a lock, which may be held while workers are forked",
        "inside['db']": "an open SQLite connection (sqlite3.Connection)",
    }


def test_a_pool_without_threads_passes():
    """It starts them on first use, in the worker; those that run already do not exist in workers."""
    dataset, over = Rows(), threading.Event()
    with ThreadPoolExecutor(2) as dataset.pool:
        dataset.thread = threading.Thread(target=over.wait)
        assert fork_unsafe(dataset) == []
        dataset.pool.submit(int).result()
        dataset.thread.start()
        assert [path for path, _ in fork_unsafe(dataset)] == ["pool", "thread"]
        over.set()
        dataset.thread.join()
        assert fork_unsafe(dataset) == [("pool", "a ThreadPoolExecutor, which workers do not have")]


def test_what_is_made_to_be_shared_passes(tmp_path):
    """Loggers, the standard streams, files in memory, classes, modules, and what a manager's process keeps for all processes."""
    dataset = Rows()
    dataset.logger = logging.getLogger("mine")
    dataset.things = [sys.stderr, io.BytesIO(b"x"), Rows, np, print]
    assert fork_unsafe(dataset) == []
    with multiprocessing.Manager() as dataset.manager:
        dataset.cache = dataset.manager.dict()
        assert fork_unsafe(dataset) == []


def test_members_of_functions_are_seen():
    """A transform may hold its generator in a closure, a partial or the object that it is a method of."""
    rng = random.Random(0)

    class Jitter:
        def __init__(self):
            self.own = np.random.default_rng(0)

        def apply(self, row):
            return row + self.own.random()

    dataset = Rows()
    dataset.transforms = [lambda row: row + rng.random(), Jitter().apply, functools.partial(max, torch.Generator())]
    assert set(owned_generators(dataset)) == {
        "transforms[0] (its rng)",
        "transforms[1].__self__.own",
        "transforms[2] (its 0)",
    }


def test_the_global_generators_are_nobodys_own():
    """torch seeds them in workers."""
    dataset = Rows()
    dataset.generators = [random._inst, np.random.mtrand._rand, torch.default_generator, random.shuffle]
    assert owned_generators(dataset) == {}


def test_a_dataset_without_an_end_is_walked_in_bounded_time():
    """Long lists are looked at from their beginning, rings once."""
    dataset = Rows()
    dataset.ring = dataset
    dataset.names = [[] for _ in range(100_000)]
    dataset.names[50_000] = random.Random(0)
    assert owned_generators(dataset) == {}
    assert len(list(members(dataset))) < 100
