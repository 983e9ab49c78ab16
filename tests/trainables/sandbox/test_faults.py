"""Every fault of a workload ends in bounded time with its cause, leaves nothing behind, and the next trial runs."""

import os
import re
import subprocess
import sys
from dataclasses import dataclass, field

import pytest
from census import OURS, TAG, files, leaves_nothing, tagged
from fault_workloads import PATH

from feedrate.analysis.estimate import record_rate
from feedrate.trainables.config import LoaderConfig
from feedrate.trainables.failure import KINDS
from feedrate.trainables.machine import memory_guard
from feedrate.trainables.measuring.measure_options import MeasureOptions
from feedrate.trainables.protocol import Failed, Measured, MeasureRequest, event_of
from feedrate.trainables.resolve import make_ref
from feedrate.trainables.sandbox import hang_detector
from feedrate.trainables.sandbox.template import Template


@dataclass(frozen=True)
class Fault:
    """One row of the matrix."""

    name: str
    kind: str
    phase: str
    """Pattern."""
    said: str
    """Pattern of the sentence."""
    stacks: str = ""
    """Pattern of the processes' stacks, where there have to be some."""
    setting: dict = field(default_factory=dict)
    options: dict = field(default_factory=dict)
    grace_s: float = 3.0
    """Of the supervisor; longer where the trial itself is to find out."""


TRAINER = r"^trainer \(pid \d+\):(\n  .*)*, "
SHORT = {"max_trial_s": 1.0}
WAITED = r"[^(]*(\(the loader waited for sample|$)"  # it may be known before any batch is waited for
PICKLE = r"^a batch cannot be pickled, .*TypeError: cannot pickle '_thread.lock'"
FAULTS = [
    # the user's own exceptions: the traceback, the sample, and whether it needs a worker
    Fault(
        "in_getitem",
        "user-code",
        "loader|measure",
        r"^ValueError: the header is broken \(raised for sample \d\d; with 0 workers too\)$",
    ),
    Fault(
        "in_getitem",
        "user-code",
        "loader|measure",
        r"^ValueError: the header is broken \(raised for sample \d\d; every time\)$",
        setting={"num_workers": 0},
    ),
    Fault(
        "in_getitem_of_worker",
        "user-code",
        "loader|measure",
        r"^ValueError: the header is broken \(raised for samples .*; loading succeeds with 0 workers: ",
    ),
    Fault("in_getitems", "user-code", "loader|measure", r"\(raised for samples .*; with 0 workers too\)$"),
    Fault(
        "in_collate",
        "user-code",
        "loader|measure",
        r"^KeyError: 'label' \(raised by collate_fn for samples .*; with 0 workers too\)$",
    ),
    Fault("in_worker_init", "user-code", "loader|measure", r"^RuntimeError: no licence .*\(raised by worker_init_fn"),
    Fault("in_making_the_model", "user-code", "setup", r"^FileNotFoundError: weights.pt$"),
    Fault("in_model", "user-code", "warm", r"^RuntimeError: shape '\[-1, 5\]' is invalid"),
    Fault("in_loss", "user-code", "warm", r"^IndexError: Target 7 is out of bounds.$"),
    # loader workers that end
    Fault(
        "kills_worker", "worker-killed", "loader|measure", r"a loader worker was killed by SIGKILL: the kernel" + WAITED
    ),
    Fault("crashes", "worker-killed", "loader|measure", r"a loader worker was killed by SIGSEGV" + WAITED),
    Fault("worker_exits", "worker-killed", "loader|measure", r"ended by itself.*os\._exit[^(]*" + WAITED),
    Fault("no_memory", "out-of-memory", "loader|measure", r"memory was exhausted: .* \(batch_size was 4\)"),
    # hangs, with the stack of every process
    Fault(
        "hangs_in_getitem",
        "hang",
        "loader|measure",
        r"^no batch came for 1 s: (loader worker \d hangs|2 loader workers hang, one of them) in sleep \(fault_workloads.py:\d+\); sample \d\d hangs with 0 workers too",
        stacks="^loader worker \\d \\(pid \\d+\\):(\n  .*)*, in At.__getitem__\n",
        options=SHORT,
        grace_s=20.0,
    ),
    Fault(
        "hangs_in_worker_init",
        "hang",
        "loader|measure",
        r"^no batch came for 1 s: loader worker \d hangs as it starts, in worker_init_fn in sleep",
        stacks="^loader worker \\d \\(pid \\d+\\):(\n  .*)*, in init\n",
        options=SHORT,
        grace_s=20.0,
    ),
    Fault(
        "hangs_in_iter",
        "hang",
        "loader",
        r"^iter\(loader\) hangs in sleep",
        stacks=TRAINER + "in Stuck.__iter__",
        options=SHORT,
    ),
    Fault(
        "deadlocks_in_step",
        "hang",
        "loader|measure",
        r"^the training step hangs in step \(",
        stacks=TRAINER + "in step",
        options=SHORT,
    ),
    # what cannot go from one process to another
    Fault("batch_cannot_be_pickled", "unpicklable", "loader|measure", PICKLE, options=SHORT, grace_s=20.0),
    Fault("stream_cannot_be_pickled", "unpicklable", "loader|measure", PICKLE, options=SHORT, grace_s=20.0),
    Fault(
        "dataset_cannot_be_pickled",
        "unpicklable",
        "loader|measure",
        r"cannot be pickled.*lambda.*use .*fork",
        setting={"multiprocessing_context": "spawn"},
    ),
    # limits of the machine
    Fault(
        "too_many_files",
        "too-many-files",
        "loader|measure",
        r"ulimit -n",
        setting={"prefetch_factor": 8},
        options=SHORT,
        grace_s=20.0,
    ),
    Fault(
        "grows",
        "out-of-memory",
        "loader|measure",
        r"the trial took [\d.]+ [MG]B of memory, more than the 600 MB .*: use fewer workers",
        options={"max_trial_s": 20.0},
    ),
]
HARMLESS = [
    "prints",
    "forks",
    "changes_start_method",
    "handles_signals",
    "starts_threads",
    "nan",
    "hangs_in_teardown",
    "dies_in_teardown",
]


