"""protocol.py: every request and event is the same on both ends, an unknown one is refused, and one loop reads events."""

import dataclasses
import json

import pytest
from described_workloads import SCRIPT, SHORT

from feedrate.trainables import protocol
from feedrate.trainables.checking.quick_look import QuickLook
from feedrate.trainables.config import LoaderConfig
from feedrate.trainables.diagnose.reloaded import Reloaded
from feedrate.trainables.doubt import Doubt
from feedrate.trainables.failure import Failure
from feedrate.trainables.measuring.measure_options import MeasureOptions
from feedrate.trainables.protocol import (
    AccompanyRequest,
    Checked,
    Checking,
    CheckRequest,
    ChildTask,
    DescribeRequest,
    Failed,
    LoadedAgain,
    LoadingAgain,
    Measured,
    MeasureRequest,
    Phase,
    Progress,
    ProtocolError,
    RerunRequest,
    Silent,
    Stopped,
    Waiting,
    event_line,
    event_of,
    outcome,
    read,
)
from feedrate.trainables.resolve import WorkloadRef
from feedrate.trainables.sandbox.template import needs

REF = WorkloadRef(target="train.py:workload", options={"size": 3}, folder="/here", cwd="/here")
DOUBT = Doubt(about="silent", message="no batch came", batches="gA==", batch_size=4, num_workers=2, threads=("reader",))
MEASURE = MeasureRequest(
    config=LoaderConfig(num_workers=2, batch_size=None, trainer_cpus=1),
    options=MeasureOptions(max_trial_s=3.0, seed=7, amp="bf16", shares_host=True),
    command="feedrate search",
    allocated_cpus=4,
    gpus=(0, 2),
    wait_s=60.0,
    keep=True,
)
REQUESTS = [
    MEASURE,
    DescribeRequest(),
    AccompanyRequest(),
    CheckRequest(num_workers=3, budget_s=10.0),
    RerunRequest(doubt=DOUBT, failed=MEASURE),
]
EVENTS = [
    Phase(name="warm"),
    Waiting(why="another trial", without_lock=True),
    Silent(phase="setup", waits=False, silent_s=30.5),
    Progress(columns={"window_duration_s": [0.1, 0.2], "settled": False}),
    Checking(name="order"),
    LoadingAgain(doing="sample 17"),
    Measured(columns={"unit": "samples"}, kept=True),
    Stopped(kept=False),
    Checked(report={"findings": [], "changes_data": False}),
    LoadedAgain(again=Reloaded("raised", "sample 17", "KeyError: 3", reportable=False)),
    Failed(failure=Failure(kind="hang", phase="loader", message="it hangs", cause=("A", "B"), stacks="here"), doubt=DOUBT),
    Failed(failure=Failure(kind="user-code", phase="setup", message="no data", traceback="Traceback ..."), usage=True, raised=True),
    SHORT,
    dataclasses.replace(
        SHORT,
        is_short=False,
        baseline=LoaderConfig(num_workers=2, batch_size=8),
        fixed=("batch_size",),
        notes=("a note",),
        data=QuickLook(max_num_workers=1, reason="they repeat"),
        script=SCRIPT,
        kept=True,
    ),
]


def task(request, **more):
    return ChildTask(request=request, workload=REF, lock_wait_s=600.0, **more)


def events(*given):
    """A generator of events, which remembers whether it was closed before its end."""

    def generate():
        yield from given

    return generate()


@pytest.mark.parametrize("request_", REQUESTS, ids=lambda request: type(request).__name__)
def test_a_request_arrives_as_it_was_sent(request_):
    line = task(request_).line()
    assert line.count(b"\n") == 1 and line.endswith(b"\n")
    assert ChildTask.from_line(line) == task(request_)


@pytest.mark.parametrize("event", EVENTS, ids=lambda event: type(event).__name__)
def test_an_event_arrives_as_it_was_sent(event):
    line = event_line(event)
    assert line.count(b"\n") == 1 and line.endswith(b"\n")
    assert event_of(line) == event


def test_every_request_and_event_is_among_these():
    assert {type(event) for event in EVENTS} == set(protocol._EVENTS.values()) == set(protocol.Event.__args__)
    assert {type(request) for request in REQUESTS} == set(protocol._REQUESTS.values()) == set(protocol.Request.__args__)


