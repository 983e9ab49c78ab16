"""`live(loader)` delivers what the loader would have delivered, whatever happens to its workers."""

import hashlib
import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import psutil
import pytest
import torch
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    Dataset,
    DistributedSampler,
    IterableDataset,
    RandomSampler,
    Sampler,
    TensorDataset,
)
from torch.utils.data._utils import signal_handling

from feedrate.trainables import live
from feedrate.trainables.deciding.budget import Budget
from feedrate.trainables.deciding.policy import Policy
from feedrate.trainables.machine import memory_guard
from feedrate.trainables.machine.process import tree_pids
from feedrate.trainables.tuning.decision_log import DecisionLog
from feedrate.trainables.tuning.epoch import Epoch, Observed
from feedrate.trainables.tuning.index_stream import IndexStream
from feedrate.trainables.tuning.live import Live
from feedrate.trainables.tuning.pool import Pool
from feedrate.trainables.tuning.tuned_loader import TunedLoader

NUM_SAMPLES, BATCH_SIZE = 400, 4


class Numbers(Dataset):
    """Sample i is i, with what it may do to a worker."""

    def __init__(self, num=NUM_SAMPLES, sleep_s=0.0, kill=None, fails_at=None):
        self.num, self.sleep_s, self.kill, self.fails_at = num, sleep_s, kill, fails_at
        self.offset = 0

    def __len__(self):
        return self.num

    def __getitem__(self, index):
        if self.sleep_s:
            time.sleep(self.sleep_s)
        if self.kill is not None and index == self.kill[0] and torch.utils.data.get_worker_info() is not None:
            flag = Path(self.kill[1])
            if len(flag.read_text()) < self.kill[2]:
                with flag.open("a") as file:
                    file.write("x")
                os.kill(os.getpid(), signal.SIGKILL)
        if index == self.fails_at:
            raise KeyError(f"no sample {index}")
        return index + self.offset, torch.full((3,), index / 7)


class WorkersFail(Numbers):
    """Fails in processes of a larger setting only, as a full /dev/shm or too many open files would."""

    def __getitem__(self, index):
        info = torch.utils.data.get_worker_info()
        if info is not None and info.num_workers == 3 and index == 133:
            raise OSError(24, "Too many open files")
        return super().__getitem__(index)


class WorkersLeak(Numbers):
    """Takes 8 MB more for each sample in worker processes, and keeps them."""

    def __init__(self):
        super().__init__(4000)
        self.kept = []

    def __getitem__(self, index):
        if torch.utils.data.get_worker_info() is not None and len(self.kept) < 100:
            self.kept.append(bytearray(os.urandom(1)) * 8_000_000)
        return super().__getitem__(index)


class Scripted(Policy):
    """Asks for other numbers of workers at given batches, whatever the times say."""

    counts_groups = False

    def __init__(self, own, targets):
        super().__init__(own, cpus=2, most=32)
        self.targets = targets

    def observe(self, num_workers, wait_s, step_s, num_ready, num):
        self.num_batches += 1
        if self.leave is None and self.num_batches in self.targets:
            self.target = self.targets[self.num_batches]
        return []

    def cannot_start(self, num_workers, why):
        self.target = self.own
        return self._decide("reject", self.own, why)


class ScriptedInGroups(Scripted):
    """Counts short batches together, and asks for another number with the first group that reaches the batch."""

    counts_groups = True

    def observe(self, num_workers, wait_s, step_s, num_ready, num):
        self.num_batches += num
        for number in [each for each in self.targets if each <= self.num_batches]:
            self.target = self.targets.pop(number)
        return []


def scripted(loader, targets, policy=Scripted):
    return Live(TunedLoader(loader, policy(loader.num_workers, targets), DecisionLog(quiet=True)), loader)


def loader_of(dataset=None, *, seed=7, **options):
    torch.manual_seed(seed)
    return DataLoader(dataset or Numbers(), batch_size=BATCH_SIZE, **{"shuffle": True, **options})


