"""A trial sees the dataset as the user's program does: nothing is read before the fork, and a resource that may exist only once does."""

import atexit
import os
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import workloads
from census import TAG, eventually, tagged
from torch.utils.data import get_worker_info

from feedrate.trainables.config import LoaderConfig
from feedrate.trainables.failure import TrialFailed
from feedrate.trainables.loader.build_loader import build_loader
from feedrate.trainables.measuring import cached_batch
from feedrate.trainables.measuring.measure import measure
from feedrate.trainables.measuring.measure_options import MeasureOptions
from feedrate.trainables.protocol import Described, DescribeRequest, Failed, Measured, MeasureRequest, Progress
from feedrate.trainables.resolve import make_ref
from feedrate.trainables.sandbox import child_main
from feedrate.trainables.sandbox.template import Template

pytestmark = pytest.mark.usefixtures("tag")

MODULE = """
import atexit, os, sys, threading, time
from multiprocessing import shared_memory
import torch
from torch.utils.data import DataLoader, get_worker_info
sys.path.append({tests!r})
from workloads import AnsweredByThread, Rows, general, short

class OpenedOnFirstUse(Rows):
    '''What it opens cannot be used by another process than the one that opened it.'''
    opened_by = None
    def __getitem__(self, index):
        self.opened_by = self.opened_by or os.getpid()
        if self.opened_by != os.getpid():
            raise ValueError("opened by another process")
        return super().__getitem__(index)

class Named(Rows):
    '''A block of shared memory that exists once, and goes when the process ends.'''
    def __init__(self, hangs=False):
        super().__init__()
        self.block, self.hangs = shared_memory.SharedMemory(name={name!r}, create=True, size=16), hangs
        atexit.register(self.block.unlink)
        atexit.register(self.block.close)
    def __getitem__(self, index):
        if self.hangs and get_worker_info() is not None:
            time.sleep(1000)
        return super().__getitem__(index)

def opens(): return short(OpenedOnFirstUse())
def answers(): return short(AnsweredByThread)
def named(hangs=False):
    return general(lambda **overrides: DataLoader(Named(hangs), **({{"batch_size": 4, "num_workers": 2}} | overrides)), lambda batch: None)
atexit.register(lambda: open({ended!r}, "a").write("x"))
"""
REQUEST = MeasureRequest(config=LoaderConfig(num_workers=2, batch_size=4), options=MeasureOptions(max_trial_s=1.0))


@pytest.fixture
def block():
    """The name of a block of shared memory that is gone after the test."""
    name = f"frtest{os.getpid()}"
    yield name
    assert not Path("/dev/shm", name).exists()


@pytest.fixture
def made(tag, tmp_path, block):
    """Makes a template for a function of MODULE."""
    templates = []
    path = tmp_path / "own_train.py"
    path.write_text(MODULE.format(tests=str(Path(__file__).parents[2]), name=block, ended=str(tmp_path / "ended")))

    def make(function):
        templates.append(Template(make_ref(f"{path}:{function}"), environment={TAG: tag}))
        return templates[-1]

    yield make
    for template in templates:
        template.close()
    assert not tagged(tag)


def last(events):
    *_, event = events
    return event


def test_what_a_dataset_opens_on_first_use_is_opened_by_each_worker(made):
    """The cached batch is read elsewhere, so that no worker inherits what reading it opened; the ceiling is known all the same."""
    template = made("opens")
    for num_workers in (2, 0, 2):
        config = LoaderConfig(num_workers=num_workers, batch_size=4)
        event = last(template.run(replace(REQUEST, config=config)))
        assert isinstance(event, Measured), event
        assert event.columns["step_only_num_items"]


def test_reading_a_batch_leaves_this_process_alone(made, tmp_path):
    """Also where there is no template: the dataset object of a measurement in this process is not touched."""
    class Touched(workloads.Rows):
        touched_by = None

        def __getitem__(self, index):
            self.touched_by = os.getpid()
            return super().__getitem__(index)

    dataset = Touched()
    *_, measured = measure(workloads.short(dataset), LoaderConfig(num_workers=1, batch_size=4), MeasureOptions(max_trial_s=1.0))
    assert measured.step_only_num_items
    assert dataset.touched_by is None


def test_one_process_reads_for_all_trials_of_a_batch_size(tmp_path):
    """The batch is kept in a file: made whole or not at all, by the first trial."""
    class Counted(workloads.Rows):
        def __getitem__(self, index):
            with (tmp_path / "reads").open("a") as file:
                file.write("x")
            return super().__getitem__(index)

    workload, path = workloads.short(Counted()), tmp_path / "batch"
    for _ in range(2):
        cached = cached_batch.read_apart(lambda: workload, LoaderConfig(batch_size=4), seed=0, path=path)
        assert cached.batch[0].shape == (4, 4)
    assert (tmp_path / "reads").read_text() == "x" * 4
    assert cached.storage_sizes == (4 * 4 * 4, 4 * 8)


def test_a_batch_that_cannot_be_read_costs_only_the_ceiling(monkeypatch):
    """The trial goes on, and its record says why the step was not timed alone."""
    class InWorkersOnly(workloads.Rows):
        def __getitem__(self, index):
            if get_worker_info() is None:
                raise RuntimeError("no licence here")
            return super().__getitem__(index)

    config = LoaderConfig(num_workers=1, batch_size=4)
    *_, measured = measure(workloads.short(InWorkersOnly()), config, MeasureOptions(max_trial_s=1.0))
    assert measured.cached_batch_failure == "RuntimeError: no licence here"
    assert measured.step_only_num_items is None
    assert len(measured.windows)