def test_an_unknown_kind_is_refused_by_name():
    """Instead of an event that no reader knows, which would be passed over."""
    with pytest.raises(ProtocolError, match="'progess' is not one of phase, waiting, "):
        event_of(b'{"event": "progess", "columns": {}}\n')
    with pytest.raises(ProtocolError, match="None is not one of phase"):
        event_of(b'{"columns": {}}\n')
    line = json.dumps(json.loads(task(DescribeRequest()).line()) | {"op": "train"}).encode()
    with pytest.raises(ProtocolError, match="'train' is not one of measure, describe, accompany, check, rerun"):
        ChildTask.from_line(line)


def test_a_field_that_is_missing_or_too_many_is_refused():
    for line in (b'{"event": "silent", "phase": "setup"}\n', b'{"event": "phase", "name": "setup", "phase": "setup"}\n'):
        with pytest.raises(TypeError):
            event_of(line)


def test_events_are_read_to_their_end():
    """News go to the caller; the last event is the answer, and closes the events."""
    news, given = [], events(Phase(name="setup"), Phase(name="warm"), Stopped(kept=False), Phase(name="never"))
    assert read(given, news.append) == Stopped(kept=False)
    assert news == [Phase(name="setup"), Phase(name="warm")]
    assert next(given, None) is None


def test_reading_may_pause_and_goes_on_after_the_event():
    given = events(Phase(name="setup"), Waiting(why="a"), Phase(name="warm"), Measured(columns={}))
    waits = lambda event: isinstance(event, Waiting)  # noqa: E731
    assert read(given, waits) == Waiting(why="a")
    assert read(given, waits) == Measured(columns={})


def test_events_without_an_end_are_a_defect():
    with pytest.raises(ProtocolError, match="ended without a last one"):
        outcome(events(Phase(name="setup")), Measured)
    with pytest.raises(ProtocolError, match="a request for Measured ended with Checked"):
        outcome(events(Checked(report={})), Measured)


def test_an_outcome_is_what_was_asked_for_or_a_failure():
    failed = Failed(failure=Failure(kind="internal", phase="setup", message="m"))
    assert outcome(events(failed), Measured) == failed
    assert outcome(events(Checking(name="order"), Checked(report={})), Checked) == Checked(report={})


@pytest.mark.parametrize(
    ("config", "options", "is_served"),
    [
        ({"num_workers": 8, "prefetch_factor": 4}, {"seed": 8, "max_trial_s": 9.0}, True),
        ({"batch_size": 4}, {}, False),
        ({"trainer_cpus": 2}, {}, False),
        ({"sharing_strategy": "file_system"}, {}, False),
        ({}, {"amp": None}, False),
        ({}, {"compile": True}, False),
        ({}, {"device": "cpu"}, False),
        ({}, {"loader_only": True}, False),
        ({}, {"cold": True}, False),
    ],
)
def test_a_kept_child_serves_settings_that_need_its_step(config, options, is_served):
    """What changes neither model nor step nor batch may differ."""
    other = dataclasses.replace(
        MEASURE,
        config=dataclasses.replace(MEASURE.config, **config),
        options=dataclasses.replace(MEASURE.options, **options),
    )
    assert (needs(task(MEASURE)) == needs(task(other))) == is_served


def test_another_workload_needs_another_step():
    other = dataclasses.replace(task(MEASURE), workload=dataclasses.replace(REF, options={"size": 4}))
    assert needs(other) != needs(task(MEASURE))


def test_a_rerun_knows_the_trial_that_it_explains():
    """Its memory guard and its failures name the setting, and its child is not kept."""
    rerun = task(RerunRequest(doubt=DOUBT, failed=MEASURE))
    assert (rerun.config, rerun.keep) == (MEASURE.config, False)
    assert (task(DescribeRequest()).config, task(DescribeRequest()).keep) == (None, False)
    assert task(MEASURE).keep


def test_the_child_of_a_training_command_serves_any_setting_of_the_process():
    """The script's own loop is the step, and making it anew would run the script from its beginning."""
    command = dataclasses.replace(REF, command=("python", "train.py"))

    def script(request):
        return dataclasses.replace(task(request), workload=command)

    plain = MeasureRequest(config=LoaderConfig(num_workers=2, batch_size=8), options=MeasureOptions(seed=7))
    other = dataclasses.replace(plain, config=LoaderConfig(num_workers=4, batch_size=16))
    assert script(plain).keep and script(DescribeRequest()).keep
    assert needs(script(DescribeRequest())) == needs(script(plain)) == needs(script(other))
    assert needs(script(MEASURE)) != needs(script(plain))  # it keeps a CPU for the training process
    assert needs(task(DescribeRequest())) is None