def content(loader, epochs=3):
    """A digest of all samples in order, over several epochs, with what the training's own random numbers are meanwhile."""
    digest, num = hashlib.sha256(), 0
    for epoch in range(epochs):
        for numbers, values in loader:
            digest.update(numbers.numpy().tobytes() + values.numpy().tobytes())
            num += 1
            if num % 10 == 0:
                digest.update(torch.rand(2).numpy().tobytes() + repr((random.random(), np.random.random())).encode())
        digest.update(f"end {epoch}".encode())
    return digest.hexdigest()


@pytest.fixture(autouse=True)
def _seeded():
    random.seed(1)
    np.random.seed(1)


def untouched(**options):
    random.seed(1)
    np.random.seed(1)
    found = content(loader_of(**options))
    random.seed(1)
    np.random.seed(1)
    return found


OWN = [
    pytest.param({"num_workers": 0}, id="0"),
    pytest.param({"num_workers": 1}, id="1"),
    pytest.param({"num_workers": 1, "persistent_workers": True}, id="1-persistent"),
    pytest.param({"num_workers": 8}, id="8", marks=pytest.mark.filterwarnings("ignore:This DataLoader will create")),
    pytest.param({"num_workers": 8, "persistent_workers": True}, id="8-persistent", marks=pytest.mark.filterwarnings("ignore:This DataLoader will create")),
]


@pytest.mark.parametrize("own", OWN)
def test_the_same_samples_in_the_same_order_with_40_changes_of_workers(own):
    rng = random.Random(3)
    targets = {number: rng.choice([0, 1, 2, 3, 5]) for number in sorted(rng.sample(range(1, 300), 40))}
    loader = scripted(loader_of(**own), targets)
    used = set()
    expected = untouched(**own)
    loader = scripted(loader_of(**own), targets)
    observe = loader.tuned.policy.observe

    def seen(num_workers, *times):
        used.add(num_workers)
        return observe(num_workers, *times)

    loader.tuned.policy.observe = seen
    assert content(loader) == expected
    assert {0, 1, 2, 3, 5} <= used
    loader.close()


@pytest.mark.parametrize("own", OWN)
def test_the_same_samples_in_the_same_order_if_nothing_changes(own):
    expected = untouched(**own)
    assert content(live(loader_of(**own), quiet=True)) == expected


@pytest.mark.parametrize("own", OWN[1:3])
def test_the_workers_have_the_seeds_that_they_would_have(own):
    """As long as nothing changes, even samples with random numbers of the workers are the same."""

    class Augmented(Numbers):
        def __getitem__(self, index):
            return index, torch.rand(3) + random.random() + np.random.random()

    expected = untouched(dataset=Augmented(100), **own)
    assert content(live(loader_of(Augmented(100), **own), quiet=True)) == expected


def apart(function, *arguments):
    """Call a function of this file in a process of its own, which must end without an error.

    Torch raises its error about a killed worker wherever the main thread is. If that were pytest's own code, the whole session would end.
    """
    code = f"import sys; sys.path.insert(0, sys.argv[1]); import {function.__module__} as tests; tests.{function.__name__}(*{arguments!r})"
    return subprocess.run([sys.executable, "-c", code, str(Path(__file__).parent)], capture_output=True, text=True, timeout=240, check=False)


OWN_OF_KILLED = [{"num_workers": 0}, {"num_workers": 2}, {"num_workers": 2, "persistent_workers": True}]


def kill_a_worker_under_another_setting(own, folder):
    flag = Path(folder) / "killed"
    flag.write_text("xx")  # the untouched loader's workers are not killed
    expected = untouched(dataset=Numbers(kill=(133, str(flag), 1)), **own)
    flag.write_text("")
    loader = scripted(loader_of(Numbers(kill=(133, str(flag), 1)), **own), {5: 3})
    assert content(loader) == expected
    assert flag.read_text() == "x"
    failures = [each for each in loader.decisions() if each.kind == "failure"]
    assert len(failures) == 1 and failures[0].num_workers == own["num_workers"]
    assert "what was in flight is loaded again" in failures[0].reason
    loader.close()


@pytest.mark.parametrize("own", OWN_OF_KILLED)
def test_a_worker_that_is_killed_under_another_setting_costs_no_sample(own, tmp_path):
    ended = apart(kill_a_worker_under_another_setting, own, str(tmp_path))
    assert ended.returncode == 0, ended.stderr


