"""What a search survives: SIGKILL of its driver, of a supervisor, and of a template, each in the middle of a trial."""

import json
import os
import signal

import psutil
import pytest
from census import eventually
from conftest import QUICK, records

from feedrate.analysis.run_folder import RunFolder
from feedrate.analysis.schema import check_record, status
from feedrate.search.study.storage import open_storage

GONE_WITHIN_S = 10.0


@pytest.fixture
def run(tmp_path):
    return tmp_path / "feedrate-runs" / "toy-1"


def in_the_middle(command, run, num_records):
    """Wait until this number of trials is recorded and another one trains with loader workers; return its processes."""

    def loading():
        members = command.trial_processes()
        children = [pid for pid in members if pid in psutil.pids() and psutil.Process(pid).ppid() in members]
        return members if len(records(run)) >= num_records and len(children) >= 2 else None

    def tried():
        try:
            return loading()
        except psutil.NoSuchProcess:
            return None

    return command.until(tried)


def check_records(run):
    """Every line is whole and fits the schema, and no trial was recorded twice."""
    kept, problems = RunFolder(run).records()
    assert problems == []
    for record in kept:
        check_record(record)
    assert len({record["number"] for record in kept}) == len(kept)
    return kept


def told(run):
    """States of the study, by trial number."""
    storage = open_storage(None, run / "study.journal")
    (study,) = storage.get_all_studies()
    return {trial.number: trial.state.name for trial in storage.get_all_trials(study._study_id)}


@pytest.mark.slow
def test_a_killed_driver_leaves_no_process_and_resume_completes_the_search(start, feedrate, run):
    """After 10 s nothing of it lives, Ray neither; every finished trial is on record; none is measured twice."""
    command = start("search", "toy.py:workload", *QUICK, "--max-trials", "9")
    in_the_middle(command, run, 2)
    os.kill(command.process.pid, signal.SIGKILL)
    command.wait()
    assert eventually(lambda: not command.trial_processes(), GONE_WITHIN_S), command.trial_processes()
    assert eventually(lambda: not command.alive(), GONE_WITHIN_S), command.alive()
    before = check_records(run)
    assert len(before) >= 2
    assert json.loads((run / "search.json").read_text())["finished"] is False
    wanted = len(before) + 2
    resumed = feedrate("resume", "feedrate-runs/toy-1", "--max-trials", wanted)
    assert resumed.code == 0, resumed.stderr
    after = check_records(run)
    assert after[: len(before)] == before
    assert len(after) == wanted
    settings = [(record["num_workers"], record["prefetch_factor"], record["persistent_workers"]) for record in after]
    assert len(set(settings)) == wanted
    states = told(run)
    assert "RUNNING" not in states.values()
    assert {states[record["number"]] for record in after if status(record) == "complete"} == {"COMPLETE"}
    assert (run / "best.json").exists()


@pytest.mark.soak
def test_a_search_goes_on_when_its_supervisor_or_its_template_is_killed(start, run):
    """What the victim had started is gone in 10 s, its trial is on record as failed, the others are measured."""
    command = start("search", "toy.py:workload", *QUICK, "--max-trials", "6")
    victims = in_the_middle(command, run, 1)
    supervisor = psutil.Process(command.template()).ppid()
    assert supervisor not in (command.process.pid, *victims)
    killed = len(records(run))
    os.kill(supervisor, signal.SIGKILL)
    assert eventually(lambda: not victims.keys() & command.trial_processes().keys(), GONE_WITHIN_S)
    command.until(lambda: len(records(run)) > killed)
    assert records(run)[killed]["failure_kind"] == "supervisor-died"

    victims = in_the_middle(command, run, killed + 2)
    killed_too = len(records(run))
    os.kill(command.template(), signal.SIGKILL)
    assert eventually(lambda: not victims.keys() & command.trial_processes().keys(), GONE_WITHIN_S)
    assert command.wait() == 0, command.stderr
    kept = check_records(run)
    assert len(kept) == 6
    assert kept[killed_too]["failure_kind"] == "trainer-killed"
    assert [position for position, record in enumerate(kept) if status(record) == "failed"] == [killed, killed_too]
    # the lost supervisor's setting, which may be innocent, was measured after all
    settings = [{name: record[name] for name in ("num_workers", "prefetch_factor", "persistent_workers")} for record in kept]
    assert settings.count(settings[killed]) == 2
    assert "Failed: " in command.stdout
    assert "RUNNING" not in told(run).values()
    assert command.alive() == {}
