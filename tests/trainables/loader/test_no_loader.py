"""no_loader.py: if make_loader returns something else than a DataLoader, the message says what to return instead."""

import pytest
from torch.utils.data import DataLoader
from workloads import Rows, general

from feedrate.trainables.config import LoaderConfig
from feedrate.trainables.failure import TrialFailed
from feedrate.trainables.loader.build_loader import build_loader, own_loader
from feedrate.trainables.loader.no_loader import why_no_loader
from feedrate.trainables.workload import WorkloadError


def loader():
    return DataLoader(Rows(), batch_size=4)


class Prefetch:
    """As in well-known projects: copies ahead on a stream of its own."""

    def __init__(self):
        self.device, self.loader = "cuda", loader()

    def __iter__(self):
        return iter(self.loader)


class Unfinished(DataLoader):
    """Forwards nothing, and has never been set up."""

    def __init__(self):
        self.inner = loader()


def generator():
    train = loader()
    yield from train


@pytest.mark.parametrize(
    ("made", "said"),
    [
        (lambda: None, "returned None: return the DataLoader"),
        (lambda: [1, 2], "returned list, not a torch DataLoader: return torch.utils.data.DataLoader"),
        (lambda: (loader(), loader()), r"returned 2 DataLoaders in a tuple: feedrate measures one .* perhaps \[0\]"),
        (lambda: {"valid": 3, "train": loader()}, r"returned 1 DataLoader in a dict: .* perhaps \['train'\]"),
        (lambda: zip(loader(), loader(), strict=False), "returned a zip that reads 2 DataLoaders and can .* write a workload function for each. Build"),
        (lambda: zip(range(9), loader(), strict=False), "returned a zip that reads 1 DataLoader and can be read only once"),
        (lambda: enumerate(loader()), "returned an enumerate that reads 1 DataLoader and "),
        (lambda: (batch for batch in loader()), "returned a generator"),
        (generator, "returned a generator"),
        (lambda: iter(loader()), "returned an iterator over a DataLoader, .* without iter"),
        (Prefetch, r"returned Prefetch, not a torch DataLoader: it wraps a DataLoader \(its attribute \.loader\)\. Return that DataLoader itself"),
        (Unfinished, r"returned an Unfinished without the attribute .*: it wraps a DataLoader \(its attribute \.inner\)\. Return that DataLoader itself"),
    ],
)
def test_what_is_no_loader_is_told_with_the_way_out(made, said):
    """In a search's beginning, and in a trial."""
    workload = general(lambda **overrides: made(), lambda batch: None)
    with pytest.raises(WorkloadError, match=f"^make_loader of workload 'mine' {said}"):
        own_loader(workload)
    with pytest.raises(TrialFailed, match=f"^make_loader of 'mine' {said}") as raised:
        build_loader(workload, LoaderConfig(batch_size=4), seed=0)
    assert raised.value.failure.kind == "user-code"


def test_a_generator_that_has_begun_is_looked_into():
    """Its local variables say what it reads."""
    begun = generator()
    next(begun)
    assert "that reads" in (why_no_loader(begun) or "")


def test_a_loader_that_forwards_to_another_one_is_a_loader():
    """Libraries wrap a loader in a subclass that has its attributes from the inner one."""

    class Forwards(DataLoader):
        def __init__(self):
            self.__dict__["base"] = loader()

        def __getattr__(self, name):
            return getattr(self.__dict__["base"], name)

    assert why_no_loader(Forwards()) is None
    assert why_no_loader(loader()) is None
