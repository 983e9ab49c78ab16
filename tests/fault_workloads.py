"""Workloads that fail, each in its own way; made by name in a template. None of them fails for samples 0 to 39."""

import logging
import multiprocessing
import os
import resource
import signal
import threading
import time
from functools import partial
from pathlib import Path

import torch
from torch import nn
from torch.utils.data import DataLoader, IterableDataset, Sampler, get_worker_info
from workloads import Rows, general, short

from feedrate.trainables import Workload

PATH = Path(__file__).resolve()
BAD = 40


class At(Rows):
    """Does something for samples from BAD on, in loader workers only where `in_worker`."""

    def __init__(self, act, in_worker=False):
        super().__init__()
        self.act, self.in_worker = act, in_worker

    def __getitem__(self, index):
        if index >= BAD and (get_worker_info() is not None or not self.in_worker):
            self.act()
        return super().__getitem__(index)


def broken():
    raise ValueError("the header is broken")


def sleep():
    time.sleep(1000)


def in_getitem():
    return short(At(broken))


def in_getitem_of_worker():
    return short(At(broken, in_worker=True))


def in_getitems():
    class Batched(At):
        def __getitems__(self, indices):
            return [self[index] for index in indices]

    return short(Batched(broken))


def in_collate():
    def collate(samples):
        if any(int(row[0]) >= BAD for row, _ in samples):
            raise KeyError("label")
        return torch.utils.data.default_collate(samples)

    return short(Rows(), collate_fn=collate)


def in_worker_init():
    def init(worker):
        raise RuntimeError("no licence in a worker")

    return short(Rows(), loader_kwargs={"worker_init_fn": init})


def in_making_the_model():
    def model():
        raise FileNotFoundError("weights.pt")

    return _with(model=model)


def in_model():
    class Model(nn.Linear):
        def forward(self, rows):
            return super().forward(rows.reshape(-1, 5))

    return _with(model=lambda: Model(4, 2))


def in_loss():
    def loss(output, target):
        raise IndexError("Target 7 is out of bounds.")

    return _with(loss=loss)


def _with(**changed):
    own = {"dataset": Rows(), "model": lambda: nn.Linear(4, 2), "loss": nn.CrossEntropyLoss()}
    optimizer = partial(torch.optim.SGD, lr=0.001)
    return Workload(name="rows", optimizer=optimizer, **(own | changed))


def kills_worker(*, number=9, in_worker=True):
    return short(At(lambda: os.kill(os.getpid(), number), in_worker))


def crashes():
    """Wherever the sample is loaded."""
    return kills_worker(number=int(signal.SIGSEGV), in_worker=False)


def worker_exits():
    return short(At(lambda: os._exit(3), in_worker=True))


def no_memory():
    def act():
        raise MemoryError

    return short(At(act))


def hangs_in_getitem():
    return short(At(sleep))


def hangs_in_worker_init():
    def init(worker):
        sleep()

    return short(Rows(), loader_kwargs={"worker_init_fn": init})


def hangs_in_iter():
    """Its sampler never begins where there are workers."""

    class Stuck(Sampler):
        def __iter__(self):
            sleep()

    def make_loader(**overrides):
        return DataLoader(Rows(), sampler=Stuck() if overrides.get("num_workers") else None, **overrides)

    return general(make_loader, lambda batch: None)


def deadlocks_in_step():
    lock, calls = threading.Lock(), []

    def step(batch):
        calls.append(1)
        if len(calls) > 8:
            lock.acquire()

    lock.acquire()
    return general(lambda **overrides: DataLoader(Rows(), **overrides), step)


def hangs_in_teardown():
    """The loader never goes; neither do its workers, by what they were asked politely."""

    class Loader(DataLoader):
        def __del__(self):
            if self.num_workers:
                sleep()

    def init(worker):
        signal.signal(signal.SIGTERM, signal.SIG_IGN)

    return general(
        lambda **overrides: Loader(Rows(1000), worker_init_fn=init, **overrides), lambda batch: time.sleep(0.001)
    )


