"""What happens to a search on a cluster when the database is away, or the head dies."""

import getpass
import json
import shlex
import socket
import time

import pytest
from conftest import records
from cut_proxy import Proxy
from ray_head import TOKEN, Head, free_port

from feedrate.analysis.load import load_run
from feedrate.search.study.storage import close_storage, open_storage

pytestmark = [pytest.mark.soak, pytest.mark.timeout(900)]
WITH_TOKEN = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": TOKEN, "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0"}
SEARCH = ["search", "toy.py:workload", "--batch-size", "16", "--num-workers", "0..8", "--max-trial-s", "2", "--keep-going", "--no-confirm", "--wait", "0"]


@pytest.fixture
def head(tmp_path):
    """Makes heads; what is left of them is ended after the test."""
    made = []

    def make(**more):
        folder = tmp_path / f"head-{len(made)}"
        folder.mkdir()
        made.append(Head(folder, **more))
        return made[-1]

    yield make
    for each in made:
        each.end()


def accounted(run, num_trials):
    """Every setting that was asked for has one record."""
    numbers = [record["number"] for record in records(run)]
    assert sorted(set(numbers)) == sorted(numbers), "no trial twice"
    assert {record.get("failure_kind") for record in records(run)} <= {None, "supervisor-died"}
    assert len(numbers) == num_trials
    assert load_run(run).problems == []


def test_a_database_that_is_away_for_a_minute(head, start, postgresql, tmp_path):
    """The search prints that it waits for the database, and goes on; records and study agree at the end."""
    proxy = Proxy(postgresql.port)
    address = postgresql.database()
    through = address.replace(f":{postgresql.port}/", f":{proxy.port}/")
    run = tmp_path / "run"
    search = start(*SEARCH, "--max-trials", "10", "--address", f"127.0.0.1:{head().port}", "--out", run, "--storage", through, **WITH_TOKEN)
    search.until(lambda: len(records(run)) >= 3, within_s=120)
    proxy.cut()
    search.until(lambda: "waiting: the study's database does not answer" in search.stderr, within_s=60)
    time.sleep(60)
    assert search.process.poll() is None, search.stderr
    proxy.mend()
    assert search.wait(200) == 0, search.stderr
    accounted(run, 10)
    storage = open_storage(address, run / "unused")
    (study,) = storage.get_all_studies()
    told = {trial.number: trial.state.name for trial in storage.get_all_trials(study._study_id)}
    close_storage(storage)
    assert set(told) == {record["number"] for record in records(run)}
    assert set(told.values()) <= {"COMPLETE", "PRUNED"}
    proxy.cut()


def test_a_head_that_is_lost(head, start, tmp_path):
    """The driver ends within minutes, having said how to carry on; with a new head at the same address the search is resumed."""
    first, run = head(port=free_port()), tmp_path / "run"
    search = start(*SEARCH, "--max-trials", "8", "--address", f"127.0.0.1:{first.port}", "--out", run, **WITH_TOKEN)
    search.until(lambda: len(records(run)) >= 3, within_s=120)
    first.kill()
    assert search.wait(240) not in (0, None), search.stderr
    assert f"if the cluster's head is lost, carry on with: RAY_AUTH_MODE=token feedrate resume {run}" in search.stderr
    assert not json.loads((run / "search.json").read_text())["finished"]
    head(port=first.port)
    resumed = start("resume", run, **WITH_TOKEN)
    assert resumed.wait(300) == 0, resumed.stderr
    accounted(run, 8)


def test_a_submitted_search_whose_head_is_lost(head, feedrate, tmp_path):
    """Ray's list of jobs dies with its head. With a new one at the same address, every cluster command finds the search by its run
    folder, and what the commands print can be pasted. Takes minutes: two heads, and three jobs."""
    first = head(port=free_port())
    dashboard = int(first.url.rpartition(":")[2])
    with_token = {name: value for name, value in WITH_TOKEN.items() if name != "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"}

    def there(*arguments, **more):
        return feedrate(*arguments, "--address", first.url, **with_token | more)

    def pasted(command, **more):
        words = shlex.split(command)
        assert words[:2] == ["RAY_AUTH_MODE=token", "feedrate"], command
        return feedrate(*words[2:], RAY_AUTH_MODE="token", RAY_AUTH_TOKEN=TOKEN, timeout_s=300, **more)

    sent = there("submit", *SEARCH[1:], "--max-trials", "6", "--submission-id", "mine", "--env", "WHO=ann")
    assert sent.code == 0, sent.stderr
    first.command.until(lambda: len(records(first.runs / "mine")) >= 2, within_s=200)
    first.kill()
    first.command.wait()
    head(port=first.port, dashboard=dashboard, home=first.home)
    listed = there("runs")
    assert listed.stdout.startswith("mine  FAILED  "), listed.stdout + listed.stderr
    status = there("status", "mine")
    assert status.code == 1
    lines = status.stdout.splitlines()
    assert "unfinished, and Ray no longer knows it" in lines[0]
    assert any("trial" in line for line in lines), lines
    way_on = lines[-1].removeprefix("  carry on with: ")
    assert there("logs", "mine").stdout.count("yours: b16 w0") == 1
    assert there("stop", "mine").stdout == "mine had ended already: FAILED\n"
    assert there("fetch", "mine", "-o", tmp_path / "early").code == 0
    assert len(load_run(tmp_path / "early").trials) >= 2
    assert "yours: b16 w0" in (tmp_path / "early" / "search.log").read_text()
    assert way_on.endswith(" --env WHO")
    assert "--env WHO: this shell does not set it" in pasted(way_on).stderr
    again = pasted(f"{way_on} --follow", WHO="ann")
    assert again.code == 0, again.stderr
    accounted(first.runs / "mine", 6)
    later = again.stdout.splitlines()[0]
    for command in [line.strip() for line in again.stderr.splitlines() if line.startswith("  RAY_AUTH_MODE")]:
        assert pasted(command).code == 0, command
    status = there("status", "mine")
    assert f"  continued by {later}: SUCCEEDED" in status.stdout
    assert "carry on with" not in status.stdout
    best = json.loads((first.runs / "mine" / "search.json").read_text())
    assert best["owner"] == best["submission"]["owner"] == f"{getpass.getuser()}@{socket.gethostname()}"
    assert "ann" not in (first.runs / "mine" / "search.json").read_text().replace(best["owner"], "")
