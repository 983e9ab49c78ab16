"""disqualify.py and duplicates.py: more workers that repeat data are left out of a search, and it says so."""

import time

import numpy as np
import pytest
import torch
from looks import Augmented, Divided, Owner, step, with_noise
from made_up_search import FOUR
from synthetic import record
from torch.utils.data import DataLoader, IterableDataset, get_worker_info
from workloads import Rows, Stream, general, short

from feedrate.search.dimension import Choice, Range
from feedrate.search.duplicates import disqualification, remarks, restricted
from feedrate.search.options import SearchOptions, UsageError
from feedrate.search.pruner import LOW
from feedrate.search.reconcile import tell_record
from feedrate.search.study import Brain
from feedrate.trainables.config import LoaderConfig
from feedrate.trainables.disqualify import disqualified

FINE = {"max_num_workers": None, "reason": None}
FOUND = {"max_num_workers": 1, "reason": "every worker delivers the same samples"}


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
    assert found["max_num_workers"] == 1
    assert "every worker delivers the same samples" in found["reason"]


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
    assert found["max_num_workers"] == 1
    assert found["reason"].startswith("every worker draws the same random numbers from dataset.rng")
    assert disqualified(short(owner, loader_kwargs={"worker_init_fn": reseed})) == FINE
    assert disqualified(short(unused)) == FINE
    assert disqualified(short(Augmented())) == FINE


def test_a_constant_seed_in_worker_init_fn_counts():
    """The generator is named."""
    found = disqualified(short(Augmented(), loader_kwargs={"worker_init_fn": lambda worker_id: np.random.seed(0)}))
    assert "numpy.random" in found["reason"]


def test_the_general_form_is_looked_at_with_two_workers():
    """Whatever it has by itself."""
    loader = lambda **overrides: DataLoader(Stream(), **{"batch_size": 4, "num_workers": 0, **overrides})  # noqa: E731
    assert disqualified(general(loader, step))["max_num_workers"] == 1


def test_spawned_workers_are_looked_at_as_quickly():
    """A loader that spawns its workers would take seconds to start them."""
    own = {"batch_size": 4, "num_workers": 2, "multiprocessing_context": "spawn"}
    found = disqualified(general(lambda **overrides: DataLoader(Stream(), **(own | overrides)), step))
    assert found["max_num_workers"] == 1


def test_what_fails_or_hangs_disqualifies_nothing():
    """The trials will tell; the look ends after seconds."""

    class Fails(Stream):
        def __iter__(self):
            raise RuntimeError("no such shard")

    begin = time.monotonic()
    assert disqualified(short(Fails())) == FINE
    assert disqualified(short(Stream(sleep_s=1000))) == FINE
    assert time.monotonic() - begin < 60


def described(data, num_workers=None):
    own = None if num_workers is None else LoaderConfig(num_workers=num_workers, batch_size=4).to_dict()
    return {"data": data, "baseline": own}


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


def test_nothing_changes_without_a_finding_or_when_told_so():
    """--allow-duplicates is announced, also where it has no effect."""
    given = {"num_workers": Choice((4,))}
    allow = SearchOptions(allow_duplicates=True)
    assert restricted(given, disqualification(described(FINE), SearchOptions())) == given
    assert restricted(given, disqualification(described(FOUND), allow)) == given
    assert remarks(None, described(FINE), SearchOptions()) == []
    assert "has no effect" in remarks(None, described(FINE), allow)[0]
    assert "rates count what is repeated" in remarks(None, described(FOUND), allow)[0]


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
    brain.max_num_workers = most
    config = LoaderConfig(num_workers=4, batch_size=64)
    brain.enqueue(config, "baseline")
    asked = brain.ask()
    assert asked.config == config
    tell_record(brain, record(asked.number, batch_size=64, rate_sps=1000.0) | config.to_dict(), "epoch")
    (told,) = brain.study.get_trials()
    assert told.state.name == "COMPLETE"
    assert (LOW in told.user_attrs) == kept