def kill_workers_during_a_step():
    expected = [number for numbers, _ in loader_of(num_workers=0) for number in numbers.tolist()]
    loader = scripted(loader_of(num_workers=0), {5: 3})
    found, killed = [], False
    for number, (numbers, _) in enumerate(loader):
        found += numbers.tolist()
        if number == 20:
            for pid in loader.tuned.pool(3).pids():
                os.kill(pid, signal.SIGKILL)
                killed = True
            time.sleep(0.2)  # SIGCHLD arrives here, in the middle of a step
    assert killed and found == expected
    assert [each.kind for each in loader.decisions()] == ["failure"]


def test_a_worker_that_is_killed_while_the_training_does_something_else_costs_no_sample():
    ended = apart(kill_workers_during_a_step)
    assert ended.returncode == 0, ended.stderr


def kill_the_second_worker_while_the_workers_are_ended():
    class Policy:
        def survives(self):
            return False

    policy, pool_loader = Policy(), loader_of(num_workers=2)
    pool = Pool(pool_loader, 2, may_die=policy.survives)
    pool.start(IndexStream(pool_loader._index_sampler, num_begins=1, check_draws=False), None)
    pool.take()
    first, second = pool.pids()
    remove, raised = signal_handling._remove_worker_pids, []

    def die_first(key):
        try:
            os.kill(second, signal.SIGKILL)
            time.sleep(0.5)  # SIGCHLD arrives here
        except RuntimeError as error:
            raised.append(error)
        remove(key)

    signal_handling._remove_worker_pids = die_first
    pool.close()
    assert not raised
    assert not psutil.pid_exists(first) and not psutil.pid_exists(second)


def test_a_worker_that_dies_while_the_others_are_ended_is_no_error():
    ended = apart(kill_the_second_worker_while_the_workers_are_ended)
    assert ended.returncode == 0, ended.stderr


def kill_a_worker_twice(flag):
    content(scripted(loader_of(Numbers(kill=(133, flag, 2)), num_workers=2), {5: 3}))


def test_the_second_death_is_the_users_failure(tmp_path):
    flag = tmp_path / "killed"
    flag.write_text("")
    ended = apart(kill_a_worker_twice, str(flag))
    assert ended.returncode == 1 and "Error" in ended.stderr.splitlines()[-1], ended.stderr
    assert flag.read_text() == "xx"


@pytest.mark.parametrize("own", OWN_OF_KILLED)
def test_a_failure_of_a_larger_setting_only_costs_no_sample(own):
    """As when too many files are open, or /dev/shm is full, although the setting seemed to fit."""
    expected = untouched(**own)
    loader = scripted(loader_of(WorkersFail(), **own), {5: 3})
    assert content(loader) == expected
    assert [each.kind for each in loader.decisions()] == ["failure"] and "Too many open files" in loader.decisions()[0].reason
    assert loader.tuned.policy.target == own["num_workers"]
    loader.close()


def test_an_exception_is_the_users_own():
    """It is raised by the user's own number of workers, at the same batch, and the next batch follows it."""
    for own in (0, 2):
        plain, tuned = loader_of(Numbers(fails_at=133), num_workers=own), loader_of(Numbers(fails_at=133), num_workers=own)
        seen = []
        for loader in (plain, scripted(tuned, {5: 3})):
            torch.manual_seed(0)
            batches, found = iter(loader), []
            while True:
                try:
                    found.append(next(batches)[0].tolist())
                except StopIteration:
                    break
                except KeyError as error:
                    found.append([f"KeyError: {str(error).splitlines()[0]}"])
            seen.append(found)
        assert seen[0] == seen[1]
        assert sum("KeyError" in str(each) for each in seen[0]) == 1


def test_the_end_of_a_training_is_written_even_if_nobody_closes_the_loader(tmp_path):
    loader = live(loader_of(Numbers(80), shuffle=False), folder=tmp_path, quiet=True)
    for _ in loader:
        pass
    del loader
    rates = [line for line in map(json.loads, (tmp_path / "live.jsonl").read_text().splitlines()) if line["kind"] == "rate"]
    assert sum(each["num_batches"] for each in rates) == 20


