"""rerun.py and doubt.py: why a real loader failed, found by loading the batch once more."""

import faulthandler
import os
import signal
import threading
import time
import traceback
from dataclasses import replace

import psutil
import pytest
import torch
from census import OURS, eventually, files
from fault_workloads import BAD, At, Endless, Holds, broken
from torch.utils.data import DataLoader, Dataset
from workloads import Rows

from feedrate.trainables.diagnose import stacks
from feedrate.trainables.diagnose.reloaded import Reloaded
from feedrate.trainables.diagnose.settling import settle
from feedrate.trainables.failure import Failure, TrialFailed
from feedrate.trainables.measuring.rerun import explain, rerun

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*use of fork:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:Got pickle error"),
    pytest.mark.filterwarnings("ignore:This DataLoader will create"),
    # a worker that was killed is reported once more while its loader is taken apart
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]
BATCH = [38, 39, BAD, 41]


def children():
    """This process's children, except multiprocessing's own helper."""
    return {child for child in psutil.Process().children() if "resource_tracker" not in _command(child)}


def _command(process):
    try:
        return " ".join(process.cmdline())
    except psutil.ZombieProcess:  # it has ended, and nobody has asked yet how
        return ""


@pytest.fixture(autouse=True)
def nothing_is_left():
    """No child and no file of shared memory outlives an explanation and its loader."""
    before, others = files(), children()  # such as a fork server that an earlier module needed
    yield
    assert eventually(lambda: not children() - others), children() - others
    assert not {path for path in files() - before if path.name.startswith("torch_")}


@pytest.fixture
def answering(tmp_path, monkeypatch):
    """This process and its workers can be asked for their stacks, as those of a trial can."""
    path = tmp_path / "stacks"
    path.touch()
    monkeypatch.setenv(stacks.VARIABLE, str(path))
    stacks.install()
    yield
    faulthandler.unregister(stacks.SIGNAL)


def explained(loader, batches=(BATCH,)):
    """What becomes of this loader's error once its batches were loaded again, here in the same process."""
    try:
        for _ in loader:
            pass
    except Exception as error:
        failed = explain(error, loader, list(batches), "measure")
        traceback.clear_frames(
            error.__traceback__
        )  # a circle that holds the loader, whose workers take 5 s each to end
        if failed.doubt is None:
            return failed.failure
        return settle(failed.failure, failed.doubt, rerun(loader, failed.doubt, lambda doing: None))
    pytest.fail("the loader works")


def over(dataset, **more):
    return DataLoader(dataset, **({"batch_size": 4, "sampler": BATCH} | more))


def collate_with_lock(samples):
    return samples, threading.Lock()


class Local(Exception):
    """Its reference cannot be pickled, once it is nowhere to be found."""


Local.__qualname__ = "gone.<locals>.Local"


def unheard():
    raise Local("nobody hears this")


class Batched(At):
    def __getitems__(self, indices):
        return [self[index] for index in indices]


@pytest.mark.parametrize(
    ("loader", "said"),
    [
        (lambda: over(At(broken), num_workers=1), "(raised for sample 40; with 0 workers too)"),
        (lambda: over(At(broken)), "(raised for sample 40; every time)"),
        (
            lambda: over(At(broken, in_worker=True), num_workers=1),
            "(raised for samples 38, 39, 40, 41; loading succeeds with 0 workers: look for something that a worker process does not have)",
        ),
        (lambda: over(Batched(broken), num_workers=1), "(raised for samples 38, 39, 40, 41; with 0 workers too)"),
        (
            lambda: over(Rows(), num_workers=1, collate_fn=lambda samples: broken()),
            "(raised by collate_fn for samples 38, 39, 40, 41; with 0 workers too)",
        ),
        (
            lambda: over(At(broken), batch_size=1, batch_sampler=[BATCH], sampler=None, num_workers=1),
            "(raised for sample 40; with 0 workers too)",
        ),
    ],
)
def test_an_exception_is_told_with_its_sample(loader, said):
    """Which sample, or which batch of a collate_fn's, and whether it takes a worker; the user's traceback stays."""
    loader = loader()
    failure = explained(loader)
    assert failure.kind == "user-code"
    assert failure.message == f"ValueError: the header is broken {said}"
    assert "in broken" in failure.traceback
    assert OURS not in failure.traceback


def test_a_loader_without_batches_of_its_own():
    """With batch_size=None a sample is loaded by itself."""
    failure = explained(over(At(broken), batch_size=None, num_workers=1), [[BAD]])
    assert failure.message == "ValueError: the header is broken (raised for sample 40; with 0 workers too)"


def test_what_does_not_come_from_loading_is_only_classified():
    """The step's errors, failures that are known, and those of an iterable dataset stay as they are."""
    loader = over(At(broken))
    with pytest.raises(ValueError, match="header") as caught:
        broken()
    assert explain(caught.value, loader, [BATCH], "measure").failure.message == "ValueError: the header is broken"
    known = TrialFailed(Failure(kind="hang", phase="loader", message="known"))
    assert explain(known, loader, [BATCH], "measure") is known

    def init(worker):
        broken()

    failure = explained(over(Rows(), num_workers=1, worker_init_fn=init))
    assert failure.message == "ValueError: the header is broken (raised by worker_init_fn, as the worker starts)"


def raised(loader):
    """The error of a loader, as a trial raises it."""
    with pytest.raises(RuntimeError) as caught:
        list(loader)
    failed = explain(caught.value, loader, [BATCH], "measure")
    traceback.clear_frames(caught.value.__traceback__)
    return failed


