"""order_check.py: every setting delivers every sample once; streams, samplers and orders are compared with real workers."""

import itertools

import numpy as np
import pytest
import torch
from looks import Augmented, Divided, found, levels, step, with_noise
from torch.utils.data import DataLoader, IterableDataset, RandomSampler, get_worker_info
from workloads import Rows, Stream, general, short


def test_random_order_is_not_different_data():
    """Shuffled epochs of persistent workers differ from those without workers; each holds every index once."""
    finding = found(short(Rows(100)))["order"]
    assert finding["level"] == "note"
    assert finding["evidence"]["orders"]["2 workers"] == ["invariant", "invariant"]
    assert finding["evidence"]["orders"]["persistent_workers"] == ["invariant", "permuted"]
    assert "not different data" in finding["sentence"]


def test_the_fix_for_the_order_works():
    """With a sampler and a generator of their own, epochs have the same order with every setting that keeps order."""
    dataset = Augmented(100)
    sampler = RandomSampler(dataset, generator=torch.Generator().manual_seed(0))
    own = {"sampler": sampler, "generator": torch.Generator().manual_seed(1)}
    orders = found(short(dataset, loader_kwargs=own))["order"]["evidence"]["orders"]
    del orders["in_order=False"]
    assert all(each == ["invariant", "invariant"] for each in orders.values())


def test_a_sampler_that_depends_on_num_workers_loses_samples():
    """make_loader of the general form may build what it likes: what is missing with workers is an error."""

    def make_loader(num_workers=0, **overrides):
        kept = range(64) if num_workers == 0 else range(0, 64, 2)
        return DataLoader(Rows(64), sampler=list(kept), num_workers=num_workers, **{"batch_size": 4, **overrides})

    finding = found(general(make_loader, step))["order"]
    assert finding["level"] == "error"
    assert "32 samples of an epoch are missing" in finding["sentence"]


def test_a_sampler_that_repeats_with_workers_is_an_error():
    """Duplicated samples and missing ones are reported as different findings."""

    def make_loader(num_workers=0, **overrides):
        order = list(range(64)) + ([0, 1, 2] if num_workers else [])
        return DataLoader(Rows(64), sampler=order, num_workers=num_workers, **{"batch_size": 4, **overrides})

    assert "3 samples of an epoch are duplicated" in found(general(make_loader, step))["order"]["sentence"]


@pytest.mark.parametrize("stream", [Stream(12), with_noise(Stream(10**9))])
def test_an_undivided_stream_is_an_error(stream):
    """Every worker delivers every sample, also where augmentation makes each look different, or the end is far."""
    findings = found(short(stream))
    assert findings["order"]["level"] == "error"
    assert findings["order"]["evidence"]["overlap_fraction"] == 1.0
    if stream.num_rows == 12:
        assert findings["order"]["evidence"]["num_samples"] == {"0 workers": 12, "2 workers": 24}
        assert "12 samples with 0 workers, 24 with 2" in findings["order"]["sentence"]


@pytest.mark.parametrize("stream", [with_noise(Divided(12)), Divided(10**9)])
def test_a_divided_stream_passes(stream):
    """Another order is no other data."""
    findings = found(short(stream))
    assert "error" not in levels(findings).values()
    assert findings["order"]["level"] == "note"
    assert findings["order"]["evidence"]["overlap_fraction"] == 0.0


def test_the_fix_for_a_stream_works():
    """The lines that the finding offers divide the stream."""
    scope = {"torch": torch, "itertools": itertools}
    exec(found(short(Stream(12)))["order"]["fix"], scope)  # noqa: S102 - what people are told to paste

    class Fixed(Stream):
        all_samples = Stream.__iter__
        __iter__ = scope["__iter__"]

    assert found(short(Fixed(12)))["order"]["level"] == "note"


def test_a_stream_divided_by_worker_init_fn_passes():
    """worker_init_fn sees the user's own dataset, not what wraps it."""

    class Part(Stream):
        first, step = 0, 1

        def __iter__(self):
            return itertools.islice(super().__iter__(), self.first, None, self.step)

    def divide(worker_id):
        info = get_worker_info()
        assert type(info.dataset) is Part
        info.dataset.first, info.dataset.step = worker_id, info.num_workers

    assert found(short(Part(12), loader_kwargs={"worker_init_fn": divide}))["order"]["level"] == "note"


def test_a_stream_that_gives_half_of_it_twice_is_an_error():
    """As many samples as without workers, but not the same ones."""

    class Wrong(Stream):
        def __iter__(self):
            return itertools.islice(super().__iter__(), None if get_worker_info() is None else self.num_rows // 2)

    findings = found(short(Wrong(64)))
    assert findings["order"]["level"] == "error"
    assert findings["order"]["evidence"]["num_samples"] == {"0 workers": 64, "2 workers": 64}


def test_a_stream_that_loses_samples_is_an_error():
    """What no worker delivers is missing."""

    class Lossy(Divided):
        def __iter__(self):
            return itertools.islice(super().__iter__(), None if get_worker_info() is None else 10)

    finding = found(short(Lossy(64)))["order"]
    assert finding["level"] == "error"
    assert "44 of 64 samples are missing with 2 workers" in finding["sentence"]


def test_a_stream_of_equal_samples_cannot_be_told():
    """Dummy data without an end: no claim is made either way."""

    class Zeros(IterableDataset):
        def __iter__(self):
            while True:
                yield torch.zeros(4), torch.tensor(0)

    finding = found(short(Zeros()))["order"]
    assert finding["level"] == "note"
    assert "cannot tell whether workers repeat each other" in finding["sentence"]


def test_unseeded_randomness_is_noted():
    """The same setting with the same seed gives other bytes; settings are not to blame."""

    class Unseeded(Rows):
        def __getitem__(self, index):
            return torch.full((4,), float(index) + np.random.default_rng().random()), torch.tensor(0)

    findings = found(short(Unseeded()))
    assert findings["determinism"]["level"] == "note"
    assert findings["determinism"]["evidence"]["settings"] == ["0 workers", "2 workers"]
    assert "error" not in levels(findings).values()
