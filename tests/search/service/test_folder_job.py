"""folder_job.py, job_log.py, submission.py, paste.py: a submitted search can be found from its run folder when Ray has forgotten the job."""

import fcntl
import json
import os
import sys

import pytest
from synthetic import record, search_json, write_run

from feedrate.analysis.run_folder import RunFolder
from feedrate.search.head import _nothing_left, _runs_in
from feedrate.search.service.folder_job import LOST, RESUMED, FolderJob, described
from feedrate.search.service.job_facts import ended_by, exit_code, in_words, summary
from feedrate.search.service.job_log import copied, log_of
from feedrate.search.shipping.submission import VARIABLE, Submission
from feedrate.search.terminal import arguments
from feedrate.search.terminal.paste import pasted

SUBMISSION = Submission(
    owner="ann@laptop", workload="train.py:workload", command="feedrate search train.py:workload", way_on="feedrate resume a", env=("A",), pip=("lz4",)
)
SEARCH = search_json(
    workload={"target": "/tmp/ray/x/train.py:workload", "name": "workload"}, command="feedrate search --address auto",
    created_unix_s=1000.0, owner="ann@laptop", submission=SUBMISSION.to_json(),
)  # fmt: skip


def run(parent, name, **more):
    folder = parent / name
    folder.mkdir(parents=True)
    (folder / "search.json").write_text(json.dumps(SEARCH | more))
    return folder


def test_searches_are_found_by_their_folders(tmp_path):
    """Finished, unfinished and under way ones, one of several hardware classes too; what cannot be read is skipped."""
    run(tmp_path, "done", finished=True)
    run(tmp_path, "lost")
    run(tmp_path / "classes", "a10g")
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "search.json").write_text("{")
    (tmp_path / "old").mkdir()
    running = run(tmp_path, "running", submission=None, owner=None)
    with RunFolder(running).lock.open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        jobs = {each["id"]: FolderJob.from_json(each) for each in json.loads(json.dumps(list(described(tmp_path))))}
    assert {name: job.status.value for name, job in jobs.items()} == {
        "done": "SUCCEEDED", "lost": "FAILED", "classes": "FAILED", "running": "RUNNING",
    }  # fmt: skip
    lost, done = jobs["lost"], jobs["done"]
    assert (exit_code(lost), ended_by(lost), exit_code(done), exit_code(jobs["running"])) == (None, LOST, 0, None)
    facts = summary(lost)
    assert facts["took_s"] is None, "nobody knows when it ended"
    assert (facts["owner"], facts["workload"], facts["command"]) == ("ann@laptop", "train.py:workload", "feedrate search train.py:workload")
    assert facts["started_unix_s"] == 1000.0
    assert (lost.metadata["run"], lost.runtime_env) == ("lost", {"pip": ["lz4"]})
    assert jobs["running"].metadata["command"] == "feedrate search --address auto"


def test_every_job_of_a_search_is_found(tmp_path):
    """A search that was resumed twice has had three jobs; only the last has the state of the folder, and each names the later ones."""
    again = [{"submission_id": "a-again-1", "unix_s": 2000.0}, {"submission_id": "a-again-2", "unix_s": 3000.0}]
    run(tmp_path, "a", resumed_as=again, finished=True)
    (facts,) = json.loads(json.dumps(list(described(tmp_path))))
    first, second, third = FolderJob.jobs_of(facts)
    assert [job.submission_id for job in (first, second, third)] == ["a", "a-again-1", "a-again-2"]
    assert [job.start_time for job in (first, second, third)] == [1_000_000, 2_000_000, 3_000_000]
    assert first.carried_on_by == ("a-again-1", "a-again-2")
    assert (third.status.value, third.carried_on_by, exit_code(third)) == ("SUCCEEDED", (), 0)
    assert (second.status.value, exit_code(second), ended_by(second), summary(second)["took_s"]) == ("STOPPED", None, RESUMED, None)
    assert {job.metadata["run"] for job in (first, second, third)} == {"a"}


def test_progress_in_words():
    """How much was tried, failed, and is left; the best setting so far, which is the answer at the end."""
    progress = {
        "num_complete": 3, "num_pruned": 1, "num_failed": 0, "max_trials": None, "elapsed_s": 61.6, "time_budget_s": 600.0,
        "round": None, "unit": "rows", "best": None,
    }  # fmt: skip
    assert in_words(progress) == "4 settings tried, 62 s of at most 600 s; no rate was measured so far"
    assert in_words(progress | {"num_complete": 1, "num_pruned": 0, "num_failed": 0}).startswith("1 setting tried, ")
    best = {"config": "b16 w4 p2", "samples_per_second": 1234.5, "is_answer": False}
    more = {"num_failed": 1, "max_trials": 9, "round": 2, "best": best}
    said = "5 of 9 settings tried, 1 failed, round 2, 62 s of at most 600 s; best so far b16 w4 p2 with 1,234 rows/s"
    assert in_words(progress | more) == said
    assert in_words(progress | more | {"best": best | {"is_answer": True}}).endswith("; answer b16 w4 p2 with 1,234 rows/s")


