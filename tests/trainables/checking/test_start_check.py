"""start_check.py: what cannot be pickled is named, and start methods are timed."""

import re
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
import torch
from workloads import Rows, short

from feedrate.trainables.checking import start_check
from feedrate.trainables.checking.check import check
from feedrate.trainables.checking.start_check import LARGE_BYTES, pickled_bytes, start_findings
from feedrate.trainables.config import LoaderConfig
from feedrate.trainables.probing.fresh_loader import FreshLoader


def test_what_cannot_be_pickled_is_named():
    """The innermost member, and that only fork is left; fork is timed."""
    dataset = Rows()
    dataset.options = {"transform": lambda row: row}
    report = check(short(dataset, collate_fn=lambda samples: samples), budget_s=15)
    findings = {finding["name"]: finding for finding in report.to_json()["findings"]}
    assert findings["pickling"]["level"] == "note"
    assert set(findings["pickling"]["evidence"]["problems"]) == {"dataset.options['transform']", "collate_fn"}
    startup = findings["start-up"]["evidence"]
    assert (set(startup["startup_s"]), set(startup["failures"])) == ({"fork"}, {"forkserver", "spawn"})


def started(workload, seconds_left=lambda: 60.0, **setting):
    """The findings, and the start methods that were left out."""
    with FreshLoader(lambda: workload, LoaderConfig(num_workers=2, batch_size=4, **setting)) as loader:
        return start_findings(loader, seconds_left)


TIMED = """
import sys
sys.path.append(sys.argv[1])
from test_start_check import Rows, short, started
for seconds_left in (60.0, 0.0):
    (pickling, startup), skipped = started(short(Rows()), lambda: seconds_left)
    assert (pickling.level, startup.level) == ("ok", "ok"), startup.sentence
    print(*startup.evidence["startup_s"], "without", *skipped)
"""


def test_each_start_method_is_timed():
    """Until the first batch of one worker, in seconds; what there is no time for is left out."""
    # in a process that has started no worker yet, as the one that checks
    command = [sys.executable, "-W", "ignore", "-c", TIMED, str(Path(__file__).parent)]
    done = subprocess.run(command, check=True, cwd=Path(__file__).parents[2], capture_output=True, text=True)
    assert done.stdout.splitlines() == ["fork forkserver spawn without", "without fork forkserver spawn"]


def test_a_start_method_that_cannot_work_is_an_error_where_it_is_the_users_own():
    """Otherwise it is only worth knowing."""
    dataset = Rows()
    dataset.transform = lambda row: row
    own, _ = started(short(dataset), multiprocessing_context="spawn")
    assert [finding.level for finding in own] == ["error", "error"]
    other, _ = started(short(dataset))
    assert [finding.level for finding in other] == ["note", "note"]


def locked(samples):
    return torch.stack([row for row, _ in samples]), threading.Lock()


def raises(samples):
    raise KeyError("label")


@pytest.mark.parametrize(
    ("collate_fn", "said"),
    [
        (locked, r"a batch cannot be pickled, .*cannot pickle '_thread.lock'"),
        (raises, r"KeyError: 'label' \(raised by collate_fn for .*with 0 workers too\)"),
    ],
    ids=["unpicklable", "raises"],
)
def test_a_loader_that_gives_no_batch_is_an_error(collate_fn, said, monkeypatch):
    """The batch that a worker cannot send, and a collate_fn that fails: named, whatever the samples are."""
    monkeypatch.setitem(start_check.BATCH_TIMEOUT_S, "fork", 3.0)
    (_, startup, loading), skipped = started(short(Rows(), collate_fn=collate_fn), once())
    assert skipped == ["forkserver", "spawn"]
    assert startup.level == "note"
    assert (loading.name, loading.level) == ("loading", "error")
    assert re.search(said, loading.sentence), loading.sentence


def once():
    """Time for pickling and one start method."""
    left = iter([60.0, 60.0, 0.0, 0.0])
    return lambda: next(left)


def test_the_size_of_a_pickle_counts_arrays_and_shares_tensors():
    """Nothing is kept in memory for it."""
    num_bytes, tensor_bytes = pickled_bytes({"array": np.zeros(1000), "tensor": torch.zeros(1000)})
    assert 8000 < num_bytes < 9000
    assert tensor_bytes == 4000
    dataset = Rows()
    dataset.table = np.zeros(LARGE_BYTES // 8 + 1)
    (pickling, _), _ = started(short(dataset), lambda: 0.0)
    assert pickling.level == "note"
    assert "pickles to 100 MB" in pickling.sentence


SEMAPHORES = """
import multiprocessing, os
from pathlib import Path
import sys
sys.path.append(sys.argv[1])
from test_start_check import Rows, short, started

mine = f"mp-check-{os.getpid()}"
multiprocessing.current_process()._config["semprefix"] = f"/{mine}"
started(short(Rows()))
print(*Path("/dev/shm").glob(f"sem.{mine}*"))
"""


def test_spawned_workers_leave_no_semaphore():
    """Their names are given back, so that nobody warns of them at the end; in a process that has started no worker yet."""
    command = [sys.executable, "-W", "ignore", "-c", SEMAPHORES, str(Path(__file__).parent)]
    done = subprocess.run(command, check=True, cwd=Path(__file__).parents[2], capture_output=True, text=True)
    assert done.stdout == "\n"
