"""process_settings.py: the process and its workers are what the setting asks for, however they start, and only for a while."""

import os
import pickle
import threading

import pytest
import torch
import torch.multiprocessing
from torch.utils.data import DataLoader, Dataset

from feedrate.trainables.config import START_METHODS, LoaderConfig
from feedrate.trainables.failure import INFEASIBLE, TrialFailed
from feedrate.trainables.loader.process_settings import placed, set_process

ALLOWED = sorted(os.sched_getaffinity(0))
STRATEGY = torch.multiprocessing.get_sharing_strategy()
needs_two_cpus = pytest.mark.skipif(len(ALLOWED) < 2, reason="one CPU cannot be divided")


class Process(Dataset):
    """What the process that loads it may run on, what it shares tensors by, and what ran in it before."""

    def __len__(self):
        return 4

    def __getitem__(self, index):
        return {
            "cpus": sorted(os.sched_getaffinity(0)),
            "strategy": torch.multiprocessing.get_sharing_strategy(),
            "seen": SEEN[0] if SEEN else None,
            "tensor": torch.full((1000,), float(index)),
        }


SEEN = []


def note_cpus(worker_id):
    """A user's worker_init_fn, which sees where it runs."""
    SEEN.append((worker_id, sorted(os.sched_getaffinity(0))))


def samples_of(config, worker):
    loader = DataLoader(Process(), collate_fn=list, worker_init_fn=note_cpus, **config.to_kwargs())
    if worker is not None:
        loader.worker_init_fn = worker.wrap(loader.worker_init_fn)
    return [sample for batch in loader for sample in batch]


def settings(**changed):
    return LoaderConfig(
        **{"num_workers": 2, "batch_size": 1, "trainer_cpus": 1, "sharing_strategy": "file_system"} | changed
    )


@needs_two_cpus
@pytest.mark.filterwarnings("ignore:This DataLoader will create")
@pytest.mark.parametrize("method", START_METHODS)
def test_workers_run_beside_the_trainer_and_share_as_asked(method):
    """Every worker has the CPUs that the trainer does not, and the strategy, before the user's worker_init_fn runs."""
    num_workers = 2 if method == "fork" else 1  # the others import torch anew
    config = settings(multiprocessing_context=method, num_workers=num_workers)
    with placed(config) as worker:
        assert sorted(os.sched_getaffinity(0)) == ALLOWED[:1]
        assert torch.multiprocessing.get_sharing_strategy() == "file_system"
        samples = samples_of(config, worker)
    assert [sample["tensor"][0].item() for sample in samples] == [0.0, 1.0, 2.0, 3.0]
    assert [sample["cpus"] for sample in samples] == [ALLOWED[1:]] * 4
    assert {sample["strategy"] for sample in samples} == {"file_system"}
    assert {sample["seen"][0] for sample in samples} == set(range(num_workers))
    assert all(sample["seen"][1] == ALLOWED[1:] for sample in samples)


@needs_two_cpus
def test_threads_that_run_already_are_moved_too():
    """torch's own threads may have started: each keeps to the trainer's CPUs, and there are no more than those."""
    torch.set_num_threads(2)
    go, found = threading.Event(), []
    thread = threading.Thread(target=lambda: (go.wait(), found.append(sorted(os.sched_getaffinity(0)))))
    thread.start()
    try:
        with placed(settings(sharing_strategy=None)):
            assert torch.get_num_threads() == 1
            go.set()
            thread.join()
        assert found == [ALLOWED[:1]]
        assert torch.get_num_threads() == 2
    finally:
        go.set()
        torch.set_num_threads(1)


def test_the_process_is_as_it_was_afterwards():
    """Affinity, strategy and threads come back, also where the measurement failed."""
    before = os.sched_getaffinity(0), torch.multiprocessing.get_sharing_strategy(), torch.get_num_threads()
    for config in (settings(), settings(trainer_cpus=len(ALLOWED)), settings(trainer_cpus=None)):
        with pytest.raises((ZeroDivisionError, TrialFailed)), placed(config):
            raise ZeroDivisionError
        assert (
            os.sched_getaffinity(0),
            torch.multiprocessing.get_sharing_strategy(),
            torch.get_num_threads(),
        ) == before


@pytest.mark.parametrize("num_workers", [0, 2])
def test_a_setting_that_asks_nothing_of_the_process_changes_nothing(num_workers):
    """No callable is made, so that the loader stays as it is; without workers there is nothing to divide."""
    config = LoaderConfig(num_workers=num_workers, trainer_cpus=1 if num_workers == 0 else None)
    assert set_process(config) is None
    assert sorted(os.sched_getaffinity(0)) == ALLOWED
    assert torch.multiprocessing.get_sharing_strategy() == STRATEGY


def test_a_trainer_that_leaves_no_cpu_is_refused():
    """Where it runs, it is known: one sentence with the number of CPUs, a kind whose neighbours are avoided."""
    with pytest.raises(TrialFailed, match=f"may run on only {len(ALLOWED)}. Ask for fewer") as caught:
        set_process(settings(trainer_cpus=len(ALLOWED)))
    assert caught.value.failure.kind in INFEASIBLE
    assert sorted(os.sched_getaffinity(0)) == ALLOWED


def test_what_a_worker_does_can_be_pickled():
    """Spawned workers get it by pickle, the user's own function inside."""
    with placed(settings(trainer_cpus=None)) as worker:
        assert worker is not None
        copy = pickle.loads(pickle.dumps(worker.wrap(note_cpus)))
    assert copy == worker.wrap(note_cpus)
    assert copy.then is note_cpus