def test_all_unfinished_runs_of_a_search_are_carried_on(tmp_path):
    """One of several hardware classes has a run folder for each."""
    alone = run(tmp_path, "alone")
    small, large = run(tmp_path / "classes", "small"), run(tmp_path / "classes", "large", finished=True)
    assert _runs_in(alone) == [alone]
    assert _runs_in(tmp_path / "classes") == [small]
    (small / "search.json").write_text(json.dumps(SEARCH | {"finished": True}))
    assert _runs_in(tmp_path / "classes") == [large, small]
    assert _runs_in(tmp_path / "absent") == [tmp_path / "absent"]


def test_a_finished_search_with_nothing_left_is_not_continued(tmp_path):
    """It has something left if any of its hardware classes has; a larger number of settings, or rounds, are something."""
    limited = {"finished": True, "options": {"max_trials": 2, "confirm": False}}
    for name, more in (("spent", limited), ("open", {"finished": True, "options": {"confirm": False}}), ("stopped", limited | {"finished": False})):
        write_run(tmp_path / name / "class", [record(0), record(1)], **more)
    again = {"name": "mine", "max_trials": None, "confirm": False}

    def said(name, **changed):
        return _nothing_left(tmp_path / name, again | changed)

    assert said("spent").startswith("mine is finished: 2 settings were tried, and --max-trials counts these, too. Resume it with --max-trials 3 or more")
    assert said("spent", max_trials=2, confirm=True) == said("spent")
    assert said("spent", max_trials=3) is said("spent", confirm=True) is said("open") is said("stopped") is said("absent") is None
    write_run(tmp_path / "spent" / "other", [record(0)], **limited)
    assert said("spent") is None


def test_a_submission_travels_in_the_environment(monkeypatch):
    monkeypatch.setenv(VARIABLE, json.dumps(SUBMISSION.to_json() | {"of a newer version": 1}))
    assert Submission.from_environment() == SUBMISSION
    monkeypatch.delenv(VARIABLE)
    assert Submission.from_environment() is None


def test_what_a_search_prints_is_copied(tmp_path, capsys):
    """Of both streams, in order, after what an earlier driver printed; only its owner can read the copy."""
    folder = tmp_path / "runs" / "mine"
    for text in ("one", "two"):
        with copied(folder):
            print(text)
            print(f"{text}!", file=sys.stderr)
    assert log_of(folder).read_text() == "one\none!\ntwo\ntwo!\n"
    assert capsys.readouterr() == ("one\ntwo\n", "one!\ntwo!\n")
    assert (log_of(folder).stat().st_mode & 0o777, log_of(folder).parent.stat().st_mode & 0o777) == (0o600, 0o700)


@pytest.mark.parametrize("obstacle", ["link", "file"])
def test_a_copy_that_cannot_be_made_is_done_without(tmp_path, capsys, obstacle):
    folder = tmp_path / "runs" / "mine"
    if obstacle == "link":
        log_of(folder).parent.mkdir(parents=True)
        log_of(folder).symlink_to(tmp_path / "target")
    else:
        folder.parent.write_text("")
    with copied(folder):
        print("one")
    assert capsys.readouterr().out == "one\n"
    assert not (tmp_path / "target").exists()


def test_a_command_to_paste_has_what_it_needs(monkeypatch):
    monkeypatch.delenv("RAY_AUTH_MODE", raising=False)
    assert pasted("fetch", "a b") == "feedrate fetch 'a b'"
    monkeypatch.setenv("RAY_AUTH_MODE", "TOKEN")
    assert pasted("runs") == "RAY_AUTH_MODE=token feedrate runs"


@pytest.mark.parametrize(
    ("environment", "api", "cluster"),
    [
        ({}, None, None),
        ({"RAY_ADDRESS": "auto"}, None, "auto"),
        ({"RAY_ADDRESS": "10.0.0.1:6379"}, None, "10.0.0.1:6379"),
        ({"RAY_ADDRESS": "http://head:8265"}, "http://head:8265", None),
        ({"RAY_ADDRESS": "auto", "RAY_API_SERVER_ADDRESS": "https://head:8265"}, "https://head:8265", "auto"),
        ({"RAY_ADDRESS": ""}, None, None),
    ],
)
def test_addresses_of_the_environment(monkeypatch, environment, api, cluster):
    """As Ray's own commands and ray.init take them."""
    for name in ("RAY_ADDRESS", "RAY_API_SERVER_ADDRESS"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert (arguments.api_address(), arguments.ray_address()) == (api, cluster)
    assert os.environ.get("RAY_ADDRESS") == environment.get("RAY_ADDRESS")
