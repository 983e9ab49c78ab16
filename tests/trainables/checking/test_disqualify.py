"""disqualify.py and duplicates.py: a search leaves out numbers of workers that repeat data, and prints the reason."""

import random
from dataclasses import replace

import numpy as np
import pytest
import torch
from described_workloads import SHORT
from looks import Augmented, Divided, Owner, step, with_noise
from made_up_search import FOUR
from synthetic import record
from torch.utils.data import DataLoader, Dataset, IterableDataset, get_worker_info
from workloads import Rows, Stream, general, short

from feedrate.analysis.disqualified import NOTHING, Disqualified
from feedrate.search.engine.reservation import Placement
from feedrate.search.options import SearchOptions, UsageError
from feedrate.search.setup.duplicates import disqualification, remarks, restricted
from feedrate.search.setup.request import seed_configs
from feedrate.search.space.dimension import Choice, Range
from feedrate.search.space.search_space import SearchSpace
from feedrate.search.study.brain import Brain
from feedrate.search.study.pruner import LOW
from feedrate.search.study.reconcile import tell_record
from feedrate.trainables.checking import disqualify
from feedrate.trainables.checking.disqualify import disqualified
from feedrate.trainables.checking.quick_look import QuickLook
from feedrate.trainables.config import LoaderConfig

FINE = QuickLook()
FOUND = Disqualified(max_num_workers=1, reason="every worker delivers the same samples")
FROZEN = Disqualified(persistent_workers=False, epochs_reason="every epoch is the first one")
GLOBAL = np.random.default_rng(0)


class Zeros(IterableDataset):
    """Samples that are all alike."""

    def __iter__(self):
        while True:
            yield torch.zeros(4), torch.tensor(0)


class Noise(IterableDataset):
    """Made-up samples: each is new."""

    def __iter__(self):
        while True:
            yield torch.rand(4), torch.tensor(0)


@pytest.mark.parametrize("stream", [Stream(12), Stream(10**9, sleep_s=0.05), with_noise(Stream(64))])
def test_an_undivided_stream_is_for_one_worker(stream):
    """Its end need not be near, nor its samples fast or alike in every epoch."""
    found = disqualified(short(stream))
    assert found.max_num_workers == 1
    assert "every worker delivers the same samples" in found.reason


def test_a_stream_that_each_worker_shuffles_for_itself_is_for_one_worker():
    """The beginnings have only some samples in common; those of a divided one have none."""

    class Shuffled(Stream):
        def __iter__(self):
            info = get_worker_info()
            order = list(range(self.num_rows))
            random.Random(0 if info is None else info.id + 1).shuffle(order)
            for index in order:
                yield torch.full((4,), float(index)), torch.tensor(0)

    assert disqualified(short(Shuffled(400))).max_num_workers == 1


@pytest.mark.parametrize("stream", [Divided(12), Divided(10**9), with_noise(Divided(64)), Zeros(), Noise()])
def test_only_what_was_demonstrated_counts(stream):
    """A divided stream, one whose samples are all alike and one that makes them up stay in the search."""
    assert disqualified(short(stream)) == FINE


def test_owned_generators_count_where_draws_repeat():
    """Owning one is not enough: worker_init_fn may seed it, __getitem__ may not draw from it."""

    def reseed(worker_id):
        get_worker_info().dataset.rng = np.random.default_rng(torch.initial_seed())

    unused = Rows()
    unused.rng = np.random.default_rng(0)
    owner = Owner(np.random.default_rng(0))
    found = disqualified(short(owner))
    assert found.max_num_workers == 1
    assert found.reason.startswith("every worker draws the same random numbers from dataset.rng")
    assert disqualified(short(owner, loader_kwargs={"worker_init_fn": reseed})) == FINE
    assert disqualified(short(unused)) == FINE
    assert disqualified(short(Augmented())) == FINE


def test_a_constant_seed_in_worker_init_fn_counts():
    """The generator is named."""
    found = disqualified(short(Augmented(), loader_kwargs={"worker_init_fn": lambda worker_id: np.random.seed(0)}))
    assert "numpy.random" in found.reason


def test_the_general_form_is_looked_at_with_two_workers():
    """Whatever it has by itself."""
    loader = lambda **overrides: DataLoader(Stream(), **{"batch_size": 4, "num_workers": 0, **overrides})  # noqa: E731
    assert disqualified(general(loader, step)).max_num_workers == 1


