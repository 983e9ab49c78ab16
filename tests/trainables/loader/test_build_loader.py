"""build_loader.py: the loader of one setting is seeded, endless, and keeps what the user fixed."""

import itertools
import random

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader, Dataset, IterableDataset, get_worker_info
from workloads import Rows, Stream, general, mine, short

from feedrate.trainables.config import LoaderConfig
from feedrate.trainables.failure import TrialFailed
from feedrate.trainables.loader.baseline import read_baseline
from feedrate.trainables.loader.build_loader import build_loader, cached_batch, check_overrides

pytestmark = pytest.mark.filterwarnings("ignore:This DataLoader will create", "ignore:.*use of fork:DeprecationWarning")
SETTINGS = [
    LoaderConfig(batch_size=4, num_workers=0),
    LoaderConfig(batch_size=4, num_workers=1),
    LoaderConfig(batch_size=4, num_workers=3),
    LoaderConfig(batch_size=4, num_workers=3, persistent_workers=True, prefetch_factor=5),
]


def take(iterable, count):
    return [each for each, _ in zip(iterable, range(count), strict=False)]


def order(workload, setting, seed, num_batches=40):
    """The rows of the first batches."""
    loader = build_loader(workload, setting, seed=seed)
    return [row for inputs, _ in take(loader, num_batches) for row in inputs[:, 0].int().tolist()]


def test_the_same_seed_gives_the_same_order_in_every_setting():
    """How many workers load does not change what is trained; another seed does."""
    orders = [order(short(Rows()), setting, seed=5) for setting in SETTINGS]
    assert all(each == orders[0] for each in orders)
    assert sorted(orders[0][:64]) == list(range(64))
    assert order(short(Rows()), SETTINGS[0], seed=6) != orders[0]


def test_a_general_loader_has_the_same_order_whatever_was_drawn_before():
    """A shuffled loader of the user's own begins with the same rows, however many random numbers the warm-up used."""
    first = order(mine(), SETTINGS[1], seed=5, num_batches=10)
    torch.rand(1000)
    random.random()
    assert order(mine(), SETTINGS[1], seed=5, num_batches=10) == first
    assert order(mine(), SETTINGS[1], seed=6, num_batches=10) != first


class Draws(Dataset):
    """Each item: the worker, and one number of each of the three generators."""

    def __len__(self):
        return 64

    def __getitem__(self, index):
        worker = get_worker_info()
        return worker.id if worker else 0, random.random(), np.random.rand(), torch.rand(()).item()


def keep(samples):
    return samples


def draws(seed):
    workload = short(Draws(), collate_fn=keep)
    setting = LoaderConfig(batch_size=2, num_workers=2)
    return [sample for batch in take(build_loader(workload, setting, seed=seed), 8) for sample in batch]


def test_workers_draw_different_numbers_and_the_same_ones_again():
    """Python's, NumPy's and torch's generators differ from worker to worker, and repeat with the seed."""
    first = draws(1)
    for generator in (1, 2, 3):
        by_worker = [{sample[generator] for sample in first if sample[0] == worker} for worker in (0, 1)]
        assert by_worker[0] and by_worker[1] and not by_worker[0] & by_worker[1]
    assert draws(1) == first
    assert not {sample[1] for sample in draws(2)} & {sample[1] for sample in first}


def test_an_own_sampler_decides():
    """With a sampler or batch_sampler of the user's the loader is theirs, and ends where theirs ends."""
    setting = LoaderConfig(batch_size=2)
    sampled = build_loader(short(Rows(), loader_kwargs={"sampler": [5, 3, 9]}), setting, seed=0)
    assert [inputs[:, 0].tolist() for inputs, _ in sampled] == [[5, 3], [9]]
    batched = build_loader(short(Rows(), loader_kwargs={"batch_sampler": [[7, 1, 2], [0]]}), setting, seed=0)
    assert [inputs[:, 0].tolist() for inputs, _ in batched] == [[7, 1, 2], [0]]


def test_unshuffled_stays_unshuffled():
    """shuffle=False is honoured: rows come in their order, from a seeded place on."""
    rows = order(short(Rows(), loader_kwargs={"shuffle": False}), SETTINGS[1], seed=0)
    assert all((after - before) % 64 == 1 for before, after in itertools.pairwise(rows))


def test_an_own_generator_is_kept():
    """A generator in `loader_kwargs`, or in the user's loader, is not replaced."""
    own = torch.Generator()
    assert build_loader(short(Rows(), loader_kwargs={"generator": own}), SETTINGS[0], seed=0).generator is own
    workload = general(lambda **overrides: DataLoader(Rows(), generator=own, **overrides), lambda batch: None)
    assert build_loader(workload, SETTINGS[0], seed=0).generator is own


def test_an_iterable_dataset_is_loaded():
    """An iterable dataset gets no sampler."""
    loader = build_loader(short(Stream(6)), LoaderConfig(batch_size=4, num_workers=1), seed=0)
    assert [len(inputs) for inputs, _ in loader] == [4, 2]


def test_an_empty_dataset_is_a_clear_failure():
    """An empty dataset is one sentence, not a StopIteration or an endless loop."""
    for make in (
        lambda: build_loader(short(Rows(0)), SETTINGS[0], seed=0),
        lambda: cached_batch(short(Rows(0)), SETTINGS[0]),
    ):
        with pytest.raises(TrialFailed, match="no batch at all: its dataset or sampler is empty"):
            make()
    with pytest.raises(TrialFailed, match="no batch at all"):
        cached_batch(short(Stream(0)), SETTINGS[0])
    with pytest.raises(TrialFailed, match="no batch at all"):
        cached_batch(short(Rows(), loader_kwargs={"sampler": []}), SETTINGS[0])