def test_a_killed_worker_is_told_with_its_batch():
    """A crash is tried again in a process of its own; a SIGKILL is not, as it may have been for want of memory."""
    failed = raised(over(At(lambda: os.kill(os.getpid(), signal.SIGSEGV)), num_workers=1))
    assert failed.failure.kind == "worker-killed"
    assert failed.failure.message.endswith("SIGSEGV (the loader waited for samples 38, 39, 40, 41)")
    again = Reloaded("died", "sample 40", "SIGSEGV")
    assert settle(failed.failure, failed.doubt, again).message == (
        "a loader worker was killed by SIGSEGV (the loader waited for samples 38, 39, 40, 41; "
        "sample 40 crashes the process with 0 workers too: SIGSEGV)"
    )
    failed = raised(over(At(lambda: os.kill(os.getpid(), signal.SIGKILL)), num_workers=1))
    assert failed.failure.message.endswith("(the loader waited for samples 38, 39, 40, 41)")
    assert failed.doubt is None


@pytest.mark.usefixtures("answering")
def test_a_silent_loader_is_looked_into():
    """Nothing came until the loader's timeout: the sample that hangs, the batch or exception that cannot be sent."""
    failed = raised(over(At(lambda: time.sleep(8)), num_workers=1, timeout=1))
    assert failed.failure.kind == "hang"
    assert failed.failure.message.startswith("no batch came for 1 s")
    again = settle(failed.failure, failed.doubt, Reloaded("hangs", "sample 40"))
    assert again.message.endswith("; sample 40 hangs with 0 workers too")
    without_threads = replace(failed.doubt, threads=())  # tests before this one may have left a thread in this process
    again = settle(failed.failure, without_threads, Reloaded("passed"))
    assert again.message.endswith("; loading succeeds with 0 workers; if loading is only slow, raise --max-trial-s")
    failure = explained(over(Rows(), num_workers=1, timeout=1, collate_fn=collate_with_lock))
    assert failure.kind == "unpicklable"
    assert failure.message.startswith(
        "a batch cannot be pickled, so no worker can send it to the training process: TypeError: cannot"
    )
    failure = explained(over(At(unheard), num_workers=1, timeout=1))
    assert failure.kind == "user-code"
    assert failure.message.startswith("Local: nobody hears this (raised for sample 40; no batch came for 1 s, because")


def test_only_the_same_exception_names_the_sample():
    """The sentence mentions a different exception without workers, and a workload that could not be made again."""
    loader = over(At(broken), num_workers=1)
    with pytest.raises(ValueError, match="header") as caught:
        list(loader)
    failed = explain(caught.value, loader, [BATCH], "measure")
    traceback.clear_frames(caught.value.__traceback__)
    other = settle(failed.failure, failed.doubt, Reloaded("raised", "sample 39", "ValueError: another header is broken"))
    assert other.message.endswith(
        "(raised for samples 38, 39, 40, 41; with 0 workers ValueError: another header is broken is raised for sample 39)"
    )
    unmade = settle(failed.failure, failed.doubt, Reloaded("unmade", error="FileExistsError: taken"))
    assert unmade.message.endswith(
        "(raised for samples 38, 39, 40, 41; loading could not be tried with 0 workers: FileExistsError: taken)"
    )


def test_a_batch_of_a_stream_that_cannot_be_pickled():
    """An iterable dataset has no indices: its first batch is tried."""
    failure = explained(DataLoader(Endless(), batch_size=4, num_workers=1, timeout=1, collate_fn=collate_with_lock), [])
    assert failure.kind == "unpicklable"


def test_what_cannot_be_sent_to_a_spawned_worker_is_named():
    """The member of the dataset, or the argument of the loader."""
    loader = over(Holds(lambda row: row), num_workers=1, multiprocessing_context="spawn")
    failure = explained(loader)
    assert failure.kind == "unpicklable"
    assert failure.message.startswith(
        "dataset.transform cannot be pickled, which multiprocessing_context spawn requires: "
    )
    loader = over(Rows(), num_workers=1, multiprocessing_context="spawn", collate_fn=lambda samples: samples)
    assert explained(loader).message.startswith("collate_fn cannot be pickled, ")


def silent(loader):
    """The doubt about a loader from which no batch came."""
    timed_out = RuntimeError("DataLoader timed out after 1 seconds")
    return explain(timed_out, loader, [BATCH], "measure").doubt


def test_pickling_a_batch_on_trial_takes_no_shared_memory():
    """The contents of tensors are left out, and what torch refuses to send is found."""
    before = len(os.listdir("/proc/self/fd"))
    loader = over(Rows())
    assert rerun(loader, silent(loader), print).outcome == "passed"
    needs_grad = over(Rows(), collate_fn=lambda samples: torch.ones(2, requires_grad=True) * 2)
    again = rerun(needs_grad, silent(needs_grad), print)
    assert (again.outcome, again.doing) == ("raised", "pickling")
    assert "non-leaf tensor" in again.error
    assert len(os.listdir("/proc/self/fd")) == before


def test_indices_of_any_kind_are_loaded_again():
    """A sampler may hand out what JSON has not: tuples stay tuples."""

    class Pairs(Dataset):
        def __getitem__(self, index):
            raise KeyError(index)

    loader = DataLoader(Pairs(), sampler=[("a", 1), ("b", 2)], batch_size=2)
    assert explained(loader, [[("a", 1), ("b", 2)]]).message == "KeyError: ('a', 1) (raised for sample ('a', 1); every time)"
