"""leftovers.py: finds threads and open files that user code left behind and that a fork would break."""

import asyncio
import contextlib
import multiprocessing
import os
import socket
import threading
from multiprocessing import shared_memory

import numpy as np
import pytest

from feedrate.trainables.probing.leftovers import Leftovers, Snapshot


@pytest.fixture
def before():
    return Snapshot.now()


def test_what_a_fork_does_not_change_is_nothing(before, tmp_path):
    """A file that is only mapped for reading or only written, and a thread that only redraws a bar."""
    path = tmp_path / "rows.npy"
    np.save(path, np.zeros(1000))
    mapped = np.load(path, mmap_mode="r")

    class Monitor(threading.Thread):
        __module__ = "tqdm._monitor"

    ended = threading.Event()
    Monitor(target=ended.wait).start()
    with (tmp_path / "log.txt").open("a"):
        left = Leftovers.since(before)
    ended.set()
    assert len(mapped) == 1000
    assert left.is_nothing, left


def test_open_files_and_connections_are_named(before, tmp_path):
    """By their path or their other end."""
    path = tmp_path / "rows.bin"
    path.write_bytes(b"x" * 64)
    with path.open("rb"), socket.create_server(("127.0.0.1", 0)) as server, socket.create_connection(server.getsockname()):
        left = Leftovers.since(before)
    assert left.shared[0] == str(path)
    assert left.shared[1].startswith("a connection to 127.0.0.1:")
    assert not left.is_nothing


def test_threads_are_named(before):
    """An event loop's thread, with the loop's own descriptors, which are no data."""
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever, name="store")
    thread.start()
    left = Leftovers.since(before)
    loop.call_soon_threadsafe(loop.stop)
    thread.join()
    loop.close()
    assert left.threads == ("store",)
    assert left.num_other_threads == 0
    assert left.shared == ()
    assert left.others


def test_shared_memory_is_left(before):
    """What one process writes into it, the next one reads."""
    block = shared_memory.SharedMemory(name=f"frleft{os.getpid()}", create=True, size=64)
    left = Leftovers.since(before)
    block.close()
    with contextlib.suppress(FileNotFoundError):
        block.unlink()
    assert f"/dev/shm/frleft{os.getpid()}" in left.others


def test_two_sets_of_leftovers_are_one(before):
    """Those of making the workload and those of making its loader."""
    both = Leftovers(threads=("one",), shared=("/a",)) + Leftovers(threads=("two",), shared=("/a", "/b"))
    assert (both.threads, both.shared) == (("one", "two"), ("/a", "/b"))
    assert Leftovers().is_nothing


def test_a_queue_that_feeds_workers_is_not_the_datasets_thread(before):
    """A loader that starts its workers when it is made leaves such threads: a fork lacks them, but the dataset starts none."""
    queue = multiprocessing.Queue()
    queue.put(1)
    left = Leftovers.since(before)
    queue.close()
    queue.join_thread()
    assert (left.threads, left.num_other_threads) == ((), 1)
