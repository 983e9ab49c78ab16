"""An iterable dataset is loaded by the training's process or by one worker, which take over from one another between two epochs only."""

import os
import random
import signal
from pathlib import Path

import numpy as np
import pytest
import torch
from test_live import Scripted, apart, content
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from feedrate.trainables import live
from feedrate.trainables.deciding.budget import Budget
from feedrate.trainables.tuning.decision_log import DecisionLog
from feedrate.trainables.tuning.live import Live
from feedrate.trainables.tuning.tuned_loader import TunedLoader

NUM = 203


class Stream(IterableDataset):
    """Numbers in their order, with what they may do to a worker."""

    def __init__(self, kill_flag=None, fails_at=None):
        self.kill_flag, self.fails_at, self.epoch = kill_flag, fails_at, 0

    def set_epoch(self, epoch):
        self.epoch = epoch

    def __iter__(self):
        for index in range(NUM):
            if get_worker_info() is not None and self.kill_flag and index == 150 and not Path(self.kill_flag).exists():
                Path(self.kill_flag).write_text("x")
                os.kill(os.getpid(), signal.SIGKILL)
            if index == self.fails_at:
                raise KeyError(f"no sample {index}")
            yield torch.tensor(index), torch.full((3,), index / 7 + self.epoch)


class Counts(Stream):
    """Goes on where the last epoch ended."""

    def __iter__(self):
        for index in range(100):
            self.epoch += 1
            yield torch.tensor(index), torch.tensor(self.epoch)


class Shuffled(Stream):
    """Draws its order from the global generators of the process."""

    def __iter__(self):
        order = random.sample(range(NUM), NUM)
        yield from ((torch.tensor(index), torch.tensor(index)) for index in order)


class ByEpoch(Scripted):
    """Asks for the numbers of workers of `each`, one for each epoch from the second on; the first is the user's own."""

    def __init__(self, own, each, **budget):
        super().__init__(own, {})
        self.each, self.budget = list(each), Budget(**({"least_s": 1e6, "most_s": 1e6} | budget))
        self.asked_at = set()

    def observe(self, num_workers, *times):
        self.num_batches += 1
        self._began_s = self._clock() if self._began_s is None else self._began_s
        return []

    def next_epoch(self):
        if self.leave is None and self.each:
            self.target = self.best = self.each.pop(0)


class Scheduled(Live):
    """Lets the policy choose before each epoch."""

    def __iter__(self):
        if self.tuned.num_epochs:
            self.tuned.policy.next_epoch()
        return super().__iter__()


def scheduled(loader, each=(1, 0), **budget):
    return Scheduled(TunedLoader(loader, ByEpoch(loader.num_workers, each, **budget), DecisionLog(quiet=True)), loader)


def loader_of(dataset=None, **options):
    torch.manual_seed(7)
    random.seed(1)
    np.random.seed(1)
    return DataLoader(dataset or Stream(), **{"batch_size": 4, **options})


@pytest.mark.parametrize("options", [{}, {"drop_last": True}, {"batch_size": None}, {"generator": torch.Generator()}], ids=["plain", "drop_last", "no batches", "generator"])
def test_the_same_samples_in_the_same_order_over_three_epochs(options):
    """Loaded by the process, by a worker, and by the process again; the training's own random numbers are the same, too."""
    expected = content(loader_of(**options))
    loader, used = scheduled(loader_of(**options)), []
    observe = loader.tuned.policy.observe
    loader.tuned.policy.observe = lambda num_workers, *times: used.append(num_workers) or observe(num_workers, *times)
    assert content(loader) == expected
    assert {tuple(used[:20]), tuple(used[-20:])} == {(0,) * 20} and 1 in used
    assert loader.decisions() == []


def test_each_epoch_is_complete_and_sees_what_the_training_set_before_it():
    loader, found = scheduled(loader_of(), (1, 1, 0)), []
    for epoch in range(4):
        loader.set_epoch(10 * epoch)
        batches = list(loader)
        found.append([number for numbers, _ in batches for number in numbers.tolist()])
        assert batches[0][1][0, 0].item() == 10 * epoch
    assert found == [list(range(NUM))] * 4


def kill_the_worker(folder):
    expected = content(loader_of())
    loader = scheduled(loader_of(Stream(kill_flag=f"{folder}/killed")), (1, 1))
    assert content(loader) == expected
    assert Path(folder, "killed").exists()
    (failure,) = loader.decisions()
    assert failure.kind == "failure" and failure.num_workers == 0


