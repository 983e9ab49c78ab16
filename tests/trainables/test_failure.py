"""failure.py: real errors of real loaders become a kind, a sentence and the user's traceback."""

import errno
import faulthandler
import multiprocessing
import os
import runpy
import signal
import time
import traceback

import pytest
import torch
from census import OURS
from torch.utils.data import DataLoader
from workloads import InWorker, Rows, short

from feedrate.trainables.config import LoaderConfig
from feedrate.trainables.failure import (
    INFEASIBLE,
    KINDS,
    Failure,
    TrialFailed,
    classify,
    ended_workers,
    sentence,
    user_traceback,
)
from feedrate.trainables.measuring.measure import measure
from feedrate.trainables.measuring.measure_options import MeasureOptions
from feedrate.trainables.resolve import WorkloadRef, load

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*use of fork:DeprecationWarning"),
    # the worker that was killed is reported once more while its loader is taken apart
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]


def broken_row(index):
    raise ValueError(f"sample {index} is broken\nits header says 0 bytes")


class Broken(Rows):
    def __getitem__(self, index):
        return super().__getitem__(index) if index != 5 else broken_row(index)


def broken_collate(samples):
    raise KeyError("label")


def broken_init(worker):
    raise RuntimeError("no GPU in a worker")


def failure_of(loader):
    """What becomes of the error that this loader raises."""
    try:
        list(loader)
    except Exception as error:
        failure = classify(error, "measure")
        # a circle that holds the loader: collected as such, its workers take 5 s each to end
        traceback.clear_frames(error.__traceback__)
        return failure
    pytest.fail("the loader works")


def killed_by(act, num_workers=1):
    return failure_of(DataLoader(InWorker(act), batch_size=4, num_workers=num_workers))


@pytest.mark.parametrize(
    ("dataset", "more", "message", "where"),
    [
        (Broken(), {"num_workers": 0}, "ValueError: sample 5 is broken", "in broken_row"),
        (Broken(), {"num_workers": 2}, "ValueError: sample 5 is broken", "in broken_row"),
        (Rows(), {"num_workers": 0, "collate_fn": broken_collate}, "KeyError: 'label'", "in broken_collate"),
        (Rows(), {"num_workers": 2, "collate_fn": broken_collate}, "KeyError: 'label'", "in broken_collate"),
        (
            Rows(),
            {"num_workers": 2, "worker_init_fn": broken_init},
            "RuntimeError: no GPU in a worker",
            "in broken_init",
        ),
    ],
)
def test_an_exception_of_the_users_is_one_sentence_with_their_traceback(dataset, more, message, where):
    """Dataset, collate_fn and worker_init_fn that raise give type and first line, and the traceback leads to the line."""
    failure = failure_of(DataLoader(dataset, batch_size=4, **more))
    assert (failure.kind, failure.phase, failure.message) == ("user-code", "measure", message)
    assert where in failure.traceback
    assert failure.cause == (message,)


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSEGV, signal.SIGABRT])
def test_a_killed_worker_is_told_with_the_signal(number):
    """A loader worker that a signal ended is named as such, with the signal's name."""

    def act():
        faulthandler.disable()  # pytest's own, which would print every frame
        os.kill(os.getpid(), number)

    failure = killed_by(act)
    assert failure.kind == "worker-killed"
    assert failure.message.startswith(f"a loader worker was killed by {number.name}")
    assert ("memory" in failure.message) == (number == signal.SIGKILL)


def test_a_worker_that_leaves_is_told_apart():
    """A worker that calls os._exit was not killed by a signal, and the sentence says what to look for."""
    failure = killed_by(lambda: os._exit(3))
    assert failure.kind == "worker-killed"
    assert "ended by itself, without an exception (exit status 3): look for os._exit" in failure.message


def test_a_worker_killed_by_a_full_shm_does_not_fit():
    """SIGBUS of a worker means that /dev/shm is too small, and that smaller settings may work."""
    failure = killed_by(lambda: os.kill(os.getpid(), signal.SIGBUS))
    assert failure.kind == "shm-full"
    assert failure.kind in INFEASIBLE
    assert "--shm-size" in failure.message


def test_a_worker_without_memory_does_not_fit():
    """A MemoryError in a worker is the machine's, not the user's."""

    def act():
        raise MemoryError

    assert killed_by(act).kind == "out-of-memory"


def test_torchs_own_words_for_no_memory_are_known():
    """An allocation that torch refuses is a lack of memory too."""
    with pytest.raises(RuntimeError) as raised:
        torch.empty(1 << 50)
    assert classify(raised.value, "setup").kind == "out-of-memory"


def test_too_many_open_files_do_not_fit():
    """The message for EMFILE says what to do."""
    failure = classify(OSError(errno.EMFILE, "Too many open files"), "loader")
    assert failure.kind == "too-many-files"
    assert "ulimit -n" in failure.message