@pytest.fixture(scope="module", autouse=True)
def tag(tmp_path_factory):
    """Marks what this module starts; at its end nothing of it is left, in /dev/shm and /tmp neither."""
    with leaves_nothing(tmp_path_factory, left) as name, pytest.MonkeyPatch.context() as patch:
        patch.setattr(hang_detector, "TEARDOWN_TIMEOUT_S", 1.0)
        yield name


def left(folder):
    """What is in shared memory and in the temporary folder.

    torch looks for free file descriptors with named temporary files when a worker has died (dataloader.py, "close to
    the FDs limit"), and its own signal handler may raise in the middle of that: such an empty file is not ours to find.
    """
    return {path for path in files(folder) if not (path.name.startswith("tmp") and path.is_file())}


@pytest.fixture(scope="module")
def template(tag):
    """One template for all faults."""
    made = Template(make_ref(f"{PATH}:in_getitem"), environment={TAG: tag})
    yield made
    made.close()


def measured(template, name, setting=None, options=None):
    """The last event of a trial, and what is left of it is nothing."""
    before = files()
    template.ref = make_ref(f"{PATH}:{name}")
    measure_options = MeasureOptions(**{"max_trial_s": 10.0, "measure_step": False} | (options or {}))
    config = LoaderConfig(**{"num_workers": 2, "batch_size": 4} | (setting or {}))
    *_, event = template.run(MeasureRequest(config=config, options=measure_options), max_s=measure_options.max_trial_s)
    tag = os.environ["FEEDRATE_HOST_ID"].removeprefix("test-")
    assert not tagged(tag) - {template._process.pid} - template._channel.spare
    assert not {path for path in files() - before if path.name.startswith("torch_")}
    return event


