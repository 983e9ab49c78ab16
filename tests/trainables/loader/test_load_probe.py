"""load_probe.py: what loading costs is told apart by time, CPU time and collation, in the trainer and in forked workers, and nothing else changes."""

import itertools
import os
import time
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader, Dataset, IterableDataset, default_collate

from feedrate.analysis.schema import SAMPLE_QUANTILES
from feedrate.trainables.loader.load_probe import (
    BINS_PER_OCTAVE,
    COST_FRACTION,
    NUM_BINS,
    LoadProbe,
    bin_of,
)
from feedrate.trainables.loader.loader_watch import LoaderWatch


def busy(seconds):
    end = time.thread_time() + seconds
    while time.thread_time() < end:
        pass


class Mixed(Dataset):
    """2 ms of CPU time and 6 ms of waiting for each sample; each seventh sample waits for 60 ms."""

    def __len__(self):
        return 400

    def __getitem__(self, index):
        busy(0.002)
        time.sleep(0.06 if index % 7 == 6 else 0.006)
        return torch.tensor([index])


def slow_collate(samples):
    busy(0.008)
    return default_collate(samples)


def probed(loader, num_batches=40):
    """The batches of a loader, and what loading them cost."""
    watch = LoaderWatch(loader)
    batches = list(itertools.islice(iter(loader), num_batches))
    return batches, watch.probe.sums()


@pytest.mark.parametrize("num_workers", [0, 2])
def test_time_cpu_time_and_collation_are_told_apart(num_workers):
    loader = DataLoader(Mixed(), batch_size=4, num_workers=num_workers, collate_fn=slow_collate)
    batches, sums = probed(loader)
    assert torch.cat(batches).flatten().tolist() == list(range(160))
    found = sums.columns(items_per_batch=4)
    # computing takes longer on a machine that is shared, and so does waking up
    assert 0.0039 < found["load_cpu_item_s"] < 0.008
    waits_s = 6 / 7 * 0.006 + 1 / 7 * 0.06
    assert 0.7 * waits_s < found["load_item_s"] - found["load_cpu_item_s"] - found["load_delay_item_s"] < 2 * waits_s
    assert 0.0019 < found["collate_item_s"] < found["load_item_s"]  # its wall time, on a machine that is shared
    median, ninety, most, longest = (found[name] for name in SAMPLE_QUANTILES)
    assert 0.007 < median < 0.04
    assert median <= ninety <= most <= longest
    assert most > 0.05


class Clock:
    """A clock that only samples advance, in place of the probe's; CPU time is the real one."""

    now_s = 0.0
    thread_time, process_time = staticmethod(time.thread_time), staticmethod(time.process_time)

    def perf_counter(self):
        return self.now_s


@pytest.fixture
def clock(monkeypatch):
    clock = Clock()
    monkeypatch.setattr("feedrate.trainables.loader.load_probe.time", clock)
    return clock


class Patterned(Dataset):
    """Samples that take 3 ms or 1 ms by this clock: in runs of eight, or in turns."""

    def __init__(self, run_length, clock):
        self.run_length, self.clock = run_length, clock

    def __len__(self):
        return 4000

    def __getitem__(self, index):
        self.clock.now_s += 0.003 if index // self.run_length % 2 else 0.001
        return index


@pytest.mark.parametrize(("run_length", "correlation"), [(8, 25 / 31), (1, -1.0)])
def test_slow_samples_in_runs_are_told_from_slow_samples_in_turns(run_length, correlation, clock):
    """Of the 31 pairs in a batch of four runs, 28 are alike and 3 are not."""
    _, sums = probed(DataLoader(Patterned(run_length, clock), batch_size=32), num_batches=30)
    assert sums.columns(items_per_batch=32)["sample_correlation"] == pytest.approx(correlation, abs=0.01)


def test_too_few_samples_have_no_correlation(clock):
    """Batches of two samples give one pair each."""
    _, sums = probed(DataLoader(Patterned(1, clock), batch_size=2), num_batches=5)
    assert sums.columns(items_per_batch=2)["sample_correlation"] is None


def test_the_spread_of_samples_counts_those_in_clusters_as_more(clock):
    """Half of the samples take 3 ms and half 1 ms: their standard deviation is half of their mean."""
    _, turns = probed(DataLoader(Patterned(1, clock), batch_size=32), num_batches=30)
    _, runs = probed(DataLoader(Patterned(8, clock), batch_size=32), num_batches=30)
    assert 0.45 < turns.sample_sd_fraction() < 0.55
    assert runs.sample_sd_fraction() > 1.5 * turns.sample_sd_fraction()
    assert runs.minus(runs).sample_sd_fraction() is None


