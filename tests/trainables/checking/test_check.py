"""check.py: the whole check, on datasets that are clean, broken, slow or strange."""

import os
import signal

import numpy as np
import pytest
import torch
from looks import found, levels, step
from torch.utils.data import DataLoader, get_worker_info
from workloads import AnsweredByThread, InWorker, LenOpens, Rows, Stream, general, short

from feedrate.trainables.checking import check as check_module
from feedrate.trainables.checking.check import check
from feedrate.trainables.failure import TrialFailed
from feedrate.trainables.workload import WorkloadError


def test_a_clean_dataset_passes():
    """Every question has an answer, and none of them is a warning."""
    findings = found(short(Rows(1000), loader_kwargs={"shuffle": False}))
    names = {"order", "content", "sample-count", "determinism", "random-streams", "epochs", "fork-unsafe"}
    assert set(findings) == names
    assert {level for name, level in levels(findings).items() if name != "order"} == {"ok"}
    assert findings["order"]["level"] in ("ok", "note")  # in_order=False may change the order, or not
    orders = findings["order"]["evidence"]["orders"]
    assert orders["2 workers"] == orders["persistent_workers"] == ["invariant", "invariant"]


def test_other_bytes_with_workers_are_an_error():
    """Samples that are not random must not depend on where they are made."""

    class Differs(Rows):
        def __getitem__(self, index):
            return torch.full((4,), float(index) + (get_worker_info() is not None)), torch.tensor(0)

    finding = found(short(Differs()))["content"]
    assert finding["level"] == "error"
    assert finding["evidence"]["num_changed"] == 64


def test_the_general_form_is_checked_with_what_it_builds():
    """Its own batch sampler, collate_fn and generator; batches of one fixed kind."""
    batches = [[0, 1, 2], [3, 4], [5]]
    loader = lambda **overrides: DataLoader(Rows(6), batch_sampler=batches, **overrides)  # noqa: E731
    findings = found(general(loader, step))
    assert "error" not in levels(findings).values()
    assert findings["sample-count"]["evidence"] == {
        "num_samples": 6,
        "num_trained": 6,
        "num_batches": 3,
        "last_batch": 1,
    }


def test_a_dataset_that_batches_by_itself_is_checked():
    """batch_size=None with a sampler of lists, as for tables that are read in blocks."""

    class Blocks(Rows):
        def __getitem__(self, indices):
            return torch.tensor(indices), torch.zeros(len(indices))

    def make_loader(**overrides):
        blocks = [[4 * number, 4 * number + 1] for number in range(16)]
        return DataLoader(Blocks(), sampler=blocks, batch_size=None, **overrides)

    assert "error" not in levels(found(general(make_loader, step))).values()


def test_an_exception_in_the_dataset_is_a_failure_with_its_traceback():
    """Nothing can be compared then."""

    class Broken(Rows):
        def __getitem__(self, index):
            raise OSError("the disk is not mounted")

    with pytest.raises(TrialFailed) as raised:
        check(short(Broken()))
    assert raised.value.failure.message.startswith("OSError: the disk is not mounted (raised for sample ")
    assert "in __getitem__" in raised.value.failure.traceback


def test_a_crash_without_workers_is_a_failure():
    """The process that loads is not the one that checks."""

    class Crashes(Rows):
        def __getitem__(self, index):
            os.kill(os.getpid(), signal.SIGKILL)

    with pytest.raises(TrialFailed, match="the process that loads samples was killed by SIGKILL"):
        check(short(Crashes()))


def test_a_dataset_that_hangs_is_a_failure(monkeypatch):
    """Within a time that is known beforehand."""
    monkeypatch.setattr(check_module, "FIRST_SAMPLE_S", 0.0)
    words = r"no sample came within 0 s, without workers: it hangs in Rows.__getitem__ \(workloads.py:"
    with pytest.raises(TrialFailed, match=words) as raised:
        check(short(Rows(sleep_s=1000)), budget_s=2)
    assert raised.value.failure.kind == "hang"


def test_a_thread_that_workers_lack_is_named(monkeypatch):
    """It is there without workers, as in the user's program, and the hang is the workers'."""
    monkeypatch.setitem(check_module.LEAST_LOOK_S, "fork", 3.0)
    findings = found(lambda: short(AnsweredByThread), budget_s=2)
    words = findings["loading"]["sentence"]
    assert findings["loading"]["level"] == "error"
    assert words.startswith("loading works with 0 workers and hangs with 2 workers: nothing came within ")
    assert "2 loader workers hang, one of them in AnsweredByThread.__getitem__ (workloads.py:" in words
    assert "Making the dataset starts the thread answers, which forked workers do not have" in words
    assert "the thread answers" in findings["fork-unsafe"]["sentence"]


def test_a_file_that_is_opened_on_first_use_passes():
    """No look reads in the process from which workers are forked."""

    class Opens(Rows):
        opened_by = None

        def __getitem__(self, index):
            self.opened_by = self.opened_by or os.getpid()
            if self.opened_by != os.getpid():
                raise RuntimeError("opened by another process")
            return super().__getitem__(index)

    findings = levels(found(lambda: short(Opens)))
    assert "loading" not in findings
    assert "error" not in findings.values()


def test_a_file_that_len_opens_passes():
    """The length is asked for in a process that ends, because a sampler that knows its indices does not ask for it."""
    loader = lambda **overrides: DataLoader(LenOpens(), sampler=list(range(64)), **overrides)  # noqa: E731
    findings = levels(found(lambda: general(loader, step)))
    assert "loading" not in findings
    assert not {"error", "warning"} & set(findings.values())