def test_a_loader_that_times_out_hangs():
    """The timeout of the user's loader is a hang."""
    loader = DataLoader(InWorker(lambda: time.sleep(3)), batch_size=1, num_workers=1, timeout=1)
    assert failure_of(loader).kind == "hang"


@pytest.mark.filterwarnings("ignore:Got pickle error")
def test_what_cannot_be_sent_to_a_spawned_worker_is_a_kind_of_its_own():
    """The message for a lambda that spawned workers need has pickle's first line and says what to do."""
    loader = DataLoader(Rows(), collate_fn=lambda samples: samples, num_workers=1, multiprocessing_context="spawn")
    failure = failure_of(loader)
    assert failure.kind == "unpicklable"
    assert "<lambda>" in failure.message
    assert "use multiprocessing_context fork" in failure.message
    assert "\n" not in failure.message


def test_tensors_lost_with_their_worker_are_told_by_how_it_ended(tmp_path):
    """A worker that ends hands no tensors over any more: the connection's error is not the reason."""
    path = tmp_path / "torch" / "multiprocessing" / "reductions.py"
    path.parent.mkdir(parents=True)
    path.write_text("def rebuild_storage_fd():\n    raise ConnectionResetError(104, 'reset by peer')\n")
    worker = multiprocessing.get_context("fork").Process(target=os._exit, args=(3,))
    worker.start()
    with pytest.raises(ConnectionResetError) as caught:
        runpy.run_path(str(path))["rebuild_storage_fd"]()
    failure = classify(caught.value, "measure")
    assert (failure.kind, ended_workers()) == ("worker-killed", [(worker.pid, 3)])
    assert "ended by itself" in failure.message
    worker.join()


def test_a_batch_too_large_is_named():
    """Where memory runs out, on the accelerator in any of its libraries too, the batch size is in the sentence."""
    for error in (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling cublasCreate"), MemoryError()):
        failure = classify(error, "warm", batch_size=512)
        assert failure.kind in INFEASIBLE
        assert failure.message.endswith("(batch_size was 512)")
    assert "batch_size" not in classify(ValueError("no"), "warm", batch_size=512).message


def test_the_users_traceback_starts_at_their_frame():
    """What feedrate's own frames did before the user's code was called is left out."""
    with pytest.raises(TrialFailed, match="sample 5") as raised:
        list(measure(short(Broken()), LoaderConfig(batch_size=8), MeasureOptions(measure_step=False)))
    assert "trainables/measuring/measure.py" in "".join(str(entry.path) for entry in raised.traceback)
    text = raised.value.failure.traceback
    assert text.splitlines()[0] == "Traceback (most recent call last):"
    assert "in broken_row" in text
    assert OURS not in text


def test_an_error_of_the_users_function_starts_in_it(tmp_path):
    """A function that cannot make the workload gives a traceback of its own lines alone."""
    path = tmp_path / "mine.py"
    path.write_text("def helper():\n    1 / 0\n\ndef workload():\n    return helper()\n")
    with pytest.raises(ZeroDivisionError) as raised:
        load(WorkloadRef(target=f"{path}:workload"))
    lines = user_traceback(raised.value.with_traceback(raised.traceback[1]._rawentry)).splitlines()
    assert f'  File "{path}", line 5, in workload' == lines[1]
    assert lines[-1] == "ZeroDivisionError: division by zero"


def test_the_chain_of_causes_is_kept():
    """Each error that led to the last one is a sentence; a circle of them ends."""

    def start():
        try:
            open("/nowhere/at/all")  # noqa: SIM115
        except OSError as error:
            raise RuntimeError("cannot start") from error

    with pytest.raises(RuntimeError) as raised:
        start()
    failure = classify(raised.value, "setup")
    assert failure.cause == (
        "RuntimeError: cannot start",
        "FileNotFoundError: [Errno 2] No such file or directory: '/nowhere/at/all'",
    )
    raised.value.__cause__.__cause__ = raised.value
    assert classify(raised.value, "setup").cause == failure.cause


def test_an_error_without_words_is_its_type():
    """Nothing is shown as an empty sentence."""
    assert sentence(AssertionError()) == "AssertionError"
    assert classify(SystemExit(3), "setup").message == "SystemExit: 3"


def test_a_known_failure_stays_what_it_is():
    """`TrialFailed` carries its failure through, and the failure fills the columns of a record."""
    failure = Failure(kind="override-ignored", phase="loader", message="make_loader ignored it")
    assert classify(TrialFailed(failure), "measure") is failure
    assert failure.columns() == {
        "failure_kind": "override-ignored",
        "failure_phase": "loader",
        "failure_message": "make_loader ignored it",
        "failure_cause": [],
        "failure_traceback": None,
        "failure_stacks": None,
    }
    assert set(INFEASIBLE) < set(KINDS)
