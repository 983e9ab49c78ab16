"""Small workloads that work or fail in every way that a trial must survive; tests make them by name, in a template or in this process."""

import json
import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset, IterableDataset, get_worker_info

from feedrate.trainables import Workload

PATH = Path(__file__).resolve()


class Rows(Dataset):
    """Rows (4,) that hold their own index, each after a nap."""

    def __init__(self, num_rows=64, sleep_s=0.0):
        self.num_rows, self.sleep_s = num_rows, sleep_s

    def __len__(self):
        return self.num_rows

    def __getitem__(self, index):
        time.sleep(self.sleep_s)
        return torch.full((4,), float(index)), torch.tensor(index % 2)


class AnsweredByThread(Rows):
    """A thread that making the dataset starts answers; no thread survives a fork, so a forked worker waits without an end."""

    def __init__(self):
        super().__init__()
        self.asked, self.answered = threading.Semaphore(0), threading.Semaphore(0)
        threading.Thread(target=self.answer, name="answers", daemon=True).start()

    def answer(self):
        while True:
            self.asked.acquire()
            self.answered.release()

    def __getitem__(self, index):
        self.asked.release()
        self.answered.acquire()
        return super().__getitem__(index)


class Forever:
    def __init__(self, sampler):
        self.sampler = sampler

    def __iter__(self):
        while True:
            yield from self.sampler


class Reusing(DataLoader):
    """Starts its iterator, and with it its workers, once and for all when it is made."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        object.__setattr__(self, "batch_sampler", Forever(self.batch_sampler))
        self.iterator = super().__iter__()

    def __len__(self):
        return len(self.batch_sampler.sampler)

    def __iter__(self):
        for _ in range(len(self)):
            yield next(self.iterator)


class Stream(IterableDataset):
    """`num_rows` rows from every worker; nobody knows how many before."""

    def __init__(self, num_rows=64, sleep_s=0.0):
        self.num_rows, self.sleep_s = num_rows, sleep_s

    def __iter__(self):
        for index in range(self.num_rows):
            time.sleep(self.sleep_s)
            yield torch.full((4,), float(index)), torch.tensor(index % 2)


class LenOpens(Rows):
    """Opens something in `__len__`, too, that workers must not share."""

    opened_by = lock = None

    def open(self):
        self.opened_by = self.opened_by or os.getpid()
        self.lock = self.lock or threading.Lock()
        if self.opened_by != os.getpid():
            raise RuntimeError("opened by another process")

    def __len__(self):
        self.open()
        return super().__len__()

    def __getitem__(self, index):
        self.open()
        return super().__getitem__(index)


class InWorker(Rows):
    """Does something in the first item that a loader worker fetches, and nothing in the trainer."""

    def __init__(self, act):
        super().__init__()
        self.act = act

    def __getitem__(self, index):
        if get_worker_info() is not None:
            self.act()
        return super().__getitem__(index)


def short(dataset, **more):
    """A short-form workload of these rows."""
    return Workload(
        name="rows",
        dataset=dataset,
        model=lambda: nn.Linear(4, 2),
        loss=nn.CrossEntropyLoss(),
        optimizer=lambda parameters: torch.optim.SGD(parameters, lr=0.001),
        **more,
    )


def general(make_loader, step, unit="samples"):
    """A general-form workload whose step is this function."""
    return Workload.from_loader(name="mine", make_loader=make_loader, make_step=lambda context: step, unit=unit)


def rows(*, num_rows=64, sleep_s=0.0):
    return short(Rows(num_rows, sleep_s))


class Logged(Rows):
    """Rows whose workers write down each item twice: before they fetch it, and when they have it."""

    def __init__(self, path, **more):
        super().__init__(**more)
        self.path = path

    def __getitem__(self, index):
        with open(self.path, "a") as file:
            print("begin", file=file, flush=True)
            row = super().__getitem__(index)
            print("end", file=file, flush=True)
        return row


def logged(*, path, sleep_s):
    return short(Logged(path, num_rows=1000, sleep_s=sleep_s))


def mine(*, persistent=False):
    """The general form, with defaults of its own that are wrong for 0 workers."""
    own = {"num_workers": 2, "batch_size": 4, "prefetch_factor": 3, "persistent_workers": persistent, "shuffle": True}
    return general(lambda **overrides: DataLoader(Rows(), **(own | overrides)), lambda batch: None)


def facts():
    """What the process of a trial is, as a note of the workload's check."""

    def check():
        return [
            json.dumps(
                {
                    "pid": os.getpid(),
                    "main_thread": threading.current_thread() is threading.main_thread(),
                    "num_threads": threading.active_count(),
                    "daemon": multiprocessing.current_process().daemon,
                    "start_method": multiprocessing.get_start_method(),
                    "nice": os.nice(0),
                    "environment": dict(os.environ),
                    "cpus": sorted(os.sched_getaffinity(0)),
                    "cwd": os.getcwd(),
                    "torch_threads": torch.get_num_threads(),
                    "sigint_is_default": signal.getsignal(signal.SIGINT) is signal.SIG_DFL,
                    "leads_its_group": os.getpgrp() == os.getpid(),
                }
            )
        ]

    return short(Rows(), check=check)


def raises():
    raise RuntimeError("no such folder on this machine")


def raises_in_dataset():
    def make():
        raise RuntimeError("the disk is not mounted")

    return short(make)


def empty():
    return short(Rows(0))


def not_a_loader():
    return general(lambda **overrides: [1, 2, 3], lambda batch: None)


def exits():
    def make():
        print("about to leave", flush=True)
        os._exit(3)

    return short(make)


def killed():
    return short(InWorker(lambda: os.kill(os.getppid(), signal.SIGKILL)))


def hangs():
    return short(InWorker(lambda: time.sleep(1000)))


def hangs_in_trainer():
    def make():
        time.sleep(1000)

    return short(make)


def escapes():
    """Its dataset starts a process in a session of its own, which forks another one and leaves it."""

    def make():
        code = "import os, time; os.fork(); time.sleep(1000)"
        subprocess.Popen([sys.executable, "-c", code], start_new_session=True)
        return Rows(sleep_s=0.002)

    return short(make)


def big():
    """Batches of 12 MiB: a worker that is killed has one half made in /dev/shm."""

    class Big(Rows):
        def __getitem__(self, index):
            return torch.zeros(3, 512, 512), torch.tensor(0)

    return general(lambda **overrides: DataLoader(Big(1000), **overrides), lambda batch: None)


def spawned():
    """Loader workers that are spawned, whose semaphores have names."""
    return general(
        lambda **overrides: DataLoader(Rows(), **({"multiprocessing_context": "spawn"} | overrides)),
        lambda batch: None,
    )


class NotWithSeven(Rows):
    """Cannot be read by 7 workers."""

    def __getitem__(self, index):
        if (worker := torch.utils.data.get_worker_info()) is not None and worker.num_workers == 7:
            raise RuntimeError("seven are too many")
        return super().__getitem__(index)


def slow_to_set_up():
    """Its model takes 1.5 s to make."""

    def make_step(context):
        time.sleep(1.5)
        return lambda batch: None

    return Workload.from_loader(
        name="slow", make_loader=lambda **overrides: DataLoader(NotWithSeven(1000, 0.001), **overrides), make_step=make_step
    )