def test_spawned_workers_are_looked_at_as_quickly():
    """A loader that spawns its workers would take seconds to start them."""
    own = {"batch_size": 4, "num_workers": 2, "multiprocessing_context": "spawn"}
    found = disqualified(general(lambda **overrides: DataLoader(Stream(), **(own | overrides)), step))
    assert found.max_num_workers == 1


def test_what_fails_or_hangs_disqualifies_nothing():
    """The trials will tell."""

    class Fails(Stream):
        def __iter__(self):
            raise RuntimeError("no such shard")

    assert disqualified(short(Fails())) == FINE
    assert disqualified(short(Stream(sleep_s=1000))) == FINE


def described(data, num_workers=None, **setting):
    own = None if num_workers is None else LoaderConfig(num_workers=num_workers, batch_size=4, **setting)
    return replace(SHORT, data=QuickLook(**data.to_json()), baseline=own)


class Endless(Dataset):
    """Ignores the index, and pretends to have a length."""

    def __init__(self, items, noise=False):
        self.items, self.noise = items, noise

    def __len__(self):
        return 1000

    def __getitem__(self, index):
        row = torch.full((4,), float(next(self.items)))
        return row + torch.rand(4) if self.noise else row, 0


class Popped(Rows):
    """Takes the next of a list that every worker has a copy of."""

    def __init__(self):
        super().__init__(1000)
        self.left = list(range(1000))

    def __getitem__(self, index):
        return torch.full((4,), float(self.left.pop())), 0


class Lines(Rows):
    """Reads on in a file that it began to read before workers were forked."""

    def __init__(self, path):
        super().__init__(1000)
        path.write_text("\n".join(f"line {number}" for number in range(10_000)))
        self.file = path.open()
        self.file.readline()

    def __getitem__(self, index):
        return self.file.readline()


class FromModule(Rows):
    """Draws from a generator of the module's, of which the dataset has no member."""

    def __getitem__(self, index):
        return torch.full((4,), index + GLOBAL.random()), 0


@pytest.mark.parametrize(
    "make",
    [
        lambda path: Endless(iter(range(10**9))),
        lambda path: Endless(iter(range(10**9)), noise=True),
        lambda path: Popped(),
        lambda path: Lines(path),
    ],
    ids=["iterator", "with augmentation", "list", "file"],
)
def test_workers_that_deliver_the_same_for_different_indices_are_for_one_worker(make, tmp_path):
    """Whatever the mechanism: content that belongs to the index differs."""
    found = disqualified(lambda: short(lambda: make(tmp_path / "lines")))
    assert found.max_num_workers == 1
    assert "every worker delivers the same samples: the dataset chooses samples from its own state" in found.reason


def test_a_generator_that_nobody_sees_counts_where_draws_repeat():
    """The samples show it."""
    found = disqualified(lambda: short(FromModule()))
    assert found.max_num_workers == 1
    assert found.reason == "every worker draws the same random numbers, so that augmentations repeat"


class Valued(Rows):
    """Samples of few kinds, or of one, by their index or at random."""

    def __init__(self, value):
        super().__init__(1000)
        self.value = value

    def __getitem__(self, index):
        return torch.full((4,), float(self.value(index))), 0


@pytest.mark.parametrize(
    "value",
    [
        lambda index: 0,
        lambda index: index % 3,
        lambda index: torch.randint(10, ()),
        lambda index: torch.rand(()),
        lambda index: np.random.default_rng().integers(2),
    ],
    ids=["constant", "by the index", "drawn from ten", "drawn from many", "unseeded"],
)
def test_data_that_are_alike_by_nature_pass(value):
    """The same indices are alike without workers, too, or by chance."""
    assert disqualified(short(Valued(value))) == FINE


def test_samples_too_slow_for_a_quick_look_are_noted(monkeypatch):
    """What was not seen before the search, and which command looks longer."""
    monkeypatch.setattr(disqualify, "MOST_S", 0.1)
    found = disqualified(short(Rows(1000, sleep_s=0.1)))
    assert (found.max_num_workers, found.persistent_workers) == (None, None)
    assert found.notes[0].startswith("a sample takes ")
    assert "there was no time to check whether workers repeat samples" in found.notes[0]
    assert "feedrate check" in found.notes[0]


def test_a_search_leaves_out_what_repeats_data():
    """Ranges stay ranges, choices stay choices; a default range ends at one worker."""
    left_out = disqualification(described(FOUND), SearchOptions())
    assert left_out == FOUND
    assert restricted({}, left_out) == {"num_workers": Range(0, 1)}
    assert restricted({"num_workers": Range(0, 8)}, left_out) == {"num_workers": Range(0, 1)}
    assert restricted({"num_workers": Range(1, 8)}, left_out) == {"num_workers": Range(1, 1)}
    assert restricted({"num_workers": Choice((0, 4))}, left_out) == {"num_workers": Choice((0,))}
    with pytest.raises(UsageError, match="nothing is left to search: with more than 1 worker, every worker delivers"):
        restricted({"num_workers": Choice((2, 4))}, left_out)