def test_a_sample_that_fails_without_workers_is_loaded_once_even_while_other_workers_stand_idle():
    class Counts(Numbers):
        num_failed = 0

        def __getitem__(self, index):
            self.num_failed += index == self.fails_at
            return super().__getitem__(index)

    dataset = Counts(fails_at=133)
    loader = scripted(loader_of(dataset, shuffle=False), {5: 3, 12: 0})
    loader.tuned.policy.best = 3  # whose workers wait while the user's own setting takes its turn
    batches = iter(loader)
    for _ in range(33):
        next(batches)
    assert loader.tuned.has_pool(3)
    with pytest.raises(KeyError, match="no sample 133"):
        next(batches)
    assert dataset.num_failed == 1
    assert sum(len(numbers) for numbers, _ in batches) == NUM_SAMPLES - 136
    loader.close()


def test_a_batch_that_ctrl_c_interrupts_without_workers_counts_as_taken():
    class Interrupts(Numbers):
        def __getitem__(self, index):
            if index == 30:
                raise KeyboardInterrupt
            return super().__getitem__(index)

    found = []
    for tunes in (False, True):
        loader = loader_of(Interrupts(80), shuffle=False)
        batches, seen = iter(scripted(loader, {12: 2}) if tunes else loader), []
        for _ in range(7):
            seen.append(next(batches)[0].tolist())
        with pytest.raises(KeyboardInterrupt):
            next(batches)
        found.append([*seen, *(numbers.tolist() for numbers, _ in batches)])
    assert found[0] == found[1]
    assert found[0][-1][-1] == 79


def test_a_sampler_that_draws_its_order_in_iter_draws_it_as_often_as_untouched():
    class Eager(Sampler):
        def __iter__(self):
            return iter([torch.randint(100, (BATCH_SIZE,)).tolist() for _ in range(30)])

        def __len__(self):
            return 30

    for own in ({"num_workers": 0}, {"num_workers": 2}, {"num_workers": 2, "persistent_workers": True}):
        found = []
        for tunes in (False, True):
            torch.manual_seed(4)
            loader = DataLoader(Numbers(), batch_sampler=Eager(), **own)
            found.append(content(scripted(loader, {7: 3, 20: 1, 35: 0}) if tunes else loader))
            random.seed(1)
            np.random.seed(1)
        assert found[0] == found[1]


def test_a_loader_without_batch_size_and_the_last_incomplete_batch():
    for options in ({"batch_size": None}, {"batch_size": 7}, {"batch_size": 7, "drop_last": True}):
        found = []
        for tunes in (False, True):
            torch.manual_seed(4)
            loader = DataLoader(Numbers(100), shuffle=True, **options)
            found.append([str(batch) for batch in (scripted(loader, {5: 2, 9: 3}) if tunes else loader)])
        assert found[0] == found[1]


def test_len_set_epoch_and_attributes_are_the_loaders():
    dataset = Numbers(100)
    sampler = DistributedSampler(dataset, num_replicas=2, rank=1, seed=3)
    plain = DataLoader(dataset, batch_size=BATCH_SIZE, sampler=sampler)
    tuned = live(plain, quiet=True)
    assert len(tuned) == len(plain) == 13
    assert tuned.dataset is dataset and tuned.batch_size == BATCH_SIZE
    for epoch in range(2):
        sampler.set_epoch(epoch)
        expected = [numbers.tolist() for numbers, _ in plain]
        sampler.set_epoch(77)
        tuned.set_epoch(epoch)
        assert [numbers.tolist() for numbers, _ in tuned] == expected
    with pytest.raises(AttributeError, match="no_such"):
        _ = tuned.no_such


def test_leaving_an_epoch_ends_its_workers_and_the_next_one_is_whole():
    before = set(tree_pids())
    loader = scripted(loader_of(num_workers=1), {3: 3})
    for number, _ in enumerate(loader):
        if number == 8:
            assert len(set(tree_pids()) - before) == 4  # the best setting, which is the user's own, and the one that is asked for
            break
    assert set(tree_pids()) == before
    assert sorted(number for numbers, _ in loader for number in numbers.tolist()) == list(range(NUM_SAMPLES))
    assert set(tree_pids()) == before


def test_workers_that_persist_end_with_the_loader():
    before = set(tree_pids())
    loader = scripted(loader_of(num_workers=1, persistent_workers=True), {3: 3})
    content(loader, 2)
    assert len(set(tree_pids()) - before) == 4
    del loader
    assert set(tree_pids()) == before


