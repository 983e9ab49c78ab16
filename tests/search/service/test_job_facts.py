"""job_facts.py and job_display.py: what is read from Ray's own objects and from a job's log."""

import io
import json

import pytest
from ray.dashboard.modules.job.pydantic_models import JobDetails
from rich.console import Console

from feedrate.analysis.estimate import Rate
from feedrate.search.service.job_facts import ended_by, exit_code
from feedrate.search.session.job_display import JobDisplay, split_log
from feedrate.trainables.config import LoaderConfig


def job(status, code=None):
    """Ray's details of a job."""
    return JobDetails(type="SUBMISSION", status=status, entrypoint="python", submission_id="x", driver_exit_code=code)


@pytest.mark.parametrize(
    ("status", "given", "code", "words"),
    [
        ("RUNNING", None, None, None),
        ("PENDING", None, None, None),
        ("SUCCEEDED", 0, 0, "exit code 0: done"),
        ("FAILED", 1, 1, "exit code 1: the search failed"),
        ("FAILED", 2, 2, "exit code 2: wrong usage"),
        ("FAILED", 3, 3, "exit code 3"),
        ("FAILED", 130, 130, "exit code 130: interrupted"),
        ("FAILED", -9, 137, "signal SIGKILL: the kernel sends it when memory runs out"),
        ("FAILED", 137, 137, "signal SIGKILL: the kernel sends it when memory runs out"),
        ("FAILED", -11, 139, "signal SIGSEGV"),
        ("FAILED", 143, 143, "signal SIGTERM"),
        ("FAILED", None, 1, "Ray could not run it"),
        ("STOPPED", None, 143, "stopped on request"),
    ],
)
def test_how_a_search_ended(status, given, code, words):
    """As a shell would say it; a search that was stopped has no code of Ray's."""
    assert exit_code(job(status, given)) == code
    if words is not None:
        assert ended_by(job(status, given)) == words


@pytest.fixture
def log(capfd):
    """What a search into a folder writes: its display, with three trials and a round."""
    config, rate = LoaderConfig(num_workers=2, batch_size=16, prefetch_factor=2), Rate(sps=100.0, low_sps=90.0, high_sps=110.0)
    display = JobDisplay(Console(file=io.StringIO()), run="/runs/mine", time_budget_s=60.0, max_trials=5, clock=lambda: 7.0)
    display.begin()
    record = {"kind": "search", "origin": "sampler", "number": 1, "attempt": 1, **config.to_dict(), "failure_kind": None, "stopped_early": False}
    display.learn(record, rate)
    display.confirming([config])
    return capfd.readouterr().err


def test_progress_is_read_back_from_the_log(log):
    """The last line counts; people do not see it, and see everything else."""
    people, facts = split_log(f"[0:00] begins\n{log}[0:07] confirming\nSaved: x\n")
    assert people == "[0:00] begins\n[0:07] confirming\nSaved: x\n"
    assert set(facts) == {None}
    assert facts[None] | {"run": "/runs/mine", "max_trials": 5, "num_complete": 1, "num_failed": 0, "round": 0, "unit": "samples"} == facts[None]
    assert facts[None]["best"] == {
        "config": "b16 w2 p2",
        "dataloader": LoaderConfig(num_workers=2, batch_size=16, prefetch_factor=2).to_kwargs(),
        "samples_per_second": 100.0,
        "ci95": [90.0, 110.0],
        "is_answer": False,
    }


def test_the_last_line_has_the_answer(log, capfd):
    """Whoever reads the log of a search that is over gets the setting of its best.json."""
    display = JobDisplay(Console(file=io.StringIO()), run="/runs/mine", time_budget_s=60.0, max_trials=5, clock=lambda: 7.0)
    display.begin()
    config = LoaderConfig(num_workers=4, batch_size=16, prefetch_factor=2)
    throughput = {"samples_per_second": 120.0, "ci95": [110.0, 130.0], "unit": "samples"}
    display.answered({"throughput": throughput, "dataloader": config.to_kwargs(), "process": {}})
    best = split_log(capfd.readouterr().err)[1][None]["best"]
    assert (best["config"], best["samples_per_second"], best["ci95"], best["is_answer"]) == (config.short(), 120.0, [110.0, 130.0], True)


def test_searches_on_several_kinds_of_machines_are_told_apart(log):
    """Each line has the name of its class before it (fan_out.py)."""
    lines = [f"[{name}] {line}\n" for name in ("large", "small gpu") for line in log.splitlines()]
    people, facts = split_log("".join(lines))
    assert people == ""
    assert set(facts) == {"large", "small gpu"}


@pytest.mark.parametrize("text", ["feedrate-progress {", "feedrate-progress", "x feedrate-progress {}\n", 'feedrate-progress {"a": }\n', "", "no newline"])
def test_what_only_looks_like_it_stays(text):
    """Half a line of a log that is being written, or somebody's own words."""
    assert split_log(text) == (text, {})


def test_a_line_for_programs_is_one_line(log):
    for line in log.splitlines():
        mark, _, text = line.partition(" ")
        assert mark == "feedrate-progress"
        assert json.loads(text)["run"] == "/runs/mine"
