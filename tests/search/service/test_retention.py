"""retention.py and `feedrate runs --prune`: lists the files that finished and old runs no longer need, and removes them on request."""

import fcntl
import json
import os
import time

import pytest
from answers import answer
from synthetic import search_json

from feedrate.analysis.load import SEARCH_SCHEMA
from feedrate.search.cli.main import main

DAY_S = 86400.0


@pytest.fixture
def runs(tmp_path, monkeypatch):
    """Makes run folders in feedrate-runs: name, whether finished, days since it was written to."""
    monkeypatch.chdir(tmp_path)

    def make(name, finished=True, days=0.0, schema=SEARCH_SCHEMA):
        folder = tmp_path / "feedrate-runs" / name
        (folder / "tune" / "deep").mkdir(parents=True)
        (folder / "tune-1").mkdir()
        (folder / "tune" / "deep" / "state.pkl").write_bytes(bytes(100_000))
        (folder / "search.json").write_text(json.dumps(search_json(schema=schema, finished=finished)))
        for file in ("trials.jsonl", "study.journal", "study.journal.lock", "best.json", "report.html", "trials.csv", ".best.json.x1y2", "search.lock"):
            (folder / file).write_text("x")
        for path in folder.iterdir():
            os.utime(path, (time.time() - days * DAY_S,) * 2)
        return folder

    return make


@pytest.fixture
def pruned(capfd):
    """Runs `feedrate runs --prune` and gives its object, with the names of the runs."""

    def run(*arguments):
        code = main(["runs", "--prune", *map(str, arguments), "--json"])
        facts = answer(capfd.readouterr().out)
        assert facts["exit_code"] == code
        return facts

    return run


def names(entries):
    return [entry["path"].rpartition("/")[2] for entry in entries]


def test_tunes_state_of_finished_runs_is_listed_and_then_removed(runs, pruned, capfd):
    """Nothing is touched without --yes; the rest of the run stays, and an unfinished run stays whole."""
    done, going_on = runs("done"), runs("interrupted", finished=False)
    listed = pruned()
    assert (names(listed["removed"]), listed["done"]) == (["done"], False)
    assert listed["removed"][0]["what"] == "Ray Tune's state"
    assert 100_000 <= listed["num_bytes"] < 200_000
    assert listed["kept"] == [{"path": "feedrate-runs/interrupted", "why": "not finished: --older-than TIME includes unfinished runs"}]
    assert (done / "tune" / "deep" / "state.pkl").exists()
    assert main(["runs", "--prune", "--yes"]) == 0
    assert "removed Ray Tune's state of feedrate-runs/done: 0.1 MB" in capfd.readouterr().out
    assert sorted(path.name for path in done.iterdir() if path.is_dir()) == []
    assert (done / "trials.jsonl").exists()
    assert (going_on / "tune" / "deep" / "state.pkl").exists()
    assert pruned()["kept"][0] == {"path": "feedrate-runs/done", "why": "there is nothing to remove"}


def test_whole_runs_go_by_age_apart_from_those_that_are_kept(runs, pruned):
    """Of any state; what a run did not write stays, with the folder."""
    old, mine, new, noted = runs("old", False, 40), runs("mine", True, 40), runs("new", True, 1), runs("noted", True, 40)
    (noted / "notes.txt").write_text("mine")
    nested = runs("both/large", True, 40)
    found = pruned("--whole", "--older-than", "30d", "--keep", "mi*", "--yes")
    assert sorted(names(found["removed"])) == ["large", "noted", "old"]
    assert {each["path"].rpartition("/")[2]: each["why"] for each in found["kept"]} == {"mine": "named by --keep", "new": "written to since"}
    assert not old.exists()
    assert not nested.exists()
    assert mine.exists()
    assert new.exists()
    assert [path.name for path in noted.iterdir()] == ["notes.txt"]


def test_what_is_in_use_or_a_link_or_no_run_is_left_alone(runs, pruned, tmp_path):
    """A search holds its lock; links lead elsewhere."""
    used, elsewhere, other = runs("used"), runs("../elsewhere"), runs("other", schema="somebody/else")
    os.rename(elsewhere, tmp_path / "moved")
    (tmp_path / "feedrate-runs" / "linked").symlink_to(tmp_path / "moved")
    inner = runs("inner")
    (inner / "tune-2").symlink_to(tmp_path / "moved")
    (tmp_path / "feedrate-runs" / "no-run").mkdir()
    (tmp_path / "feedrate-runs" / "no-run" / "tune").mkdir()
    with (used / "search.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        found = pruned("--whole", "--yes")
    assert names(found["removed"]) == ["inner"]
    assert {each["path"].rpartition("/")[2]: each["why"] for each in found["kept"]} == {
        "used": "in use by a search",
        "linked": "a link",
        "other": "search.json has schema 'somebody/else'",
    }
    assert len(list((tmp_path / "moved").iterdir())) == 11
    assert used.exists()
    assert other.exists()
    assert (tmp_path / "feedrate-runs" / "no-run" / "tune").exists()


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--prune", "--keep", "typo"], "--keep typo matches none of these runs, so nothing was removed"),
        (["--prune", "elsewhere"], "elsewhere matches no run here"),
        (["--prune", "s3://bucket/runs"], "--prune is only for run folders on this machine"),
        (["--yes"], "--whole, --older-than, --keep and --yes belong to --prune"),
        (["--prune", "--older-than", "soon"], "argument --older-than: 'soon' is not a duration"),
    ],
)
def test_what_cannot_be_pruned_is_said(runs, capfd, arguments, sentence):
    done = runs("done")
    assert main(["runs", *arguments]) == 2
    assert sentence in capfd.readouterr().err
    assert (done / "tune").exists()