class Large(Dataset):
    """Each sample has 4 MB, which torch copies to shared memory."""

    def __len__(self):
        return 400

    def __getitem__(self, index):
        return np.full(1_000_000, index, dtype=np.float32)


def handover_cpu_item_s(dataset, num_workers):
    """What handing a sample over costs. `from_numpy` leaves the copy to shared memory to torch's thread."""
    loader = DataLoader(dataset, batch_size=4, num_workers=num_workers, collate_fn=lambda samples: torch.from_numpy(np.stack(samples)))
    return probed(loader, num_batches=60)[1].columns(items_per_batch=4)["handover_cpu_item_s"]


def test_handing_batches_over_is_told_apart():
    """A thread of the worker copies 4 MB for each sample to shared memory, or a number; without workers there is no such thread."""
    assert handover_cpu_item_s(Large(), 0) is None
    assert handover_cpu_item_s(Large(), 2) > max(2 * handover_cpu_item_s(Mixed(), 2), 0.0002)


def test_a_thread_without_a_cpu_is_told_from_one_that_waits():
    """Two workers compute on one CPU: each is delayed by the other, whatever else runs."""

    class Busy(Dataset):
        def __len__(self):
            return 4000

        def __getitem__(self, index):
            busy(0.003)
            return torch.tensor([index])

    cpu = min(os.sched_getaffinity(0))
    loader = DataLoader(Busy(), batch_size=8, num_workers=2, worker_init_fn=lambda _: os.sched_setaffinity(0, {cpu}))
    _, sums = probed(loader, num_batches=60)
    found = sums.columns(items_per_batch=8)
    assert found["load_cpu_item_s"] > 0.0029
    assert found["load_delay_item_s"] > 0.5 * found["load_cpu_item_s"]


class Cheap(Dataset):
    def __len__(self):
        return 200_000

    def __getitem__(self, index):
        return index


def test_cheap_batches_are_mostly_passed_over():
    """Timing all of them would cost more than COST_FRACTION of loading."""
    batches, sums = probed(DataLoader(Cheap(), batch_size=8), num_batches=20_000)
    assert len(batches) == 20_000
    assert 5 < sums.num_batches < 4_000
    assert sums.num_batches * 2e-6 < 2 * COST_FRACTION * 20_000 * sums.wall_s / sums.num_batches


class Whole(Dataset):
    """Takes all indices of a batch at once."""

    def __len__(self):
        return 100

    def __getitems__(self, indices):
        time.sleep(0.002)
        return [torch.tensor(index) for index in indices]


class Stream(IterableDataset):
    def __iter__(self):
        for index in range(100):
            time.sleep(0.001)
            yield torch.tensor(index)


@pytest.mark.parametrize("dataset", [Whole(), Stream()], ids=lambda each: type(each).__name__)
def test_batches_whose_samples_cannot_be_timed_are_timed_whole(dataset):
    batches, sums = probed(DataLoader(dataset, batch_size=4), num_batches=25)
    assert torch.cat(batches).tolist() == list(range(100))
    found = sums.columns(items_per_batch=4)
    assert found["load_item_s"] > 0.0004
    assert found["sample_p50_s"] is None and found["load_delay_item_s"] is None


def test_the_error_of_a_sample_is_the_users_own():
    class Broken(Cheap):
        def __getitem__(self, index):
            time.sleep(0.01)
            if index == 90:
                raise KeyError("sample 90")
            return index

    with pytest.raises(KeyError, match="sample 90"):
        probed(DataLoader(Broken(), batch_size=4), num_batches=100)


def test_loaders_that_are_not_watched_are_left_alone():
    mine = DataLoader(Cheap(), batch_size=8)
    watch = LoaderWatch(mine)
    watched, other = iter(mine), iter(DataLoader(Cheap(), batch_size=8))
    assert type(watched._dataset_fetcher.fetch).__name__ == "_TimedFetch"
    assert type(other._dataset_fetcher.fetch).__name__ == "method"
    assert watch.probe.sums().num_batches == 0


@pytest.mark.parametrize("share", [0.5, 0.9, 0.99])
def test_quantiles_are_off_by_less_than_a_bin(share):
    samples = np.random.default_rng(1).lognormal(-6, 1.0, 10_000)
    counts = np.zeros(NUM_BINS)
    for each in samples:
        counts[bin_of(each)] += 1
    sums = replace(LoadProbe().sums(), counts=counts, max_s=samples.max())
    assert sums._quantile(share) == pytest.approx(np.quantile(samples, share), rel=2 ** (1 / BINS_PER_OCTAVE) - 1)