def test_a_file_that_nobody_is_seen_to_hold_is_named_by_its_path(tmp_path):
    """Such as one that a library keeps open behind a number."""
    path = tmp_path / "rows.bin"
    path.write_bytes(b"x" * 64)

    class Behind(Rows):
        def __init__(self):
            super().__init__()
            self.number = os.open(path, os.O_RDONLY)

    finding = found(lambda: short(Behind), budget_s=2)["fork-unsafe"]
    assert finding["level"] == "warning"
    assert f"making the dataset leaves open {path}" in finding["sentence"]


def test_workers_that_repeat_samples_of_other_indices_are_an_error():
    """By what they deliver; random numbers are not accused a second time."""

    class Endless(Rows):
        def __init__(self):
            super().__init__(1000)
            self.items = iter(range(10**9))

        def __getitem__(self, index):
            return torch.full((4,), float(next(self.items))), torch.tensor(0)

    findings = found(lambda: short(Endless))
    assert findings["order"]["level"] == "error"
    assert "the 2 workers deliver the same samples for different indices" in findings["order"]["sentence"]
    seen = findings["order"]["evidence"]
    assert seen["num_repeated"] == seen["num_compared"] > seen["num_alike"] == 0
    assert not {"content", "random-streams", "frozen-augmentation"} & findings.keys()


def test_a_making_that_is_random_is_no_difference_of_workers():
    """Each look makes the dataset again where making it leaves a thread behind."""

    class Random(AnsweredByThread):
        def __init__(self):
            super().__init__()
            self.shift = np.random.default_rng().random()

        def __getitem__(self, index):
            return torch.full((4,), index + self.shift), torch.tensor(0)

    assert found(lambda: short(Random))["content"]["level"] == "note"


def test_samples_that_are_too_slow_are_not_looked_at():
    """The report says what was not, and what to raise; the time is kept."""
    report = check(short(Rows(1000, sleep_s=0.5)), budget_s=1)
    findings = {finding.name: finding for finding in report.findings}
    assert "what workers deliver (a sample takes " in findings["time"].sentence
    assert findings["time"].fix == "raise --time-budget"
    assert "order" not in findings
    assert findings["fork-unsafe"].level == "ok"


def test_failing_with_workers_only_is_a_finding():
    """Such as a handle that does not survive the fork; the other questions are answered still."""

    def fail():
        raise RuntimeError("the handle belongs to another process")

    findings = found(short(InWorker(fail)))
    assert findings["loading"]["level"] == "error"
    assert (
        "fails with 2 workers: RuntimeError: the handle belongs to another process" in findings["loading"]["sentence"]
    )
    assert findings["fork-unsafe"]["level"] == "ok"


def test_slow_samples_are_looked_at_in_smaller_numbers():
    """The report says how many."""
    report = check(short(Rows(1000, sleep_s=0.02)), budget_s=5)
    assert 4 <= report.num_samples < 30
    assert report.epoch_samples == 1000


def test_no_more_samples_are_counted_than_there_are():
    """A small dataset is looked at as a whole; a list of indices is as many samples."""
    assert check(short(Rows(20)), budget_s=5).num_samples == 20

    class Blocks(Rows):
        def __getitem__(self, indices):
            return torch.tensor(indices)

    lists = [[4 * number, 4 * number + 1] for number in range(10)]
    loader = general(lambda **overrides: DataLoader(Blocks(), sampler=lists, batch_size=None, **overrides), step)
    assert check(loader, budget_s=5).num_samples == 20


@pytest.mark.parametrize(
    ("workload", "words"), [(short(Rows(0)), "is empty"), (general(lambda **more: [1], step), "returned list")]
)
def test_nothing_to_check_is_wrong_usage(workload, words):
    """One sentence that names the workload."""
    with pytest.raises(WorkloadError, match=words):
        check(workload)


class Dropping:
    """A collate_fn that drops samples below a bound, as one that drops those that cannot be read."""

    def __init__(self, bound, nothing):
        self.bound, self.nothing = bound, nothing

    def __call__(self, samples):
        kept = [sample for sample in samples if sample[0][0] >= self.bound]
        return torch.utils.data.default_collate(kept) if kept else self.nothing


@pytest.mark.parametrize("nothing", [None, (None, None), {}, torch.zeros(0, 4)], ids=["None", "pair of None", "empty", "no rows"])
def test_batches_that_hold_nothing_are_an_error(nothing):
    """A step would train on nothing."""
    loader = lambda **overrides: DataLoader(Rows(), collate_fn=Dropping(64, nothing), **({"batch_size": 8} | overrides))  # noqa: E731
    batches = found(general(loader, step), budget_s=10)["batches"]
    assert batches["level"] == "error"
    assert batches["sentence"].startswith("the first 8 batches hold nothing: each is None or empty after collate_fn, so a training step trains on nothing")


def test_some_batches_that_hold_nothing_are_no_error():
    """The first ones are empty here; a stream that yields None for every sample has only empty ones."""
    loader = lambda **overrides: DataLoader(Rows(), collate_fn=Dropping(20, None), **({"batch_size": 8} | overrides))  # noqa: E731
    assert "batches" not in found(general(loader, step), budget_s=10)

    class Nothing(Stream):
        def __iter__(self):
            return (None for _ in range(6))

    stream = lambda **overrides: DataLoader(Nothing(), batch_size=None, **overrides)  # noqa: E731
    assert found(general(stream, step), budget_s=10)["batches"]["sentence"].startswith("the first 6 batches hold nothing")


def test_one_worker_has_nobody_to_repeat():
    """It is refused."""
    with pytest.raises(ValueError, match="num_workers must be 2 or more, not 1"):
        check(short(Rows()), num_workers=1)