@pytest.mark.parametrize(
    ("fixed", "said"),
    [
        ({"num_workers": 1}, "make_loader did not apply num_workers=3: the loader it returned has num_workers=1"),
        ({"batch_size": 9}, "make_loader did not apply batch_size=4: the loader it returned has batch_size=9"),
        ({"prefetch_factor": 7}, "prefetch_factor=5: the loader it returned has prefetch_factor=7"),
        ({"persistent_workers": False}, "with --persistent-workers False"),
        ({"multiprocessing_context": "spawn"}, "multiprocessing_context='fork': the loader it returned has .*'spawn'"),
        ({"pin_memory": True}, "make_loader did not apply pin_memory=False"),
    ],
)
def test_an_ignored_override_is_named(fixed, said):
    """A loader that does not show what was asked for is refused: option, value asked, value built, way out."""
    setting = LoaderConfig(
        num_workers=3, batch_size=4, prefetch_factor=5, persistent_workers=True, multiprocessing_context="fork"
    )
    workload = general(lambda **overrides: DataLoader(Rows(), **(overrides | fixed)), lambda batch: None)
    with pytest.raises(TrialFailed, match=said) as raised:
        build_loader(workload, setting, seed=0)
    assert raised.value.failure.kind == "override-ignored"
    check_overrides(DataLoader(Rows(), **setting.to_kwargs()), setting)


def test_something_else_than_a_dataloader_is_refused():
    """A make_loader that returns another type is refused, also when the batch for the warm-up is read."""
    workload = general(lambda **overrides: [1, 2], lambda batch: None)
    for make in (lambda: build_loader(workload, SETTINGS[0], seed=0), lambda: cached_batch(workload, SETTINGS[0])):
        with pytest.raises(TrialFailed, match="make_loader of 'mine' returned list, not a torch DataLoader"):
            make()


def test_defaults_that_need_workers_do_not_stand_in_the_way_of_none():
    """`DataLoader(**(mine | overrides))` with a prefetch_factor of its own can be measured without workers."""
    workload = mine(persistent=True)
    assert read_baseline(workload.make_loader()).prefetch_factor == 3
    assert build_loader(workload, LoaderConfig(batch_size=4), seed=0).num_workers == 0
    assert len(cached_batch(workload, SETTINGS[3])[0]) == 4


def test_a_make_loader_is_passed_only_what_it_takes():
    """A function with named parameters is not passed a multiprocessing_context that it does not know."""

    def make_loader(batch_size=8, num_workers=0, pin_memory=False, prefetch_factor=None, persistent_workers=False):
        return DataLoader(Rows(), batch_size, num_workers=num_workers, prefetch_factor=prefetch_factor)

    loader = build_loader(general(make_loader, lambda batch: None), LoaderConfig(batch_size=4), seed=0)
    assert loader.batch_size == 4


class Keyed(Dataset):
    """Found by name, not by number."""

    def __init__(self):
        self.rows = {"a": torch.zeros(4), "b": torch.ones(4)}

    def __getitem__(self, key):
        return self.rows[key], torch.tensor(0)


class Batched(Rows):
    """Makes whole batches, which torch hands to collate_fn as they are."""

    def __getitems__(self, indices):
        return torch.tensor(indices).float()[:, None].expand(-1, 4), torch.zeros(len(indices), dtype=torch.long)


@pytest.mark.parametrize(
    ("workload", "size"),
    [
        (short(Rows(100)), 32),
        (short(Rows(3)), 32),
        (short(Stream(100)), 32),
        (short(Keyed(), loader_kwargs={"sampler": ["b", "a"]}), 32),
        (short(Batched(100), collate_fn=keep), 32),
        (short(Rows(), loader_kwargs={"batch_sampler": [[0, 1, 2], [3]]}), 3),
        (general(lambda **overrides: DataLoader(Rows(100), **overrides), lambda batch: None), 32),
    ],
    ids=["rows", "few", "iterable", "keyed", "batched", "batch_sampler", "general"],
)
def test_the_cached_batch_has_the_right_size(workload, size):
    """The batch that warms the step is as large as those of the setting, in every form of workload."""
    inputs, labels = cached_batch(workload, LoaderConfig(batch_size=32, num_workers=2))
    assert (inputs.shape, labels.shape) == ((size, 4), (size,))


def test_the_cached_batch_reads_few_samples():
    """Of a batch of 512 at most 8 samples are read."""
    read = []

    class Slow(Rows):
        def __getitem__(self, index):
            read.append(index)
            return super().__getitem__(index)

    inputs, _ = cached_batch(short(Slow(1000)), LoaderConfig(batch_size=512))
    assert (len(inputs), len(read)) == (512, 8)


def test_the_baseline_is_read_from_a_loader():
    """A loader of the user's own shows the setting that it was built with."""
    loader = DataLoader(Rows(), batch_size=4, num_workers=2, multiprocessing_context="spawn", in_order=False)
    assert read_baseline(loader) == LoaderConfig(
        num_workers=2, batch_size=4, prefetch_factor=2, multiprocessing_context="spawn", in_order=False
    )


def test_seeds_reach_an_iterable_dataset():
    """Workers of an iterable dataset draw different numbers too."""

    class Noise(IterableDataset):
        def __iter__(self):
            while True:
                yield torch.rand(4), torch.tensor(0)

    batches = take(build_loader(short(Noise()), LoaderConfig(batch_size=2, num_workers=2), seed=0), 6)
    assert len({tuple(row.tolist()) for inputs, _ in batches for row in inputs}) == 12
