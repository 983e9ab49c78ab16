"""`feedrate check` on the command line: exit codes, texts, JSON; and a search that avoids settings that repeat data."""

import json

import pytest
from answers import answer
from conftest import records

from feedrate.search.cli.main import main

WORKLOADS = """
import os
import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset, IterableDataset
from feedrate.trainables import Workload

class Rows(Dataset):
    def __len__(self):
        return 40
    def __getitem__(self, index):
        return torch.full((4,), float(index)), index % 2

class Noisy(Rows):
    def __init__(self):
        self.rng = np.random.default_rng(0)
    def __getitem__(self, index):
        return torch.full((4,), index + self.rng.random()), index % 2

class Broken(Rows):
    def __getitem__(self, index):
        raise OSError("the disk is not mounted")

class Stream(IterableDataset):
    def __iter__(self):
        for index in range(12):
            yield torch.full((4,), float(index)), index % 2

def short(dataset):
    return Workload(
        name="short",
        dataset=dataset,
        model=lambda: torch.nn.Linear(4, 2),
        loss=torch.nn.CrossEntropyLoss(),
        optimizer=lambda parameters: torch.optim.SGD(parameters, lr=0.01),
    )

def clean():
    return short(Rows())

def noisy():
    return short(Noisy())

def broken():
    return short(Broken())

def nothing():
    make_loader = lambda **overrides: DataLoader(Rows(), collate_fn=lambda samples: None, **overrides)
    return Workload.from_loader(name="nothing", make_loader=make_loader, make_step=lambda context: lambda batch: 0)

def exits():
    return short(lambda: os._exit(3))

def unplugged():
    raise RuntimeError("no such folder")

def stream():
    def make_step(context):
        model = torch.nn.Linear(4, 2)
        def step(batch):
            torch.nn.functional.cross_entropy(model(batch[0]), batch[1]).backward()
        return step
    own = {"batch_size": 4, "num_workers": 2}
    make_loader = lambda **overrides: DataLoader(Stream(), **(own | overrides))
    return Workload.from_loader(name="stream", make_loader=make_loader, make_step=make_step)
"""


@pytest.fixture(autouse=True)
def _here(mine):
    mine(WORKLOADS)


def check(*arguments):
    return main(["check", *arguments])


def test_a_clean_dataset_ends_with_0(capfd):
    """Every question has a line, whatever there was no time for; the last line is the answer."""
    assert check("mine.py:clean") == 0
    lines = capfd.readouterr().out.splitlines()
    assert lines[0].startswith("short: 40 of 40 samples, with 0 and with 2 workers, in ")
    assert lines[-1] == "Changing the loader does not change the data, as far as these samples tell."
    named = {line.split()[1] for line in lines[2:-2] if line[:1] != " "}
    assert named >= {
        "order",
        "content",
        "sample-count",
        "determinism",
        "random-streams",
        "epochs",
        "fork-unsafe",
        "pickling",
        "start-up",
    }


def test_repeated_random_numbers_end_with_1_and_the_fix(capfd):
    """The lines to paste are there, and progress is not on standard output."""
    assert check("mine.py:noisy", "--time-budget", "10s") == 1
    said = capfd.readouterr()
    assert "ERROR    random-streams" in said.out
    assert "| def worker_init_fn(worker_id):" in said.out
    assert "|     dataset.rng = np.random.default_rng(torch.initial_seed())" in said.out
    assert said.out.splitlines()[-1].startswith(
        "Changing the loader changes the data: random-streams, frozen-augmentation."
    )
    assert "comparing epochs with 0 and with 2 workers" in said.err
    assert "comparing" not in said.out


def test_batches_that_hold_nothing_end_with_1(capfd):
    """The last line does not call the data changed."""
    assert check("mine.py:nothing", "--time-budget", "10s") == 1
    lines = capfd.readouterr().out.splitlines()
    assert any(line.startswith("ERROR    batches              the first ") for line in lines)
    assert lines[-1].startswith("The loader delivers only empty batches (see `batches` above)")


def test_json_is_one_object(capfd):
    """Of the general form here, with three workers; spawn and forkserver were timed."""
    assert check("mine.py:stream", "--json", "--num-workers", "3") == 1
    report = answer(capfd.readouterr().out, "check")
    assert (report["workload"], report["num_workers"], report["changes_data"]) == ("stream", 3, True)
    assert report["epoch_samples"] is None
    findings = {finding["name"]: finding for finding in report["findings"]}
    for finding in findings.values():
        assert set(finding) == {"name", "level", "sentence", "fix", "evidence"}
        assert finding["level"] in ("error", "warning", "note", "ok")
    assert findings["order"]["evidence"]["num_samples"] == {"0 workers": 12, "3 workers": 36}
    assert set(findings["start-up"]["evidence"]["startup_s"]) == {"fork", "forkserver", "spawn"}


