"""template.py: every trial in a clean child process ends with an event and leaves nothing behind, whatever happens."""

import dataclasses
import json
import os
import re
import signal
import subprocess
import sys

import pytest
from census import OURS, TAG, eventually, files, tagged
from workloads import PATH

from feedrate.analysis.estimate import record_rate
from feedrate.analysis.schema import COLUMNS
from feedrate.trainables.config import LoaderConfig
from feedrate.trainables.machine.host_lock import HostLock
from feedrate.trainables.measuring.measure_options import MeasureOptions
from feedrate.trainables.protocol import (
    Described,
    DescribeRequest,
    Failed,
    Measured,
    MeasureRequest,
    Phase,
    Progress,
    Waiting,
)
from feedrate.trainables.resolve import make_ref
from feedrate.trainables.sandbox import hang_detector
from feedrate.trainables.sandbox.template import Template

pytestmark = pytest.mark.usefixtures("tag")

SETTING = {"num_workers": 2, "batch_size": 4}


@pytest.fixture(scope="module")
def template(tag):
    """One template for all; what ends it is followed by a new one."""
    made = Template(make_ref(f"{PATH}:rows"), environment={TAG: tag})
    yield made
    made.close()


@pytest.fixture(autouse=True)
def nothing_is_left(request, tag):
    """After each test the template is alone, if it lives: no child, no loader worker, no file of theirs."""
    yield
    if "template" in request.fixturenames:
        made = request.getfixturevalue("template")
        own = {made._process.pid} | made._channel.spare if made._process is not None else set()
        assert eventually(lambda: not tagged(tag) - own), tagged(tag) - own


def run(template, name, op="describe", *, max_s=30.0, options=None, setting=SETTING, **workload_options):
    """The events of one request, lazily."""
    template.ref = make_ref(f"{PATH}:{name}", workload_options)
    request = DescribeRequest()
    if op == "measure":
        measured = MeasureOptions(**{"max_trial_s": 1.0, "measure_step": False} | (options or {}))
        request = MeasureRequest(config=LoaderConfig(**setting), options=measured)
    return template.run(request, max_s=max_s)


def last(events):
    *_, event = events
    return event


def last_failure(events):
    """The failure with which a request ends."""
    event = last(events)
    assert isinstance(event, Failed), event
    return event.failure


def facts(template):
    return json.loads(last(run(template, "facts")).notes[0])


def until_phase(events, phase):
    """Read events up to the beginning of a phase."""
    for event in events:
        assert not isinstance(event, Failed), event.failure.message
        if event == Phase(name=phase):
            return
    pytest.fail(f"no phase {phase}")


def test_a_workload_is_described(template):
    """The description of a short workload has no baseline of its own; that of a general one is its loader's."""
    described = last(run(template, "rows", num_rows=7))
    assert isinstance(described, Described)
    assert (described.name, described.unit, described.epoch_samples) == ("rows", "samples", 7)
    assert (described.is_short, described.iterable, described.baseline) == (True, False, None)
    assert (described.fixed, described.notes) == ((), ())
    assert described.facts.nice == os.nice(0)
    baseline = last(run(template, "mine")).baseline
    assert (baseline.num_workers, baseline.batch_size, baseline.prefetch_factor) == (2, 4, 3)


def test_a_setting_is_measured(template):
    """Phases in order, growing progress, then the result with all columns and where it was measured."""
    events = list(run(template, "rows", "measure", sleep_s=0.001))
    assert [event.name for event in events if isinstance(event, Phase)] == [
        "setup",
        "setup",
        "warm",
        "loader",
        "measure",
        "teardown",
    ]
    progress = [event.columns for event in events if isinstance(event, Progress)]
    sizes = [len(columns["window_duration_s"]) for columns in progress]
    assert sizes == sorted(sizes)
    assert isinstance(events[-1], Measured)
    columns = events[-1].columns
    assert {**columns, **progress[-1]} == columns
    assert columns.keys() <= {column.name for column in COLUMNS}
    assert record_rate(columns).sps > 0
    assert columns["host_id"] == os.environ["FEEDRATE_HOST_ID"]


def test_a_trial_runs_as_the_users_own_program_would(template, tmp_path):
    """Main thread of a process that may have children, Python's start method, our niceness, the folder it was asked in."""
    found = facts(template)
    assert found["main_thread"] and found["num_threads"] == 1
    assert not found["daemon"]
    assert found["start_method"] == "fork" if sys.version_info < (3, 14) else "forkserver"
    assert found["nice"] == os.nice(0)
    assert found["sigint_is_default"] and found["leads_its_group"]
    assert found["cwd"] == os.getcwd()
    assert set(found["cpus"]) == os.sched_getaffinity(0)


def test_every_trial_is_a_new_process(template):
    """The second trial on a template is another process, forked from the same one."""
    first, before = facts(template), template._process.pid
    second = facts(template)
    assert first["pid"] != second["pid"]
    assert template._process.pid == before