def test_a_view_of_a_large_tensor_is_read_alone():
    """What else its storage holds is not copied, but counted, as workers hand it over."""
    class Views(workloads.Rows):
        data = torch.zeros(1_000_000)

        def __getitem__(self, index):
            return self.data[index : index + 2]

    workload = workloads.short(Views(), collate_fn=lambda samples: samples[0])
    cached = cached_batch.read_apart(lambda: workload, LoaderConfig(batch_size=1), seed=0)
    assert cached.batch.untyped_storage().nbytes() == 8
    assert cached.storage_sizes == (4_000_000,)


def test_a_thread_that_the_dataset_made_is_missed_in_workers_only(made):
    """Forked workers lack the thread and hang; without workers it is there, and the failure's sentence mentions it."""
    failure = last(made("answers").run(REQUEST, max_s=1.0)).failure
    assert failure.kind == "hang"
    assert failure.message.startswith("no batch came for 1 s")
    words = "loading succeeds with 0 workers: forked workers lack the thread answers, which was started before them"
    assert words in failure.message


@pytest.mark.parametrize("hangs", [False, True])
def test_what_may_exist_once_exists_once(made, block, hangs):
    """Describing, reading, measuring, failing and trying again each end with their exit functions: nobody finds the block there."""
    template = made("named")
    template.ref = make_ref(template.ref.target, {"hangs": hangs})
    described = last(template.run(DescribeRequest()))
    assert isinstance(described, Described), described
    for _ in range(2):
        event = last(template.run(REQUEST, max_s=1.0))
        assert isinstance(event, Failed if hangs else Measured), event
        assert not Path("/dev/shm", block).exists()
    if hangs:
        assert event.failure.kind == "hang"
        assert "loading succeeds with 0 workers" in event.failure.message
    else:
        events = template.run(replace(REQUEST, options=MeasureOptions(max_trial_s=30.0)))  # stopped early
        while not isinstance(next(events), Progress):
            pass
        events.close()
        assert not Path("/dev/shm", block).exists()


def test_a_kept_child_that_cannot_make_its_loader_again_is_replaced(made):
    """A child that is kept for the sake of its model makes the loader a second time; where that fails, a fresh one does."""
    template = made("named")
    template._environment[child_main.KEEP_VARIABLE] = "0"
    for _ in range(3):
        event = last(template.run(replace(REQUEST, keep=True)))
        assert isinstance(event, Measured), event


def test_a_second_making_in_one_process_is_said_to_be_one(block):
    """Where there is no other process to make the loader in, the sentence says what is different the second time."""
    scope: dict = {}
    source = MODULE.format(tests=str(Path(__file__).parents[2]), name=block, ended=os.devnull)
    exec(source, scope)  # noqa: S102 - our own
    workload = scope["named"]()
    config = LoaderConfig(num_workers=0, batch_size=4)
    loader = build_loader(workload, config, seed=0)
    try:
        with pytest.raises(TrialFailed, match=r"FileExistsError.* a second time in one process, although the first call worked"):
            build_loader(workload, config, seed=0)
    finally:
        dataset = loader.dataset
        atexit.unregister(dataset.block.close)
        atexit.unregister(dataset.block.unlink)
        dataset.block.close()
        dataset.block.unlink()


def test_exit_functions_of_the_module_run_once(made, tmp_path):
    """They belong to the template, which imported the module, and not to the trials that are forked from it."""
    template = made("opens")
    for _ in range(2):
        assert isinstance(last(template.run(DescribeRequest())), Described)
    assert template.clean
    assert not (tmp_path / "ended").exists()
    template.close()
    assert (tmp_path / "ended").read_text() == "x"


def test_a_file_that_the_module_opens_is_opened_by_each_trial(made, tmp_path):
    """Trials that are forked would read on where the last one stopped."""
    template = made("opens")
    with (tmp_path / "own_train.py").open("a") as module:
        module.write("\nLINES = open(__file__)\ndef first(): return short(Rows(), check=lambda: [LINES.readline()])\n")
    template.ref = make_ref(f"{tmp_path / 'own_train.py'}:first")
    notes = [last(template.run(DescribeRequest())).notes for _ in range(2)]
    assert notes[0] == notes[1] == ("\n",)
    assert not template.clean


def test_a_trial_whose_supervisor_is_killed_runs_its_exit_functions(made, block, tmp_path, tag):
    """The template notices, and lets the trial leave before it kills what is left."""
    made("named")
    script = f"""
from feedrate.trainables.config import LoaderConfig
from feedrate.trainables.measuring.measure_options import MeasureOptions
from feedrate.trainables.protocol import MeasureRequest
from feedrate.trainables.resolve import make_ref
from feedrate.trainables.sandbox.template import Template
request = MeasureRequest(config=LoaderConfig(num_workers=2, batch_size=4), options=MeasureOptions(max_trial_s=60.0))
for event in Template(make_ref({str(tmp_path / "own_train.py")!r} + ":named")).run(request):
    print(type(event).__name__, flush=True)
"""
    process = subprocess.Popen(
        [sys.executable, "-c", script], stdout=subprocess.PIPE, text=True, env={**os.environ, TAG: tag}
    )
    while process.stdout.readline().strip() != "Progress":
        assert process.poll() is None
    assert Path("/dev/shm", block).exists()
    process.send_signal(signal.SIGKILL)
    process.wait()
    process.stdout.close()
    assert eventually(lambda: not Path("/dev/shm", block).exists())
    assert eventually(lambda: not tagged(tag))