def test_samples_that_cannot_be_loaded_end_with_1_and_the_users_traceback(capfd):
    """In JSON a failure takes the place of the report."""
    assert check("mine.py:broken") == 1
    said = capfd.readouterr()
    assert "feedrate: loading samples fails (user-code): OSError: the disk is not mounted (raised for sample " in said.err
    assert 'mine.py", line' in said.err
    assert said.out == ""
    assert check("mine.py:broken", "--json") == 1
    message = answer(capfd.readouterr().out, "failure")["failure"]["message"]
    assert message.startswith("OSError: the disk is not mounted (raised for sample ")


@pytest.mark.parametrize(
    ("arguments", "words", "code"),
    [
        (["mine.py:unplugged"], "the workload's function 'unplugged' raised", 1),
        (["mine.py:absent"], "has no function 'absent'", 2),
        (["imagse"], "unknown workload 'imagse'", 2),
        (["mine.py:clean", "--num-workers", "1"], "argument --num-workers: must be 2 or more, not 1", 2),
    ],
)
def test_wrong_usage_ends_with_2_and_code_that_raises_with_1(capfd, arguments, words, code):
    """On standard error alone."""
    assert check(*arguments) == code
    said = capfd.readouterr()
    assert words in said.err
    assert said.out == ""


def test_a_process_that_leaves_ends_with_1(capfd):
    """While the dataset is made."""
    assert check("mine.py:exits") == 1
    assert "ended by itself (exit status 3)" in capfd.readouterr().err


@pytest.mark.parametrize("name", [pytest.param("images", marks=pytest.mark.soak), "table"])
def test_the_bundled_workloads_pass(capfd, name):
    """No error and no warning."""
    assert check(name, "--json", "--time-budget", "15s") == 0
    report = json.loads(capfd.readouterr().out)
    assert not [finding for finding in report["findings"] if finding["level"] in ("error", "warning")]


@pytest.mark.slow
def test_a_search_does_not_choose_workers_that_repeat_data(feedrate, tmp_path):
    """The baseline is measured with its 2 workers; the answer has 1 worker at most. The search prints and records the reason."""
    (tmp_path / "mine.py").write_text(WORKLOADS)
    command = feedrate("search", "mine.py:stream", "--max-trials", "3", "--max-trial-s", "2", "--keep-going", "--no-confirm")
    assert command.code == 0, command.stderr
    run = tmp_path / "feedrate-runs" / "stream-1"
    search = json.loads((run / "search.json").read_text())
    assert search["disqualified"]["max_num_workers"] == 1
    assert search["space"]["num_workers"] == {"range": [0, 1]}
    kept = records(run)
    assert [record["num_workers"] for record in kept if record["origin"] == "baseline"] == [2]
    assert {record["num_workers"] for record in kept if record["origin"] != "baseline"} <= {0, 1}
    best = json.loads((run / "best.json").read_text())
    assert best["dataloader"]["num_workers"] < 2
    assert best["baseline"] is None
    assert "settings with more than 1 worker are left out, because they repeat data" in command.stderr
    assert "your own setting has 2 workers: it is measured" in command.stderr
    assert "every worker delivers the same samples" in command.stderr
    assert "Your own setting is one of them: its rate counts repeated data" in command.stdout


def test_a_search_with_nothing_left_is_refused(capfd):
    """Before anything is started; --allow-duplicates is the way out."""
    assert main(["search", "mine.py:stream", "--num-workers", "2,4"]) == 2
    said = capfd.readouterr().err
    assert "nothing is left to search: with more than 1 worker, every worker delivers the same samples" in said
    assert "--allow-duplicates" in said


@pytest.mark.soak
def test_allow_duplicates_searches_them_and_says_so(feedrate, tmp_path):
    """What is asked for is done."""
    (tmp_path / "mine.py").write_text(WORKLOADS)
    arguments = ("--num-workers", "2", "--prefetch-factor", "2", "--persistent-workers", "false", "--max-trial-s", "2")
    command = feedrate("search", "mine.py:stream", *arguments, "--allow-duplicates", "--max-trials", "1", "--no-confirm")
    assert command.code == 0, command.stderr
    assert "--allow-duplicates: settings that repeat data are searched" in command.stderr
    search = json.loads((tmp_path / "feedrate-runs" / "stream-1" / "search.json").read_text())
    assert search["disqualified"] is None
    assert search["options"]["allow_duplicates"] is True