def dies_in_teardown():
    """The training process does, when its loader goes."""

    class Loader(DataLoader):
        def __del__(self):
            if self.num_workers:
                os.kill(os.getpid(), signal.SIGKILL)

    return general(lambda **overrides: Loader(Rows(1000), **overrides), lambda batch: time.sleep(0.001))


def _with_lock(samples):
    return torch.utils.data.default_collate(samples), threading.Lock()


def batch_cannot_be_pickled():
    return general(lambda **overrides: DataLoader(Rows(), collate_fn=_with_lock, **overrides), lambda batch: None)


class Endless(IterableDataset):
    def __iter__(self):
        while True:
            yield torch.zeros(4)


def stream_cannot_be_pickled():
    return general(lambda **overrides: DataLoader(Endless(), collate_fn=_with_lock, **overrides), lambda batch: 4)


class Holds(Rows):
    """Rows with something that only a forked worker can get."""

    def __init__(self, transform):
        super().__init__()
        self.transform = transform


def dataset_cannot_be_pickled():
    return short(Holds(lambda row: row))


class Pieces(Rows):
    """Rows of many tensors."""

    def __getitem__(self, index):
        return [torch.zeros(2) for _ in range(40)]


def too_many_files():
    """Its open files are few, its tensors many."""

    def make_loader(**overrides):
        resource.setrlimit(resource.RLIMIT_NOFILE, (64, resource.getrlimit(resource.RLIMIT_NOFILE)[1]))
        return DataLoader(Pieces(2000), **overrides)

    return general(make_loader, lambda batch: None)


class Big(Rows):
    """From BAD on 40 MB a row, which nobody can know from the first ones."""

    def __getitem__(self, index):
        return torch.zeros(10_000_000 if index >= BAD else 4)


def shm_full():
    return general(
        lambda **overrides: DataLoader(Big(), collate_fn=torch.cat, **overrides), lambda batch: time.sleep(0.001)
    )


class Keeps(Rows):
    """Every row that was loaded stays in the worker: 8 MB each."""

    kept: list

    def __getitem__(self, index):
        if get_worker_info() is not None:
            self.kept = [*getattr(self, "kept", []), bytearray(os.urandom(1 << 10)) * 8192]
        return super().__getitem__(index)


def grows():
    return short(Keeps(10_000, sleep_s=0.005))


def nan():
    return _with(loss=lambda output, target: output.sum() * float("nan"))


def prints():
    """Whatever a dataset should not do in every sample, but does."""

    class Talks(Rows):
        def __getitem__(self, index):
            print(f"loading {index}")
            logging.getLogger().warning("loading %d", index)
            os.write(1, b"\xff\xfe not text\n")
            return super().__getitem__(index)

    logging.basicConfig(level=logging.DEBUG)
    return short(Talks())


def forks():
    """A child that nobody waits for, in a session of its own."""

    def make():
        if os.fork() == 0:
            os.setsid()
            sleep()
        return Rows()

    return short(make)


def changes_start_method():
    def make():
        multiprocessing.set_start_method("spawn", force=True)
        return Rows()

    return short(make)


def handles_signals():
    """Ends politely for nobody."""

    def make():
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1, signal.SIGALRM):
            signal.signal(number, lambda *_: print("not now"))
        return Rows()

    return short(make)


def starts_threads():
    def make():
        for _ in range(3):
            threading.Thread(target=sleep, daemon=True).start()
        return Rows()

    return short(make)


class ByWorkers(Rows):
    """Each number of workers has a fate of its own; 0, 2 and 6 do well."""

    def __getitem__(self, index):
        number = get_worker_info().num_workers if get_worker_info() is not None else 0
        if number == 1:
            broken()
        if number == 3:
            os.kill(os.getpid(), signal.SIGSEGV)
        if number == 4:
            sleep()
        if number == 5:
            os._exit(3)
        return super().__getitem__(index)


def by_workers():
    return short(ByWorkers(4000, sleep_s=0.002))


def fills_the_accelerator():
    """A gigabyte of activations for every row."""

    class Model(nn.Linear):
        def forward(self, rows):
            return super().forward(rows) + rows.new_ones(len(rows), 1 << 28).mean()

    return _with(dataset=Rows(5000), model=lambda: Model(4, 2))
