"""record.py: search.json is read whole, written as it was but for what has changed, and refused by name."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
from described_workloads import SCRIPT
from synthetic import search_json, small_run, write_run

from feedrate.analysis import load_run
from feedrate.analysis.disqualified import Disqualified
from feedrate.analysis.run_folder import RunError, RunFolder
from feedrate.search.options import SearchOptions
from feedrate.search.record import (
    Hardware,
    HostSetAside,
    OtherSchema,
    ResumedAs,
    SearchedWorkload,
    SearchRecord,
    TrialPlace,
)
from feedrate.search.shipping.submission import Submission
from feedrate.search.space.search_space import Choice, SearchSpace
from feedrate.trainables.config import LoaderConfig
from feedrate.trainables.resolve import WorkloadRef

EXAMPLE = Path(__file__).parents[2] / "docs" / "example-run"
SPACE = SearchSpace.default(num_cpus=4, has_accelerator=False, given={"batch_size": Choice((16, 48))})
OLDER = search_json(command="feedrate search toy.py:workload")
"""What the first versions wrote: without owner, submission, mirror, hosts, disqualified and placement."""
NEWER = search_json(
    of_a_newer_version={"deep": [1, 2]},
    hardware={"hostname": "node-1", "cpu_model": "Test CPU", "num_cpus": 8, "gpus": [], "num_sockets": 2},
    options=SearchOptions(max_trials=9).to_json() | {"patience": 3},
)


def new(**more):
    """A record as run_search makes it."""
    return SearchRecord(
        **{
            "study": "mine-1a2b",
            "workload": SearchedWorkload(ref=WorkloadRef(target="table", options={"size": 3}, cwd="/here"), name="table", epoch_samples=600),
            "argv": ("search", "table"),
            "command": "feedrate search table",
            "created_unix_s": 1.7e9,
            "owner": "ann@laptop",
            "versions": {"torch": "2.13.0"},
            "hardware": Hardware(hostname="h", cpu_model="EPYC", num_cpus=4, gpus=("H100", "H100")),
            "placement": TrialPlace(cpus=2, gpus=1, where="here", hardware="large", trials_per_host=2),
            "hosts": ({"hostname": "h", "host_id": "1"},),
            "space": SPACE,
            "baseline": LoaderConfig(num_workers=0, batch_size=16),
            "options": SearchOptions(max_trials=4, baseline=LoaderConfig(num_workers=2, batch_size=32)),
        }
        | more
    )


EVERYTHING = {
    "workload": SearchedWorkload(
        ref=WorkloadRef(target="python train.py", command=("python", "train.py"), own_python=True, loader="1"), name="train", script=SCRIPT
    ),
    "submission": Submission(owner="ann@laptop", workload="table", command="feedrate search table", way_on="feedrate resume a", env=("A",)),
    "mirror": "s3://bucket/mine",
    "disqualified": Disqualified(max_num_workers=1, reason="they repeat"),
    "warm_start": (LoaderConfig(num_workers=3, batch_size=32),),
    "set_aside": (HostSetAside(hostname="h", host_id="1", reason="disk"),),
    "resumed_as": (ResumedAs(submission_id="a-again-1", unix_s=2.0),),
    "finished": True,
    "stop_reason": "the time budget is spent",
    "unconfirmed_because": "--no-confirm",
}


@pytest.fixture
def folder(tmp_path):
    return RunFolder(tmp_path)


@pytest.mark.parametrize("record", [new(), new(**EVERYTHING), new(warm_start=(), finished=True)], ids=["new", "everything", "finished"])
def test_a_record_is_read_as_it_was_written(folder, record):
    record.write(folder)
    assert SearchRecord.read(folder) == record


def test_a_new_file_has_its_keys_in_their_order(folder):
    """Null where something may be missing; what is only known later is left out."""
    new().write(folder)
    content = folder.read_search()
    assert list(content) == [
        "schema", "study", "workload", "objective", "argv", "command", "created_unix_s", "owner", "submission", "mirror", "finished", "versions",
        "hardware", "placement", "hosts", "space", "disqualified", "baseline", "options",
    ]  # fmt: skip
    assert content["workload"] == {
        "target": "table", "options": {"size": 3}, "folder": None, "cwd": "/here", "command": None, "own_python": False, "loader": None,
        "name": "table", "unit": "samples", "epoch_samples": 600, "script": None,
    }  # fmt: skip
    assert (content["submission"], content["mirror"], content["disqualified"], content["finished"]) == (None, None, None, False)
    assert content["hardware"] == {"hostname": "h", "cpu_model": "EPYC", "num_cpus": 4, "gpus": ["H100", "H100"]}
    assert content["placement"] == {"cpus": 2, "gpus": 1, "where": "here", "hardware": "large", "trials_per_host": 2}
    assert list(new(warm_start=()).to_json())[-1] == "warm_start"


def test_the_end_of_a_search_is_written_even_if_it_is_null(folder):
    new().write(folder)
    replace(SearchRecord.read(folder), finished=True, stop_reason="all were tried").write(folder)
    content = folder.read_search()
    assert content["finished"] is True
    assert list(content.items())[-2:] == [("stop_reason", "all were tried"), ("unconfirmed_because", None)]


@pytest.mark.parametrize("content", [OLDER, NEWER, json.loads((EXAMPLE / "search.json").read_text())], ids=["older", "newer", "example-run"])
def test_a_file_of_another_version_is_written_again_as_it_was(folder, content):
    """But for what has changed: keys that this version does not know stay, and none are added."""
    folder.search.write_text(json.dumps(content))
    record = SearchRecord.read(folder)
    assert json.dumps(record.to_json()) == json.dumps(content)
    options = replace(record.options, max_trials=99)
    again = {"submission_id": "b", "unix_s": 3.0}
    replace(record, options=options, finished=False, space=SPACE, resumed_as=(ResumedAs(**again),)).write(folder)
    written = folder.read_search()
    changed = {"options", "finished", "space", "resumed_as"}
    assert {name: value for name, value in written.items() if name not in changed} == {name: value for name, value in content.items() if name not in changed}
    assert written["options"] == content["options"] | options.to_json()
    assert (written["finished"], written["space"], written["resumed_as"]) == (False, SPACE.to_json(), [again])


def test_the_example_run_is_read():
    record = SearchRecord.read(RunFolder(EXAMPLE))
    assert (record.study, record.workload.ref.target, record.workload.epoch_samples) == ("example-95d34b2f", "objects", 50_000)
    assert (record.submission, record.owner, record.hosts, record.resumed_as, record.placement.trials_per_host) == (None, None, (), (), 1)
    assert record.finished
    assert SearchRecord.of(load_run(EXAMPLE)) == record


def test_a_password_is_not_written(folder):
    """It stays in the record of this process, which needs it."""
    url = "postgresql://ann:secret@host/db"
    new().write(folder)
    record = replace(SearchRecord.read(folder), options=SearchOptions(storage=url))
    record.write(folder)
    assert record.options.storage == url
    assert "secret" not in folder.search.read_text()
    assert SearchRecord.read(folder).options.storage == "postgresql://ann:***@host/db"


def test_another_schema_is_refused_by_its_name(folder):
    folder.write_search(search_json(schema="feedrate/search/99"))
    with pytest.raises(OtherSchema, match="has schema 'feedrate/search/99', this feedrate resumes 'feedrate/search/1' only") as refused:
        SearchRecord.read(folder)
    assert refused.value.schema == "feedrate/search/99"
    with pytest.raises(RunError, match="has schema None"):
        SearchRecord.from_json({})


@pytest.mark.parametrize(
    ("changed", "why"),
    [
        ({"baseline": {"num_workers": -1}}, "is damaged .ValueError: num_workers must be 0 or more"),
        ({"space": {}}, "is damaged .KeyError: 'has_accelerator'"),
        ({"workload": None}, "is damaged .TypeError"),
        ({"created_unix_s": "yesterday"}, "is damaged .ValueError"),
    ],
)
def test_a_damaged_file_is_refused_by_its_name(folder, changed, why):
    folder.write_search(search_json(**changed))
    with pytest.raises(RunError, match=rf"search\.json {why}"):
        SearchRecord.read(folder)


def test_what_is_missing_is_named(folder):
    content = search_json()
    del content["space"], content["options"]
    folder.write_search(content)
    with pytest.raises(RunError, match=r"search.json is damaged: it has no space, options. Restore it, or search again"):
        SearchRecord.read(folder)


def test_texts_of_an_answer_can_be_printed(tmp_path):
    """A folder's name that is no text is kept for the search, and escaped in what the answer is made from."""
    run = write_run(tmp_path / "run", small_run(), command="feedrate search /data/\udcff")
    assert SearchRecord.read(RunFolder(run)).command == "feedrate search /data/\udcff"
    assert SearchRecord.of(load_run(run)).command == "feedrate search /data/\\udcff"
