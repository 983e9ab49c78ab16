"""workload.py: the short form and the general form, and what each of them refuses."""

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, RandomSampler, SequentialSampler
from workloads import Rows, Stream, general, short

from feedrate.trainables import Workload
from feedrate.trainables.step import StepContext
from feedrate.trainables.workload import TUNED


@pytest.mark.parametrize("name", TUNED)
def test_what_is_searched_cannot_be_fixed(name):
    """`loader_kwargs` that fixes a searched option is refused, with the way to compare with it."""
    with pytest.raises(ValueError, match=f"fixes {name}, which is searched: leave it out and pass --baseline {name}="):
        short(Rows(), loader_kwargs={"drop_last": True, name: 4})


def test_a_dataset_or_a_function_that_makes_it():
    """A dataset is taken as it is; a function is called on first use, once."""
    dataset, made = Rows(), []

    def make():
        made.append(Rows())
        return made[-1]

    assert short(dataset).dataset is dataset
    workload = short(make)
    assert made == []
    assert workload.dataset is workload.dataset is made[0]
    assert len(made) == 1


def test_training_data_is_shuffled_by_default():
    """A map-style dataset is shuffled unless `loader_kwargs` says otherwise."""
    assert isinstance(short(Rows()).make_loader(batch_size=4).sampler, RandomSampler)
    in_order = short(Rows(), loader_kwargs={"shuffle": False}).make_loader(batch_size=4)
    assert isinstance(in_order.sampler, SequentialSampler)


def test_an_own_sampler_is_kept():
    """A sampler or batch_sampler of the user's is not combined with shuffle, which torch would refuse."""
    sampler = SequentialSampler(range(5))
    assert short(Rows(), loader_kwargs={"sampler": sampler}).make_loader(batch_size=4).sampler is sampler
    batches = [[0, 1], [2]]
    assert short(Rows(), loader_kwargs={"batch_sampler": batches}).make_loader().batch_sampler is batches


def test_an_iterable_dataset_has_no_sampler():
    """An iterable dataset works in the short form; its batches come in its own order."""
    loader = short(Stream(6)).make_loader(batch_size=4, num_workers=0)
    assert [inputs[:, 0].tolist() for inputs, _ in loader] == [[0, 1, 2, 3], [4, 5]]


def test_fixed_arguments_reach_the_loader():
    """drop_last, a worker_init_fn and a collate_fn are the loader's own."""

    def init(worker):
        pass

    def collate(samples):
        return torch.utils.data.default_collate(samples)

    workload = short(Rows(10), loader_kwargs={"drop_last": True, "worker_init_fn": init}, collate_fn=collate)
    loader = workload.make_loader(batch_size=4)
    assert (len(loader), loader.worker_init_fn, loader.collate_fn) == (2, init, collate)


def test_the_short_form_counts_samples_and_makes_a_step():
    """The short form is the general one with a loader and a step of ours."""
    workload = short(Rows())
    assert (workload.is_short, workload.unit, workload.check) == (True, "samples", None)
    step = workload.make_step(StepContext(device=torch.device("cpu"), batch_size=4))
    assert step(next(iter(workload.make_loader(batch_size=4)))) is None


def test_the_general_form_keeps_what_it_was_given():
    """`from_loader` takes the user's functions as they are; there is nothing fixed and no dataset of ours."""

    def make_loader(**overrides):
        return DataLoader(Rows(), **overrides)

    def make_step(context):
        return lambda batch: context.batch_size

    workload = Workload.from_loader(name="lm", make_loader=make_loader, make_step=make_step, unit="tokens")
    assert (workload.name, workload.unit, workload.is_short) == ("lm", "tokens", False)
    assert (workload.make_loader, workload.make_step) == (make_loader, make_step)
    assert (workload.loader_kwargs, workload.collate_fn, workload.check) == ({}, None, None)
    assert general(make_loader, nn.Identity()).unit == "samples"
