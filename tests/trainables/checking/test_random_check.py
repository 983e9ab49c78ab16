"""random_check.py: workers draw different random numbers, and other ones in every epoch; real generators in real workers."""

import random

import numpy as np
import torch
from looks import Augmented, Divided, Owner, found, levels
from torch.utils.data import get_worker_info
from workloads import Rows, Stream, short


class OwnerOfMany(Rows):
    """Adds noise from a generator of each kind."""

    def __init__(self):
        super().__init__()
        self.numpy, self.legacy = np.random.default_rng(0), np.random.RandomState(0)
        self.python, self.torch = random.Random(0), torch.Generator()

    def __getitem__(self, index):
        noise = self.numpy.random() + self.legacy.random() + self.python.random() + float(torch.rand(1, generator=self.torch))
        return torch.full((4,), float(index) + noise), torch.tensor(index % 2)


def test_owned_generators_are_duplicated_and_frozen():
    """Every worker and every epoch draws the same numbers; the worker_init_fn that is offered cures both."""
    dataset, names = OwnerOfMany(), ["legacy", "numpy", "python", "torch"]
    findings = found(short(dataset))
    assert levels(findings)["random-streams"] == levels(findings)["frozen-augmentation"] == "error"
    assert sorted(findings["random-streams"]["evidence"]["duplicated"]) == names
    assert sorted(findings["random-streams"]["evidence"]["frozen"]) == names
    scope = {"torch": torch, "np": np}
    exec(findings["random-streams"]["fix"].partition("\n\nDataLoader")[0], scope)  # noqa: S102
    cured = found(short(dataset, loader_kwargs={"worker_init_fn": scope["worker_init_fn"]}))
    assert "error" not in levels(cured).values()
    assert sorted(cured["random-streams"]["evidence"]["owned"]) == names


def test_a_generator_deep_inside_is_named_by_its_path():
    """In a list of transforms, as users have them."""

    class Noise:
        def __init__(self):
            self.rng = np.random.default_rng(0)

        def __call__(self, row):
            return row + self.rng.random()

    class Transformed(Rows):
        def __init__(self):
            super().__init__()
            self.transforms = [abs, Noise()]

        def __getitem__(self, index):
            row, label = super().__getitem__(index)
            for transform in self.transforms:
                row = transform(row)
            return row, label

    finding = found(short(Transformed()))["random-streams"]
    assert finding["evidence"]["duplicated"] == ["transforms[1].rng"]
    assert "dataset.transforms[1].rng = np.random.default_rng(torch.initial_seed())" in finding["fix"]


def test_a_constant_seed_in_worker_init_fn_is_duplicated_and_frozen():
    """The global generators are looked at too: np.random.seed(0) in every worker."""
    findings = found(short(Augmented(), loader_kwargs={"worker_init_fn": lambda worker_id: np.random.seed(0)}))
    assert findings["random-streams"]["evidence"]["duplicated"] == ["numpy.random"]
    assert findings["frozen-augmentation"]["level"] == "error"


def test_global_generators_pass():
    """torch seeds them in every worker and epoch; that their numbers depend on num_workers is not different data."""
    findings = found(short(Augmented()))
    assert "error" not in levels(findings).values()
    assert findings["content"]["level"] == "note"
    assert findings["random-streams"]["evidence"]["is_random"] is True


def test_numbers_keyed_by_the_index_pass():
    """A generator that is seeded by the index gives workers equal states and is no shared stream."""

    class Keyed(Owner):
        def __getitem__(self, index):
            self.rng = np.random.default_rng(index)
            return super().__getitem__(index)

    findings = found(short(Keyed(np.random.default_rng(0))))
    assert levels(findings)["random-streams"] == "ok"
    assert "frozen-augmentation" not in findings
    assert findings["content"]["level"] == "ok"


def test_a_stream_that_shuffles_before_it_is_divided_passes():
    """Workers must draw the same numbers for that."""

    class Shuffled(Stream):
        def __iter__(self):
            info = get_worker_info()
            first, step = (0, 1) if info is None else (info.id, info.num_workers)
            order = list(range(self.num_rows))
            self.rng.shuffle(order)
            for index in order[first::step]:
                yield torch.full((4,), float(index)), torch.tensor(0)

    dataset = Shuffled(64)
    dataset.rng = random.Random(0)
    assert "error" not in levels(found(short(dataset))).values()
    assert found(short(dataset))["random-streams"]["level"] == "ok"


def test_a_stream_that_augments_from_its_own_generator_is_warned_of():
    """Only a warning: workers that shuffle a stream before they divide it look the same."""

    class Noisy(Divided):
        def __iter__(self):
            for row, label in super().__iter__():
                yield row + self.rng.random(), label

    dataset = Noisy(64)
    dataset.rng = np.random.default_rng(0)
    finding = found(short(dataset))["random-streams"]
    assert (finding["level"], finding["evidence"]["duplicated"]) == ("warning", ["rng"])
