"""The data of the scripts in this folder, which train as an ordinary user of each framework writes it.

Each sample takes SAMPLE_S to read. Two variables of the environment let a test or a benchmark look on:
SCRIPT_NOTES names a file to which each loader worker adds one line; with SCRIPT_SECONDS the script times its own steps and ends.
"""

import functools
import json
import os
import time

import torch
from torch.optim.optimizer import register_optimizer_step_post_hook
from torch.utils.data import Dataset, get_worker_info

SAMPLE_S = 0.001
WIDTH = 16
WARM_S = 3.0


@functools.cache
def note_worker(pid):
    """Add a line to the notes, once in each worker: which of how many workers of its loader this is."""
    worker = get_worker_info()
    if "SCRIPT_NOTES" in os.environ and worker is not None:
        with open(os.environ["SCRIPT_NOTES"], "a") as file:
            print(worker.id, worker.num_workers, file=file)


def read(index):
    """Read one sample slowly: WIDTH numbers and a class."""
    note_worker(os.getpid())
    time.sleep(SAMPLE_S)
    return torch.full((WIDTH,), float(index % 7)), index % 2


class Rows(Dataset):
    """Pairs (numbers, class)."""

    def __init__(self, num_rows=20_000):
        self.num_rows = num_rows

    def __len__(self):
        return self.num_rows

    def __getitem__(self, index):
        return read(index)


class Tokens(Rows):
    """Dictionaries, as language models read them."""

    def __getitem__(self, index):
        numbers, label = read(index)
        return {"input_ids": numbers.long(), "labels": label}


def time_steps(seconds):
    """After WARM_S, count the optimizer's steps for so long; print steps per second and end the process."""
    began, counted_from, num_steps = time.perf_counter(), None, 0

    def stepped(*_):
        nonlocal began, counted_from, num_steps
        now = time.perf_counter()
        if num_steps == 0 and counted_from is None:
            counted_from = now + WARM_S
            return
        if now < counted_from:
            return
        if num_steps == 0:
            began = now
        num_steps += 1
        if now > began + seconds:
            print(json.dumps({"steps_per_s": (num_steps - 1) / (now - began)}), flush=True)
            os._exit(0)

    register_optimizer_step_post_hook(stepped)


if "SCRIPT_SECONDS" in os.environ and get_worker_info() is None:
    time_steps(float(os.environ["SCRIPT_SECONDS"]))
