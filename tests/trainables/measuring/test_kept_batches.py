"""kept_batches.py: distinguishes a step that keeps its batches from a limit that is too low."""

import gc
import resource

import pytest
import torch
from torch.utils.data import DataLoader
from workloads import Rows, general

from feedrate.trainables.config import LoaderConfig
from feedrate.trainables.failure import Failure, TrialFailed
from feedrate.trainables.isolation.isolated import isolated
from feedrate.trainables.measuring.kept_batches import KeptBatches
from feedrate.trainables.measuring.measure import measure
from feedrate.trainables.measuring.measure_options import MeasureOptions

pytestmark = pytest.mark.filterwarnings("ignore:This DataLoader will create", "ignore:.*use of fork:DeprecationWarning")
LOW = Failure(kind="too-many-files", phase="measure", message="the limit of open files is too low")


def trial(step, limit):
    """The failure of a trial in a process with this limit of open files."""

    def act():
        resource.setrlimit(resource.RLIMIT_NOFILE, (limit, resource.getrlimit(resource.RLIMIT_NOFILE)[1]))
        workload = general(lambda **overrides: DataLoader(Rows(100_000), **overrides), step)
        setting = LoaderConfig(batch_size=2, num_workers=2)
        try:
            for _ in measure(workload, setting, MeasureOptions(max_trial_s=20.0, measure_step=False)):
                pass
        except TrialFailed as error:
            return error.failure.kind, error.failure.message
        return None

    def act_and_let_go():
        told = act()
        gc.collect()  # the failure's traceback holds the loader, whose queues are waited for otherwise
        return told

    return isolated(act_and_let_go, 120.0)


def test_a_step_that_keeps_its_batches_is_told_so():
    """Not that the limit is too low: it would be with any limit."""
    kept = []
    kind, message = trial(kept.append, 200)
    assert kind == "too-many-files"
    assert "of them still use open files" in message
    assert "the step keeps the batches that it was given" in message


def test_a_limit_that_is_too_low_stays_one():
    """The message stays as it is if only batches in flight hold files, and for other kinds of failure."""
    loader = DataLoader(Rows(), batch_size=2, num_workers=2)
    held = KeptBatches(loader, [torch.zeros(2), torch.zeros(2)])
    assert held.explain(LOW, 100) == LOW
    other = Failure(kind="hang", phase="measure", message="no batch came")
    files = [open("/dev/null") for _ in range(60)]  # noqa: SIM115 - as a step that keeps 30 batches
    assert held.explain(other, 100) == other
    assert "after 100 batches, about 30 of them still use open files, although at most 5 can be in flight" in held.explain(LOW, 100).message
    for file in files:
        file.close()