def test_a_search_leaves_out_workers_that_repeat_the_first_epoch():
    """Both dimensions may be restricted; without workers there is nothing to leave out."""
    left_out = disqualification(described(FROZEN), SearchOptions())
    assert restricted({}, left_out) == {"persistent_workers": Choice((False,))}
    alone = {"num_workers": Choice((0,)), "persistent_workers": Choice((True,))}
    assert restricted(alone, left_out) == alone
    both = Disqualified(**(left_out.to_json() | {"max_num_workers": 1, "reason": "they repeat"}))
    assert restricted({}, both) == {"num_workers": Range(0, 1), "persistent_workers": Choice((False,))}
    with pytest.raises(UsageError, match="with persistent_workers=True, every epoch is the first one"):
        restricted({"persistent_workers": Choice((True,))}, left_out)
    none = Disqualified(max_num_workers=0, reason="no worker hears of it")
    assert restricted({}, none) == {"num_workers": Range(0, 0)}
    with pytest.raises(UsageError, match=r"with workers, no worker hears of it. Add 0 to --num-workers"):
        restricted({"num_workers": Choice((2,))}, none)


def test_a_baseline_that_repeats_the_first_epoch_is_announced():
    """It is measured, compared with, and cannot be the answer."""
    said = remarks(FROZEN, described(FROZEN, num_workers=2, persistent_workers=True), SearchOptions())
    assert said[0].startswith("settings with workers and persistent_workers=True are left out")
    assert "your own setting has 2 workers and persistent_workers=True" in said[1]
    assert "cannot be the answer" in said[1]
    assert len(remarks(FROZEN, described(FROZEN, num_workers=2), SearchOptions())) == 1


def test_rules_of_thumb_follow_what_is_left():
    """Persistent workers are what people use; where they are left out, the others are tried first."""
    space = SearchSpace.default(num_cpus=4, has_accelerator=False, given=restricted({}, FROZEN))
    placement = Placement(cpus=4, gpus=0, trial_slot=False, num_slots=1, where="here")
    seeds = seed_configs(LoaderConfig(batch_size=32), placement, space)
    assert {config.persistent_workers for config in seeds} == {False}
    assert max(config.num_workers for config in seeds) == 16


def test_nothing_changes_without_a_finding_or_when_told_so():
    """--allow-duplicates is announced, also where it has no effect."""
    given = {"num_workers": Choice((4,))}
    allow = SearchOptions(allow_duplicates=True)
    assert restricted(given, disqualification(described(NOTHING), SearchOptions())) == given
    assert restricted(given, disqualification(described(FOUND), allow)) == given
    assert remarks(NOTHING, described(NOTHING), SearchOptions()) == []
    assert "has no effect" in remarks(NOTHING, described(NOTHING), allow)[0]
    assert "rates count the repeated samples" in remarks(NOTHING, described(FOUND), allow)[0]


def test_a_baseline_that_repeats_data_is_announced():
    """It is measured and cannot be the answer."""
    said = remarks(FOUND, described(FOUND, num_workers=4), SearchOptions())
    assert len(said) == 2
    assert "your own setting has 4 workers" in said[1]
    assert len(remarks(FOUND, described(FOUND, num_workers=1), SearchOptions())) == 1
    asked = SearchOptions(baseline=LoaderConfig(num_workers=3, batch_size=4))
    assert "3 workers" in remarks(FOUND, described(FOUND), asked)[1]


@pytest.mark.parametrize(("most", "kept"), [(None, True), (1, False)])
def test_a_rate_that_counts_repeated_data_stops_no_other_setting(tmp_path, most, kept):
    """The study is told the baseline's rate without the lower bound that others are compared with."""
    brain = Brain.open(None, tmp_path / "study.journal", study_name="s", space=FOUR)
    brain.disqualified = Disqualified(max_num_workers=most)
    config = LoaderConfig(num_workers=4, batch_size=64)
    brain.enqueue(config, "baseline")
    asked = brain.ask()
    assert asked.config == config
    tell_record(brain, record(asked.number, batch_size=64, rate_sps=1000.0) | config.to_dict(), "epoch")
    (told,) = brain.study.get_trials()
    assert told.state.name == "COMPLETE"
    assert (LOW in told.user_attrs) == kept