def test_a_worker_that_is_killed_costs_no_sample(tmp_path):
    ended = apart(kill_the_worker, str(tmp_path))
    assert ended.returncode == 0, ended.stderr


def start_a_worker_without_files_left():
    """Enough for the batches, which are known, and not for what starting a process needs."""
    import resource

    expected = content(loader_of(), epochs=2)
    loader = scheduled(loader_of(), (1,))
    held = [open(os.devnull) for _ in range(100)]  # noqa: SIM115
    limit = len(os.listdir("/proc/self/fd")) + 2
    resource.setrlimit(resource.RLIMIT_NOFILE, (limit, resource.getrlimit(resource.RLIMIT_NOFILE)[1]))
    assert content(loader, epochs=2) == expected
    (rejected,) = loader.decisions()
    assert rejected.kind == "reject" and "Too many open files" in rejected.reason
    for each in held:
        each.close()


def test_a_worker_that_cannot_be_started_costs_no_sample():
    ended = apart(start_a_worker_without_files_left)
    assert ended.returncode == 0, ended.stderr


def test_an_exception_is_the_users_own_at_the_same_batch():
    loader = scheduled(loader_of(Stream(fails_at=150)))
    for _ in range(2):
        found, batches = [], iter(loader)
        for _ in range(37):
            found += next(batches)[0].tolist()
        with pytest.raises(KeyError, match="no sample 150"):
            next(batches)
        assert found == list(range(148))
        loader.tuned.keeps_state = True  # an epoch that fails does not end, so nothing is known


def test_an_iteration_that_begins_before_the_first_batch_of_another_one_is_tuned_instead():
    found = []
    for tunes in (False, True):
        loader = scheduled(loader_of(), (0, 1)) if tunes else loader_of()
        first, second = iter(loader), iter(loader)
        found.append([[numbers.tolist() for numbers, _ in each] for each in (second, first)])
        del first, second
        found[-1].append(content(loader, 2))
    assert found[0] == found[1]
    assert loader.tuned.keeps_state is True and loader.decisions() == []


def test_leaving_an_epoch_ends_its_worker():
    from feedrate.trainables.machine.process import tree_pids

    before = set(tree_pids())
    loader = scheduled(loader_of())
    assert len(list(loader)) == 51
    for number, _ in enumerate(loader):
        if number == 3:
            assert len(set(tree_pids()) - before) == 1
            break
    assert set(tree_pids()) == before


@pytest.mark.parametrize(
    ("dataset", "words"),
    [(Counts(), "has changed itself during an epoch"), (Shuffled(), "draws random numbers in this process")],
)
def test_a_dataset_that_a_worker_would_not_continue_stays_in_the_process(dataset, words):
    plain = loader_of(type(dataset)())
    expected = content(plain)
    loader = scheduled(loader_of(dataset), (1, 1))
    assert content(loader) == expected
    (left,) = loader.decisions()
    assert left.kind == "leave" and words in left.reason


def test_a_loader_that_the_script_makes_anew_in_every_epoch_is_left_alone():
    first, second = scheduled(loader_of()), scheduled(loader_of())
    assert len(list(first)) == 51
    second.tuned.policy.target = 1
    assert len(list(second)) == 51
    assert "no epoch of this loader has come to its end" in second.tuned.policy.leave


def test_an_epoch_that_could_lose_more_than_the_budget_is_not_tried():
    loader = scheduled(loader_of(), (1, 1), fraction=0.0, least_s=0.0)
    assert len(list(loader)) == 51
    loader.tuned.epoch_s = 100.0
    loader.tuned.policy.next_epoch = lambda: setattr(loader.tuned.policy, "target", 1)
    used = []
    loader.tuned.policy.observe = lambda num_workers, *times: used.append(num_workers) or []
    assert len(list(loader)) == 51
    assert set(used) == {0}
    loader.tuned.policy.budget = Budget(least_s=50.0)
    assert len(list(loader)) == 51
    assert set(used) == {0, 1}


@pytest.mark.parametrize("own", [1, 2])
def test_with_workers_of_its_own_it_is_only_observed(own):
    """Another number would deal the samples out in another order, and whole again to each worker of this dataset."""
    expected = content(loader_of(num_workers=own))
    loader = live(loader_of(num_workers=own), quiet=True)
    assert content(loader) == expected
    assert "another order" in loader.tuned.policy.leave


def test_the_policy_tries_one_worker_at_most():
    assert live(loader_of(), quiet=True).tuned.policy.most == 1
