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
REFILLED_STEPS = 40
"""More than the batches that 4 workers hold ready."""


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
    """After WARM_S, time the optimizer's steps for so long; print steps per second and end the process.

    What lies between two epochs (validation, new workers) is left out, as feedrate does, and so are the steps after it, whose batches
    were loaded meanwhile.
    """
    times = []

    def stepped(*_):
        times.append(time.perf_counter())
        if times[-1] < times[0] + WARM_S + seconds:
            return
        first = next(number for number, at in enumerate(times) if at >= times[0] + WARM_S)
        took = [end - begin for begin, end in zip(times[first:], times[first + 1 :], strict=False)]
        longest_step = 10 * sorted(took)[int(0.9 * len(took))]
        ends = [number for number, each in enumerate(took) if each > longest_step]
        within = [each for number, each in enumerate(took) if not any(end <= number <= end + REFILLED_STEPS for end in ends)]
        print(json.dumps({"steps_per_s": len(within) / sum(within), "num_epoch_ends": len(ends)}), flush=True)
        os._exit(0)

    register_optimizer_step_post_hook(stepped)


if "SCRIPT_SECONDS" in os.environ and get_worker_info() is None:
    time_steps(float(os.environ["SCRIPT_SECONDS"]))