def test_a_trial_gets_what_was_asked_for_it(monkeypatch, tag, tmp_path):
    """Variables set and removed, CPUs, threads, folder; Ray's token stays with us."""
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setenv("RAY_AUTH_TOKEN", "secret")
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", "/secret")
    cpu = max(os.sched_getaffinity(0))
    ref = make_ref(f"{PATH}:facts", cwd=tmp_path)
    environment = {TAG: tag, "OMP_NUM_THREADS": None, "OWN": "1"}
    template = Template(ref, cpus={cpu}, threads=3, environment=environment)
    found = json.loads(last(template.run(DescribeRequest())).notes[0])
    template.close()
    assert found["cpus"] == [cpu]
    assert found["torch_threads"] == 3
    assert found["cwd"] == str(tmp_path)
    assert found["environment"]["OWN"] == "1"
    assert not {"OMP_NUM_THREADS", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"} & found["environment"].keys()


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("raises", "function 'raises' raised:\n.*, in raises\n.*no such folder on this machine"),
        ("raises_in_dataset", "cannot be built:\n.*, in make\n.*the disk is not mounted"),
        ("empty", "the dataset of workload 'rows' is empty"),
        ("not_a_loader", "make_loader of workload 'mine' returned list, not a torch DataLoader"),
        ("nothing", "has no function 'nothing'; it defines: .*rows"),
    ],
)
def test_a_workload_that_cannot_be_used_says_why(template, name, said):
    """Describing ends with a usage failure: the user's own error with their traceback, or what is missing."""
    failed = last(run(template, name))
    assert isinstance(failed, Failed) and failed.usage
    assert re.search(said, failed.failure.message, re.DOTALL), failed.failure.message
    assert OURS not in failed.failure.message


def test_options_that_do_not_fit_are_usage(template):
    """An option that the workload does not take ends in a usage failure, measured too."""
    failed = last(run(template, "rows", "measure", latency_s=3))
    assert failed.usage
    assert "does not take --latency: leave it out" in failed.failure.message


def test_an_error_while_measuring_is_classified(template):
    """An error of the user's in a trial is a failure with its kind, phase and traceback."""
    failed = last(run(template, "raises_in_dataset", "measure"))
    failure = failed.failure
    assert (failed.usage, failure.kind) == (False, "user-code")
    assert failure.message == "RuntimeError: the disk is not mounted"
    assert "in make" in failure.traceback
    assert OURS not in failure.traceback
    failure = last_failure(run(template, "empty", "measure"))
    assert "the loader delivers no batch at all" in failure.message


def test_a_process_that_leaves_is_told_with_its_last_words(template):
    """os._exit in the user's code ends the trial with the exit status and what was printed last."""
    for op in ("describe", "measure"):
        failure = last_failure(run(template, "exits", op))
        assert failure.kind == "trainer-killed"
        phase = {"describe": "setup", "measure": "loader"}[op]
        assert f"ended by itself (exit status 3) in phase {phase}: look for os._exit" in failure.message
        assert failure.message.endswith("its last output: about to leave")


def test_a_killed_process_is_told_with_the_signal(template):
    """A trainer that is killed is named with the signal and the phase, at once, and the template lives on."""
    assert facts(template)
    before = template._process.pid
    failure = last_failure(run(template, "killed", "measure"))
    assert failure.kind == "trainer-killed"
    assert "was killed by SIGKILL in phase loader" in failure.message
    assert template._process.pid == before


def test_a_hang_ends_in_bounded_time(template, monkeypatch):
    """A worker that never delivers is told by the trial after its time, and where the trial says nothing, by who watches it;
    a set-up that never ends, after its own time."""
    failure = last_failure(run(template, "hangs", "measure"))
    assert (failure.kind, failure.phase) == ("hang", "loader")
    assert "no batch came for 1 s" in failure.message
    monkeypatch.setattr(hang_detector, "GRACE_S", 0.5)
    failure = last_failure(run(template, "hangs", "measure", max_s=0.5, options={"max_trial_s": 600.0}))
    assert (failure.kind, failure.phase) == ("hang", "loader")
    assert "nothing happened in phase loader for 1 s, and the trial was ended" in failure.message
    monkeypatch.setattr(hang_detector, "SETUP_TIMEOUT_S", 1.0)
    failure = last_failure(run(template, "hangs_in_trainer"))
    assert (failure.kind, failure.phase) == ("hang", "setup")


@pytest.mark.parametrize("name", ["rows", "escapes", "hangs"])
def test_closing_early_leaves_nothing(template, tag, name):
    """Whoever closes the events ends the child and its workers, those asleep in the user's code, those that left too."""
    events = run(template, name, "measure", options={"max_trial_s": 30.0})
    until_phase(events, "loader" if name == "hangs" else "measure")
    expected = {"rows": 3, "escapes": 5, "hangs": 3}[name]
    assert eventually(lambda: len(tagged(tag) - template._channel.spare) >= expected), tagged(tag)
    events.close()
    assert not tagged(tag) - template._channel.spare


