"""template.py, child.py, child_main.py: a child whose set-up took long serves further settings, and only those that need the same step."""

import os
import signal

import pytest
from census import TAG, eventually, tagged
from workloads import PATH

from feedrate.analysis.estimate import record_rate
from feedrate.search.cli.measure import _still
from feedrate.trainables.config import LoaderConfig
from feedrate.trainables.machine.host_lock import HostLock
from feedrate.trainables.machine.process import tree_pids
from feedrate.trainables.measuring.measure_options import MeasureOptions
from feedrate.trainables.protocol import Failed, Measured, MeasureRequest, Progress, Silent, Waiting
from feedrate.trainables.resolve import make_ref
from feedrate.trainables.sandbox import hang_detector
from feedrate.trainables.sandbox.child_main import KEEP_VARIABLE
from feedrate.trainables.sandbox.template import Template

SETTING = {"num_workers": 2, "batch_size": 4}
OPTIONS = {"max_trial_s": 1.0, "measure_step": False}


@pytest.fixture
def template(tag):
    """A template whose workload takes long to set up: its model is made in 1.5 s, and 1.4 s are long."""
    made = Template(make_ref(f"{PATH}:slow_to_set_up"), environment={TAG: tag, KEEP_VARIABLE: "1.4"})
    yield made
    made.close()


def request(setting=SETTING, options=OPTIONS, keep=True):
    return MeasureRequest(config=LoaderConfig(**setting), options=MeasureOptions(**options), keep=keep)


def run(template, setting=SETTING, **more):
    """The columns of one setting, and the pid of the child that measured it."""
    for event in template.run(request(setting, **more)):
        if isinstance(event, Failed):
            pytest.fail(event.failure.message)
    return event.columns, kept_pid(template)


def kept_pid(template):
    return template._kept.pid if template._kept is not None else None


def test_a_child_is_kept_for_settings_that_need_the_same_step(template, tag):
    """The model is made once; loader and workers are new every time, and only the child is left between two trials."""
    first, pid = run(template)
    assert first["setup_s"] > 1.4
    assert tagged(tag) - template._channel.spare == {pid}
    second, again = run(template, SETTING | {"num_workers": 3, "prefetch_factor": 4})
    assert again == pid
    assert second["window_num_batches"][0] > 0
    lock = HostLock()
    lock.acquire(pytest.fail)  # between two trials others may measure
    lock.release()
    _, other = run(template, SETTING | {"batch_size": 8})
    assert other != pid
    assert eventually(lambda: tagged(tag) - template._channel.spare == {other})


def test_a_child_is_not_kept_where_something_may_be_left(template, tag):
    """Without keep, with 0 workers (the dataset was used here) and with process settings each setting has its own."""
    for setting, more in ((SETTING, {"keep": False}), (SETTING | {"num_workers": 0}, {}), (SETTING | {"trainer_cpus": 1}, {})):
        columns, pid = run(template, setting, **more)
        assert (columns["setup_s"] > 1.4, pid) == (True, None)
        assert not tagged(tag) - template._channel.spare


def test_a_trial_that_is_stopped_early_keeps_its_child(template, tag):
    """Closing the events of a running trial ends its workers, and the next setting does not wait for a model."""
    events = template.run(request(options=OPTIONS | {"max_trial_s": 30.0}))
    assert any(isinstance(event, Progress) for event in events)
    events.close()
    pid = kept_pid(template)
    assert tagged(tag) - template._channel.spare == {pid}
    _columns, again = run(template)
    assert again == pid


def test_a_kept_child_that_was_killed_is_replaced(template, tag):
    """A child that died while it waited costs nothing but its set-up."""
    _, pid = run(template)
    os.kill(pid, signal.SIGKILL)
    assert eventually(lambda: pid not in tagged(tag))
    columns, again = run(template)
    assert columns["setup_s"] > 1.4
    assert again != pid


def test_a_failed_setting_ends_its_child(template, tag):
    """After any fault the next setting gets a fresh process."""
    assert run(template)[1] is not None
    *_, event = template.run(request(SETTING | {"num_workers": 7}))
    assert isinstance(event, Failed) and "seven are too many" in event.failure.message
    assert template._kept is None
    assert not tagged(tag) - template._channel.spare


def test_cheap_set_up_is_not_kept(tag):
    """Where a fresh process costs next to nothing, every setting has one."""
    template = Template(make_ref(f"{PATH}:rows"), environment={TAG: tag, KEEP_VARIABLE: "60"})  # also on a busy machine
    columns, pid = run(template)
    template.close()
    assert columns["setup_s"] > 0
    assert pid is None
    assert tree_pids()


def test_a_silent_trial_is_said_to_be(template, monkeypatch):
    """Whoever waits hears in which phase a trial says nothing, again and again, for as long as it may."""
    monkeypatch.setattr(hang_detector, "SILENT_S", 0.3)
    events = list(template.run(request(keep=False)))
    silent = [event for event in events if isinstance(event, Silent) and event.phase == "setup"]
    assert len(silent) >= 3
    assert silent[0].silent_s < silent[1].silent_s < silent[2].silent_s
    assert isinstance(events[-1], Measured)


@pytest.mark.parametrize(("sleep_s", "are_waited_for"), [(0.2, False), (0.001, True)])
def test_workers_amid_a_slow_batch_are_not_waited_for(template, tmp_path, sleep_s, are_waited_for):
    """A batch of 0.8 s is given up where it is when the trial ends, and what was measured is whole; one of 4 ms is finished."""
    path = tmp_path / "log"
    template.ref = make_ref(f"{PATH}:logged", {"path": str(path), "sleep_s": sleep_s})
    columns, pid = run(template, options=OPTIONS | {"max_trial_s": 4.0})
    assert (record_rate(columns).sps > 0, pid) == (True, None)
    lines = path.read_text().splitlines()
    assert (lines.count("begin") == lines.count("end")) == are_waited_for


def test_a_trial_that_waits_is_said_to_wait(template, monkeypatch):
    """Not to be in a phase: it has not begun, however long the other trial takes."""
    monkeypatch.setattr(hang_detector, "SILENT_S", 0.2)
    held = HostLock()
    held.acquire(pytest.fail)
    events = template.run(request(keep=False))
    try:
        assert any(isinstance(event, Waiting) for event in events)
        silent = next(event for event in events if isinstance(event, Silent) and event.waits)
    finally:
        held.release()
    assert _still(silent, "another trial") == f"still waiting, for {silent.silent_s:.0f} s: another trial"
    event = next(event for event in events if isinstance(event, Silent))
    assert _still(event, "").startswith("still in phase setup, for ")
    events.close()