class Stream(IterableDataset):
    def __iter__(self):
        return iter(range(40))


class Stateful(RandomSampler):
    def state_dict(self):
        return {}


class OwnIteration(DataLoader):
    def __iter__(self):
        yield from super().__iter__()


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: DataLoader(Stream(), batch_size=4, num_workers=1), "iterable"),
        (lambda: DataLoader(Numbers(40), batch_size=4, sampler=Stateful(range(40))), "saves its state"),
        (lambda: DataLoader(Numbers(40), batch_sampler=BatchSampler(Stateful(range(40)), 4, False)), "saves its state"),
        (lambda: OwnIteration(Numbers(40), batch_size=4), "a way of its own"),
        (lambda: DataLoader(Numbers(40), batch_size=4, num_workers=1, in_order=False), "in_order"),
    ],
)
def test_a_loader_that_cannot_be_changed_unnoticed_is_only_observed(make, words):
    torch.manual_seed(0)
    expected = [str(batch) for batch in make()]
    torch.manual_seed(0)
    loader = live(make(), quiet=True)
    assert [str(batch) for batch in loader] == expected
    assert words in loader.tuned.policy.leave
    assert loader.summary()["num_batches"] == 10


class Uneven(BatchSampler):
    """A batch sampler of somebody's own: only the batches themselves tell how many samples they hold."""


@pytest.mark.parametrize(("sampler", "samples"), [(None, BATCH_SIZE), (BatchSampler, BATCH_SIZE), (Uneven, None)])
def test_samples_are_counted_where_the_size_of_batches_is_certain(sampler, samples):
    data = TensorDataset(torch.arange(40))
    own = {"batch_size": BATCH_SIZE} if sampler is None else {"batch_sampler": sampler(RandomSampler(data), BATCH_SIZE, drop_last=False)}
    loader = live(DataLoader(data, **own))
    assert len(list(loader)) == 10
    assert loader.summary()["items_per_batch"] == samples


def test_a_sampler_that_draws_while_the_training_goes_on_is_left_alone():
    class Late(Sampler):
        def __iter__(self):
            return (int(torch.randint(100, ())) for _ in range(100))

        def __len__(self):
            return 100

    loader = scripted(DataLoader(Numbers(), batch_size=2, sampler=Late()), {30: 2})
    assert len(list(loader)) == 50
    assert "draws random numbers" in loader.tuned.policy.leave and loader.tuned.policy.target == 0


def test_a_sampler_that_keeps_its_place_shows_the_same_place_at_each_step():
    """A checkpoint of its attributes means the same as before: how far the sampler runs ahead depends on the workers."""

    class Resumable(Sampler):
        def __init__(self):
            self.place = 0

        def __iter__(self):
            while self.place < 300:
                self.place += 1
                yield self.place - 1

        def __len__(self):
            return 300

    places = []
    for tunes in (False, True):
        loader = DataLoader(Numbers(), batch_size=2, sampler=Resumable(), num_workers=1)
        sampler = loader.sampler
        loader = scripted(loader, {30: 3}) if tunes else loader
        places.append([sampler.place for _ in loader])
    assert places[0] == places[1]
    assert "keeps its place in sampler.sampler.place" in loader.tuned.policy.leave


def test_a_budget_of_nothing_tries_nothing():
    assert live(loader_of(), budget_fraction=0, quiet=True).tuned.policy.budget.allowed_s(1e6) == 0