def test_closing_before_the_first_event_leaves_nothing(template):
    """Events that nobody asked for start nothing; one that is asked for only once is ended too."""
    run(template, "rows", "measure").close()
    events = run(template, "hangs_in_trainer")
    next(events)
    events.close()


def test_half_made_batches_do_not_stay_in_shared_memory(template):
    """Workers killed while they make a batch leave no file in /dev/shm."""
    before = files()
    for _ in range(3):
        events = run(
            template, "big", "measure", options={"max_trial_s": 30.0}, setting={"num_workers": 2, "batch_size": 16}
        )
        until_phase(events, "measure")
        events.close()
    assert eventually(lambda: not {path for path in files() - before if path.name.startswith("torch_")}), (
        files() - before
    )


def test_spawned_workers_leave_no_semaphores(tag):
    """Semaphores and sockets of spawned workers go with the template at the latest."""
    before = files()
    template = Template(make_ref(f"{PATH}:spawned"), environment={TAG: tag})
    setting = SETTING | {"multiprocessing_context": "spawn"}
    events = run(template, "spawned", "measure", setting=setting, options={"max_trial_s": 30.0})
    until_phase(events, "measure")
    events.close()
    template.close()
    assert eventually(lambda: not files() - before), files() - before


def test_a_killed_template_is_replaced(template, tag):
    """SIGKILL of the template ends the trial with a failure and all its processes; the next one gets a new template."""
    events = run(template, "hangs", "measure")
    until_phase(events, "loader")
    before = template._process.pid
    assert eventually(lambda: len(tagged(tag) - template._channel.spare) >= 3)
    os.kill(before, signal.SIGKILL)
    failure = last_failure(events)
    assert failure.kind == "trainer-killed"
    assert "template process was killed" in failure.message
    assert not tagged(tag)
    assert isinstance(last(run(template, "rows")), Described)
    assert template._process.pid != before


def test_a_template_killed_between_trials_is_replaced(template):
    """A template that died while nobody looked is noticed before it is used."""
    assert facts(template)
    before = template._process.pid
    os.kill(before, signal.SIGKILL)
    first = last(run(template, "rows"))
    assert isinstance(first, Described | Failed)  # it may still look alive
    assert isinstance(last(run(template, "rows")), Described)
    assert template._process.pid != before


SUPERVISOR = """
import sys
from feedrate.trainables.config import LoaderConfig
from feedrate.trainables.measuring.measure_options import MeasureOptions
from feedrate.trainables.protocol import MeasureRequest
from feedrate.trainables.resolve import make_ref
from feedrate.trainables.sandbox.template import Template
config, options = LoaderConfig(num_workers=2, batch_size=4), MeasureOptions(max_trial_s=30.0, measure_step=False)
for event in Template(make_ref(sys.argv[1])).run(MeasureRequest(config=config, options=options)):
    print(getattr(event, "name", None), flush=True)
"""


def test_nothing_outlives_a_killed_supervisor(tag):
    """SIGKILL of the supervisor ends template, trainer and workers asleep for 1000 s, and frees the host."""
    own = f"{tag}-killed"
    command = [sys.executable, "-c", SUPERVISOR, f"{PATH}:hangs"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=os.environ | {TAG: own}) as supervisor:
        for line in supervisor.stdout:
            if line == "loader\n":
                break
        assert eventually(lambda: len(tagged(own)) >= 5), tagged(own)  # supervisor, template, trainer, 2 workers
        supervisor.kill()
    assert eventually(lambda: not tagged(own), within_s=10), tagged(own)
    lock = HostLock()
    lock.acquire(pytest.fail)
    lock.release()


def test_a_trial_waits_for_the_host(template):
    """While another trial measures on this host, the trial waits, sends an event, and is not taken for a hang."""
    lock = HostLock()
    lock.acquire(pytest.fail)
    events = run(template, "rows", "measure", max_s=1.0)
    waiting = next(events)
    assert waiting.why.startswith("another feedrate trial is measuring on this host (")
    assert waiting == Waiting(why=waiting.why)
    lock.release()
    assert isinstance(last(events), Measured)


def test_output_is_shown_when_asked(tag, capfd):
    """The workload's output, its stdout too, comes through on our stderr, and is not repeated in a failure."""
    template = Template(make_ref(f"{PATH}:exits"), environment={TAG: tag}, show_output=True)
    failure = last_failure(template.run(DescribeRequest()))
    template.close()
    out, err = capfd.readouterr()
    assert (out, err) == ("", "about to leave\n")
    assert "about to leave" not in failure.message


def test_a_template_is_closed_twice_or_never_started():
    """Closing is harmless at any time."""
    template = Template(make_ref(f"{PATH}:rows"))
    template.close()
    template.close()
    assert dataclasses.asdict(template.ref)["target"] == f"{PATH}:rows"
