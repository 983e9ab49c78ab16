"""analysis/runs.py and remote.py: several runs, and runs at an address."""

import json

import fsspec
import pytest
from synthetic import example_best, record, small_run, write_run

from feedrate.analysis import load_best, load_run, load_runs, runs_table
from feedrate.analysis.run_folder import RunError


@pytest.fixture
def runs(tmp_path):
    """A folder of runs: a finished one, one that goes on, one where nothing worked, one that cannot be read."""
    tmp_path = tmp_path / "feedrate-runs"
    write_run(tmp_path / "done", small_run(), best=example_best(), created_unix_s=1_700_000_300.0)
    write_run(tmp_path / "going", small_run()[:3], created_unix_s=1_700_000_100.0)
    write_run(tmp_path / "broken", [record(0, status="failed")], finished=True, created_unix_s=1_700_000_200.0)
    write_run(tmp_path / "future", [], schema="feedrate/search/9")
    (tmp_path / "notes").mkdir()
    return tmp_path


@pytest.mark.parametrize("pattern", ["{}/*", "{}", "{}/.."], ids=["pattern", "folder", "project"])
def test_every_run_of_a_pattern_is_read_the_oldest_first(runs, pattern):
    """What cannot be read is named in a warning; what is no run is passed over. In a project, where searches write."""
    with pytest.warns(UserWarning, match="left out: .*future.*feedrate/search/9") as warned:
        found = load_runs(pattern.format(runs))
    assert [run.path.name for run in found] == ["going", "broken", "done"]
    assert len(warned) == 1


@pytest.mark.filterwarnings("ignore:left out")
def test_a_row_says_how_far_a_run_came(runs):
    """The answer of a finished run, the fastest so far of one that goes on, nothing where nothing works."""
    table = runs_table(load_runs(f"{runs}/*")).set_index("run")
    going, broken, done = (table.loc[str(runs / name)] for name in ("going", "broken", "done"))
    assert (going["state"], going["config"], going["confirmed"]) == ("unfinished", "b64 w2 p2 pers", False)
    assert (broken["state"], broken["num_failed"]) == ("nothing works", 1)
    assert (done["state"], done["config"], done["confirmed"]) == ("finished", "b64 w6 p4 pin pers", True)
    assert done["speedup"] == 4.46
    assert f"{done['created']:%Y-%m-%d %H:%M:%S}" == "2023-11-14 22:18:20"
    assert done["workload"] == "toy"


def test_a_pattern_without_a_run_is_refused(tmp_path):
    with pytest.raises(RunError, match="matches no run"):
        load_runs(f"{tmp_path}/*")


@pytest.fixture
def remote(tmp_path):
    """The address of a run in fsspec's file system in memory."""
    folder = write_run(tmp_path / "local", small_run(), best=example_best())
    files = fsspec.filesystem("memory")
    for name in ("search.json", "trials.jsonl", "best.json"):
        files.pipe(f"/bucket/run-7/{name}", (folder / name).read_bytes())
    yield "memory://bucket/run-7"
    files.rm("/bucket", recursive=True)


def test_a_run_at_an_address(remote, tmp_path):
    """What pyarrow opens and what only fsspec opens; the same tables as from the folder."""
    folder = load_run(tmp_path / "local")
    for address in (remote, (tmp_path / "local").as_uri()):
        run = load_run(address)
        assert run.trials.equals(folder.trials)
        assert run.best == folder.best
        assert run.problems == []
    assert load_run(remote).path.name == "run-7"
    assert [run.path.name for run in load_runs("memory://bucket/*")] == ["run-7"]
    assert [run.path.name for run in load_runs(remote)] == ["run-7"]
    for pattern in (f"{tmp_path.as_uri()}", f"{tmp_path.as_uri()}/loc*", "memory://bucket"):
        assert len(load_runs(pattern)) == 1, pattern
    for address in (remote, f"{remote}/best.json", (tmp_path / "local").as_uri()):
        assert dict(load_best(address)) == folder.best["dataloader"]


def test_a_run_at_an_address_that_is_not_finished(remote):
    """Without best.json, with a torn last line."""
    files = fsspec.filesystem("memory")
    files.rm("/bucket/run-7/best.json")
    files.pipe("/bucket/run-7/search.json", json.dumps(json.loads(files.cat("/bucket/run-7/search.json")) | {"finished": False}).encode())
    files.pipe("/bucket/run-7/trials.jsonl", files.cat("/bucket/run-7/trials.jsonl") + b'{"schema": "fee')
    run = load_run(remote)
    assert run.unfinished
    assert run.problems == ["line 13 of trials.jsonl is torn or damaged and was skipped"]


@pytest.mark.parametrize(
    ("address", "words"),
    [
        ("memory://bucket/none", "is not a run folder: it has no search.json"),
        ("nosuchscheme://bucket/run", "cannot be opened: .*nosuchscheme"),
        ("file:///nowhere/at/all", "is not a run folder"),
    ],
)
def test_an_address_that_is_no_run(address, words):
    with pytest.raises(RunError, match=words):
        load_run(address)