def test_a_dataset_that_the_training_changes_is_loaded_as_without_workers():
    """With 0 workers, the next sample shows the change; samples that workers loaded ahead would not."""
    found = []
    for tunes in (False, True):
        dataset = Numbers()
        loader = loader_of(dataset, num_workers=0)
        seen = []
        for number, (numbers, _) in enumerate(scripted(loader, {5: 3}) if tunes else loader):
            seen += numbers.tolist()
            dataset.offset = 1000 * (number // 30)
        found.append(seen)
    assert found[0] == found[1]


def test_a_dataset_that_holds_an_open_file_is_not_given_to_forked_workers(tmp_path):
    path = tmp_path / "data"
    path.write_bytes(bytes(range(200)))

    class Reader(Numbers):
        def __init__(self):
            super().__init__(200)
            self.file = None

        def __getitem__(self, index):
            self.file = self.file or path.open("rb")
            self.file.seek(index)
            return index, torch.tensor(self.file.read(1)[0])

    dataset = Reader()
    loader = scripted(loader_of(dataset, num_workers=0), {20: 2})
    assert all((numbers == values).all() for numbers, values in loader)
    assert "must not share" in loader.tuned.policy.leave
    dataset.file.close()


def test_a_setting_that_does_not_fit_into_shared_memory_is_not_started(monkeypatch):
    from feedrate.trainables.measuring import limits

    monkeypatch.setattr(limits, "_shm_bytes", lambda: (100, 0))
    loader = scripted(loader_of(num_workers=0), {20: 2})
    assert len(list(loader)) == NUM_SAMPLES // BATCH_SIZE
    rejected = [each for each in loader.decisions() if each.kind == "reject"]
    assert len(rejected) == 1 and "/dev/shm is too small" in rejected[0].reason


@pytest.mark.parametrize(
    ("limit", "words"),
    [({"max_open_files": 70}, "the limit of open files is too low"), ({"available_bytes": 10_000_000}, "not enough memory")],
)
def test_a_setting_that_needs_more_files_or_memory_than_there_are_is_not_started(monkeypatch, limit, words):
    from feedrate.trainables.tuning import epoch

    own = epoch.check_limits
    monkeypatch.setattr(epoch, "check_limits", lambda *given, **named: own(*given, **(named | limit)))
    loader = scripted(loader_of(num_workers=0), {20: 3})
    assert len(list(loader)) == NUM_SAMPLES // BATCH_SIZE
    (rejected,) = loader.decisions()
    assert rejected.kind == "reject" and words in rejected.reason


def start_more_workers_than_files_allow():
    """The check before the start knows the files of batches, not those that the process has open anyway."""
    import resource

    expected = [number for numbers, _ in loader_of(num_workers=1) for number in numbers.tolist()]
    held = [open(os.devnull) for _ in range(120)]  # noqa: SIM115
    limit = len(os.listdir("/proc/self/fd")) + 30
    resource.setrlimit(resource.RLIMIT_NOFILE, (limit, resource.getrlimit(resource.RLIMIT_NOFILE)[1]))
    loader = scripted(loader_of(num_workers=1), {20: 12})
    assert [number for numbers, _ in loader for number in numbers.tolist()] == expected
    (rejected,) = loader.decisions()
    assert rejected.kind == "reject" and "Too many open files" in rejected.reason, rejected
    for each in held:
        each.close()


def test_a_setting_whose_workers_cannot_be_started_costs_no_sample():
    ended = apart(start_more_workers_than_files_allow)
    assert ended.returncode == 0, ended.stderr


def test_a_setting_that_raises_memory_without_end_is_left():
    """Workers that keep 8 MB for each sample, with the guard of trials."""
    loader = scripted(loader_of(WorkersLeak(), num_workers=0, shuffle=False), {5: 2})
    now_bytes = sum(filter(None, map(memory_guard.pss_bytes, tree_pids())))
    loader.tuned.guard = memory_guard.MemoryGuard(0, max_trial_bytes=now_bytes + 250_000_000)
    seen = []
    for numbers, _ in loader:
        seen += numbers.tolist()
        time.sleep(0.002)
    assert seen == list(range(4000))
    assert [each.kind for each in loader.decisions()] == ["limit"]
    assert loader.tuned.policy.target == 0 and not loader.tuned.has_workers()


def test_a_setting_that_leaves_too_little_memory_is_left(monkeypatch):
    monkeypatch.setenv(memory_guard.LIMIT_VARIABLE, "0")
    loader = scripted(loader_of(Numbers(sleep_s=0.002), num_workers=0), {5: 2})
    loader.tuned.guard = memory_guard.MemoryGuard(0, max_trial_bytes=1)
    again = scripted(loader_of(Numbers(sleep_s=0.002), num_workers=0), {})
    assert content(loader, 1) == content_after_reseeding(again)
    assert [each.kind for each in loader.decisions()] == ["limit"]
    assert loader.tuned.policy.target == 0


def content_after_reseeding(loader):
    random.seed(1)
    np.random.seed(1)
    torch.manual_seed(7)
    return content(loader, 1)


def test_a_second_iteration_beside_the_first_is_the_loaders_own():
    loader = live(loader_of(shuffle=False), quiet=True)
    first = iter(loader)
    assert next(first)[0].tolist() == [0, 1, 2, 3]
    second = iter(loader)
    assert next(second)[0].tolist() == [0, 1, 2, 3]
    assert next(first)[0].tolist() == [4, 5, 6, 7]


@pytest.mark.parametrize("num_workers", [0, 1])
@pytest.mark.parametrize("is_dropped", [True, False], ids=["dropped", "read later"])
def test_an_iteration_that_begins_before_the_first_batch_of_another_one_is_tuned_instead(num_workers, is_dropped):
    """Lightning begins an iteration, begins another one, and reads that."""
    before, found = set(tree_pids()), []
    for tunes in (False, True):
        random.seed(1)
        np.random.seed(1)
        loader = loader_of(num_workers=num_workers)
        loader = scripted(loader, {3: 3, 9: 1, 20: 2}) if tunes else loader
        first = iter(loader)
        second = iter(loader)
        first = None if is_dropped else first
        seen = [numbers.tolist() for numbers, _ in second]
        seen += [] if is_dropped else [numbers.tolist() for numbers, _ in first]
        found.append([seen, torch.rand(1).item(), content(loader, 2)])
        del first, second
    assert found[0] == found[1]
    assert loader.tuned.policy.num_batches == 3 * NUM_SAMPLES // BATCH_SIZE
    assert set(tree_pids()) == before


@pytest.mark.parametrize("num_workers", [0, 1])
def test_every_epoch_is_tuned_if_the_training_counts_its_batches_by_itself(num_workers):
    """Lightning never reaches the end of an iteration, and drops it after it has begun the next one."""
    before, found = set(tree_pids()), []
    for tunes in (False, True):
        loader = loader_of(num_workers=num_workers)
        loader = scripted(loader, {3: 3, 9: 1, 20: 2, 150: 3}) if tunes else loader
        seen, batches = [], None
        for _ in range(3):
            batches = iter(loader)
            seen += [next(batches)[0].tolist() for _ in range(len(loader))]
        found.append([seen, torch.rand(1).item()])
        with pytest.raises(StopIteration):
            next(batches)
        del batches
    assert found[0] == found[1]
    assert loader.tuned.policy.num_batches == 3 * (NUM_SAMPLES // BATCH_SIZE - 1) + 1
    assert set(tree_pids()) == before


@pytest.mark.parametrize("num_workers", [1, 2])
def test_a_loader_whose_workers_persist_begins_its_one_iterator_again(num_workers):
    """Lightning calls iter(loader) twice before the first epoch."""
    found = []
    for tunes in (False, True):
        loader = loader_of(num_workers=num_workers, persistent_workers=True)
        loader = scripted(loader, {3: 3, 9: 1}) if tunes else loader
        first = iter(loader)
        seen = [next(first)[0].tolist() for _ in range(2)]
        second = iter(loader)
        seen += [next(each)[0].tolist() for each in (second, first, second)]
        found.append([*seen, *(numbers.tolist() for numbers, _ in second), torch.rand(1).item(), content(loader, 2)])
        random.seed(1)
        np.random.seed(1)
    assert found[0] == found[1]


@pytest.mark.parametrize("num_workers", [0, 2])
def test_short_batches_are_counted_together(monkeypatch, num_workers):
    """Counting takes longer than such a batch. None is missed at the end of an epoch, and a slow one is counted by itself."""
    loader = live(DataLoader(TensorDataset(torch.arange(5000)), batch_size=10, num_workers=num_workers), budget_fraction=0.0, quiet=True)
    policy, counted = loader.tuned.policy, []
    own = policy.observe
    monkeypatch.setattr(policy, "observe", lambda *given: counted.append(given) or own(*given))
    for number, _ in enumerate(loader):
        if number == 250:
            time.sleep(0.2)
    assert sum(num for *_, num in counted) == policy.num_batches == 500
    assert len(counted) < 400
    (slow,) = [each for each in counted if each[2] > 0.2]
    assert slow[2] + slow[1] < 0.4 and [num for *_, num in counted[:4]] == [1, 1, 1, 1]


def test_what_a_training_does_between_many_short_batches_is_set_aside():
    loader = live(DataLoader(TensorDataset(torch.arange(50_000)), batch_size=10), budget_fraction=0.0, quiet=True)
    for number, _ in enumerate(loader):
        time.sleep(0.6 if number == 600 else 5e-5)
    policy = loader.tuned.policy
    assert 0.6 < policy.aside_s < 0.8 and policy.num_batches == 5000


@pytest.mark.parametrize("first", range(4))
def test_workers_that_deliver_together_make_windows_wherever_they_begin(first):
    """Two workers deliver a batch at once each second. Groups of two that begin inside a production cycle would all end inside one."""
    loader = DataLoader(TensorDataset(torch.arange(8)), num_workers=2)
    policy = Policy(2, cpus=2, most=4, budget=Budget.of(0.0))
    observed = Observed(TunedLoader(loader, policy, DecisionLog(quiet=True)))
    for _ in range(first):
        policy.observe(2, 1.0, 0.01, lambda: 0, 1)
    for number in range(40):
        observed._wait_s = 1.0 if number % 2 else 0.0
        observed._count(0.01, 0.0)
    assert len(policy.windows[2]) >= 8
    assert policy.num_batches >= first + 38


@pytest.mark.parametrize("torch_has_it", [True, False], ids=["passed by", "another torch"])
@pytest.mark.parametrize("fails_at", [None, 1333], ids=["whole", "an exception"])
def test_torch_draws_by_itself_while_short_batches_of_no_workers_need_only_be_timed(monkeypatch, fails_at, torch_has_it):
    """The order, an exception, and changes of the number of workers are as if every index passed through feedrate."""
    monkeypatch.setattr("feedrate.trainables.tuning.epoch.GROUP_S", 2e-3)
    drawn, ended, draw, end_quick = [], [], IndexStream.draw, Epoch._end_quick
    monkeypatch.setattr(IndexStream, "draw", lambda self: drawn.append(self) or draw(self))
    monkeypatch.setattr(Epoch, "_end_quick", lambda self: ended.append(self) or end_quick(self))
    if not torch_has_it:
        monkeypatch.setattr(Pool, "pass_by", lambda self, indices: None)

    def batches_of(loader):
        batches = iter(loader)
        while True:
            try:
                yield from ([numbers.tolist(), torch.rand(1).item() if number % 50 == 0 else None] for number, (numbers, _) in enumerate(batches))
                return
            except KeyError as error:
                yield str(error)

    before, found = set(tree_pids()), []
    for tunes in (False, True):
        loader = loader_of(Numbers(8000, fails_at=fails_at))
        loader = scripted(loader, {700: 2, 900: 0, 3000: 1, 3100: 3, 3300: 0}, ScriptedInGroups) if tunes else loader
        found.append([each for _ in range(3) for each in batches_of(loader)])
    num_batches = 3 * 8000 // BATCH_SIZE
    assert found[0] == found[1] and len(found[0]) == num_batches
    assert loader.tuned.policy.num_batches >= num_batches - 3 and not loader.tuned.policy.targets
    if torch_has_it:
        assert len(drawn) < num_batches / 2 and ended
    else:
        assert len(drawn) >= num_batches
    assert set(tree_pids()) == before


def test_decisions_are_lines_of_live_jsonl_and_of_standard_error(tmp_path, capsys):
    loader = live(loader_of(Numbers(4000, sleep_s=0.001)), folder=tmp_path / "run", observe=True)
    for batch in loader:
        del batch
    loader.close()
    everything = (tmp_path / "run" / "live.jsonl").read_text().splitlines()
    course = [json.loads(line) for line in everything if '"kind":"rate"' in line]
    assert sum(each["num_batches"] for each in course) == 1000
    lines = [line for line in everything if '"kind":"rate"' not in line]
    assert len(lines) == len(loader.decisions()) == 2
    assert '"kind":"baseline"' in lines[0] and '"kind":"leave"' in lines[1]
    assert "only observing" in capsys.readouterr().err
    assert loader.summary()["wait_fraction"] > 0.5
