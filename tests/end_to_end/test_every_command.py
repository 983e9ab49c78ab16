"""The commands that people use, one after another, with whatever versions are installed: `make test-oldest` and `make test-versions`."""

import json

import pytest

from feedrate.analysis.best import check_best

pytestmark = pytest.mark.oldest
TRIAL = ("--max-trial-s", "1.5")
SPACE = ("--batch-size", "16", "--num-workers", "0..2")


@pytest.fixture
def quietly(feedrate):
    """Runs a command that must succeed without a warning that a user would see; gives what it prints."""

    def run(*arguments):
        command = feedrate(*arguments)
        said = f"{arguments}: {command.stderr}"
        assert command.code == 0, said
        assert "Warning" not in command.stderr + command.stdout, said
        assert "Traceback" not in command.stderr, said
        return command.stdout

    return run


def test_from_a_measurement_to_a_resumed_search(quietly, tmp_path):
    """Takes half a minute: two searches on a Ray of their own and four measurements are the smallest of each command."""
    assert "images" in quietly("workloads")
    assert json.loads(quietly("version", "--json"))["feedrate"]
    measured = json.loads(quietly("measure", "toy.py:workload", "--num-workers", "1", "--batch-size", "16", *TRIAL, "--json"))
    assert measured["throughput"] > 0
    assert json.loads(quietly("check", "toy.py:workload", "--time-budget", "5s", "--json"))
    search = ("search", "toy.py:workload", *SPACE, *TRIAL, "--no-confirm", "--keep-going", "--out", "run")
    assert "Saved: run/best.json" in quietly(*search, "--max-trials", "2")
    for arguments in (("show", "run"), ("runs", "."), ("compare", "run", "run"), ("report", "run", "--format", "html,csv,parquet,markdown")):
        assert quietly(*arguments)
    assert quietly("resume", "run", "--max-trials", "3", "--time-budget", "20s")
    check_best(json.loads(quietly("export", "run")))
    kept = [json.loads(line) for line in (tmp_path / "run" / "trials.jsonl").read_text().splitlines()]
    assert [record["number"] for record in kept] == [0, 1, 2]