@pytest.mark.parametrize(
    "fault", FAULTS, ids=lambda fault: f"{fault.name}-{'-'.join(map(str, fault.setting.values()))}"
)
def test_a_fault_is_told_and_over(template, monkeypatch, fault):
    """The failure has its kind, phase, sentence and cause, in bounded time; then a sound trial runs."""
    if fault.name == "grows":
        monkeypatch.setenv(memory_guard.TRIAL_VARIABLE, "600000000")
    monkeypatch.setattr(hang_detector, "GRACE_S", fault.grace_s)
    event = measured(template, fault.name, fault.setting, fault.options)
    assert isinstance(event, Failed), event
    failure = event.failure
    assert fault.kind in KINDS
    told = (failure.kind, failure.message, failure.stacks)
    assert failure.kind == fault.kind, told
    assert re.fullmatch(fault.phase, failure.phase)
    assert re.search(fault.said, failure.message, re.DOTALL), failure.message
    if fault.kind == "user-code":
        assert OURS not in failure.traceback
        assert failure.cause
    if fault.kind == "hang":
        assert re.search(fault.stacks, failure.stacks or "", re.MULTILINE), failure.stacks
    monkeypatch.delenv(memory_guard.TRIAL_VARIABLE, raising=False)
    sound = measured(template, "nan", options={"max_trial_s": 2.0})
    assert isinstance(sound, Measured), sound


@pytest.mark.parametrize("name", [pytest.param(name, marks=pytest.mark.slow) if name == "changes_start_method" else name for name in HARMLESS])
def test_bad_manners_do_no_harm(template, name):
    """Printing, forking, handlers, another start method, threads, a NaN loss, an end that hangs: there is a number."""
    result = measured(template, name, options={"max_trial_s": 30.0 if name == "changes_start_method" else 3.0})
    assert isinstance(result, Measured), result
    assert record_rate(result.columns).sps > 0
    assert result.columns.get("loss_is_finite", name != "nan") in (name != "nan", None)


IN_SMALL_SHM = """
import sys
from feedrate.trainables.config import LoaderConfig
from feedrate.trainables.measuring.measure_options import MeasureOptions
from feedrate.trainables.protocol import MeasureRequest, event_line
from feedrate.trainables.resolve import make_ref
from feedrate.trainables.sandbox.template import Template
template = Template(make_ref(sys.argv[1]))
config, options = LoaderConfig(num_workers=2, batch_size=4), MeasureOptions(max_trial_s=10.0, measure_step=False)
*_, event = template.run(MeasureRequest(config=config, options=options), max_s=10.0)
template.close()
print(event_line(event).decode())
"""


@pytest.mark.slow
def test_a_full_shm_is_told(tag):
    """In a container whose /dev/shm holds 24 MB, batches that grow larger end as a failure with the way out."""
    mounted = "mount -t tmpfs -o size=24m tmpfs /dev/shm && "
    command = ["unshare", "--mount", "sh", "-c", f'{mounted} exec "$@"', "sh"]
    if subprocess.run([*command, "true"], check=False, capture_output=True).returncode:
        pytest.skip("mounting needs root: run as root to fill /dev/shm")
    run = subprocess.run(
        [*command, sys.executable, "-c", IN_SMALL_SHM, f"{PATH}:shm_full"],
        check=False,
        capture_output=True,
        text=True,
        env=os.environ | {TAG: tag},
        timeout=120,
    )
    event = event_of(run.stdout.strip().splitlines()[-1].encode())
    assert isinstance(event, Failed), event
    failure = event.failure
    assert failure.kind == "shm-full", (failure.message, failure.traceback)
    assert "--shm-size" in failure.message


def test_a_limit_that_is_no_number_is_refused(template, monkeypatch):
    """The guard's variable is named; nothing was started for it, and the next trial runs."""
    monkeypatch.setenv(memory_guard.LIMIT_VARIABLE, "2G")
    failure = measured(template, "nan").failure
    assert "FEEDRATE_MIN_AVAILABLE_BYTES must be a number of bytes" in failure.message
    monkeypatch.delenv(memory_guard.LIMIT_VARIABLE)
    assert isinstance(measured(template, "nan", options={"max_trial_s": 2.0}), Measured)
